#include "core/repl/primary.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/base/check.h"

namespace replicad {

namespace {

// Numbers kept back for frames of our own (the flush of a hold).
constexpr Sequence sequences_spare = 64;
// Ask for more numbers when fewer than this are left; ask for this many.
constexpr Sequence sequences_low = Sequence{1} << 22;
constexpr Sequence sequences_step = Sequence{1} << 24;
// Ring space kept back likewise.
constexpr std::uint64_t ring_spare_bytes = 16 * frame_header_bytes;

std::uint64_t frame_bytes_of(const Change& change) {
  return frame_header_bytes + (change.kind == FrameType::write ? change.range.length_bytes : 0);
}

}  // namespace

Primary::Primary(const PrimaryConfig& config, Instant now)
    : epoch_(config.epoch),
      inherited_(config.history),
      host_(config.host),
      disk_bytes_(config.disk_bytes),
      mode_(config.mode),
      congestion_(config.congestion),
      on_local_error_(config.on_local_error),
      ack_timeout_(config.ack_timeout),
      ring_(config.ring_bytes, config.history),
      reserved_(config.reserved),
      terms_(config.terms),
      trail_(config.trail),
      voters_(config.voters) {
  RD_CHECK(reserved_ >= config.history.sequence);
  if (config.history.epoch != epoch_) {
    terms_.push_back({config.history.epoch, config.history.sequence, false});
  }
  if (trail_) {
    for (const Trail::Past& past : trail_->past())
      terms_.push_back({past.epoch, past.end, false});
  }
  for (const std::string& name : config.peers) {
    Peer peer;
    peer.host = name;
    peer.recorded = std::ranges::find(config.in_sync, name) != config.in_sync.end();
    peer.last_progress = now;
    peer.lack = make_lack(config.history.sequence);
    peer.handed = BlockMap(disk_bytes_);
    const auto known = std::ranges::find(config.lacks, name, &KnownLack::host);
    if (known != config.lacks.end()) {
      peer.lack.base = known->base;
      peer.lack.dirty.merge(known->dirty);
      peer.lack.suspect.merge(known->suspect);
      peer.lack.last_marked = config.history.sequence;
    }
    peers_.push_back(std::move(peer));
  }
  // A majority has granted this term since it was asked for.
  set_voters(config.voters, std::min(config.asked_at.value_or(now), now));
}

void Primary::step(const PrimaryEvent& event, Instant now, Effects& effects) {
  look_at_quorum(now, effects);
  std::visit([&](const auto& concrete) { on_event(concrete, now, effects); }, event);
  look_at_quorum(now, effects);
  // Whatever the event was, what it made possible is done now: no event can forget somebody who
  // waits.
  answer_ready(effects);
  reserve_sequences(effects);
  admit_waiting(effects);
  advance_resyncs(now, effects);
  grant_copy_locks(effects);
  advance_hold(now, effects);
}

void Primary::on_event(const primary_event::WriteArrived& event,
                       Instant /*now*/,
                       Effects& effects) {
  if (failure_ && on_local_error_ == OnLocalError::fail) {
    effects.push_back(primary_effect::Answer{event.id, true});
    return;
  }
  RD_CHECK(is_numbered(event.change.kind));
  RD_CHECK(event.change.range.disk < disk_bytes_.size());
  RD_CHECK(fits(event.change.range, disk_bytes_[event.change.range.disk]));
  queue_.push_back({event.id, event.change});
}

bool Primary::is_blocked(const Request& request, std::size_t queue_index) const {
  const Range& range = request.change.range;
  if (active_.overlaps_any(range)) return true;
  for (const Peer& peer : peers_) {
    if (peer.copy_lock && overlaps(*peer.copy_lock, range)) return true;
  }
  // Never overtake an earlier request for the same bytes.
  for (std::size_t i = 0; i < queue_index; ++i) {
    if (overlaps(queue_[i].change.range, range)) return true;
  }
  return false;
}

void Primary::admit_waiting(Effects& effects) {
  if (hold_phase_ != HoldPhase::none || failure_ || cut_off_since_) return;
  for (std::size_t i = 0; i < queue_.size();) {
    const std::uint64_t frame_bytes = frame_bytes_of(queue_[i].change);
    if (ring_.next() + admitted_.size() + sequences_spare > reserved_) return;
    if (!make_room(frame_bytes + ring_spare_bytes, effects)) return;
    if (is_blocked(queue_[i], i)) {
      ++i;
      continue;
    }
    ring_.reserve(frame_bytes);
    const Request request = queue_[i];
    queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(i));
    active_.insert(request.id, request.change.range);
    admitted_.push_back(request);
    is_touched_ = is_touched_ || request.change.kind != FrameType::flush;
    effects.push_back(primary_effect::Admitted{request.id});
  }
}

void Primary::reserve_sequences(Effects& effects) {
  if (reserve_requested_ || ring_.next() + sequences_low < reserved_) return;
  reserve_requested_ = true;
  effects.push_back(primary_effect::Reserve{reserved_ + sequences_step});
}

void Primary::on_event(const primary_event::ReserveGranted& event,
                       Instant /*now*/,
                       Effects& /*effects*/) {
  reserve_requested_ = false;
  reserved_ = std::max(reserved_, event.reserved);
}

void Primary::on_event(const primary_event::LocalWritten& event, Instant now, Effects& effects) {
  const auto found = std::ranges::find(admitted_, event.id, &Request::id);
  RD_CHECK(found != admitted_.end());
  const Change change = found->change;
  *found = admitted_.back();
  admitted_.pop_back();
  RD_CHECK(active_.erase(event.id));
  // The image has changed, so the change is numbered and sent even if this volume has failed
  // meanwhile.
  place(event.id, change, now, effects);
  end_wait_of_copies(event.id, effects);
  if (failure_ && on_local_error_ == OnLocalError::fail) {
    if (event.wants_answer) effects.push_back(primary_effect::Answer{event.id, true});
  } else if (event.wants_answer) {
    wait_for_answer(event.id, ring_.next() - 1, change, effects);
  }
}

void Primary::on_event(const primary_event::Abandoned& event, Instant /*now*/, Effects& effects) {
  const auto found = std::ranges::find(admitted_, event.id, &Request::id);
  RD_CHECK(found != admitted_.end());
  ring_.cancel(frame_bytes_of(found->change));
  *found = admitted_.back();
  admitted_.pop_back();
  RD_CHECK(active_.erase(event.id));
  end_wait_of_copies(event.id, effects);
}

void Primary::on_event(const primary_event::Cancelled& event,
                       Instant /*now*/,
                       Effects& /*effects*/) {
  std::erase_if(queue_, [&](const Request& request) { return request.id == event.id; });
  for (std::deque<Waiting>* queue : {&wait_received_, &wait_logged_, &wait_durable_}) {
    std::erase_if(*queue, [&](const Waiting& waiting) { return waiting.id == event.id; });
  }
  std::erase(flushing_, event.id);
  std::erase_if(flush_acknowledged_,
                [&](const Waiting& waiting) { return waiting.id == event.id; });
  std::erase(held_answers_, event.id);
}

void Primary::grant_copy_locks(Effects& effects) {
  for (PeerIndex index = 0; index < peers_.size(); ++index) {
    Peer& peer = peers_[index];
    if (!peer.copy_lock || peer.copy_locked || active_.overlaps_any(*peer.copy_lock)) continue;
    peer.copy_locked = true;
    effects.push_back(primary_effect::CopyLocked{index});
  }
}

void Primary::place(std::optional<RequestId> id,
                    const Change& change,
                    Instant now,
                    Effects& effects) {
  FrameHeader header;
  header.type = change.kind;
  header.flags = change.flags;
  header.payload_bytes =
      change.kind == FrameType::write ? static_cast<std::uint32_t>(change.range.length_bytes) : 0;
  header.epoch = epoch_;
  header.sequence = ring_.next();
  header.range = change.range;
  const std::uint64_t offset = ring_.place(digest_item(header), frame_bytes_of(change), now);
  effects.push_back(primary_effect::Placed{id, header, offset});
}

Primary::Level Primary::level_for(const Change& change) const {
  const bool must_last = change.kind == FrameType::flush || (change.flags & frame_flag_fua) != 0;
  switch (mode_) {
    case Mode::async:
      return Level::none;
    case Mode::semi_sync:
      return must_last ? Level::logged : Level::received;
    case Mode::sync:
      return must_last ? Level::durable : Level::logged;
  }
  return Level::durable;
}

std::deque<Primary::Waiting>& Primary::queue_for(Level level) {
  switch (level) {
    case Level::none:
    case Level::received:
      return wait_received_;
    case Level::logged:
      return wait_logged_;
    case Level::durable:
      return wait_durable_;
  }
  return wait_durable_;
}

void Primary::wait_for_answer(RequestId id,
                              Sequence sequence,
                              const Change& change,
                              Effects& effects) {
  const Waiting waiting{id, sequence, change.kind == FrameType::flush};
  if (waiting.is_flush) flushing_.push_back(id);
  // Nothing is answered as done any more behind a failure: it waits where answer_all_failed() finds it.
  const Level level = failure_ ? Level::durable : level_for(change);
  if (level == Level::none) {
    acknowledge(waiting, effects);
    return;
  }
  queue_for(level).push_back(waiting);
}

void Primary::acknowledge(const Waiting& waiting, Effects& effects) {
  if (waiting.is_flush && std::ranges::find(flushing_, waiting.id) != flushing_.end()) {
    flush_acknowledged_.push_back(waiting);
    return;
  }
  answer(waiting.id, effects);
}

void Primary::answer(RequestId id, Effects& effects) {
  if (cut_off_since_) {
    held_answers_.push_back(id);
  } else {
    effects.push_back(primary_effect::Answer{id, false});
  }
}

void Primary::on_event(const primary_event::LocalSynced& event, Instant /*now*/, Effects& effects) {
  if (failure_) return;  // answered, or held
  const auto found = std::ranges::find(flushing_, event.id);
  if (found == flushing_.end()) return;
  flushing_.erase(found);
  const auto acknowledged = std::ranges::find(flush_acknowledged_, event.id, &Waiting::id);
  if (acknowledged == flush_acknowledged_.end()) return;
  flush_acknowledged_.erase(acknowledged);
  answer(event.id, effects);
}

Sequence Primary::reached(Level level) const {
  Sequence least = std::numeric_limits<Sequence>::max();
  for (const Peer& peer : peers_) {
    if (!acknowledges(peer)) continue;
    switch (level) {
      case Level::none:
        break;
      case Level::received:
        least = std::min(least, peer.marks.received);
        break;
      case Level::logged:
        least = std::min(least, peer.marks.logged);
        break;
      case Level::durable:
        least = std::min(least, peer.marks.durable);
        break;
    }
  }
  return least;
}

void Primary::answer_queue(std::deque<Waiting>& queue,
                           Sequence reached_sequence,
                           Effects& effects) {
  while (!queue.empty() && queue.front().sequence <= reached_sequence) {
    acknowledge(queue.front(), effects);
    queue.pop_front();
  }
}

void Primary::answer_ready(Effects& effects) {
  if (failure_) return;
  if (!wait_received_.empty()) answer_queue(wait_received_, reached(Level::received), effects);
  if (!wait_logged_.empty()) answer_queue(wait_logged_, reached(Level::logged), effects);
  if (!wait_durable_.empty()) answer_queue(wait_durable_, reached(Level::durable), effects);
}

void Primary::on_event(const primary_event::FrameReady& event, Instant /*now*/, Effects& effects) {
  ring_.seal(event.sequence, event.payload_crc32c);
  for (PeerIndex peer = 0; peer < peers_.size(); ++peer) {
    const PeerPhase phase = peers_[peer].phase;
    if (phase == PeerPhase::streaming || phase == PeerPhase::copying) {
      effects.push_back(primary_effect::Sendable{peer});
    }
  }
}

bool Primary::is_pinned_by(const Peer& peer, Sequence sequence) const {
  const bool unsent = peer.sent_bytes < ring_.at(sequence).end_bytes;
  if (unsent && peer.taken_bytes > peer.sent_bytes) return true;  // the memory is being read
  switch (peer.phase) {
    case PeerPhase::disconnected:
      // Recorded but not attached yet in this epoch: it is given ack_timeout to come.
      return peer.recorded && !peer.leaving && !peer.removed;
    case PeerPhase::detached:
      return false;
    case PeerPhase::copying:
      return unsent && !peer.close_requested;
    case PeerPhase::streaming: {
      // With congestion=detach nobody waits for durability: what is in the replica's log is enough.
      const Watermarks& marks = peer.marks;
      const Sequence has = congestion_ == Congestion::throttle ? marks.durable : marks.logged;
      return (unsent || has < sequence) && !peer.close_requested;
    }
  }
  return true;
}

bool Primary::makes_ring_scarce(const Peer& peer) const {
  if (peer.phase != PeerPhase::streaming) return false;
  const Sequence last = ring_.next() - 1;
  const Sequence durable = std::max(peer.marks.durable, ring_.first() - 1);
  const std::uint64_t kept_bytes = ring_.end_of(last) - ring_.end_of(durable);
  return 2 * kept_bytes > ring_.capacity_bytes() || 2 * (last - durable) > ring_.entries_max();
}

bool Primary::make_room(std::uint64_t frame_bytes, Effects& effects) {
  // Ask early, so that the ring need not fill up first.
  for (PeerIndex peer = 0; peer < peers_.size(); ++peer) {
    if (makes_ring_scarce(peers_[peer])) request_sync(peer, effects);
  }
  while (!ring_.can_reserve(frame_bytes)) {
    if (ring_.first() >= ring_.next_unsealed()) return false;
    if (!drop_oldest_frame(effects)) return false;
  }
  return true;
}

bool Primary::drop_oldest_frame(Effects& effects) {
  bool pinned = false;
  for (PeerIndex index = 0; index < peers_.size(); ++index) {
    Peer& peer = peers_[index];
    if (!is_pinned_by(peer, ring_.first())) continue;
    if (congestion_ == Congestion::detach) {
      expel(index,
            Error{Errc::too_far_behind,
                  0,
                  "the replica did not keep up with the ring (congestion=detach)",
                  {}},
            effects);
    } else {
      request_sync(index, effects);
      // It slows the guest down already, so it may as well be waited for; else it might never catch
      // up.
      start_joining(peer);
    }
    pinned = pinned || is_pinned_by(peer, ring_.first());
  }
  if (pinned) return false;
  const RingIndex::Entry& oldest = ring_.at(ring_.first());
  for (Peer& peer : peers_) {
    if (peer.marks.logged + 1 == ring_.first()) peer.behind_since = oldest.placed_at;
    const bool changes_disk = oldest.item.range_bytes > 0;
    if (peer.marks.logged < ring_.first() && changes_disk)
      peer.behind[oldest.item.disk].add(oldest);
  }
  note_dropped(oldest);
  ring_.drop_oldest();
  return true;
}

void Primary::on_event(const primary_event::SettingsChanged& event,
                       Instant /*now*/,
                       Effects& effects) {
  const bool leaves_async = mode_ == Mode::async && event.mode != Mode::async;
  mode_ = event.mode;
  if (leaves_async) leave_async();
  congestion_ = event.congestion;
  on_local_error_ = event.on_local_error;
  ack_timeout_ = event.ack_timeout;
  if (failure_ && on_local_error_ == OnLocalError::fail) answer_all_failed(effects);
}

/// A flush that the disk has not done yet was acknowledged by nobody, and no silence of the voters holds its answer any
/// more: now the members must have it.
void Primary::leave_async() {
  std::deque<Waiting>& queue = queue_for(level_for(Change{FrameType::flush, 0, {}}));
  for (const Waiting& waiting : std::exchange(flush_acknowledged_, {})) {
    // Before the mode was `async` it may have been another one, whose requests still wait.
    queue.insert(std::ranges::upper_bound(queue, waiting.sequence, {}, &Waiting::sequence),
                 waiting);
  }
}

void Primary::on_event(const primary_event::Fail& event, Instant /*now*/, Effects& effects) {
  if (failure_) return;
  failure_ = event.error;
  if (on_local_error_ == OnLocalError::fail) answer_all_failed(effects);
  // Sealed, everything was durable before, and nobody can take the move back.
  if (hold_phase_ != HoldPhase::none && !hold_sealed_) fail_hold(event.error, effects);
}

void Primary::answer_all_failed(Effects& effects) {
  for (const Request& request : queue_)
    effects.push_back(primary_effect::Answer{request.id, true});
  queue_.clear();
  for (std::deque<Waiting>* queue : {&wait_received_, &wait_logged_, &wait_durable_}) {
    for (const Waiting& waiting : *queue) {
      std::erase(flushing_, waiting.id);
      effects.push_back(primary_effect::Answer{waiting.id, true});
    }
    queue->clear();
  }
  for (const Waiting& waiting : flush_acknowledged_) {
    std::erase(flushing_, waiting.id);
    effects.push_back(primary_effect::Answer{waiting.id, true});
  }
  flush_acknowledged_.clear();
  for (const RequestId id : std::exchange(held_answers_, {}))
    effects.push_back(primary_effect::Answer{id, true});
}

void Primary::on_event(const primary_event::Tick& /*event*/, Instant now, Effects& effects) {
  check_progress(now, effects);
  if (hold_phase_ != HoldPhase::none && !hold_sealed_ && now >= hold_deadline_) {
    std::string lacking;
    for (const Peer& peer : peers_) {
      if (!acknowledges(peer)) continue;
      lacking += fmt::format(
          "; {}: durable {}, applied {}", peer.host, peer.marks.durable, peer.marks.applied);
    }
    fail_hold(
        Error{Errc::timeout,
              0,
              fmt::format("the deadline passed before everything up to sequence {} was proven{}",
                          ring_.next() - 1,
                          lacking),
              "see `replicactl status`; a longer --deadline may be enough"},
        effects);
  }
}

Primary::SendWindow Primary::take(PeerIndex index, std::uint64_t bytes_max) {
  Peer& peer = peers_[index];
  if (peer.close_requested ||
      (peer.phase != PeerPhase::streaming && peer.phase != PeerPhase::copying))
    return {};
  const HistoryPoint sealed = ring_.sealed_point();
  if (peer.taken.sequence >= sealed.sequence) return {};
  RD_CHECK(peer.taken.sequence + 1 >= ring_.first());
  SendWindow window{peer.taken_bytes, ring_.end_of(sealed.sequence)};
  HistoryPoint last = sealed;
  if (window.end_bytes - window.begin_bytes > bytes_max) {
    Sequence sequence = peer.taken.sequence + 1;
    while (sequence < sealed.sequence &&
           ring_.at(sequence + 1).end_bytes - window.begin_bytes <= bytes_max)
      ++sequence;
    window.end_bytes = ring_.end_of(sequence);
    last = ring_.point(sequence).value();
  }
  peer.taken = last;
  peer.taken_bytes = window.end_bytes;
  return window;
}

HistoryPoint Primary::taken_point(PeerIndex peer) const {
  return peers_[peer].taken;
}

void Primary::check_invariants() const {
  RD_CHECK(active_.count() == admitted_.size());
  RD_CHECK(ring_.used_bytes() <= ring_.capacity_bytes());
  RD_CHECK(ring_.next() - 1 <= reserved_);
  RD_CHECK(cut_off_since_ || held_answers_.empty());
  for (const Peer& peer : peers_) {
    RD_CHECK(peer.sent_bytes <= peer.taken_bytes);
    if (peer.joining) RD_CHECK(peer.phase == PeerPhase::streaming);
    if (peer.phase == PeerPhase::streaming && !peer.close_requested) {
      RD_CHECK(peer.marks.received <= peer.taken.sequence);
      RD_CHECK(peer.taken.sequence + 1 >= ring_.first());
    }
  }
  for (const std::deque<Waiting>* queue : {&wait_received_, &wait_logged_, &wait_durable_}) {
    RD_CHECK(std::ranges::is_sorted(*queue, {}, &Waiting::sequence));
  }
}

}  // namespace replicad
