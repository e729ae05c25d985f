#include "replicad/settlement.h"

#include <algorithm>

#include "core/base/log.h"
#include "io/file.h"
#include "replicad/reactor_call.h"
#include "replicad/vote_driver.h"

namespace replicad {

using nlohmann::json;

VolumeState state_of(ControlContext& context, const std::shared_ptr<Volume>& volume) {
  return run_on_reactor(context.reactor, [volume] { return volume->state(); });
}

std::string control_address(const VolumeState& state, const std::string& host) {
  const MemberState* member = find_member(state.members, host);
  return member == nullptr ? std::string() : member->control;
}

std::string volume_path(const std::string& name, const std::string& verb) {
  return "/v1/volumes/" + name + (verb.empty() ? "" : "/" + verb);
}

Status give_up_role(ControlContext& context,
                    const std::shared_ptr<Volume>& volume,
                    const std::string& primary,
                    const std::optional<HistoryPoint>& point) {
  run_on_reactor(context.reactor, [volume] { volume->plugin_release(); });
  if (!end_export_process(context, volume, std::chrono::seconds(5))) {
    log(LogLevel::error, "export_not_ended", "volume={}", volume->name());
  }
  RD_TRY(call_reactor<void>(context.reactor, [volume, primary, point](auto done) {
    volume->become_replica(primary, point, std::move(done));
  }));
  run_on_reactor(context.reactor, [volume] { volume->take_role(); });
  return {};
}

Status stop_for_rival(ControlContext& context,
                      const std::shared_ptr<Volume>& volume,
                      const Record& rival) {
  RD_TRY(call_reactor<void>(
      context.reactor, [volume, rival](auto done) { volume->note_rival(rival, std::move(done)); }));
  if (end_export_process(context, volume, std::chrono::milliseconds(0))) return {};
  return fail(Errc::timeout, "the export of volume {} does not end", volume->name());
}

namespace {

/// Durably takes the term, below which nobody can be promoted any more, and goes on serving if it
/// served.
Status go_on(ControlContext& context, const std::shared_ptr<Volume>& volume, const Record& record) {
  const bool has_plugin =
      run_on_reactor(context.reactor, [volume] { return volume->has_plugin(); });
  RD_TRY(update_volume(context, volume, [record, has_plugin](VolumeState& state) -> Status {
    if (!state.transfer) return {};
    // Sealed means that nothing was written after the point.
    if (!has_plugin) {
      state.history = state.transfer->point;
      state.clean = true;
      state.active = false;
    }
    state.epoch = std::max(state.epoch, record.epoch);
    state.transfer.reset();
    return {};
  }));
  if (!has_plugin) return {};
  const auto resumed = ask_plugin(
      context, volume, "resume", {{"epoch", to_json(record.epoch)}}, plugin_resume_timeout);
  if (!resumed) return tl::unexpected(resumed.error());
  return {};
}

}  // namespace

Settlement settle_transfer(ControlContext& context,
                           const std::shared_ptr<Volume>& volume,
                           Error* error) {
  const VolumeState state = state_of(context, volume);
  if (!state.transfer) return Settlement::not_promoted;
  const std::uint64_t offered = std::max(state.epoch.number, state.transfer->epoch.number);
  const auto claimed = context.environment.votes->propose(
      volume, change_claim({context.options.host, random_tag(), offered, true}));
  Settlement result = Settlement::unknown;
  Status status;
  if (claimed) {
    status = go_on(context, volume, *claimed);
    result = Settlement::not_promoted;
  } else if (claimed.error().code == Errc::stale_epoch) {
    const VolumeState now = state_of(context, volume);
    status = give_up_role(context, volume, now.vote.record->primary, state.transfer->point);
    if (status) result = Settlement::promoted;
  } else {
    status = tl::unexpected(claimed.error());
  }
  if (!status && error != nullptr) *error = status.error();
  return result;
}

}  // namespace replicad
