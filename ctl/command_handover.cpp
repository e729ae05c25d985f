// handover

// g++ 12 takes the any_cast inside Boost's typed_value::notify for one that may give null.
#pragma GCC diagnostic ignored "-Wnull-dereference"

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>

#include <unistd.h>

#include "core/base/names.h"
#include "core/control/plan.h"
#include "core/control/text.h"
#include "ctl/api_client.h"
#include "ctl/commands.h"
#include "ctl/executor.h"

namespace replicad::ctl {

namespace po = boost::program_options;
using Json = nlohmann::json;

namespace {

constexpr auto role_patience = std::chrono::seconds(60);
/// A host that is silent for so long is not just slow.
constexpr auto silence_patience = std::chrono::seconds(5);
constexpr useconds_t take_again_us = 200'000;

Result<HandoverRequest> handover_request(const OptionValues& values) {
  HandoverRequest request;
  request.to = text_option(values, "to");
  if (request.to.empty())
    return fail(Errc::invalid_argument,
                "--to HOST (the host that the VM migrates to), --finish or --end");
  if (!is_valid_name(request.to)) {
    return fail(Errc::invalid_argument, "--to: '{}' is no name of a host", printable(request.to));
  }
  const auto deadline_ms = deadline_option(values, request.deadline_ms);
  if (!deadline_ms) return tl::unexpected(deadline_ms.error());
  request.deadline_ms = *deadline_ms;
  return request;
}

std::string prepared_text(const Json& answer) {
  const Json nbd = answer.is_object() ? answer.value("export", Json()) : Json();
  return fmt::format(
      "prepared: {0} is open on {1}, at {2}; migrate the VM now\n"
      "its first write there moves the role; when it runs there `replicactl handover {0} "
      "--finish`, "
      "if it does not `--end`\n",
      printable(text_of(answer, "volume")),
      printable(text_of(answer, "to")),
      printable(text_of(nbd, "uri")));
}

/// How long to go on asking for what is not clear yet, and what is said of that.
class Waiting {
 public:
  explicit Waiting(Context& context) : context_(context) {}

  /// Nothing is known because of `error`. Returns after a moment, unless it has lasted too long: false.
  [[nodiscard]] bool goes_on(const Error& error) {
    const auto now = Clock::now();
    const bool silent = error.code == Errc::unreachable;
    if (!silent) {
      silent_since_.reset();
    } else if (!silent_since_) {
      silent_since_ = now;
    }
    const auto patience = silent ? silence_patience : role_patience;
    if (now - silent_since_.value_or(began_) >= patience) return false;
    if (said_ != error.message) {
      said_ = error.message;
      context_.say(fmt::format("waits, {} s at most: {}", patience.count(), said_));
    }
    ::usleep(take_again_us);
    return true;
  }

 private:
  using Clock = std::chrono::steady_clock;

  Context& context_;
  Clock::time_point began_ = Clock::now();
  std::optional<Clock::time_point> silent_since_;
  std::string said_;
};

/// How it ends. While the role moves, which the guest may cause at any moment, that is not clear: says so, and waits.
/// With `finish`, and unless it is a dry run, the role has moved then.
Result<Plan> ending(Context& context, bool finish) {
  Waiting waiting(context);
  while (true) {
    const std::vector<MemberReport> reports = context.cluster().ask_volume(context.volume());
    auto plan = finish ? plan_finish_handover(context.volume(), reports)
                       : plan_end_handover(context.volume(), reports);
    const bool is_over = std::ranges::none_of(reports, [](const MemberReport& report) {
      return report.volume && report.volume->vote.record && report.volume->vote.record->handover;
    });
    const bool is_known = plan && (plan->steps.size() == 1 || context.options().dry_run);
    if (is_known || is_over) return plan;
    std::optional<Error> error;
    if (plan) {
      const Step& take = plan->steps.front();
      Timeouts timeouts = context.cluster().timeouts();
      timeouts.answer_ms = std::max(timeouts.answer_ms, take.answer_ms);
      const ApiAnswer answer = call_api(take.address, take.request, timeouts);
      if (!answer.body) error = answer.body.error();
    } else {
      error = plan.error();
    }
    if (error && !waiting.goes_on(*error)) return tl::unexpected(*error);
  }
}

}  // namespace

void add_handover_options(OptionSpecs& specs) {
  specs.add_options()(
      "to", po::value<std::string>()->value_name("HOST"), "the host that the VM migrates to")(
      "deadline",
      po::value<std::string>()->value_name("TIME"),
      "how long the guest's writes may be held while it is prepared (default 30s)")(
      "finish", "the VM runs there: let the role move, unless it has, and end it")(
      "end", "end it where it stands: the VM has not been migrated");
}

Status run_handover(Context& context, const OptionValues& values) {
  const bool ends = values.count("end") > 0;
  const bool finishes = values.count("finish") > 0;
  if ((values.count("to") > 0 ? 1 : 0) + (ends ? 1 : 0) + (finishes ? 1 : 0) > 1)
    return fail(Errc::invalid_argument, "--to, --finish and --end exclude each other");
  HandoverRequest request;
  if (!ends && !finishes) {
    auto given = handover_request(values);
    if (!given) return tl::unexpected(given.error());
    request = std::move(*given);
  }
  const auto plan =
      ends || finishes
          ? ending(context, finishes)
          : plan_handover(
                context.volume(), request, context.cluster().ask_volume(context.volume()));
  if (!plan) return tl::unexpected(plan.error());
  std::string text;
  const Status status = run_plan(
      context, *plan, [&](const Step& /*step*/, const Json& answer, PlanResult& result) -> Status {
        result.result = {{"handover", answer}};
        if (!ends && !finishes) text = prepared_text(answer);
        return {};
      });
  if (!text.empty() && !context.options().json && !context.options().quiet)
    context.terminal().out << text << std::flush;
  return status;
}

}  // namespace replicad::ctl
