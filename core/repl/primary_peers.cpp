// Sessions with the replicas, the in-sync set and copies (declared in primary.h).

#include <algorithm>
#include <array>

#include "core/base/check.h"
#include "core/repl/primary.h"

namespace replicad {

namespace {

/// A member that lacks no more than this starts to join the in-sync set: what is on its way at full
/// speed.
std::uint64_t join_lag_bytes_max(std::uint64_t ring_bytes) {
  const std::uint64_t least = std::min<std::uint64_t>(1 * mib, ring_bytes / 4);
  return std::clamp<std::uint64_t>(ring_bytes / 8, least, 16 * mib);
}

// A member that falls out or fails again and again waits longer for its next copy.
constexpr Duration resync_delay_min = std::chrono::seconds(1);
constexpr Duration resync_delay_max = std::chrono::seconds(64);

/// Of a text that comes from a member and becomes a part of another one.
constexpr std::size_t shown_bytes_max = 500;

}  // namespace

bool Primary::acknowledges(const Peer& peer) const {
  return peer.recorded || peer.proposed || peer.joining;
}

std::vector<std::string> Primary::in_sync() const {
  std::vector<std::string> hosts{host_};
  for (const Peer& peer : peers_) {
    if (peer.recorded && !peer.removed) hosts.push_back(peer.host);
  }
  return hosts;
}

std::optional<SendPacer::Backlog> Primary::backlog(PeerIndex index) const {
  const Peer& peer = peers_[index];
  if (peer.phase != PeerPhase::streaming && peer.phase != PeerPhase::copying) return std::nullopt;
  const Sequence last = ring_.next() - 1;
  return SendPacer::Backlog{
      .frames = last - peer.taken.sequence,
      .bytes = ring_.end_of(last) - peer.taken_bytes,
      .in_flight = peer.phase == PeerPhase::streaming && peer.marks.logged < peer.taken.sequence};
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
  peer.taken = {};
  peer.resync_wanted.reset();
  peer.parted.reset();
  peer.stands_at.reset();
  if (event.message.consistent && is_on_history(logged) && !peer.diverged)
    peer.stands_at = event.message.durable;
  peer.offers_stage = event.message.consistent && event.message.stage == epoch_ &&
                      has_feature(event.message.features, feature_go_on);
  peer.offers_image = !event.message.consistent;
  if (event.message.durable > logged.sequence || event.message.applied > logged.sequence) {
    expel(event.peer, Error{Errc::protocol, 0, "attached: watermarks out of order", {}}, effects);
    return;
  }
  if (!event.message.consistent) {
    detach(event.peer,
           Error{Errc::inconsistent, 0, "its image is not complete; a copy is needed", {}});
    want_resync(event.peer, event.message, now);
    leave(event.peer, effects);
    return;
  }
  if (auto error = why_not_stream(peer, logged)) {
    detach(event.peer, std::move(*error));
    want_resync(event.peer, event.message, now);
    leave(event.peer, effects);
    return;
  }
  peer.marks.durable = event.message.durable;
  peer.marks.applied = event.message.applied;
  start_stream(event.peer, logged, now, effects);
}

std::optional<Error> Primary::why_not_stream(const Peer& peer, const HistoryPoint& logged) const {
  const std::string hint =
      "everything is compared by itself; what only that host has is kept aside there "
      "(`replicactl lost-writes`)";
  if (peer.diverged) {
    return Error{Errc::diverged, 0, "its image differed from what it had logged", hint};
  }
  const auto point = ring_.point(logged.sequence);
  if (point && *point == logged) return std::nullopt;
  if (is_on_history(logged)) {
    return Error{
        Errc::too_far_behind,
        0,
        fmt::format(
            "it ends at sequence {}, the ring begins at {}", logged.sequence, ring_.first()),
        {}};
  }
  return Error{Errc::diverged,
               0,
               fmt::format("its history at sequence {} (epoch {}) is not this primary's",
                           logged.sequence,
                           logged.epoch.number),
               hint};
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
  peer.behind.clear();
  peer.sync_requested = false;
  peer.copy_error.reset();
  forget_handed(peer);
  peer.last_progress = peer.last_durable = now;
  const StartMessage start{.after = point.sequence, .answered = ring_.next() - 1};
  effects.push_back(primary_effect::StartPeer{index, start});
  effects.push_back(primary_effect::Sendable{index});
  update_joining(index, effects);
}

void Primary::start_copy(PeerIndex index, Resync kind, Instant now, Effects& effects) {
  Peer& peer = peers_[index];
  peer.phase = PeerPhase::copying;
  peer.resync_wanted.reset();
  peer.resync_runs = true;
  peer.copy_holds = 0;
  peer.copy_awaits.reset();
  peer.resync_delay =
      std::clamp<Duration>(2 * peer.resync_delay, resync_delay_min, resync_delay_max);
  peer.taken = ring_.sealed_point();
  peer.taken_bytes = peer.sent_bytes = ring_.end_of(peer.taken.sequence);
  peer.marks = {};
  peer.last_progress = now;
  // In place the member is nothing to fall back on until the copy ends: only if another one is.
  const bool in_place = peer.stage_full && has_other_promotable(index);
  if (in_place) peer.stands_at.reset();
  const bool goes_on = peer.offers_stage && !in_place && may_go_on(peer, kind);
  if (!goes_on && !(peer.offers_image && kind == Resync::lack)) forget_handed(peer);
  peer.interrupted = kind;
  const bool is_parted = peer.parted.has_value();  // of a rewind
  auto plan = kind == Resync::lack || is_parted ? plan_lack(peer) : plan_whole();
  peer.handed_from = peer.handed_through = peer.taken.sequence;
  effects.push_back(primary_effect::StartPeer{index,
                                              {.copy = true,
                                               .after = peer.taken.sequence,
                                               .keep = kind == Resync::lack,
                                               .save = kind == Resync::rewind,
                                               .in_place = in_place,
                                               .answered = peer.taken.sequence,
                                               .go_on = goes_on,
                                               .parted = is_parted}});
  effects.push_back(primary_effect::RunCopy{index, std::move(plan)});
}

/// In sync, or at least as good to fall back on as this one.
bool Primary::has_other_promotable(PeerIndex peer) const {
  for (PeerIndex index = 0; index < peers_.size(); ++index) {
    if (index == peer) continue;
    if (peers_[index].recorded && is_streaming(index)) return true;
    const std::optional<Sequence>& stands_at = peers_[index].stands_at;
    if (stands_at && *stands_at >= peers_[peer].stands_at.value_or(0)) return true;
  }
  return false;
}

void Primary::detach(PeerIndex index, Error error) {
  Peer& peer = peers_[index];
  peer.phase = PeerPhase::detached;
  if (peer.copy_error) {
    error.message +=
        "; the last copy to it ended: " + peer.copy_error->message.substr(0, shown_bytes_max);
    if (!peer.copy_error->hint.empty()) error.hint = peer.copy_error->hint;
  }
  peer.error = std::move(error);
}

void Primary::close_peer(PeerIndex index, Error error, Effects& effects) {
  Peer& peer = peers_[index];
  if (peer.close_requested) return;
  peer.close_requested = true;
  peer.error = error;
  effects.push_back(primary_effect::ClosePeer{index, std::move(error)});
}

void Primary::expel(PeerIndex index, Error error, Effects& effects) {
  close_peer(index, std::move(error), effects);
  leave(index, effects);
}

void Primary::on_event(const primary_event::PeerLost& event, Instant now, Effects& effects) {
  Peer& peer = peers_[event.peer];
  const bool was_attached = peer.phase != PeerPhase::disconnected;
  // What we closed for a reason of our own keeps that reason.
  if (!peer.close_requested || !peer.error) peer.error = event.error;
  peer.close_requested = false;
  if (peer.phase == PeerPhase::copying) {
    peer.stage_full = event.error.code == Errc::no_space;
    peer.handed_through = peer.taken.sequence;
  }
  peer.phase = PeerPhase::disconnected;
  peer.stands_at.reset();
  peer.taken_bytes = peer.sent_bytes;
  peer.copy_lock.reset();
  peer.copy_locked = false;
  peer.sync_requested = false;
  peer.resync_wanted.reset();
  if (peer.resync_runs) {
    peer.copy_error = peer.error;
    end_resync(peer, now);
  }
  if (was_attached) {
    peer.last_progress = now;
    leave(event.peer, effects);
  }
}

void Primary::on_event(const primary_event::PeerMarks& event, Instant now, Effects& effects) {
  Peer& peer = peers_[event.peer];
  if (peer.removed || peer.close_requested) return;
  const Watermarks& marks = event.marks;
  if (hold_target_ == event.peer) hold_ping_pending_ = false;
  if (peer.phase == PeerPhase::copying) peer.last_progress = now;
  if (peer.phase != PeerPhase::streaming) return;  // they count for nothing
  if (auto error = check_marks(peer, marks)) {
    if (error->code == Errc::diverged) peer.diverged = true;
    expel(event.peer, std::move(*error), effects);
    return;
  }
  if (marks.received > peer.marks.received || marks.logged > peer.marks.logged) {
    peer.last_progress = now;
  }
  if (marks.durable > peer.marks.durable) {
    peer.last_progress = peer.last_durable = now;
    peer.sync_requested = false;
  }
  peer.marks = marks;
  note_durable(peer);
  if (marks.logged + 1 >= ring_.first()) {
    peer.logged_bytes = ring_.end_of(marks.logged);
    peer.behind_since.reset();
    peer.behind.clear();
  }
  update_joining(event.peer, effects);
}

std::optional<Error> Primary::check_marks(const Peer& peer, const Watermarks& marks) const {
  const Watermarks& before = peer.marks;
  const bool in_order = marks.durable <= marks.logged && marks.applied <= marks.logged &&
                        marks.logged <= marks.received && marks.received <= peer.taken.sequence;
  const bool goes_back = marks.received < before.received || marks.logged < before.logged ||
                         marks.durable < before.durable || marks.applied < before.applied;
  if (!in_order || goes_back) {
    return Error{Errc::protocol, 0, "watermarks that went back or beyond what was sent", {}};
  }
  const auto logged = ring_.point(marks.logged);
  const auto applied = ring_.point(marks.applied);
  if ((logged && logged->digest != marks.logged_digest) ||
      (applied && applied->digest != marks.applied_digest)) {
    return Error{Errc::diverged,
                 0,
                 fmt::format("its digest at sequence {} (applied {}) differs from the primary's",
                             marks.logged,
                             marks.applied),
                 "everything is compared by itself"};
  }
  return std::nullopt;
}

void Primary::on_event(const primary_event::PeerSent& event, Instant now, Effects& /*effects*/) {
  Peer& peer = peers_[event.peer];
  peer.sent_bytes = std::min(peer.sent_bytes + event.bytes, peer.taken_bytes);
  if (peer.phase == PeerPhase::copying) peer.last_progress = now;
}

void Primary::update_joining(PeerIndex index, Effects& effects) {
  Peer& peer = peers_[index];
  if (peer.phase != PeerPhase::streaming || peer.recorded || peer.proposed) return;
  if (peer.close_requested || peer.removed) return;
  if (!peer.joining) {
    const std::uint64_t lag_bytes = ring_.end_of(ring_.next() - 1) - peer.logged_bytes;
    if (lag_bytes > join_lag_bytes_max(ring_.capacity_bytes())) return;
    start_joining(peer);
  }
  // Everything answered so far, and everything this epoch inherited, must be durable there first.
  if (peer.marks.durable < std::max(peer.join_sequence, inherited_.sequence)) {
    request_sync(index, effects);
    return;
  }
  propose_record(effects);
}

void Primary::start_joining(Peer& peer) {
  if (peer.phase != PeerPhase::streaming || acknowledges(peer)) return;
  if (peer.close_requested || peer.removed) return;
  peer.joining = true;
  peer.join_sequence = ring_.next() - 1;
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
  if (!peer.recorded && !peer.proposed) return;
  peer.leaving = true;
  RD_CHECK(peer.error);
  record_reason_ = fmt::format("{}: {}", peer.host, peer.error->message);
  propose_record(effects);
}

void Primary::propose_record(Effects& effects) {
  // Between seal and resume nothing is answered, so no departure needs a record, and the record of
  // the role's transfer is not to be overwritten by one of ours (the target ends its session when
  // it takes over).
  if (record_pending_ || hold_sealed_) return;
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
  for (PeerIndex peer = 0; peer < peers_.size(); ++peer) {
    update_joining(peer, effects);
  }
}

bool Primary::owes_progress(const Peer& peer) const {
  switch (peer.phase) {
    case PeerPhase::disconnected:
      return peer.recorded && !peer.leaving;
    case PeerPhase::detached:
      return false;
    case PeerPhase::streaming:
      return peer.marks.logged < ring_.sealed_point().sequence;
    case PeerPhase::copying:
      return true;
  }
  return false;
}

bool Primary::owes_durability(const Peer& peer) const {
  if (peer.phase != PeerPhase::streaming) return false;
  if (peer.sync_requested) return true;
  if (wait_durable_.empty() || !acknowledges(peer)) return false;
  const Sequence awaited = wait_durable_.front().sequence;
  return peer.marks.durable < awaited && awaited <= peer.marks.logged;
}

void Primary::check_progress(Instant now, Effects& effects) {
  for (PeerIndex index = 0; index < peers_.size(); ++index) {
    Peer& peer = peers_[index];
    if (peer.removed || peer.close_requested) continue;
    // Two clocks: writes that are logged on time must not hide a sync that hangs.
    if (!owes_progress(peer)) peer.last_progress = now;
    if (!owes_durability(peer)) peer.last_durable = now;
    const Duration waited = now - std::min(peer.last_progress, peer.last_durable);
    if (waited < ack_timeout_) continue;
    const auto waited_ms = std::chrono::duration_cast<std::chrono::milliseconds>(waited).count();
    Error error{Errc::timeout, 0, fmt::format("no progress for {} ms", waited_ms), {}};
    if (peer.phase == PeerPhase::disconnected) {
      if (!peer.error) peer.error = std::move(error);
      leave(index, effects);
    } else {
      expel(index, std::move(error), effects);
    }
  }
}

void Primary::on_event(const primary_event::CopyRequested& event, Instant now, Effects& effects) {
  Peer& peer = peers_[event.peer];
  if (peer.phase != PeerPhase::detached || peer.close_requested) return;
  if (peer.recorded || peer.proposed) return;  // a record names it
  const bool rewinds = peer.resync_wanted == Resync::rewind;
  peer.parted.reset();  // everything is to be compared
  start_copy(event.peer, rewinds ? Resync::rewind : Resync::whole, now, effects);
}

void Primary::on_event(const primary_event::CopyLock& event, Instant now, Effects& /*effects*/) {
  Peer& peer = peers_[event.peer];
  const bool copies = peer.phase == PeerPhase::copying;
  if (!copies && peer.phase != PeerPhase::streaming) return;
  RD_CHECK(!peer.copy_lock);
  peer.copy_lock = event.range;
  if (copies) peer.last_progress = now;  // the piece before was sent
}

void Primary::on_event(const primary_event::CopyUnlock& event,
                       Instant /*now*/,
                       Effects& /*effects*/) {
  Peer& peer = peers_[event.peer];
  if (peer.copy_locked && peer.phase != PeerPhase::streaming) {
    peer.copy_holds = ring_.next() - 1;
    peer.handed.mark(*peer.copy_lock);
  }
  peer.copy_lock.reset();
  peer.copy_locked = false;
}

void Primary::on_event(const primary_event::CopyDone& event, Instant now, Effects& effects) {
  Peer& peer = peers_[event.peer];
  if (peer.removed || peer.close_requested) return;
  const auto point = ring_.point(event.point.sequence);
  const bool fits_copy = peer.phase == PeerPhase::copying && peer.copy_end == event.point;
  if (!fits_copy || (point && *point != event.point)) {
    expel(event.peer, Error{Errc::protocol, 0, "copy_done without a copy", {}}, effects);
    return;
  }
  peer.phase = PeerPhase::streaming;
  peer.diverged = false;
  peer.stage_full = false;
  peer.error.reset();
  peer.copy_error.reset();
  forget_handed(peer);
  peer.lack.plan.reset();
  peer.lack.suspect.clear_all();
  peer.lack.before_end.clear_all();
  peer.lack.base = event.point.sequence;
  end_resync(peer, now);
  peer.marks = Watermarks{.received = event.point.sequence,
                          .logged = event.point.sequence,
                          .durable = event.point.sequence,
                          .applied = 0,  // the member will report it
                          .logged_digest = event.point.digest,
                          .applied_digest = {}};
  peer.last_progress = peer.last_durable = now;
  if (event.point.sequence + 1 >= ring_.first()) {
    peer.logged_bytes = ring_.end_of(event.point.sequence);
    peer.behind.clear();
  }
  effects.push_back(primary_effect::Ping{event.peer});
  update_joining(event.peer, effects);
}

void Primary::on_event(const primary_event::PeerAdded& event, Instant now, Effects& /*effects*/) {
  if (find_peer(event.host)) return;
  Peer peer;
  peer.host = event.host;
  peer.last_progress = now;
  peer.lack = make_lack(ring_.next() - 1);
  peer.handed = BlockMap(disk_bytes_);
  peers_.push_back(std::move(peer));
}

void Primary::on_event(const primary_event::PeerRemoved& event, Instant /*now*/, Effects& effects) {
  Peer& peer = peers_[event.peer];
  expel(event.peer, Error{Errc::refused, 0, "removed from the volume", {}}, effects);
  peer.removed = true;
  peer.stands_at.reset();
  peer.copy_lock.reset();
}

void Primary::Behind::add(const RingIndex::Entry& entry) {
  if (writes == 0) since = entry.placed_at;
  ++writes;
  bytes += entry.item.range_bytes;
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
    view.lag = std::max(Duration{}, now - ring_.at(peer.marks.logged + 1).placed_at);
  } else if (peer.behind_since) {
    view.lag = now - *peer.behind_since;
  }
  std::array<Behind, disks_max> behind;
  for (const auto& [disk, lacks] : peer.behind)
    behind.at(disk) = lacks;
  for (Sequence at = std::max(peer.marks.logged + 1, ring_.first()); at <= last; ++at) {
    const RingIndex::Entry& entry = ring_.at(at);
    if (entry.item.range_bytes > 0) behind.at(entry.item.disk).add(entry);
  }
  for (DiskIndex disk = 0; disk < behind.size(); ++disk) {
    const Behind& lacks = behind.at(disk);
    if (lacks.writes == 0) continue;
    view.disks.push_back(
        {disk, lacks.writes, lacks.bytes, std::max(Duration{}, now - lacks.since)});
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
