// handover

// g++ 12 takes the any_cast inside Boost's typed_value::notify for one that may give null.
#pragma GCC diagnostic ignored "-Wnull-dereference"

#include "core/base/names.h"
#include "core/control/plan.h"
#include "core/control/text.h"
#include "ctl/commands.h"
#include "ctl/executor.h"

namespace replicad::ctl {

namespace po = boost::program_options;
using Json = nlohmann::json;

namespace {

Result<HandoverRequest> handover_request(const OptionValues& values) {
  HandoverRequest request;
  request.to = text_option(values, "to");
  if (request.to.empty())
    return fail(Errc::invalid_argument, "--to HOST (the host that the VM migrates to), or --end");
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
      "prepared: {} is open on {}, at {}; migrate the VM now\n"
      "its first write there moves the role; afterwards `replicactl handover {} --end`\n",
      printable(text_of(answer, "volume")),
      printable(text_of(answer, "to")),
      printable(text_of(nbd, "uri")),
      printable(text_of(answer, "volume")));
}

}  // namespace

void add_handover_options(OptionSpecs& specs) {
  specs.add_options()(
      "to", po::value<std::string>()->value_name("HOST"), "the host that the VM migrates to")(
      "deadline",
      po::value<std::string>()->value_name("TIME"),
      "how long the guest's writes may be held while it is prepared (default 30s)")(
      "end", "end it: after the migration, or instead of it");
}

Status run_handover(Context& context, const OptionValues& values) {
  const bool ends = values.count("end") > 0;
  if (ends && values.count("to") > 0)
    return fail(Errc::invalid_argument, "--to and --end exclude each other");
  HandoverRequest request;
  if (!ends) {
    auto given = handover_request(values);
    if (!given) return tl::unexpected(given.error());
    request = std::move(*given);
  }
  const std::vector<MemberReport> reports = context.cluster().ask_volume(context.volume());
  const auto plan = ends ? plan_end_handover(context.volume(), reports)
                         : plan_handover(context.volume(), request, reports);
  if (!plan) return tl::unexpected(plan.error());
  std::string text;
  const Status status = run_plan(
      context, *plan, [&](const Step& /*step*/, const Json& answer, PlanResult& result) -> Status {
        result.result = {{"handover", answer}};
        if (!ends) text = prepared_text(answer);
        return {};
      });
  if (!text.empty() && !context.options().json && !context.options().quiet)
    context.terminal().out << text << std::flush;
  return status;
}

}  // namespace replicad::ctl
