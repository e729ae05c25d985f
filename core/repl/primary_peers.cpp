// Sessions with the replicas, the in-sync set and copies (declared in primary.h).

#include <algorithm>

#include "core/base/check.h"
#include "core/repl/primary.h"

namespace replicad {

namespace {

// A member that lacks no more than this starts to join the in-sync set.
constexpr std::uint64_t join_lag_bytes_max = 1 * mib;

}  // namespace

bool Primary::acknowledges(const Peer& peer) const {
  return !peer.removed && (peer.recorded || peer.proposed || peer.joining);
}

std::vector<std::string> Primary::in_sync() const {
  std::vector<std::string> hosts{host_};
  for (const Peer& peer : peers_) {
    if (peer.recorded && !peer.removed) hosts.push_back(peer.host);
  }
  return hosts;
}

bool Primary::has_stream() const {
  return std::ranges::any_of(peers_, [](const Peer& peer) {
    return peer.phase == PeerPhase::streaming || peer.phase == PeerPhase::copying;
  });
}

std::optional<PeerIndex> Primary::find_peer(std::string_view host) const {
  for (PeerIndex peer = 0; peer < peers_.size(); ++peer) {
    if (!peers_[peer].removed && peers_[peer].host == host) return peer;
  }
  return std::nullopt;
}

void Primary::on_event(const primary_event::PeerAttached& event, Instant now, Effects& effects) {
  Peer& peer = peers_[event.peer];
  if (peer.removed) return;
  const HistoryPoint& logged = event.message.logged;
  peer.close_requested = false;
  peer.error.reset();
  peer.marks = {};
  peer.last_progress = now;
  if (event.message.durable > logged.sequence || event.message.applied > logged.sequence) {
    close_peer(
        event.peer, Error{Errc::protocol, 0, "attached: watermarks out of order", {}}, effects);
    return;
  }
  if (!event.message.consistent) {
    detach(event.peer,
           Error{Errc::inconsistent, 0, "its image is not complete; a full copy is needed", {}});
    leave(event.peer, effects);
    start_copy(event.peer, now, effects);
    return;
  }
  const std::string hint =
      fmt::format("`replicactl resync` with --host {} copies the whole image", peer.host);
  const auto point = ring_.point(logged.sequence);
  if (point && *point == logged) {
    peer.marks.durable = event.message.durable;
    peer.marks.applied = event.message.applied;
    start_stream(event.peer, *point, now, effects);
    return;
  }
  if (!point && logged.sequence < ring_.first()) {
    detach(
        event.peer,
        Error{Errc::too_far_behind,
              0,
              fmt::format(
                  "it ends at sequence {}, the ring begins at {}", logged.sequence, ring_.first()),
              hint});
  } else {
    detach(event.peer,
           Error{Errc::diverged,
                 0,
                 fmt::format("its history at sequence {} (epoch {}) is not this primary's",
                             logged.sequence,
                             logged.epoch.number),
                 hint});
  }
  leave(event.peer, effects);
}

void Primary::start_stream(PeerIndex index,
                           const HistoryPoint& point,
                           Instant now,
                           Effects& effects) {
  Peer& peer = peers_[index];
  peer.phase = PeerPhase::streaming;
  peer.taken = point;
  peer.taken_bytes = peer.sent_bytes = peer.logged_bytes = ring_.end_of(point.sequence);
  peer.marks.received = peer.marks.logged = point.sequence;
  peer.marks.logged_digest = point.digest;
  peer.behind_since.reset();
  peer.sync_requested = false;
  peer.last_progress = now;
  effects.push_back(primary_effect::StartPeer{index, {.copy = false, .after = point.sequence}});
  effects.push_back(primary_effect::Sendable{index});
  update_joining(index, effects);
  answer_ready(effects);
}

void Primary::start_copy(PeerIndex index, Instant now, Effects& effects) {
  Peer& peer = peers_[index];
  peer.phase = PeerPhase::copying;
  peer.taken = ring_.sealed_point();
  peer.taken_bytes = peer.sent_bytes = ring_.end_of(peer.taken.sequence);
  peer.marks = {};
  peer.last_progress = now;
  effects.push_back(primary_effect::StartPeer{index, {.copy = true, .after = peer.taken.sequence}});
  effects.push_back(primary_effect::RunCopy{index});
}

void Primary::detach(PeerIndex index, Error error) {
  Peer& peer = peers_[index];
  peer.phase = PeerPhase::detached;
  peer.error = std::move(error);
}

void Primary::close_peer(PeerIndex index, Error error, Effects& effects) {
  Peer& peer = peers_[index];
  if (peer.close_requested) return;
  peer.close_requested = true;
  peer.error = error;
  effects.push_back(primary_effect::ClosePeer{index, std::move(error)});
}

void Primary::on_event(const primary_event::PeerLost& event, Instant now, Effects& effects) {
  Peer& peer = peers_[event.peer];
  const bool was_attached = peer.phase != PeerPhase::disconnected;
  // What we closed for a reason of our own keeps that reason.
  if (!peer.close_requested || !peer.error) peer.error = event.error;
  peer.close_requested = false;
  peer.phase = PeerPhase::disconnected;
  peer.taken_bytes = peer.sent_bytes;
  peer.copy_lock.reset();
  peer.copy_locked = false;
  peer.sync_requested = false;
  if (was_attached) {
    peer.last_progress = now;
    leave(event.peer, effects);
  }
  admit_waiting(effects);
}

void Primary::on_event(const primary_event::PeerMarks& event, Instant now, Effects& effects) {
  Peer& peer = peers_[event.peer];
  if (peer.removed || peer.close_requested) return;
  const Watermarks& marks = event.marks;
  if (hold_target_ == event.peer) hold_ping_pending_ = false;
  if (peer.phase == PeerPhase::copying) return;  // they count for nothing until copy_done
  if (peer.phase != PeerPhase::streaming || marks.received > peer.taken.sequence ||
      marks.received < peer.marks.received || marks.logged < peer.marks.logged ||
      marks.durable < peer.marks.durable || marks.applied < peer.marks.applied) {
    leave(event.peer, effects);
    close_peer(event.peer,
               Error{Errc::protocol, 0, "watermarks that went back or beyond what was sent", {}},
               effects);
    return;
  }
  const auto logged = ring_.point(marks.logged);
  const auto applied = ring_.point(marks.applied);
  if ((logged && logged->digest != marks.logged_digest) ||
      (applied && applied->digest != marks.applied_digest)) {
    leave(event.peer, effects);
    close_peer(
        event.peer,
        Error{Errc::diverged,
              0,
              fmt::format("its digest at sequence {} (applied {}) differs from the primary's",
                          marks.logged,
                          marks.applied),
              "its image is not equal; `replicactl resync` copies the whole image"},
        effects);
    return;
  }
  if (marks.received > peer.marks.received || marks.logged > peer.marks.logged ||
      marks.durable > peer.marks.durable) {
    peer.last_progress = now;
  }
  if (marks.durable > peer.marks.durable) peer.sync_requested = false;
  peer.marks = marks;
  if (logged) {
    peer.logged_bytes = ring_.end_of(marks.logged);
    peer.behind_since.reset();
  }
  update_joining(event.peer, effects);
  answer_ready(effects);
  if (!queue_.empty()) admit_waiting(effects);
}

void Primary::on_event(const primary_event::PeerSent& event, Instant now, Effects& effects) {
  Peer& peer = peers_[event.peer];
  peer.sent_bytes = std::min(peer.sent_bytes + event.bytes, peer.taken_bytes);
  if (peer.phase == PeerPhase::copying) peer.last_progress = now;
  if (!queue_.empty()) admit_waiting(effects);
}

void Primary::update_joining(PeerIndex index, Effects& effects) {
  Peer& peer = peers_[index];
  if (peer.phase != PeerPhase::streaming || peer.recorded || peer.close_requested || peer.removed)
    return;
  if (!peer.joining) {
    const std::uint64_t head_bytes = ring_.end_of(ring_.next() - 1);
    if (head_bytes - peer.logged_bytes > join_lag_bytes_max) return;
    peer.joining = true;
    peer.join_sequence = ring_.next() - 1;
  }
  // Everything answered so far, and everything this epoch inherited, must be durable there first.
  if (peer.marks.durable < std::max(peer.join_sequence, inherited_.sequence)) {
    request_sync(index, effects);
    return;
  }
  propose_record(effects);
}

void Primary::request_sync(PeerIndex index, Effects& effects) {
  Peer& peer = peers_[index];
  if (peer.phase != PeerPhase::streaming || peer.sync_requested || peer.close_requested) return;
  if (peer.marks.durable >= peer.marks.logged) return;
  peer.sync_requested = true;
  effects.push_back(primary_effect::RequestSync{index});
}

void Primary::leave(PeerIndex index, Effects& effects) {
  Peer& peer = peers_[index];
  peer.joining = false;
  if (!peer.recorded && !peer.proposed) {
    answer_ready(effects);
    return;
  }
  peer.leaving = true;
  record_reason_ = fmt::format("{}: {}", peer.host, peer.error ? peer.error->message : "left");
  propose_record(effects);
}

void Primary::propose_record(Effects& effects) {
  if (record_pending_) return;
  std::vector<std::string> wanted{host_};
  bool changed = false;
  for (Peer& peer : peers_) {
    const bool stays = peer.recorded && !peer.leaving && !peer.removed;
    const bool joins =
        peer.joining && peer.marks.durable >= std::max(peer.join_sequence, inherited_.sequence);
    peer.proposed = stays || joins;
    if (peer.proposed) wanted.push_back(peer.host);
    if (peer.proposed != peer.recorded) changed = true;
    if (joins && !peer.recorded) record_reason_ = fmt::format("{}: in sync", peer.host);
  }
  if (!changed) {
    for (Peer& peer : peers_)
      peer.proposed = false;
    return;
  }
  record_pending_ = true;
  effects.push_back(primary_effect::Record{std::move(wanted), record_reason_});
}

void Primary::on_event(const primary_event::Recorded& /*event*/,
                       Instant /*now*/,
                       Effects& effects) {
  RD_CHECK(record_pending_);
  record_pending_ = false;
  for (Peer& peer : peers_) {
    peer.recorded = peer.proposed;
    peer.proposed = false;
    if (peer.recorded) {
      peer.joining = false;
    } else {
      peer.leaving = false;
    }
  }
  propose_record(effects);
  answer_ready(effects);
  for (PeerIndex peer = 0; peer < peers_.size(); ++peer)
    update_joining(peer, effects);
}

void Primary::check_progress(Instant now, Effects& effects) {
  const Sequence last = ring_.sealed_point().sequence;
  for (PeerIndex index = 0; index < peers_.size(); ++index) {
    Peer& peer = peers_[index];
    if (peer.removed || peer.close_requested) continue;
    const bool awaited = peer.phase == PeerPhase::disconnected && peer.recorded && !peer.leaving;
    const bool outstanding =
        (peer.phase == PeerPhase::streaming &&
         (peer.marks.logged < last || (peer.sync_requested && peer.marks.durable < last))) ||
        peer.phase == PeerPhase::copying;
    if (!awaited && !outstanding) {
      peer.last_progress = now;
      continue;
    }
    if (now - peer.last_progress < ack_timeout_) continue;
    const auto waited_ms =
        std::chrono::duration_cast<std::chrono::milliseconds>(now - peer.last_progress).count();
    Error error{Errc::timeout, 0, fmt::format("no progress for {} ms", waited_ms), {}};
    if (awaited) {
      peer.error = peer.error ? peer.error : error;
      leave(index, effects);
    } else {
      peer.error = error;
      leave(index, effects);
      close_peer(index, std::move(error), effects);
    }
  }
}

void Primary::on_event(const primary_event::CopyRequested& event, Instant now, Effects& effects) {
  const Peer& peer = peers_[event.peer];
  if (peer.phase != PeerPhase::detached || peer.recorded || peer.close_requested) return;
  start_copy(event.peer, now, effects);
}

void Primary::on_event(const primary_event::CopyLock& event, Instant /*now*/, Effects& effects) {
  Peer& peer = peers_[event.peer];
  if (peer.phase != PeerPhase::copying) return;
  RD_CHECK(!peer.copy_lock);
  peer.copy_lock = event.range;
  grant_copy_locks(effects);
}

void Primary::on_event(const primary_event::CopyUnlock& event, Instant /*now*/, Effects& effects) {
  Peer& peer = peers_[event.peer];
  peer.copy_lock.reset();
  peer.copy_locked = false;
  admit_waiting(effects);
}

void Primary::on_event(const primary_event::CopyDone& event, Instant now, Effects& effects) {
  Peer& peer = peers_[event.peer];
  if (peer.phase != PeerPhase::copying || event.point.sequence > peer.taken.sequence) {
    close_peer(event.peer, Error{Errc::protocol, 0, "copy_done without a copy", {}}, effects);
    return;
  }
  peer.phase = PeerPhase::streaming;
  peer.error.reset();
  peer.marks = Watermarks{.received = event.point.sequence,
                          .logged = event.point.sequence,
                          .durable = event.point.sequence,
                          .applied = event.point.sequence,
                          .logged_digest = event.point.digest,
                          .applied_digest = event.point.digest};
  peer.last_progress = now;
  if (event.point.sequence + 1 >= ring_.first())
    peer.logged_bytes = ring_.end_of(event.point.sequence);
  effects.push_back(primary_effect::Ping{event.peer});
  update_joining(event.peer, effects);
}

void Primary::on_event(const primary_event::PeerAdded& event, Instant now, Effects& /*effects*/) {
  if (find_peer(event.host)) return;
  Peer peer;
  peer.host = event.host;
  peer.last_progress = now;
  peers_.push_back(std::move(peer));
}

void Primary::on_event(const primary_event::PeerRemoved& event, Instant /*now*/, Effects& effects) {
  Peer& peer = peers_[event.peer];
  leave(event.peer, effects);
  close_peer(event.peer, Error{Errc::refused, 0, "removed from the volume", {}}, effects);
  peer.removed = true;
  peer.copy_lock.reset();
  propose_record(effects);
  answer_ready(effects);
  admit_waiting(effects);
}

PeerView Primary::view(PeerIndex index, Instant now) const {
  const Peer& peer = peers_[index];
  PeerView view;
  view.host = peer.host;
  view.phase = peer.phase;
  view.in_sync = peer.recorded;
  view.caught_up = peer.recorded || peer.joining;
  view.sent = peer.taken.sequence;
  view.marks = peer.marks;
  view.error = peer.error;
  const Sequence last = ring_.next() - 1;
  if (peer.marks.logged >= last) return view;
  view.lag_bytes = ring_.end_of(last) - peer.logged_bytes;
  if (peer.marks.logged + 1 >= ring_.first()) {
    view.lag = now - ring_.at(peer.marks.logged + 1).placed_at;
  } else if (peer.behind_since) {
    view.lag = now - *peer.behind_since;
  }
  return view;
}

std::string_view peer_state_name(PeerPhase phase, bool caught_up, bool refused) {
  switch (phase) {
    case PeerPhase::disconnected:
      return refused ? "refused" : "disconnected";
    case PeerPhase::detached:
      return "detached";
    case PeerPhase::streaming:
      return caught_up ? "streaming" : "catching-up";
    case PeerPhase::copying:
      return "copying";
  }
  return "?";
}

}  // namespace replicad
