// The links and the model replicas of the random test.

#include <algorithm>

#include "tests/unit/repl/primary_world.h"

namespace replicad {

namespace {

// Requests begin at multiples of half a MiB below 4 MiB, and are at most 8 KiB long or a whole MiB: of
// each half MiB the first 16 sectors are told apart, the rest counts as one.
constexpr std::uint64_t slot_bytes = mib / 2;
constexpr std::uint64_t sector_bytes = 512;
constexpr std::size_t parts_per_slot = 17;
constexpr std::size_t parts_per_disk = 8 * parts_per_slot;
// What is in an image before its first copy.
constexpr Sequence garbage = ~Sequence{0};

}  // namespace

/// The part of an Image that `range` touches.
std::pair<std::size_t, std::size_t> PrimaryWorld::sectors_of(const Range& range) {
  const std::size_t disk = range.disk * parts_per_disk;
  const auto at = [&](std::uint64_t offset, std::uint64_t round_up) {
    const std::uint64_t within = (offset % slot_bytes + round_up) / sector_bytes;
    const auto part =
        offset / slot_bytes * parts_per_slot +
        (within > 16 && round_up > 0 ? parts_per_slot : std::min(within, std::uint64_t{16}));
    return disk + static_cast<std::size_t>(std::min<std::uint64_t>(part, parts_per_disk));
  };
  return {at(range.offset_bytes, 0), at(range.end_bytes(), sector_bytes - 1)};
}

void PrimaryWorld::write_image(Image& image, const FrameHeader& header) {
  const auto [first, end] = sectors_of(header.range);
  for (std::size_t sector = first; sector < end; ++sector)
    image[sector] = header.sequence;
}

/// What an image that holds the history up to `sequence` holds.
PrimaryWorld::Image PrimaryWorld::image_at(Sequence sequence) const {
  Image image(2 * parts_per_disk);
  for (const Frame& frame : frames_) {
    if (frame.header.sequence <= sequence) write_image(image, frame.header);
  }
  return image;
}

void PrimaryWorld::replica_moves(Replica& replica) {
  switch (draw(8)) {
    case 0:
      return connect(replica);
    case 1:
      return take(replica);
    case 2:
      return acknowledge_sent(replica);
    case 3:
      return deliver_to_replica(replica);
    case 4:
      return work_on_log(replica, true);
    case 5:
      return report(replica);
    case 6:
      return deliver_to_primary(replica);
    case 7:
      return copy_moves(replica);
    default:
      return;
  }
}

void PrimaryWorld::connect(Replica& replica) {
  if (replica.is_connected) return;
  if (!replica.is_reachable) {
    step(primary_event::PeerLost{replica.index, {Errc::unreachable, 0, "no route", {}}});
    return;
  }
  replica.is_connected = true;
  AttachedMessage message;
  message.boot_id = "boot";
  message.consistent = replica.is_consistent;
  message.logged = point(replica.logged);
  message.durable = replica.durable;
  message.applied = replica.applied;
  if (!replica.is_consistent) {
    message.resync = replica.resync;
    message.logged = replica.resync ? point(replica.base) : HistoryPoint{};
    message.durable = message.applied = 0;
  }
  replica.outbox.push_back(message);
}

void PrimaryWorld::on(const primary_effect::StartPeer& effect) {
  Replica& peer = replica(effect.peer);
  if (!peer.is_connected) return;
  peer.inbox.push_back(effect.message);
  const Sequence after = effect.message.after;
  peer.take_bytes = after == base_sequence + frames_.size() && !frames_.empty()
                        ? frames_.back().end_bytes
                    : after > base_sequence ? frame(after).end_bytes
                                            : 0;
}

void PrimaryWorld::on(const primary_effect::Sendable& effect) {
  replica(effect.peer).is_sendable = true;
}

void PrimaryWorld::take(Replica& replica) {
  if (!replica.is_connected || !replica.is_sendable) return;
  const std::uint64_t bytes_max = chance(50) ? 4 * mib : 1 + draw(2 * mib);
  const auto window = primary_.take(replica.index, bytes_max);
  if (window.begin_bytes == window.end_bytes) {
    replica.is_sendable = false;
    return;
  }
  require(window.begin_bytes == replica.take_bytes, "a gap or a repetition in what is sent");
  const auto last = std::ranges::find(frames_, window.end_bytes, &Frame::end_bytes);
  require(last != frames_.end(), "a piece of a frame is sent");
  require(last->header.sequence <= base_sequence + history_.size(), "an unready frame is sent");
  require(primary_.taken_point(replica.index) == point(last->header.sequence),
          "another point than what was taken");
  require(frames_.back().end_bytes - window.begin_bytes <= config_.ring_bytes,
          "a frame is sent whose memory was reused");
  replica.take_bytes = window.end_bytes;
  replica.unsent.push_back({window.begin_bytes, window.end_bytes});
  replica.inbox.push_back(Frames{last->header.sequence});
}

void PrimaryWorld::acknowledge_sent(Replica& replica) {
  if (replica.unsent.empty()) return;
  Window& window = replica.unsent.front();
  const std::uint64_t left = window.end_bytes - window.begin_bytes;
  const std::uint64_t bytes = healing_ || chance(70) ? left : 1 + draw(left);
  window.begin_bytes += bytes;
  if (window.begin_bytes == window.end_bytes) replica.unsent.pop_front();
  step(primary_event::PeerSent{replica.index, bytes});
}

void PrimaryWorld::deliver_to_replica(Replica& replica) {
  if (replica.inbox.empty()) return;
  const ToReplica message = replica.inbox.front();
  replica.inbox.pop_front();
  if (const auto* start = std::get_if<StartMessage>(&message)) {
    replica.is_started = true;
    replica.is_copying = start->copy;
    replica.received = start->after;
    if (start->copy) {
      begin_copy(replica, *start);
    } else {
      require(start->after == replica.logged, "the stream does not begin where the replica ends");
    }
  } else if (const auto* frames = std::get_if<Frames>(&message)) {
    take_frames(replica, frames->last);
  } else if (std::holds_alternative<Sync>(message)) {
    replica.sync_target = std::max(replica.sync_target.value_or(0), replica.received);
  } else if (std::holds_alternative<Ping>(message)) {
    replica.owes_report = replica.is_started;
  } else if (const auto* piece = std::get_if<Piece>(&message)) {
    const auto [first, last] = sectors_of(piece->range);
    for (std::size_t sector = first; sector < last; ++sector)
      replica.image[sector] = piece->content[sector - first];
  } else if (const auto* sums = std::get_if<Sums>(&message)) {
    Diffs diffs{BlockMap(config_.disk_bytes)};
    const auto [first, last] = sectors_of(sums->range);
    for (std::size_t sector = first; sector < last; ++sector) {
      if (replica.image[sector] == sums->content[sector - first]) continue;
      const std::size_t in_disk = sector % parts_per_disk;
      const std::uint64_t part = in_disk % parts_per_slot;
      const std::uint64_t offset = in_disk / parts_per_slot * slot_bytes + part * sector_bytes;
      const std::uint64_t end =
          part < 16 ? offset + sector_bytes : (in_disk / parts_per_slot + 1) * slot_bytes;
      diffs.blocks.mark({sums->range.disk, offset, end - offset});
    }
    replica.outbox.push_back(diffs);
  } else if (const auto* end = std::get_if<CopyEndMessage>(&message)) {
    require(replica.is_copying && end->point.sequence == replica.received, "copy_end out of place");
    check_copied(replica);
    replica.resync.reset();
    replica.is_copying = false;
    replica.is_consistent = true;
    replica.has_wrong_image = false;
    replica.logged = replica.durable = replica.applied = replica.received;
    replica.ever_received = std::max(replica.ever_received, replica.received);
    replica.ever_logged = std::max(replica.ever_logged, replica.received);
    replica.ever_durable = std::max(replica.ever_durable, replica.received);
    replica.outbox.push_back(CopyDoneMessage{end->point});
    ++counters_.copies;
  }
}

void PrimaryWorld::begin_copy(Replica& replica, const StartMessage& start) {
  if (start.keep) {
    require(replica.is_consistent || replica.resync, "a resync of what nobody knows");
    ++counters_.resyncs;
    if (!replica.is_consistent) ++counters_.resyncs_continued;
    if (replica.is_consistent) {
      replica.base = replica.logged;
      replica.image = image_at(replica.logged);
    }
    replica.resync = primary_.epoch();
  } else {
    replica.resync.reset();
    replica.image.assign(2 * parts_per_disk, garbage);
  }
  replica.is_consistent = false;
}

void PrimaryWorld::check_copied(const Replica& replica) const {
  const Image expected = image_at(replica.received);
  for (std::size_t sector = 0; sector < expected.size(); ++sector) {
    require(
        replica.image[sector] == expected[sector],
        fmt::format("{} has change {} in sector {} at the end of a copy at {} (base {}, {}), the "
                    "primary {}",
                    replica.host,
                    replica.image[sector],
                    sector,
                    replica.received,
                    replica.base,
                    replica.resync ? "resync" : "copy",
                    expected[sector]));
  }
}

void PrimaryWorld::take_frames(Replica& replica, Sequence last) {
  require(replica.is_started, "frames before start");
  for (Sequence sequence = replica.received + 1; sequence <= last; ++sequence) {
    const FrameHeader& header = frame(sequence).header;
    const bool lasts = header.type == FrameType::flush || (header.flags & frame_flag_fua) != 0;
    if (lasts) replica.sync_target = sequence;
    if (replica.is_copying) write_image(replica.image, header);
  }
  replica.received = last;
  if (!replica.is_copying) replica.ever_received = std::max(replica.ever_received, last);
  replica.owes_report = true;
}

/// `lazily`: the log grows and becomes durable when it likes; else only when it must, but at once.
void PrimaryWorld::work_on_log(Replica& replica, bool lazily) {
  if (replica.is_copying || !replica.is_consistent) {
    replica.sync_target.reset();
    return;
  }
  const Watermarks before{
      replica.received, replica.logged, replica.durable, replica.applied, {}, {}};
  if (replica.is_started && replica.received > replica.logged) {
    const Sequence lacking = replica.received - replica.logged;
    replica.logged += lazily ? draw(lacking + 1) : lacking;
  }
  if (replica.applied < replica.logged) {
    const Sequence backlog = replica.logged - replica.applied;
    replica.applied += lazily ? draw(backlog + 1) : backlog;
  }
  const bool must = replica.sync_target && replica.logged >= *replica.sync_target;
  if (lazily ? chance(must ? 40 : 5) : must) {
    replica.durable = replica.logged;
    if (must) replica.sync_target.reset();
  }
  replica.ever_logged = std::max(replica.ever_logged, replica.logged);
  replica.ever_durable = std::max(replica.ever_durable, replica.durable);
  const Watermarks after{
      replica.received, replica.logged, replica.durable, replica.applied, {}, {}};
  if (!(after == before) && replica.is_started) replica.owes_report = true;
}

void PrimaryWorld::report(Replica& replica) {
  if (!replica.is_connected || !replica.owes_report) return;
  replica.owes_report = false;
  Watermarks marks;
  marks.received = replica.received;
  marks.logged = replica.is_copying ? replica.received : replica.logged;
  marks.durable = replica.is_copying ? 0 : replica.durable;
  marks.applied = replica.is_copying ? replica.received : replica.applied;
  marks.logged_digest = point(marks.logged).digest;
  marks.applied_digest = point(marks.applied).digest;
  if (replica.has_wrong_image) marks.applied_digest.low ^= 1;
  replica.outbox.push_back(marks);
}

void PrimaryWorld::deliver_to_primary(Replica& replica) {
  if (replica.outbox.empty()) return;
  const ToPrimary message = replica.outbox.front();
  replica.outbox.pop_front();
  if (const auto* attached = std::get_if<AttachedMessage>(&message)) {
    step(primary_event::PeerAttached{replica.index, *attached});
  } else if (const auto* marks = std::get_if<Watermarks>(&message)) {
    step(primary_event::PeerMarks{replica.index, *marks});
  } else if (const auto* diffs = std::get_if<Diffs>(&message)) {
    --replica.copy.unanswered;
    replica.copy.to_send.merge(diffs->blocks);
    step(primary_event::CopyProgress{replica.index});
  } else if (const auto* done = std::get_if<CopyDoneMessage>(&message)) {
    replica.copy = {};
    replica.was_found_wrong = false;
    step(primary_event::CopyDone{replica.index, done->point});
  }
}

void PrimaryWorld::on(const primary_effect::RequestSync& effect) {
  replica(effect.peer).inbox.push_back(Sync{});
}

void PrimaryWorld::on(const primary_effect::Ping& effect) {
  replica(effect.peer).inbox.push_back(Ping{});
}

void PrimaryWorld::on(const primary_effect::ClosePeer& effect) {
  Replica& peer = replica(effect.peer);
  if (effect.error.code == Errc::diverged) ++counters_.divergences;
  require(effect.error.code != Errc::protocol,
          "a faultless replica was closed: " + effect.error.message);
  require(effect.error.code != Errc::diverged || peer.has_wrong_image,
          "an equal replica was called diverged");
  if (effect.error.code == Errc::diverged) peer.was_found_wrong = true;
  peer.is_closing = true;
}

void PrimaryWorld::on(const primary_effect::RunCopy& effect) {
  Replica& peer = replica(effect.peer);
  require(!peer.copy.is_active, "two copies to one peer");
  peer.copy.is_active = true;
  peer.copy.to_send = effect.plan->send;
  peer.copy.to_compare = effect.plan->compare;
}

void PrimaryWorld::copy_moves(Replica& replica) {
  CopyJob& copy = replica.copy;
  if (!copy.is_active || copy.is_waiting || copy.end || replica.is_closing) return;
  if (copy.is_locked) {
    const auto [first, last] = sectors_of(copy.range);
    const Image now = image_at(base_sequence + frames_.size());
    replica.inbox.push_back(Piece{copy.range,
                                  {now.begin() + static_cast<std::ptrdiff_t>(first),
                                   now.begin() + static_cast<std::ptrdiff_t>(last)}});
    copy.to_send.clear(copy.range);
    copy.is_locked = false;
    step(primary_event::CopyUnlock{replica.index});
    return;
  }
  if (const auto range = copy.to_compare.next(0, 0, 64 * mib); range && chance(60)) {
    Image now = image_at(base_sequence + frames_.size());
    for (const auto& [id, request] : requests_) {
      // The image may have, or not have, what is being written.
      if (request.state != GuestRequest::State::admitted || chance(50)) continue;
      const auto [first, last] = sectors_of(request.change.range);
      std::fill(now.begin() + static_cast<std::ptrdiff_t>(first),
                now.begin() + static_cast<std::ptrdiff_t>(last),
                garbage - id);
    }
    const auto [first, last] = sectors_of(*range);
    replica.inbox.push_back(Sums{*range,
                                 {now.begin() + static_cast<std::ptrdiff_t>(first),
                                  now.begin() + static_cast<std::ptrdiff_t>(last)}});
    copy.to_compare.clear(*range);
    ++copy.unanswered;
    return;
  }
  const auto range = copy.to_send.next(0, 0, 4 * mib);
  if (!range && (copy.unanswered > 0 || !copy.to_compare.empty())) return;
  if (!range) {
    step(primary_event::CopyEnding{replica.index});
    copy.end = primary_.copy_end(replica.index);
    if (!copy.end) return;
    require(*copy.end == primary_.taken_point(replica.index), "copy_end is out of place");
    replica.inbox.push_back(CopyEndMessage{*copy.end});
    return;
  }
  // Beyond the places all is equal.
  copy.range = *range;
  if (range->offset_bytes >= 4 * mib) {
    copy.range.length_bytes = config_.disk_bytes[range->disk] - range->offset_bytes;
  }
  copy.is_waiting = true;
  step(primary_event::CopyLock{replica.index, copy.range});
}

void PrimaryWorld::on(const primary_effect::CopyLocked& effect) {
  Replica& peer = replica(effect.peer);
  require(peer.copy.is_waiting, "a copy lock nobody asked for");
  peer.copy.is_waiting = false;
  peer.copy.is_locked = true;
  for (const auto& [id, request] : requests_) {
    require(request.state != GuestRequest::State::admitted ||
                !overlaps(request.change.range, peer.copy.range),
            "a copy lock over a change in flight");
  }
}

void PrimaryWorld::break_link(Replica& replica) {
  if (chance(30)) replica.is_reachable = !replica.is_reachable;
  lose_session(replica);
}

void PrimaryWorld::crash(Replica& replica, bool host) {
  if (host) {
    replica.logged = std::min(replica.logged, replica.durable);
    replica.applied = std::min(replica.applied, replica.durable);
  }
  if (chance(10) && replica.is_consistent) replica.has_wrong_image = true;
  lose_session(replica);
}

void PrimaryWorld::lose_session(Replica& replica) {
  if (!replica.is_connected && !replica.is_closing) return;
  replica.is_connected = replica.is_closing = replica.is_started = replica.is_copying = false;
  replica.owes_report = replica.is_sendable = false;
  replica.sync_target.reset();
  replica.unsent.clear();
  replica.inbox.clear();
  replica.outbox.clear();
  replica.copy = {};
  ++counters_.losses;
  step(primary_event::PeerLost{replica.index, {Errc::unreachable, 0, "connection lost", {}}});
}

}  // namespace replicad
