#include "core/control/plan.h"

#include <algorithm>
#include <set>

#include "core/control/members.h"
#include "core/control/plan_steps.h"
#include "core/control/text.h"

namespace replicad {

namespace {

using Json = nlohmann::json;
using planning::check_no_handover;
using planning::check_not_moving;
using planning::delete_request;
using planning::make_step;
using planning::refuse;

Json members_json(const std::vector<MemberView>& members) {
  Json list = Json::array();
  for (const MemberView& member : members) {
    list.push_back({{"host", member.host},
                    {"stream", member.stream},
                    {"control", member.control},
                    {"role", member.witness ? "witness" : "data"}});
  }
  return list;
}

/// The primary changes the record; the other members learn of it as voters.
void add_members_step(const MemberReport& primary,
                      const std::vector<MemberView>& members,
                      Plan& plan) {
  plan.steps.push_back(make_step(
      primary,
      {"PUT", planning::volume_path(plan.volume, "/members"), {{"members", members_json(members)}}},
      "let the voters change the list of members"));
}

Json create_body(const CreateRequest& request, const std::string& primary, bool is_primary) {
  Json disks = Json::array();
  for (const CreateRequest::Disk& disk : request.disks) {
    const bool adopts = is_primary && !disk.adopt.empty();
    disks.push_back({{"name", disk.name},
                     {"bytes", disk.bytes},
                     {"adopt", adopts ? Json(disk.adopt) : Json()}});
  }
  Json body = {{"name", request.name},
               {"uuid", request.uuid},
               {"primary", primary},
               {"disks", std::move(disks)},
               {"settings", request.settings}};
  if (request.overcommit)
    body["overcommit"] = true;  // an older daemon refuses what it does not know
  return body;
}

bool adopts_any(const CreateRequest& request) {
  return std::any_of(request.disks.begin(),
                     request.disks.end(),
                     [](const CreateRequest::Disk& disk) { return !disk.adopt.empty(); });
}

const HostReport* host_of(const std::vector<HostReport>& hosts, const std::string& name) {
  const auto it =
      std::find_if(hosts.begin(), hosts.end(), [&](const HostReport& h) { return h.name == name; });
  return it == hosts.end() ? nullptr : &*it;
}

/// Where other hosts reach it: what it says of itself, or else where we reached it.
MemberView member_of(const HostReport& host) {
  return {host.name,
          host.facts->stream,
          host.facts->control.empty() ? host.address : host.facts->control,
          false};
}

Status check_free_name(const CreateRequest& request,
                       const std::vector<std::string>& chosen,
                       const std::vector<MemberReport>& existing) {
  for (const MemberReport& report : existing) {
    if (report.volume) {
      return tl::unexpected(
          Error{Errc::exists,
                0,
                fmt::format("{} has a volume {} already", printable(report.host), request.name),
                "choose another name, or see `replicactl status " + request.name + "`"});
    }
    const bool is_chosen = std::find(chosen.begin(), chosen.end(), report.host) != chosen.end();
    if (is_chosen && !says_not_found(report)) return tl::unexpected(report.volume.error());
  }
  return {};
}

}  // namespace

Result<Plan> plan_create(const CreateRequest& request,
                         const std::vector<std::string>& chosen,
                         const std::vector<HostReport>& hosts,
                         const std::vector<MemberReport>& existing) {
  std::vector<std::string> all = chosen;
  all.insert(all.end(), request.witnesses.begin(), request.witnesses.end());
  RD_TRY(check_free_name(request, all, existing));
  Plan plan;
  plan.volume = request.name;
  const bool adopts = adopts_any(request);
  std::vector<MemberView> members;
  for (const std::string& name : chosen) {
    const HostReport* host = host_of(hosts, name);
    if (host == nullptr || !host->facts) {
      return tl::unexpected(
          Error{Errc::unreachable, 0, fmt::format("{} does not answer", printable(name)), {}});
    }
    members.push_back(member_of(*host));
  }
  for (const std::string& name : request.witnesses) {
    const HostReport* host = host_of(hosts, name);
    if (host == nullptr || !host->facts) {
      return tl::unexpected(
          Error{Errc::unreachable, 0, fmt::format("{} does not answer", printable(name)), {}});
    }
    members.push_back(member_of(*host));
    members.back().witness = true;
  }
  for (const std::string& name : request.witnesses) {
    Json body = create_body(request, chosen[0], false);
    body["disks"] = Json::array();
    body["members"] = members_json(members);
    body["in_sync"] = adopts ? std::vector<std::string>{chosen[0]} : chosen;
    Step step;
    step.host = name;
    step.address = host_of(hosts, name)->address;
    step.request = {"POST", "/v1/volumes", std::move(body)};
    step.text = "let it vote (witness, no images)";
    step.undo = delete_request(request.name, request.uuid);
    plan.steps.push_back(std::move(step));
  }
  // The primary comes last: it cannot be activated before every replica has its part.
  for (std::size_t i = chosen.size(); i-- > 0;) {
    const bool is_primary = i == 0;
    Json body = create_body(request, chosen[0], is_primary);
    body["members"] = members_json(members);
    body["consistent"] = is_primary || !adopts;
    body["in_sync"] = adopts ? std::vector<std::string>{chosen[0]} : chosen;
    Step step;
    step.host = chosen[i];
    step.address = host_of(hosts, chosen[i])->address;
    step.request = {"POST", "/v1/volumes", std::move(body)};
    step.text = !is_primary ? "create the images (replica)"
                : adopts    ? "take over the existing images (primary)"
                            : "create the images (primary)";
    step.undo = delete_request(request.name, request.uuid);
    plan.steps.push_back(std::move(step));
  }
  if (adopts && chosen.size() > 1) {
    plan.notes.emplace_back(
        "the replicas get their first copy by themselves after `replicactl activate`");
  }
  if (chosen.size() == 1)
    plan.notes.emplace_back("a single copy: nothing is replicated until `add-replica`");
  return plan;
}

Result<Plan> plan_add_replica(const std::string& volume,
                              const std::string& host,
                              const std::vector<MemberReport>& reports,
                              const std::vector<HostReport>& hosts,
                              AddedMember added) {
  const bool witness = added == AddedMember::witness;
  const auto found = find_primary(volume, reports);
  if (!found) return tl::unexpected(found.error());
  const VolumeView& primary = *(*found)->volume;
  RD_TRY(check_not_moving(primary));
  if (primary.member(host) != nullptr) {
    return tl::unexpected(
        Error{Errc::exists, 0, fmt::format("{} is a member of {} already", host, volume), {}});
  }
  if (primary.members.size() >= members_max) {
    return refuse(fmt::format("{} has {} members, the most a volume can have", volume, members_max),
                  {});
  }
  const HostReport* target = host_of(hosts, host);
  if (target == nullptr || !target->facts) {
    return tl::unexpected(Error{Errc::unreachable, 0, fmt::format("{} does not answer", host), {}});
  }
  Plan plan;
  plan.volume = volume;
  std::vector<MemberView> members = primary.members;
  members.push_back(member_of(*target));
  members.back().witness = witness;

  CreateRequest create;
  create.name = volume;
  create.uuid = primary.uuid;
  create.settings = primary.settings;
  create.overcommit = added == AddedMember::overcommitted;
  for (const DiskView& disk : primary.disks) {
    if (!witness) create.disks.push_back({disk.name, disk.bytes, {}});
  }
  Json body = create_body(create, primary.host, false);
  body["members"] = members_json(members);
  if (!witness) body["consistent"] = false;
  body["in_sync"] = primary.in_sync;
  body["founder"] = false;
  Step step;
  step.host = host;
  step.address = target->address;
  step.request = {"POST", "/v1/volumes", std::move(body)};
  step.text = witness ? "let it vote (witness, no images)"
                      : "create the images (replica, empty until its first copy)";
  step.undo = delete_request(volume, primary.uuid);
  plan.steps.push_back(std::move(step));
  add_members_step(**found, members, plan);
  if (witness) return plan;
  plan.notes.push_back(
      primary.state == "stopped"
          ? "its first copy starts by itself after `replicactl activate`"
          : "its first copy starts by itself; `replicactl status` shows how far it is");
  return plan;
}

Result<Plan> plan_remove_replica(const std::string& volume,
                                 const std::string& host,
                                 bool force,
                                 const std::vector<MemberReport>& reports) {
  const auto found = find_primary(volume, reports);
  if (!found) return tl::unexpected(found.error());
  const VolumeView& primary = *(*found)->volume;
  RD_TRY(check_not_moving(primary));
  if (host == primary.host) {
    return refuse(fmt::format("{} is the primary of {}", host, volume),
                  fmt::format("`replicactl switchover {}` first", volume));
  }
  const MemberReport* target = report_of(reports, host);
  const bool is_leftover = primary.member(host) == nullptr;
  if (is_leftover && (target == nullptr || !target->volume)) {
    return tl::unexpected(
        Error{Errc::not_found, 0, fmt::format("{} is no member of {}", host, volume), {}});
  }
  if (!force && target != nullptr && target->volume && target->volume->lost_files > 0) {
    return refuse(
        fmt::format("{} keeps {} file(s) of lost writes of {}, {}, and is the only one",
                    host,
                    target->volume->lost_files,
                    volume,
                    format_bytes(target->volume->lost_bytes)),
        fmt::format("`replicactl lost-writes {}` shows them; --force removes them, too", volume));
  }
  Plan plan;
  plan.volume = volume;
  if (!is_leftover) {
    std::vector<MemberView> members = primary.members;
    std::erase_if(members, [&](const MemberView& member) { return member.host == host; });
    add_members_step(**found, members, plan);
    if (target == nullptr || !target->volume)
      plan.skipped.push_back({host, why_silent(reports, host)});
  }
  if (target != nullptr && target->volume) {
    const bool witness = target->volume->disks.empty();
    plan.steps.push_back(
        make_step(*target,
                  delete_request(volume, primary.uuid),
                  witness ? "remove what it knows of the volume" : "remove its images and log"));
  }
  plan.skipped_hint =
      fmt::format("when they are back: `replicactl remove-replica {} {}` again clears what is left",
                  volume,
                  host);
  return plan;
}

namespace {

Status check_deletable(const std::string& volume, const std::vector<MemberReport>& reports) {
  const auto found = find_primary(volume, reports);
  if (found) {
    const VolumeView& primary = *(*found)->volume;
    RD_TRY(check_not_moving(primary));
    if (primary.state == "stopped" || primary.state == "failed") return {};
    return tl::unexpected(Error{
        Errc::busy,
        0,
        fmt::format("{} is active on {}: a guest may be using it", volume, printable(primary.host)),
        fmt::format("stop the guest, then `replicactl deactivate {}`", volume)});
  }
  // A delete that was cut short has removed the primary's part already: the rest may still go.
  if (found.error().code != Errc::refused) return tl::unexpected(found.error());
  for (const MemberReport& report : reports) {
    if (!report.volume) continue;
    const MemberReport* primary = report_of(reports, report.volume->primary);
    if (primary == nullptr || !says_not_found(*primary)) return tl::unexpected(found.error());
  }
  return {};
}

}  // namespace

Result<Plan> plan_delete(const std::string& volume,
                         bool force,
                         const std::vector<MemberReport>& reports) {
  for (const MemberReport& report : reports) {
    if (report.volume) RD_TRY(check_no_handover(*report.volume));
  }
  RD_TRY(check_deletable(volume, reports));
  std::vector<const MemberReport*> replicas;
  std::vector<const MemberReport*> order;
  std::set<std::string> known;
  std::vector<MemberView> members;
  for (const MemberReport& report : reports) {
    if (!report.volume) continue;
    known.insert(report.host);
    (report.volume->role == Role::primary ? order : replicas).push_back(&report);
    members.insert(members.end(), report.volume->members.begin(), report.volume->members.end());
  }
  order.insert(order.begin(), replicas.begin(), replicas.end());
  if (!force) {
    std::string loss;
    for (const std::string& line : describe_loss(reports))
      loss += "\n  " + line;
    return refuse(fmt::format("deleting {} destroys all its copies:{}", volume, loss),
                  "--force deletes them");
  }
  Plan plan;
  plan.volume = volume;
  for (const MemberReport* report : order) {
    const bool is_primary = report->volume->role == Role::primary;
    plan.steps.push_back(make_step(*report,
                                   delete_request(volume, report->volume->uuid),
                                   is_primary ? "remove its images and state (primary)"
                                              : "remove its images, log and state (replica)"));
  }
  for (const MemberView& member : members) {
    if (!known.insert(member.host).second) continue;
    const MemberReport* report = report_of(reports, member.host);
    if (report != nullptr && says_not_found(*report)) continue;
    plan.skipped.push_back({member.host, why_silent(reports, member.host)});
  }
  plan.skipped_hint = fmt::format(
      "when they are back: `replicactl delete {} --force` again removes their parts", volume);
  return plan;
}

}  // namespace replicad
