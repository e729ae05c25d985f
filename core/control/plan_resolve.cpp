#include <algorithm>

#include "core/control/failover_view.h"
#include "core/control/members.h"
#include "core/control/plan.h"
#include "core/control/plan_steps.h"
#include "core/control/text.h"
#include "core/vote/fork.h"
#include "core/vote/record_json.h"

namespace replicad {

namespace {

using Json = nlohmann::json;
using planning::make_step;
using planning::refuse;
using planning::volume_path;

/// The latest record of the history that `host` has.
Result<Record> record_to_keep(const std::string& host, const std::vector<MemberReport>& reports) {
  const MemberReport* chosen = report_of(reports, host);
  if (chosen == nullptr || !chosen->volume) {
    return tl::unexpected(
        Error{Errc::unreachable,
              0,
              fmt::format("{} does not answer: {}", printable(host), why_silent(reports, host)),
              {}});
  }
  if (!chosen->volume->vote.record)
    return refuse(fmt::format("{} has no record of the volume", printable(host)), {});
  const VoterState* latest = &chosen->volume->vote;
  for (const MemberReport& report : reports) {
    if (!report.volume || !report.volume->vote.record) continue;
    const VoterState& vote = report.volume->vote;
    if (vote.record->fork == latest->record->fork && vote.accepted > latest->accepted)
      latest = &vote;
  }
  return *latest->record;
}

bool is_among(const std::vector<const MemberReport*>& reports, const std::string& host) {
  return std::any_of(reports.begin(), reports.end(), [&](const MemberReport* report) {
    return report->volume->host == host;
  });
}

Json member_json(const MemberState& member) {
  return {{"host", member.host},
          {"stream", member.stream},
          {"control", member.control},
          {"role", member.witness ? "witness" : "data"}};
}

/// Those of the kept history that had it all the time.
Json faithful_members(const Record& kept, const std::vector<const MemberReport*>& given_up) {
  Json members = Json::array();
  for (const MemberState& member : kept.members) {
    if (!is_among(given_up, member.host)) members.push_back(member_json(member));
  }
  return members;
}

Json all_members(const Record& kept, const std::vector<const MemberReport*>& given_up) {
  Json members = faithful_members(kept, given_up);
  for (const MemberReport* report : given_up) {
    const auto& own = report->volume->vote.record->members;
    const MemberState* known = find_member(own, report->volume->host);
    if (known != nullptr) members.push_back(member_json(*known));
  }
  return members;
}

std::string position_text(const VolumeView& view) {
  return fmt::format("{}: {}, at write {} of epoch {}",
                     printable(view.host),
                     describe_history(*view.vote.record),
                     view.history.sequence,
                     view.history.epoch.number);
}

}  // namespace

Result<Plan> plan_resolve(const std::string& volume,
                          const std::string& keep,
                          const std::vector<MemberReport>& reports) {
  RD_TRY(check_uuids(volume, reports));
  const auto kept = record_to_keep(keep, reports);
  if (!kept) return tl::unexpected(kept.error());
  const MemberReport* primary = report_of(reports, kept->primary);
  if (primary == nullptr || !primary->volume || primary->volume->role != Role::primary) {
    return refuse(fmt::format("{}, the primary of the history to be kept, does not answer as such",
                              printable(kept->primary)),
                  "start replicad there");
  }
  Plan plan;
  plan.volume = volume;
  const Json body = {{"uuid", primary->volume->uuid}, {"record", record_json(*kept)}};
  const ApiRequest request{"POST", volume_path(volume, "/resolve"), body};
  std::vector<const MemberReport*> given_up;
  std::vector<const MemberReport*> kept_reports;
  for (const MemberReport& report : reports) {
    if (!report.volume || !report.volume->vote.record) continue;
    const bool same = report.volume->vote.record->fork == kept->fork;
    (same ? kept_reports : given_up).push_back(&report);
    plan.notes.push_back((same ? "kept: " : "given up: ") + position_text(*report.volume));
  }
  const bool split = std::any_of(kept_reports.begin(), kept_reports.end(), [](const auto* report) {
    return report->volume->state == "split";
  });
  if (given_up.empty() && !split)
    return refuse(fmt::format("{} has one history", volume), "there is nothing to choose");
  const auto put_members = [&](const Json& members, const char* text) {
    plan.steps.push_back(make_step(
        *primary, {"PUT", volume_path(volume, "/members"), {{"members", members}}}, text));
  };
  // Who gives a history up has a vote no more, and what it promised here before is forgotten: the other
  // voters let it go first.
  const Json faithful = faithful_members(*kept, given_up);
  if (faithful.size() < kept->members.size())
    put_members(faithful, "let the voters remove those who gave it up once");
  for (const MemberReport* report : given_up)
    plan.steps.push_back(make_step(*report, request, "give its history up, keep its images"));
  for (const MemberReport* report : kept_reports)
    plan.steps.push_back(make_step(*report, request, "go on"));
  if (!given_up.empty())
    put_members(all_members(*kept, given_up), "let the voters take those who gave up as members");
  return plan;
}

}  // namespace replicad
