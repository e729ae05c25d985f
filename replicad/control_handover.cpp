// A live migration's requests: preparing it, ending it, and what the standby asks (docs/decisions/0011).

#include "core/base/log.h"
#include "core/control/views.h"
#include "io/file.h"
#include "replicad/control_api.h"
#include "replicad/peer_client.h"
#include "replicad/reactor_call.h"
#include "replicad/settlement.h"
#include "replicad/switchover.h"
#include "replicad/vote_driver.h"

namespace replicad {

using nlohmann::json;

namespace {

constexpr auto plugin_timeout = std::chrono::seconds(15);
constexpr auto standby_patience = std::chrono::seconds(20);
constexpr auto standby_look_interval = std::chrono::milliseconds(20);

/// The handover `id` on a record that is known to be chosen, in this host's term. Reactor thread.
Result<HandoverState> handover_here(const Volume& volume,
                                    const std::string& host,
                                    std::uint64_t id) {
  const VoterState& vote = volume.state().vote;
  const bool here = volume.is_primary() && vote.chosen && vote.record->primary == host;
  if (!here || !vote.record->handover || vote.record->handover->id != id) {
    return fail(
        Errc::refused, "{} has no such handover of volume {} on record", host, volume.name());
  }
  return *vote.record->handover;
}

/// While it lives the volume is `sync`, whatever its settings say. Unless settle() is called it stays so until the
/// voters have said whether a handover is on record.
class Preparing {
 public:
  Preparing(ControlContext& context, std::shared_ptr<Volume> volume)
      : context_(context), volume_(std::move(volume)) {
    run_on_reactor(context_.reactor, [this] { volume_->set_preparing(true); });
  }
  Preparing(const Preparing&) = delete;
  Preparing& operator=(const Preparing&) = delete;
  ~Preparing() {
    run_on_reactor(context_.reactor, [this] {
      if (settled_) return volume_->set_preparing(false);
      volume_->leave_preparing_open();
    });
  }
  /// Whether the handover is on record is known.
  void settle() { settled_ = true; }

 private:
  ControlContext& context_;
  std::shared_ptr<Volume> volume_;
  bool settled_ = false;
};

/// Everything that was answered before is whole at every in-sync member, then the handover is on record.
Result<HandoverState> put_on_record(ControlContext& context,
                                    const std::shared_ptr<Volume>& volume,
                                    const SwitchoverRequest& request) {
  Preparing preparing(context, volume);
  const VolumeState before = state_of(context, volume);
  VolumeSettings settings = before.settings;
  settings.mode = Mode::sync;
  const auto told =
      ask_plugin(context, volume, "set", {{"settings", to_json(settings)}}, plugin_timeout);
  const Status whole = told ? drain_to(context, volume, request) : tl::unexpected(told.error());
  if (!whole) {
    preparing.settle();
    return tl::unexpected(whole.error());
  }
  const HandoverState handover{
      std::max(random_tag(), std::uint32_t{1}), context.options.host, request.to, 0};
  const auto record = context.environment.votes->propose(
      volume, change_prepare_handover(before.vote.record->epoch, handover));
  const bool unknown = !record && record.error().code == Errc::unreachable;
  if (!unknown) preparing.settle();
  if (!record) return tl::unexpected(record.error());
  log(LogLevel::info,
      "handover_prepared",
      "volume={} to={} id={}",
      volume->name(),
      handover.to,
      handover.id);
  return handover;
}

/// Until the target's standby serves: its export. The first failure to start it is the answer: the target says why, and
/// whoever mends that asks again.
Result<json> wait_for_standby(ControlContext& context,
                              const std::shared_ptr<Volume>& volume,
                              const HandoverState& handover) {
  const std::string address = control_address(state_of(context, volume), handover.to);
  const auto end = std::chrono::steady_clock::now() + standby_patience;
  while (!context.stopping && std::chrono::steady_clock::now() < end) {
    const auto answer = ask_peer({address, "GET", volume_path(volume->name())});
    const json shown = answer && answer->ok() ? answer->body.value("handover", json()) : json();
    if (shown.is_object() && shown.value("id", std::uint64_t{0}) == handover.id) {
      if (shown.value("export", json()).is_object()) return shown["export"];
      const json error = shown.value("error", json());
      if (error.is_object()) {
        return fail(Errc::refused,
                    "{} cannot open volume {}: {}",
                    handover.to,
                    volume->name(),
                    error.value("message", "it does not say why"));
      }
    }
    std::this_thread::sleep_for(standby_look_interval);
  }
  return fail(Errc::timeout,
              "{} has not opened volume {} within {} s",
              handover.to,
              volume->name(),
              standby_patience.count());
}

Status end_handover(ControlContext& context,
                    const std::shared_ptr<Volume>& volume,
                    std::uint32_t id) {
  const VolumeState state = state_of(context, volume);
  const auto record = context.environment.votes->propose(
      volume, change_end_handover(context.options.host, state.vote.record->epoch, id));
  if (!record) return tl::unexpected(record.error());
  log(LogLevel::info, "handover_ended", "volume={} id={}", volume->name(), id);
  return {};
}

}  // namespace

ControlApi::Answer ControlApi::handover(const std::string& name, const std::string& body) {
  const auto document = parse_json_object(body, Errc::invalid_argument);
  if (!document) return tl::unexpected(document.error());
  FieldReader fields(*document);
  SwitchoverRequest request;
  request.to = fields.text("to", host_name_bytes_max);
  request.deadline = std::chrono::milliseconds(
      fields.optional_number("deadline_ms", switchover_deadline_ms_min, switchover_deadline_ms_max)
          .value_or(switchover_deadline_ms_default));
  RD_TRY(fields.finish());
  const auto operation = OperationGuard::begin(context_, name, "handover");
  if (!operation) return tl::unexpected(operation.error());
  const auto& volume = operation->volume();
  RD_TRY(check_switchover(context_, volume, request));
  if (!run_on_reactor(context_.reactor, [volume] { return volume->is_serving(); })) {
    return with_hint(fail(Errc::refused, "volume {} is not being served", name),
                     fmt::format("`replicactl switchover {} --to {}` moves it", name, request.to));
  }
  const auto prepared = put_on_record(context_, volume, request);
  if (!prepared) return tl::unexpected(prepared.error());
  const auto nbd_export = wait_for_standby(context_, volume, *prepared);
  if (!nbd_export) {
    static_cast<void>(end_handover(context_, volume, prepared->id));
    return tl::unexpected(nbd_export.error());
  }
  return json{{"schema", 1},
              {"volume", name},
              {"id", prepared->id},
              {"from", prepared->from},
              {"to", prepared->to},
              {"export", *nbd_export}};
}

ControlApi::Answer ControlApi::handover_end(const std::string& name) {
  const auto operation = OperationGuard::begin(context_, name, "handover");
  if (!operation) return tl::unexpected(operation.error());
  const auto& volume = operation->volume();
  RD_TRY(require_primary(context_, volume));
  const auto record = state_of(context_, volume).vote.record;
  if (!record || !record->handover)
    return fail(Errc::refused, "no handover of volume {} is prepared", name);
  RD_TRY(end_handover(context_, volume, record->handover->id));
  return json{{"schema", 1}, {"volume", name}, {"id", record->handover->id}};
}

ControlApi::Answer ControlApi::handover_take(const std::string& name, const std::string& body) {
  const auto document = parse_json_object(body, Errc::invalid_argument);
  if (!document) return tl::unexpected(document.error());
  FieldReader fields(*document);
  SwitchoverRequest request;
  request.to = fields.text("to", host_name_bytes_max);
  request.handover = static_cast<std::uint32_t>(fields.number("id", 1, 0xffffffffU));
  RD_TRY(fields.finish());
  const auto operation = OperationGuard::begin(context_, name, "handover");
  if (!operation) return tl::unexpected(operation.error());
  const auto& volume = operation->volume();
  const auto known = run_on_reactor(context_.reactor, [this, volume, id = request.handover] {
    return handover_here(*volume, context_.options.host, id);
  });
  if (!known) return tl::unexpected(known.error());
  // The way back is open only while no write of the target's guest was let in.
  request.only_untouched = known->term != 0;
  auto proof = run_switchover(context_, volume, request);
  if (!proof) {
    log(LogLevel::warn,
        "handover_not_moved",
        "volume={} to={} error={}",
        name,
        log_value(request.to),
        log_value(proof.error().message));
  }
  return proof;
}

ControlApi::Answer ControlApi::handover_answered(const std::string& name, const std::string& id) {
  const auto number = number_in(id, "id");
  if (!number) return tl::unexpected(number.error());
  const auto volume = find_volume(context_, name);
  if (!volume) return tl::unexpected(volume.error());
  const auto known = run_on_reactor(context_.reactor, [this, found = *volume, id = *number] {
    return handover_here(*found, context_.options.host, id);
  });
  if (!known) return tl::unexpected(known.error());
  auto answered = ask_plugin(context_,
                             *volume,
                             "answered",
                             {{"only_untouched", known->term != 0}},
                             std::chrono::seconds(2));
  if (!answered) return answered;
  (*answered)["schema"] = 1;
  return answered;
}

}  // namespace replicad
