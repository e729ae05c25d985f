// failover

// g++ 12 takes the any_cast inside Boost's typed_value::notify for one that may give null.
#pragma GCC diagnostic ignored "-Wnull-dereference"

#include <chrono>
#include <thread>

#include "core/base/names.h"
#include "core/control/failover_view.h"
#include "core/control/members.h"
#include "core/control/plan.h"
#include "core/control/text.h"
#include "ctl/commands.h"
#include "ctl/executor.h"

namespace replicad::ctl {

namespace po = boost::program_options;
using Json = nlohmann::json;

namespace {

/// A member takes a moment to see that the primary's connection has ended; one whose host is gone
/// is heard for a few seconds after its last heartbeat.
constexpr auto quiet_patience = std::chrono::seconds(5);
constexpr auto quiet_poll = std::chrono::milliseconds(50);

/// What the members say; asked again while some still hear a primary whose host does not answer.
std::vector<MemberReport> ask_until_quiet(Context& context, const FailoverOptions& options) {
  const auto end = std::chrono::steady_clock::now() + quiet_patience;
  while (true) {
    std::vector<MemberReport> reports = context.cluster().ask_volume(context.volume());
    const FailoverView view = look_for_failover(options.to, reports);
    const bool lingers = view.record && !view.primary_alive.empty() &&
                         !why_silent(reports, view.record->primary).empty();
    if (options.force || !lingers || std::chrono::steady_clock::now() >= end) return reports;
    std::this_thread::sleep_for(quiet_poll);
  }
}

}  // namespace

void add_failover_options(OptionSpecs& specs) {
  specs.add_options()("to",
                      po::value<std::string>()->value_name("HOST"),
                      "the new primary; default: the most complete replica in sync")(
      "force", "also if the primary lives, HOST is not in sync, or there is no majority");
}

Status run_failover(Context& context, const OptionValues& values) {
  FailoverOptions options;
  options.to = text_option(values, "to");
  options.force = values.count("force") > 0;
  if (!options.to.empty() && !is_valid_name(options.to)) {
    return fail(Errc::invalid_argument, "--to: '{}' is no name of a host", printable(options.to));
  }
  std::vector<MemberReport> reports = ask_until_quiet(context, options);
  context.cluster().ask_losses(context.volume(), reports);
  std::vector<HostReport> hosts;
  if (options.to.empty()) hosts = context.cluster().ask_hosts();
  const auto plan = plan_failover(context.volume(), options, reports, hosts);
  if (!plan) return tl::unexpected(plan.error());
  std::string text;
  Status status = run_plan(
      context, *plan, [&](const Step& step, const Json& answer, PlanResult& result) -> Status {
        result.result = {{"failover", answer}};
        const auto nbd = answer.find("export");
        const std::string uri = nbd != answer.end() && nbd->is_object() && nbd->contains("uri")
                                    ? (*nbd)["uri"].get<std::string>()
                                    : std::string();
        text = fmt::format(
            "{} is served by {}: {}\n", context.volume(), printable(step.host), printable(uri));
        return {};
      });
  if (!text.empty() && !context.options().json && !context.options().quiet)
    context.terminal().out << text << std::flush;
  return status;
}

void add_resolve_options(OptionSpecs& specs) {
  specs.add_options()("keep",
                      po::value<std::string>()->value_name("HOST"),
                      "the history that this host has is kept; the others are given up");
}

Status run_resolve(Context& context, const OptionValues& values) {
  const std::string keep = text_option(values, "keep");
  if (!is_valid_name(keep))
    return fail(Errc::invalid_argument, "resolve needs --keep HOST, a host that has the history");
  const std::vector<MemberReport> reports = context.cluster().ask_volume(context.volume());
  const auto plan = plan_resolve(context.volume(), keep, reports);
  if (!plan) return tl::unexpected(plan.error());
  RD_TRY(context.confirm(fmt::format(
      "keep the history of {} that {} has, and give every other one up?", context.volume(), keep)));
  return run_plan(context, *plan);
}

}  // namespace replicad::ctl
