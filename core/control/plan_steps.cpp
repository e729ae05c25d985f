#include "core/control/plan_steps.h"

#include "core/control/text.h"

namespace replicad::planning {

tl::unexpected<Error> refuse(std::string message, std::string hint) {
  return tl::unexpected(Error{Errc::refused, 0, std::move(message), std::move(hint)});
}

std::string volume_path(const std::string& volume, const char* action) {
  return fmt::format("/v1/volumes/{}{}", volume, action);
}

ApiRequest delete_request(const std::string& volume, const std::string& uuid) {
  return {"DELETE", fmt::format("/v1/volumes/{}?uuid={}", volume, uuid), nullptr};
}

Step make_step(const MemberReport& report, ApiRequest request, std::string text) {
  Step step;
  step.host = report.host;
  step.address = report.address;
  step.request = std::move(request);
  step.text = std::move(text);
  return step;
}

/// Members besides the primary, by the primary's list: those that answered become `reachable`,
/// others are skipped.
std::vector<const MemberReport*> other_members(const MemberReport& primary,
                                               const std::vector<MemberReport>& reports,
                                               Plan& plan) {
  std::vector<const MemberReport*> reachable;
  for (const MemberView& member : primary.volume->members) {
    if (member.host == primary.host) continue;
    const MemberReport* report = report_of(reports, member.host);
    if (report != nullptr && report->volume) {
      reachable.push_back(report);
    } else {
      plan.skipped.push_back({member.host, why_silent(reports, member.host)});
    }
  }
  return reachable;
}

Status check_not_moving(const VolumeView& volume) {
  if (!volume.transfer && volume.state != "transferring") return {};
  return tl::unexpected(
      Error{Errc::busy,
            0,
            fmt::format("{} is being handed over from {} to {}",
                        volume.name,
                        printable(volume.host),
                        volume.transfer ? printable(volume.transfer->to) : "another host"),
            "wait until `replicactl status` shows it served again"});
}

Status check_no_handover(const VolumeView& volume) {
  const auto& record = volume.vote.record;
  if (!record || !record->handover) return {};
  const HandoverState& handover = *record->handover;
  const std::string to = printable(handover.to);
  const std::string finish = fmt::format("`replicactl handover {} --finish`", volume.name);
  std::string hint = finish + " ends it";
  if (handover.term == 0) hint = fmt::format("if the VM runs on {}: {}, else `--end`", to, finish);
  return tl::unexpected(Error{
      Errc::busy,
      0,
      fmt::format(
          "a handover of {} from {} to {} is prepared", volume.name, printable(handover.from), to),
      std::move(hint)});
}

}  // namespace replicad::planning
