#include "replicad/switchover.h"

#include <algorithm>
#include <optional>

#include "core/base/log.h"
#include "core/control/views.h"
#include "io/file.h"
#include "replicad/peer_client.h"
#include "replicad/reactor_call.h"
#include "replicad/settlement.h"

namespace replicad {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

namespace {

constexpr auto reply_margin = std::chrono::seconds(5);
constexpr auto seal_timeout = std::chrono::seconds(10);
/// What must be left of the deadline for the offer to be made at all.
constexpr auto promote_timeout_min = std::chrono::seconds(2);
constexpr auto unknown_retry_delay = std::chrono::milliseconds(200);

struct Target {
  std::string host;
  std::string address;
  VolumeView view;
};

struct HoldResult {
  HistoryPoint point;
  double held_ms = 0;
  std::vector<PeerStatus> replicas;
  Clock::time_point since;
};

// --- preflight

Result<Target> check_target(const VolumeState& state,
                            const std::string& self,
                            const std::string& to) {
  Target target{to, control_address(state, to), {}};
  if (to == self)
    return fail(Errc::invalid_argument, "{} is the primary of volume {} already", to, state.name);
  const bool member = std::any_of(state.members.begin(),
                                  state.members.end(),
                                  [&](const auto& entry) { return entry.host == to; });
  if (!member) return fail(Errc::not_found, "{} is no member of volume {}", to, state.name);
  if (std::find(state.in_sync.begin(), state.in_sync.end(), to) == state.in_sync.end()) {
    return with_hint(fail(Errc::refused, "{} is not in sync: it may lack acknowledged writes", to),
                     "wait until `replicactl status` shows it in sync, or bring it back with "
                     "`replicactl resync`");
  }
  const auto answer = ask_peer({target.address, "GET", volume_path(state.name)});
  if (!answer) return fail(Errc::unreachable, "{} does not answer: {}", to, answer.error().message);
  if (!answer->ok()) return fail(Errc::refused, "{} refuses: {}", to, answer->error().message);
  auto view = parse_volume(answer->body);
  if (!view) return tl::unexpected(view.error());
  target.view = std::move(*view);
  if (target.view.uuid != state.uuid) {
    return fail(
        Errc::refused, "{} has another volume {}, with uuid {}", to, state.name, target.view.uuid);
  }
  if (target.view.role != Role::replica || !target.view.replica) {
    return fail(Errc::refused, "{} is not a replica of volume {}", to, state.name);
  }
  if (target.view.state == "failed") {
    return fail(Errc::refused,
                "volume {} has failed on {}: {}",
                state.name,
                to,
                target.view.error ? target.view.error->message : "no reason given");
  }
  if (!target.view.replica->consistent) {
    return fail(Errc::inconsistent, "the images of volume {} on {} are incomplete", state.name, to);
  }
  return target;
}

/// Also while requests wait for the primary's own image (on-local-error=hold), not while they wait for a quorum.
bool is_served(const VolumeSnapshot& snapshot) {
  if (snapshot.shown_state == "serving") return true;
  return snapshot.shown_state == "held" && snapshot.error &&
         snapshot.error->code != Errc::unreachable;
}

Status check_volume_ready(const VolumeSnapshot& snapshot, const SwitchoverRequest& request) {
  const VolumeState& state = snapshot.state;
  if (state.primary != snapshot.host) {
    return with_hint(
        fail(Errc::refused, "{} is not the primary of volume {}", snapshot.host, state.name),
        fmt::format("ask {}, the primary", state.primary));
  }
  if (state.transfer) {
    return with_hint(fail(Errc::busy,
                          "a switchover of volume {} to {} is not settled",
                          state.name,
                          state.transfer->to),
                     "it settles by itself as soon as enough voters answer");
  }
  const auto& record = state.vote.record;
  if (record && record->handover && record->handover->id != request.handover) {
    return with_hint(fail(Errc::busy,
                          "a handover of volume {} to {} is prepared",
                          state.name,
                          record->handover->to),
                     fmt::format("its guest moves the role; `replicactl handover {} --end` ends it",
                                 state.name));
  }
  if (is_served(snapshot)) return {};
  if (snapshot.shown_state != "stopped") {
    return fail(Errc::refused,
                "volume {} is {}, neither serving nor stopped",
                state.name,
                snapshot.shown_state);
  }
  if (!state.clean) {
    return with_hint(fail(Errc::refused, "the export of volume {} ended uncleanly", state.name),
                     "activate it here, then resync the replicas");
  }
  return {};
}

Status check_equal(const HistoryPoint& point,
                   const std::string& host,
                   Sequence sequence,
                   const std::string& digest) {
  if (sequence == point.sequence && digest == to_hex(point.digest)) return {};
  return fail(Errc::diverged,
              "{} stands at {} ({}), the primary at {} ({})",
              host,
              sequence,
              digest,
              point.sequence,
              to_hex(point.digest));
}

// --- the proof

PeerStatus peer_from(const VolumeView& view) {
  PeerStatus peer;
  peer.host = view.host;
  peer.sent = peer.received = view.replica->received;
  peer.durable = view.replica->durable;
  peer.applied = view.replica->applied;
  peer.digest = view.replica->applied_digest;
  return peer;
}

/// Of a volume that is not served: every replica that answers says itself where it stands.
std::vector<PeerStatus> ask_replicas(const VolumeState& state,
                                     const std::string& self,
                                     const Target& target) {
  std::vector<PeerStatus> peers{peer_from(target.view)};
  for (const MemberState& member : state.members) {
    if (member.host == self || member.host == target.host) continue;
    const auto answer = ask_peer(
        {member.control, "GET", volume_path(state.name), nullptr, std::chrono::milliseconds(2000)});
    if (!answer || !answer->ok()) continue;
    const auto view = parse_volume(answer->body);
    if (view && view->replica && view->uuid == state.uuid) peers.push_back(peer_from(*view));
  }
  return peers;
}

struct Proof {
  std::string volume;
  std::string from;
  std::string to;
  Epoch epoch;
  HistoryPoint point;
  double held_ms = 0;
  std::vector<PeerStatus> replicas;
  bool dry_run = false;
  json nbd_export = nullptr;
};

json proof_json(const Proof& proof) {
  json replicas = json::array();
  bool equal = false;
  for (const PeerStatus& peer : proof.replicas) {
    replicas.push_back({{"host", peer.host},
                        {"sent", peer.sent},
                        {"received", peer.received},
                        {"durable", peer.durable},
                        {"applied", peer.applied},
                        {"digest", peer.digest}});
    if (peer.host == proof.to)
      equal = check_equal(proof.point, peer.host, peer.applied, peer.digest).has_value();
  }
  return {{"schema", 1},
          {"volume", proof.volume},
          {"from", proof.from},
          {"to", proof.to},
          {"epoch", to_json(proof.epoch)},
          {"history", to_json(proof.point)},
          {"held_ms", proof.held_ms},
          {"replicas", replicas},
          {"primary_digest", to_hex(proof.point.digest)},
          {"equal", equal},
          {"dry_run", proof.dry_run},
          {"export", proof.nbd_export}};
}

// --- hold and seal

Result<HoldResult> hold(ControlContext& context,
                        const std::shared_ptr<Volume>& volume,
                        const SwitchoverRequest& request) {
  const auto begin = Clock::now();
  const auto answer = ask_plugin(context,
                                 volume,
                                 "hold",
                                 {{"to", request.to},
                                  {"deadline_ms", request.deadline.count()},
                                  {"only_untouched", request.only_untouched}},
                                 request.deadline + reply_margin);
  if (!answer) return tl::unexpected(answer.error());
  HoldResult result;
  FieldReader fields(*answer);
  result.point = fields.point("history");
  result.held_ms = fields.real("held_ms");
  result.replicas = read_peers(fields, "replicas");
  result.since = Clock::now();
  Status status = fields.finish_allow_unknown();
  if (status) {
    const auto found =
        std::find_if(result.replicas.begin(), result.replicas.end(), [&](const PeerStatus& peer) {
          return peer.host == request.to;
        });
    status = found == result.replicas.end()
                 ? fail(Errc::protocol, "the plugin's answer says nothing of {}", request.to)
                 : check_equal(result.point, found->host, found->applied, found->digest);
  }
  if (status && Clock::now() - begin > request.deadline - promote_timeout_min) {
    status = fail(Errc::timeout, "{} caught up too late for the deadline", request.to);
  }
  if (!status) {
    static_cast<void>(ask_plugin(context, volume, "resume", json::object(), plugin_resume_timeout));
    return tl::unexpected(status.error());
  }
  return result;
}

Status seal(ControlContext& context, const std::shared_ptr<Volume>& volume) {
  const auto sealed = ask_plugin(context, volume, "seal", json::object(), seal_timeout);
  if (sealed) return {};
  // It may have sealed and not said so: an unanswered seal must not leave the guest waiting.
  static_cast<void>(ask_plugin(context, volume, "resume", json::object(), plugin_resume_timeout));
  return tl::unexpected(sealed.error());
}

Status write_transfer(ControlContext& context,
                      const std::shared_ptr<Volume>& volume,
                      const TransferState& transfer) {
  return update_volume(context, volume, [transfer](VolumeState& state) -> Status {
    state.transfer = transfer;
    return {};
  });
}

/// Asks the voters until it is settled or the daemon stops.
Settlement settle_soon(ControlContext& context,
                       const std::shared_ptr<Volume>& volume,
                       Clock::time_point until,
                       Error& error) {
  while (true) {
    const Settlement settlement = settle_transfer(context, volume, &error);
    if (settlement != Settlement::unknown || context.stopping || Clock::now() >= until)
      return settlement;
    std::this_thread::sleep_for(unknown_retry_delay);
  }
}

tl::unexpected<Error> not_moved(const std::string& name, const Error& why, const Status& resumed) {
  Error error = why;
  error.message = fmt::format("volume {} has not been moved: {}", name, why.message);
  if (!resumed)
    error.message += fmt::format("; and the export did not go on: {}", resumed.error().message);
  return tl::unexpected<Error>(std::move(error));
}

/// A switchover from its point of no return on.
class Handover {
 public:
  Handover(ControlContext& context,
           std::shared_ptr<Volume> volume,
           const SwitchoverRequest& request,
           Target target,
           HoldResult held,
           bool serving)
      : context_(context),
        volume_(std::move(volume)),
        request_(request),
        target_(std::move(target)),
        held_(std::move(held)),
        serving_(serving) {}

  Result<json> run(Clock::time_point end) {
    const VolumeState before = state_of(context_, volume_);
    const Epoch term = before.vote.record ? before.vote.record->epoch : before.epoch;
    offer_ = Epoch{std::max(before.epoch.number, term.number) + 1, random_tag()};
    if (const Status written =
            write_transfer(context_, volume_, {target_.host, offer_, held_.point});
        !written) {
      return not_moved(volume_->name(), written.error(), resume());
    }
    json body = {{"from", context_.options.host},
                 {"term", to_json(term)},
                 {"epoch", to_json(offer_)},
                 {"history", to_json(held_.point)},
                 {"activate", serving_}};
    if (request_.handover != 0) body["handover"] = request_.handover;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
    const auto answer = ask_peer({target_.address,
                                  "POST",
                                  volume_path(volume_->name(), "promote"),
                                  body,
                                  std::max<std::chrono::milliseconds>(left, promote_timeout_min)});
    if (answer && answer->ok()) return on_promoted(answer->body);
    return on_refused(answer ? answer->error() : answer.error());
  }

 private:
  Status resume() {
    if (!serving_) return {};
    const auto resumed =
        ask_plugin(context_, volume_, "resume", json::object(), plugin_resume_timeout);
    if (!resumed) return tl::unexpected(resumed.error());
    return {};
  }

  Result<json> on_promoted(const json& answer) {
    FieldReader fields(answer);
    const Epoch epoch = answer.contains("epoch") ? fields.epoch("epoch") : offer_;
    const json* nbd_export = fields.optional_object("export");
    const bool readable = fields.finish_allow_unknown().has_value();
    return moved(readable ? epoch : offer_,
                 readable && nbd_export != nullptr ? *nbd_export : json(nullptr));
  }

  Result<json> moved(const Epoch& epoch, const json& nbd_export) {
    served_since_ = Clock::now();
    const Status written = give_up_role(context_, volume_, target_.host, held_.point);
    if (!written) {
      return fail(Errc::io_error,
                  "{} is the primary of volume {} now, but {} cannot record it: {}",
                  target_.host,
                  volume_->name(),
                  context_.options.host,
                  written.error().message);
    }
    return proof(epoch, nbd_export);
  }

  Result<json> proof(const Epoch& epoch, const json& nbd_export) {
    Proof proof;
    proof.volume = volume_->name();
    proof.from = context_.options.host;
    proof.to = target_.host;
    proof.epoch = epoch;
    proof.point = held_.point;
    const auto end = served_since_.value_or(Clock::now());
    const auto since_hold = std::chrono::duration<double, std::milli>(end - held_.since).count();
    proof.held_ms = serving_ ? held_.held_ms + since_hold : 0;
    proof.replicas = held_.replicas;
    proof.nbd_export = nbd_export;
    log(LogLevel::info,
        "switchover",
        "volume={} to={} epoch={} sequence={} held_ms={:.1f}",
        proof.volume,
        proof.to,
        epoch.number,
        held_.point.sequence,
        proof.held_ms);
    return proof_json(proof);
  }

  /// Whatever the target has said, the voters decide: this host asks them for a new term. The guest
  /// waits meanwhile, for as long as a request is allowed to take; then the role keeper goes on.
  Result<json> on_refused(const Error& why) {
    log(LogLevel::warn,
        "switchover_open",
        "volume={} to={} error={}",
        volume_->name(),
        target_.host,
        log_value(why.message));
    Error last = why;
    switch (settle_soon(context_, volume_, Clock::now() + request_.deadline, last)) {
      case Settlement::promoted:
        return proof(state_of(context_, volume_).epoch, nullptr);
      case Settlement::not_promoted:
        return not_moved(volume_->name(), why, {});
      case Settlement::unknown:
        break;
    }
    return with_hint(fail(Errc::timeout,
                          "whether {} has become the primary of volume {} is not known: {}",
                          target_.host,
                          volume_->name(),
                          last.message),
                     "guests wait; it settles by itself as soon as enough voters answer");
  }

  ControlContext& context_;
  std::shared_ptr<Volume> volume_;
  const SwitchoverRequest& request_;
  Target target_;
  HoldResult held_;
  bool serving_;
  Epoch offer_;
  std::optional<Clock::time_point> served_since_;  ///< at the target, as far as this host knows
};

/// Where a volume that is not served stands, as a hold would say it.
Result<HoldResult> stopped_point(const VolumeState& state,
                                 const std::string& self,
                                 const Target& target) {
  HoldResult held;
  held.point = state.history;
  held.since = Clock::now();
  const ReplicaSelf& replica = *target.view.replica;
  RD_TRY(check_equal(held.point, target.host, replica.logged, replica.logged_digest));
  held.replicas = ask_replicas(state, self, target);
  return held;
}

Result<json> dry_run(const VolumeSnapshot& snapshot, const Target& target, bool serving) {
  Proof proof;
  proof.volume = snapshot.state.name;
  proof.from = snapshot.host;
  proof.to = target.host;
  proof.epoch = snapshot.state.epoch;
  proof.point = snapshot.state.history;
  proof.dry_run = true;
  if (serving && snapshot.plugin) {
    proof.point = snapshot.plugin->history;
    proof.replicas = snapshot.plugin->replicas;
  } else {
    auto held = stopped_point(snapshot.state, snapshot.host, target);
    if (!held) return tl::unexpected(held.error());
    proof.replicas = held->replicas;
  }
  return proof_json(proof);
}

}  // namespace

Status check_switchover(ControlContext& context,
                        const std::shared_ptr<Volume>& volume,
                        const SwitchoverRequest& request) {
  const VolumeSnapshot snapshot =
      run_on_reactor(context.reactor, [volume] { return volume->snapshot(); });
  RD_TRY(check_volume_ready(snapshot, request));
  const auto target = check_target(snapshot.state, snapshot.host, request.to);
  if (!target) return tl::unexpected(target.error());
  return {};
}

Status drain_to(ControlContext& context,
                const std::shared_ptr<Volume>& volume,
                const SwitchoverRequest& request) {
  const auto held = hold(context, volume, request);
  if (!held) return tl::unexpected(held.error());
  const auto resumed = ask_plugin(context, volume, "resume", json::object(), plugin_resume_timeout);
  if (!resumed) return tl::unexpected(resumed.error());
  return {};
}

Result<json> run_switchover(ControlContext& context,
                            const std::shared_ptr<Volume>& volume,
                            const SwitchoverRequest& request) {
  const auto end = Clock::now() + request.deadline;
  const VolumeSnapshot snapshot =
      run_on_reactor(context.reactor, [volume] { return volume->snapshot(); });
  RD_TRY(check_volume_ready(snapshot, request));
  auto target = check_target(snapshot.state, snapshot.host, request.to);
  if (!target) return tl::unexpected(target.error());
  const bool serving = is_served(snapshot);
  if (request.dry_run) return dry_run(snapshot, *target, serving);
  auto held = serving ? hold(context, volume, request)
                      : stopped_point(snapshot.state, snapshot.host, *target);
  if (!held) return not_moved(snapshot.state.name, held.error(), {});
  if (serving) {
    if (const Status sealed = seal(context, volume); !sealed) {
      return not_moved(snapshot.state.name, sealed.error(), {});
    }
  }
  return Handover(context, volume, request, std::move(*target), std::move(*held), serving).run(end);
}

}  // namespace replicad
