#include <algorithm>

#include "core/control/failover_view.h"
#include "core/control/members.h"
#include "core/control/plan.h"
#include "core/control/plan_steps.h"
#include "core/control/text.h"

namespace replicad {

namespace {

/// The target applies its log before it can serve.
constexpr std::uint32_t failover_answer_ms = 330'000;

/// Those with the longest log first; among equals the better host.
Result<std::string> choose_target(const FailoverView& view,
                                  bool force,
                                  const std::vector<HostReport>& hosts) {
  std::vector<std::string> candidates = failover_candidates(view);
  if (candidates.empty() && force) candidates = failover_candidates(view, true);
  if (candidates.empty()) {
    return tl::unexpected(
        Error{Errc::refused, 0, "no replica that answers is in sync", "name one by --to"});
  }
  const auto position = [&](const std::string& host) {
    const auto copy = std::find_if(view.copies.begin(),
                                   view.copies.end(),
                                   [&](const CopyInfo& item) { return item.host == host; });
    return std::pair(copy->epoch.number, copy->sequence);
  };
  std::vector<std::string> best;
  for (const std::string& host : candidates) {
    if (position(host) == position(candidates.front())) best.push_back(host);
  }
  const std::vector<std::string> ranked = rank_hosts(hosts, best);
  return ranked.empty() ? best.front() : ranked.front();
}

}  // namespace

Result<Plan> plan_failover(const std::string& volume,
                           const FailoverOptions& options,
                           const std::vector<MemberReport>& reports,
                           const std::vector<HostReport>& hosts) {
  RD_TRY(check_uuids(volume, reports));
  const bool anybody = std::any_of(
      reports.begin(), reports.end(), [](const auto& report) { return report.volume.has_value(); });
  if (!anybody) {
    // Says who has it, or why nobody answers.
    const auto primary = find_primary(volume, reports);
    if (!primary) return tl::unexpected(primary.error());
  }
  const FailoverView view = look_for_failover(options.to, reports);
  Plan plan;
  plan.volume = volume;
  if (view.record && view.record->primary == options.to) {
    plan.notes.push_back(
        fmt::format("{} is the primary of {} already", printable(options.to), volume));
    return plan;
  }
  const Status allowed = check_failover(view);
  if (!allowed && !options.force) return tl::unexpected(allowed.error());
  if (!view.record) return tl::unexpected(allowed.error());
  std::string target = options.to;
  if (target.empty()) {
    auto chosen = choose_target(view, options.force, hosts);
    if (!chosen) return tl::unexpected(chosen.error());
    target = std::move(*chosen);
  }
  const MemberReport* report = report_of(reports, target);
  if (report == nullptr || !report->volume) {
    return tl::unexpected(
        Error{Errc::unreachable,
              0,
              fmt::format("{} does not answer: {}", printable(target), why_silent(reports, target)),
              {}});
  }
  for (const std::string& line : describe_copies(view))
    plan.notes.push_back(line);
  if (!allowed) {
    plan.notes.push_back("forced: " +
                         allowed.error().message.substr(0, allowed.error().message.find('\n')));
  }
  Step step = planning::make_step(
      *report,
      {"POST",
       planning::volume_path(volume, "/failover"),
       {{"force", options.force}, {"dry_run", false}}},
      fmt::format("fence {} by a new epoch, apply the log, start the export here",
                  printable(view.record->primary)));
  step.answer_ms = failover_answer_ms;
  plan.steps.push_back(std::move(step));
  return plan;
}

}  // namespace replicad
