#include <algorithm>

#include "core/control/members.h"
#include "core/control/plan.h"
#include "core/control/plan_steps.h"
#include "core/control/text.h"

namespace replicad {

namespace {

using planning::refuse;

/// The target's daemon checks, promotes and starts its export after the guest's I/O was drained.
constexpr std::uint32_t promotion_ms_max = 60'000;
/// Telling the mode, the vote, and the start of the target's standby.
constexpr std::uint32_t prepare_ms_max = 60'000;

Status check_movable(const VolumeView& primary) {
  RD_TRY(planning::check_not_moving(primary));
  RD_TRY(planning::check_no_handover(primary));
  if (primary.state == "serving") return {};
  // Its image fails and the guest waits: moving it away is a way out, but not for one that waits for a quorum.
  if (primary.state == "held" && primary.error && primary.error->code != Errc::unreachable)
    return {};
  const std::string where = printable(primary.host);
  if (primary.state == "stopped") {
    return refuse(
        fmt::format(
            "{} is not active on {}, so its replicas are not connected and cannot be compared",
            primary.name,
            where),
        fmt::format("`replicactl activate {}` first", primary.name));
  }
  if (primary.state == "failed") {
    return refuse(
        fmt::format("the export of {} on {} has failed{}{}",
                    primary.name,
                    where,
                    primary.error ? ": " : "",
                    primary.error ? printable(primary.error->message) : ""),
        "see `replicactl status`; `replicactl failover` lets a replica take over once nobody "
        "hears the export any more");
  }
  return tl::unexpected(Error{
      Errc::busy,
      0,
      fmt::format("{} is '{}' on {}, not 'serving'", primary.name, printable(primary.state), where),
      "try again in a moment"});
}

/// Why `host` cannot take over now; nullopt if it can. Only its membership and what the members
/// said count.
std::optional<Error> why_not(const VolumeView& primary,
                             const std::string& host,
                             const std::vector<MemberReport>& reports) {
  const auto because = [&](Errc code, std::string reason, std::string hint) {
    return Error{code,
                 0,
                 fmt::format("{} cannot take over {}: {}", printable(host), primary.name, reason),
                 std::move(hint)};
  };
  if (primary.member(host) == nullptr) {
    return because(Errc::refused, "it is no member", fmt::format("members are {}", [&] {
                     std::vector<std::string> names;
                     for (const MemberView& member : primary.members)
                       names.push_back(printable(member.host));
                     return format_list(names);
                   }()));
  }
  if (const std::string reason = why_silent(reports, host); !reason.empty()) {
    return because(Errc::unreachable, "it does not answer: " + reason, {});
  }
  const VolumeView& own = *report_of(reports, host)->volume;
  const ReplicaView* seen = primary.replica_on(host);
  if (own.replica && !own.replica->consistent) {
    return because(Errc::inconsistent,
                   "its copy is not complete",
                   "wait for it: `replicactl wait " + primary.name + " --for in-sync`");
  }
  if (!primary.is_in_sync(host) || (seen != nullptr && !seen->in_sync)) {
    const std::string state = seen == nullptr ? "not connected" : printable(seen->state);
    const std::string lag = seen == nullptr || seen->lag_bytes == 0
                                ? ""
                                : ", behind by " + format_bytes(seen->lag_bytes);
    return because(
        Errc::refused,
        fmt::format("it is not in sync ({}{})", state, lag),
        seen != nullptr && seen->state == "detached"
            ? fmt::format(
                  "`replicactl resync {} --host {}` copies it anew", primary.name, printable(host))
            : "wait for it: `replicactl wait " + primary.name + " --for in-sync`");
  }
  return std::nullopt;
}

Result<std::string> best_target(const VolumeView& primary,
                                const std::vector<MemberReport>& reports,
                                const std::vector<HostReport>& hosts) {
  std::vector<std::string> able;
  std::string reasons;
  for (const MemberView& member : primary.members) {
    if (member.host == primary.host) continue;
    const std::optional<Error> reason = why_not(primary, member.host, reports);
    if (!reason) {
      able.push_back(member.host);
    } else {
      reasons += (reasons.empty() ? ": " : "; ") + reason->message;
    }
  }
  if (able.empty()) {
    return refuse(fmt::format("no replica of {} can take over{}", primary.name, reasons),
                  "see `replicactl status`");
  }
  const std::vector<std::string> ranked = rank_hosts(hosts, able);
  // A replica whose host gave no metrics is still better than no move.
  return ranked.empty() ? *std::min_element(able.begin(), able.end()) : ranked.front();
}

}  // namespace

Result<Plan> plan_switchover(const std::string& volume,
                             const SwitchoverRequest& request,
                             const std::vector<MemberReport>& reports,
                             const std::vector<HostReport>& hosts) {
  const auto found = find_primary(volume, reports);
  if (!found) return tl::unexpected(found.error());
  const VolumeView& primary = *(*found)->volume;
  Plan plan;
  plan.volume = volume;
  if (request.to == primary.host) {
    plan.notes.push_back(fmt::format("{} is the primary of {} already", request.to, volume));
    return plan;
  }
  RD_TRY(check_movable(primary));
  std::string target = request.to;
  if (target.empty()) {
    Result<std::string> best = best_target(primary, reports, hosts);
    if (!best) return tl::unexpected(best.error());
    target = std::move(*best);
    plan.notes.push_back(
        fmt::format("{} has the best score of the replicas that are in sync", printable(target)));
  } else if (std::optional<Error> reason = why_not(primary, target, reports)) {
    return tl::unexpected(std::move(*reason));
  }
  nlohmann::json body{{"to", target}, {"deadline_ms", request.deadline_ms}, {"dry_run", false}};
  Step step = planning::make_step(
      **found,
      {"POST", planning::volume_path(volume, "/switchover"), std::move(body)},
      fmt::format("hold the guest's writes, drain, compare, hand over to {} (deadline {})",
                  printable(target),
                  format_seconds(request.deadline_ms / 1000.0)));
  step.answer_ms = request.deadline_ms + promotion_ms_max;
  plan.steps.push_back(std::move(step));
  return plan;
}

Result<Plan> plan_handover(const std::string& volume,
                           const HandoverRequest& request,
                           const std::vector<MemberReport>& reports) {
  const auto found = find_primary(volume, reports);
  if (!found) return tl::unexpected(found.error());
  const VolumeView& primary = *(*found)->volume;
  RD_TRY(check_movable(primary));
  if (request.to == primary.host) {
    return refuse(fmt::format("{} is the primary of {} already", request.to, volume),
                  "a handover is prepared to the host that the VM migrates to");
  }
  if (std::optional<Error> reason = why_not(primary, request.to, reports))
    return tl::unexpected(std::move(*reason));
  Plan plan;
  plan.volume = volume;
  nlohmann::json body{{"to", request.to}, {"deadline_ms", request.deadline_ms}};
  Step step = planning::make_step(
      **found,
      {"POST", planning::volume_path(volume, "/handover"), std::move(body)},
      fmt::format("turn sync, drain, put the handover on record, open the disks on {}",
                  printable(request.to)));
  step.answer_ms = request.deadline_ms + prepare_ms_max;
  plan.steps.push_back(std::move(step));
  return plan;
}

namespace {

struct FoundHandover {
  const MemberReport* primary = nullptr;
  HandoverState handover;
};

/// The one on record at the primary. Errc::busy while the role moves: the old primary may have accepted the record of
/// that, and be the primary still.
Result<FoundHandover> find_handover(const std::string& volume,
                                    const std::vector<MemberReport>& reports) {
  const auto found = find_primary(volume, reports);
  if (!found) return tl::unexpected(found.error());
  const MemberReport& primary = **found;
  const auto& record = primary.volume->vote.record;
  if (!record || !record->handover) {
    return refuse(fmt::format("no handover of {} is prepared", volume),
                  fmt::format("`replicactl handover {} --to HOST` prepares one", volume));
  }
  RD_TRY(planning::check_not_moving(*primary.volume));
  if (record->primary == primary.host) return FoundHandover{&primary, *record->handover};
  return tl::unexpected(Error{Errc::busy,
                              0,
                              fmt::format("{} is moving from {} to {}",
                                          volume,
                                          printable(primary.host),
                                          printable(record->primary)),
                              "try again in a moment"});
}

/// A move that is under way is waited for.
Step end_step(const std::string& volume, const MemberReport& primary, const std::string& standby) {
  Step step = planning::make_step(
      primary,
      {"POST", planning::volume_path(volume, "/handover/end"), nlohmann::json::object()},
      fmt::format("take the handover from the record, close the disks on {}", printable(standby)));
  step.busy_ms = promotion_ms_max;
  return step;
}

}  // namespace

Result<Plan> plan_end_handover(const std::string& volume,
                               const std::vector<MemberReport>& reports) {
  const auto found = find_handover(volume, reports);
  if (!found) return tl::unexpected(found.error());
  const HandoverState& handover = found->handover;
  Plan plan;
  plan.volume = volume;
  plan.steps.push_back(
      end_step(volume, *found->primary, handover.term == 0 ? handover.to : handover.from));
  return plan;
}

Result<Plan> plan_finish_handover(const std::string& volume,
                                  const std::vector<MemberReport>& reports) {
  const auto found = find_handover(volume, reports);
  if (!found) return tl::unexpected(found.error());
  const HandoverState& handover = found->handover;
  Plan plan;
  plan.volume = volume;
  const MemberReport* target = found->primary;
  if (handover.term == 0) {
    if (std::optional<Error> reason = why_not(*target->volume, handover.to, reports))
      return tl::unexpected(std::move(*reason));
    Step step =
        planning::make_step(*target,
                            {"POST",
                             planning::volume_path(volume, "/handover/take"),
                             {{"id", handover.id}, {"to", handover.to}}},
                            fmt::format("hold the guest's writes, drain, compare, hand over to {}",
                                        printable(handover.to)));
    step.answer_ms = switchover_deadline_ms_default + promotion_ms_max;
    plan.steps.push_back(std::move(step));
    target = report_of(reports, handover.to);
  }
  plan.steps.push_back(end_step(volume, *target, handover.from));
  return plan;
}

}  // namespace replicad
