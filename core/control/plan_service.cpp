#include "core/base/modes.h"
#include "core/control/members.h"
#include "core/control/plan.h"
#include "core/control/plan_steps.h"
#include "core/control/text.h"

namespace replicad {

using Json = nlohmann::json;
using planning::check_no_handover;
using planning::check_not_moving;
using planning::make_step;
using planning::other_members;
using planning::refuse;
using planning::volume_path;

Result<Plan> plan_activate(const std::string& volume, const std::vector<MemberReport>& reports) {
  const auto primary = find_primary(volume, reports);
  if (!primary) return tl::unexpected(primary.error());
  RD_TRY(check_not_moving(*(*primary)->volume));
  Plan plan;
  plan.volume = volume;
  plan.steps.push_back(make_step(**primary,
                                 {"POST", volume_path(volume, "/activate"), Json::object()},
                                 "start the NBD export"));
  return plan;
}

Result<Plan> plan_deactivate(const std::string& volume, const std::vector<MemberReport>& reports) {
  const auto primary = find_primary(volume, reports);
  if (!primary) return tl::unexpected(primary.error());
  RD_TRY(check_not_moving(*(*primary)->volume));
  RD_TRY(check_no_handover(*(*primary)->volume));
  Plan plan;
  plan.volume = volume;
  plan.steps.push_back(make_step(**primary,
                                 {"POST", volume_path(volume, "/deactivate"), Json::object()},
                                 "stop the NBD export cleanly"));
  return plan;
}

Result<Plan> plan_restart(const std::string& volume, const std::vector<MemberReport>& reports) {
  const auto primary = find_primary(volume, reports);
  if (!primary) return tl::unexpected(primary.error());
  const VolumeView& view = *(*primary)->volume;
  RD_TRY(check_not_moving(view));
  RD_TRY(check_no_handover(view));
  if (!view.nbd) {
    return refuse(fmt::format("{} is not active ({} on {})", volume, view.state, view.host),
                  fmt::format("`replicactl activate {}` starts its export", volume));
  }
  Plan plan;
  plan.volume = volume;
  plan.steps.push_back(make_step(**primary,
                                 {"POST", volume_path(volume, "/restart"), Json::object()},
                                 "stop the NBD export cleanly and start it again"));
  return plan;
}

namespace {

/// A replica starts and ends a standby by itself, which is soon over.
constexpr std::uint32_t settings_busy_ms_max = 10'000;

/// A replica judges by the mode that it knows whether it may lack what it acknowledged: in `async` that does not
/// matter, in `sync` the end of its process takes nothing away. Neither may be believed at a replica while the
/// primary answers by another mode.
bool is_for_replicas_first(const VolumeView& primary, const Json& settings) {
  const auto mode = settings.find("mode");
  if (mode == settings.end() || *mode == primary.mode) return false;
  const bool to_semi_sync = *mode == mode_name(Mode::semi_sync);
  return primary.mode == mode_name(Mode::async) || to_semi_sync;
}

}  // namespace

Result<Plan> plan_set(const std::string& volume,
                      const Json& settings,
                      const std::vector<MemberReport>& reports) {
  const auto primary = find_primary(volume, reports);
  if (!primary) return tl::unexpected(primary.error());
  Plan plan;
  plan.volume = volume;
  const ApiRequest request{"POST", volume_path(volume, "/set"), {{"settings", settings}}};
  const VolumeView& view = *(*primary)->volume;
  const bool replicas_first = is_for_replicas_first(view, settings);
  for (const MemberReport* other : other_members(**primary, reports, plan)) {
    Step step = make_step(*other, request, "change the settings");
    step.busy_ms = settings_busy_ms_max;
    step.required = replicas_first && view.is_in_sync(other->host);
    plan.steps.push_back(std::move(step));
  }
  for (const SkippedHost& skipped : plan.skipped) {
    if (!replicas_first || !view.is_in_sync(skipped.host)) continue;
    return tl::unexpected(
        Error{Errc::unreachable,
              0,
              fmt::format(
                  "{} is in sync and does not answer: {}", printable(skipped.host), skipped.reason),
              "this change of the mode has to reach every member that is in sync before the "
              "primary; give "
              "the command again when it is back, or has left the in-sync set"});
  }
  plan.steps.insert(replicas_first ? plan.steps.end() : plan.steps.begin(),
                    make_step(**primary, request, "change the settings (primary)"));
  plan.skipped_hint =
      "give the same command again when they are back: until then they keep their old settings, "
      "which would count if they became primary";
  return plan;
}

Result<Plan> plan_readmit(const std::string& volume,
                          const std::string& host,
                          bool force,
                          const std::vector<MemberReport>& reports) {
  RD_TRY(check_uuids(volume, reports));
  const MemberReport* report = report_of(reports, host);
  if (report == nullptr || !report->volume) {
    const std::string reason =
        report == nullptr ? "it is not in the list of hosts" : report->volume.error().message;
    return tl::unexpected(
        Error{report == nullptr ? Errc::not_found : report->volume.error().code,
              0,
              fmt::format("{} cannot be asked about {}: {}", printable(host), volume, reason),
              {}});
  }
  Plan plan;
  plan.volume = volume;
  const bool is_primary = report->volume->role == Role::primary;
  const char* const what =
      is_primary ? "look at the images again, else take them as they are: what they lack is lost"
      : force    ? "look at the images again, else take them for what they should be"
                 : "look at the images again, else let the primary compare them in full";
  plan.steps.push_back(
      make_step(*report, {"POST", volume_path(volume, "/readmit"), {{"force", force}}}, what));
  return plan;
}

Result<Plan> plan_resync(const std::string& volume,
                         const std::string& host,
                         const std::vector<MemberReport>& reports) {
  const auto found = find_primary(volume, reports);
  if (!found) return tl::unexpected(found.error());
  const VolumeView& primary = *(*found)->volume;
  RD_TRY(check_not_moving(primary));
  if (host == primary.host) {
    return refuse(
        fmt::format("{} is the primary of {}: copies are made from it, not to it", host, volume),
        {});
  }
  if (primary.member(host) == nullptr) {
    return tl::unexpected(
        Error{Errc::not_found,
              0,
              fmt::format("{} is no member of {}", host, volume),
              fmt::format("`replicactl add-replica {} {}` makes it one", volume, host)});
  }
  if (primary.state == "stopped") {
    return refuse(fmt::format("{} is not active: the copy is sent by its export", volume),
                  fmt::format("`replicactl activate {}` first", volume));
  }
  if (const std::string reason = why_silent(reports, host); !reason.empty()) {
    return tl::unexpected(
        Error{Errc::unreachable, 0, fmt::format("{} does not answer: {}", host, reason), {}});
  }
  if (primary.is_in_sync(host)) {
    return refuse(fmt::format("{} is in sync: it lacks nothing of {}", host, volume), {});
  }
  Plan plan;
  plan.volume = volume;
  plan.steps.push_back(
      make_step(**found,
                {"POST", volume_path(volume, "/resync"), {{"host", host}}},
                fmt::format("compare all disks with {}'s, send what differs", host)));
  return plan;
}

Result<Plan> plan_verify(const std::string& volume,
                         const VerifyRequest& request,
                         const std::vector<MemberReport>& reports) {
  const auto found = find_primary(volume, reports);
  if (!found) return tl::unexpected(found.error());
  const VolumeView& primary = *(*found)->volume;
  RD_TRY(check_not_moving(primary));
  const MemberView* member = request.host.empty() ? nullptr : primary.member(request.host);
  if (!request.host.empty() && (member == nullptr || member->witness)) {
    return tl::unexpected(
        Error{Errc::not_found,
              0,
              fmt::format("{} has no copy of {}", printable(request.host), volume),
              fmt::format("`replicactl status {}` shows which hosts have", volume)});
  }
  if (request.host == primary.host) {
    return refuse(
        fmt::format(
            "{} is the primary of {}: the others are compared with it", request.host, volume),
        {});
  }
  if (!primary.nbd) {
    return refuse(fmt::format("{} is not active: its export is what compares", volume),
                  fmt::format("`replicactl activate {}` first", volume));
  }
  Json body = {{"repair", request.repair}, {"force", request.force}};
  if (!request.host.empty()) body["host"] = request.host;
  if (request.stop) body = {{"stop", true}};
  const std::string whom = request.host.empty() ? "every replica" : printable(request.host);
  Plan plan;
  plan.volume = volume;
  plan.steps.push_back(
      make_step(**found,
                {"POST", volume_path(volume, "/verify"), std::move(body)},
                request.stop ? "end the verify that is under way"
                             : fmt::format("compare all disks with {}{}",
                                           whom,
                                           request.repair ? ", write anew what differs" : "")));
  return plan;
}

}  // namespace replicad
