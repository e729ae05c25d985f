#include "replicad/settlement.h"

#include <algorithm>

#include "core/base/log.h"
#include "core/control/views.h"
#include "io/file.h"
#include "replicad/peer_client.h"
#include "replicad/reactor_call.h"

namespace replicad {

using nlohmann::json;

namespace {

constexpr auto resolver_interval = std::chrono::seconds(2);

}  // namespace

VolumeState state_of(ControlContext& context, const std::shared_ptr<Volume>& volume) {
  return run_on_reactor(context.reactor, [volume] { return volume->state(); });
}

std::string control_address(const VolumeState& state, const std::string& host) {
  for (const MemberState& member : state.members) {
    if (member.host == host) return member.control;
  }
  return {};
}

std::string volume_path(const std::string& name, const std::string& verb) {
  return "/v1/volumes/" + name + (verb.empty() ? "" : "/" + verb);
}

Status finish_promoted(ControlContext& context,
                       const std::shared_ptr<Volume>& volume,
                       const std::string& primary,
                       const Epoch& epoch,
                       const HistoryPoint& point) {
  RD_TRY(call_reactor<void>(context.reactor, [volume, primary, epoch, point](auto done) {
    volume->become_replica(primary, epoch, point, std::move(done));
  }));
  run_on_reactor(context.reactor, [volume] { volume->plugin_release(); });
  if (!end_export_process(context, volume, std::chrono::seconds(5))) {
    log(LogLevel::error, "export_not_ended", "volume={}", volume->name());
  }
  run_on_reactor(context.reactor, [volume] { volume->take_role(); });
  return {};
}

Status finish_not_promoted(ControlContext& context,
                           const std::shared_ptr<Volume>& volume,
                           const Epoch& epoch) {
  const bool has_plugin =
      run_on_reactor(context.reactor, [volume] { return volume->has_plugin(); });
  RD_TRY(update_volume(context, volume, [epoch, has_plugin](VolumeState& state) -> Status {
    if (!state.transfer) return {};
    // Sealed means that nothing was written after the point.
    if (!has_plugin) {
      state.history = state.transfer->point;
      state.clean = true;
      state.active = false;
    }
    state.epoch = epoch;
    state.transfer.reset();
    return {};
  }));
  if (!has_plugin) return {};
  const auto resumed =
      ask_plugin(context, volume, "resume", {{"epoch", to_json(epoch)}}, plugin_resume_timeout);
  if (!resumed) return tl::unexpected(resumed.error());
  return {};
}

FenceOutcome fence_target(const VolumeState& state,
                          const std::string& address,
                          Epoch& epoch,
                          Error& error) {
  for (int attempt = 0; attempt < 8; ++attempt) {
    const auto answer =
        ask_peer({address, "POST", volume_path(state.name, "fence"), {{"epoch", to_json(epoch)}}});
    if (!answer) {
      error = answer.error();
      return FenceOutcome::no_answer;
    }
    if (answer->ok()) return FenceOutcome::fenced;
    error = answer->error();
    if (error.code == Errc::refused) return FenceOutcome::primary_there;
    if (error.code != Errc::stale_epoch) return FenceOutcome::no_answer;
    const auto view = ask_peer({address, "GET", volume_path(state.name)});
    const auto volume =
        view && view->ok() ? parse_volume(view->body) : fail(Errc::unreachable, "no answer");
    if (volume) epoch.number = std::max(epoch.number, volume->epoch.number);
    epoch = Epoch{epoch.number + 1, random_tag()};
  }
  return FenceOutcome::no_answer;
}

Epoch epoch_above(const VolumeState& state) {
  const std::uint64_t offered = state.transfer ? state.transfer->epoch.number : state.epoch.number;
  return Epoch{std::max(state.epoch.number, offered) + 1, random_tag()};
}

namespace {

/// What the target says of itself.
enum class TargetRole { primary, replica, deciding, no_answer };

TargetRole ask_role(const VolumeState& state,
                    const std::string& self,
                    VolumeView& view,
                    Error& error) {
  const auto answer =
      ask_peer({control_address(state, state.transfer->to), "GET", volume_path(state.name)});
  if (!answer) {
    error = answer.error();
    return TargetRole::no_answer;
  }
  auto parsed = answer->ok() ? parse_volume(answer->body) : tl::unexpected(answer->error());
  if (!parsed) {
    error = parsed.error();
    return TargetRole::no_answer;
  }
  view = std::move(*parsed);
  // A state that cannot be read, or that is not there (a file system that is not mounted), may
  // hold the promotion.
  if (view.uuid != state.uuid) {
    error = view.error.value_or(Error{Errc::refused, 0, "it has another volume of that name", {}});
    return TargetRole::no_answer;
  }
  // It puts itself back if its export does not start: not before the promotion has ended is it the
  // primary. As long as it is a replica a fence ends the promotion.
  const auto operation = answer->body.find("operation");
  const bool promoting = operation != answer->body.end() && *operation == json("promote");
  if (promoting && view.primary != self) {
    error = Error{Errc::busy, 0, "its promotion is under way", {}};
    return TargetRole::deciding;
  }
  return view.primary == self ? TargetRole::replica : TargetRole::primary;
}

}  // namespace

Settlement settle_transfer(ControlContext& context,
                           const std::shared_ptr<Volume>& volume,
                           Error* error) {
  const VolumeState state = state_of(context, volume);
  if (!state.transfer) return Settlement::not_promoted;
  Error reason;
  VolumeView view;
  Settlement result = Settlement::unknown;
  Status status;
  switch (ask_role(state, context.options.host, view, reason)) {
    case TargetRole::primary:
      status = finish_promoted(context, volume, view.primary, view.epoch, state.transfer->point);
      if (status) result = Settlement::promoted;
      break;
    case TargetRole::replica: {
      Epoch epoch = epoch_above(state);
      const auto fenced =
          fence_target(state, control_address(state, state.transfer->to), epoch, reason);
      if (fenced != FenceOutcome::fenced) break;
      status = finish_not_promoted(context, volume, epoch);
      result = Settlement::not_promoted;
      break;
    }
    case TargetRole::deciding:
    case TargetRole::no_answer:
      break;
  }
  if (!status) reason = status.error();
  if (error != nullptr) *error = reason;
  return result;
}

// --- the resolver

TransferResolver::TransferResolver(ControlContext& context)
    : context_(context), thread_([this] { run(); }) {}

TransferResolver::~TransferResolver() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void TransferResolver::run() {
  std::unique_lock lock(mutex_);
  while (!ending_) {
    lock.unlock();
    settle_all();
    lock.lock();
    wake_.wait_for(lock, resolver_interval, [this] { return ending_; });
  }
}

void TransferResolver::settle_all() {
  const auto open = run_on_reactor(context_.reactor, [this] {
    std::vector<std::string> names;
    for (const auto& volume : context_.registry.all()) {
      // Without the plugin's word, only free images prove that no plugin lives.
      const bool known = volume->is_serving() || (!volume->has_plugin() && volume->has_images());
      if (!volume->is_broken() && volume->state().transfer && known && !volume->has_operation()) {
        names.push_back(volume->name());
      }
    }
    return names;
  });
  for (const std::string& name : open) {
    const auto operation = OperationGuard::begin(context_, name, "settling a switchover");
    if (!operation) continue;
    Error error;
    const Settlement settlement = settle_transfer(context_, operation->volume(), &error);
    log(LogLevel::info,
        "switchover_settling",
        "volume={} settled={} error={}",
        name,
        settlement != Settlement::unknown,
        log_value(error.message));
  }
}

}  // namespace replicad
