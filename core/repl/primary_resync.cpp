// What each member lacks, and the copies that bring it back by themselves (declared in primary.h).
//
// A frame that leaves the ring is marked for every member that has not reported it durable: what a
// member has logged alone a power loss may take back. So the marks are complete for a member that
// stands on this history at `base` or later, and a copy of the marked blocks, together with the
// frames behind its start, makes it equal.

#include <algorithm>

#include "core/base/check.h"
#include "core/repl/primary.h"

namespace replicad {

namespace {

// A member that has stayed for so many times its last delay, and this long, starts afresh.
constexpr int resync_calm_factor = 10;
constexpr Duration resync_calm_min = std::chrono::seconds(10);

Range range_of(const RingIndex::Entry& entry) {
  return {entry.item.disk, entry.item.offset_bytes, entry.item.range_bytes};
}

}  // namespace

Primary::Lack Primary::make_lack(Sequence base) const {
  Lack lack;
  lack.base = base;
  lack.suspect = lack.before_end = lack.dirty = BlockMap(disk_bytes_);
  return lack;
}

void Primary::note_dropped(const RingIndex::Entry& entry) {
  const Sequence sequence = entry.item.sequence;
  for (Peer& peer : peers_) {
    if (peer.removed || sequence <= peer.lack.base) continue;
    const bool before_end = peer.copy_end && sequence <= peer.copy_end->sequence;
    (before_end ? peer.lack.before_end : peer.lack.dirty).mark(range_of(entry));
    peer.lack.last_marked = sequence;
    const bool copies = peer.phase == PeerPhase::copying;
    const Sequence through = copies ? peer.taken.sequence : peer.handed_through;
    if (sequence > peer.handed_from && sequence <= through) peer.handed.mark(range_of(entry));
  }
}

/// A streaming member has everything of this history up to what it reports durable.
void Primary::note_durable(Peer& peer) const {
  Lack& lack = peer.lack;
  lack.base = std::max(lack.base, peer.marks.durable);
  if (peer.marks.durable < lack.last_marked) return;
  lack.plan.reset();
  if (!lack.suspect.empty()) lack.suspect.clear_all();
  if (!lack.before_end.empty()) lack.before_end.clear_all();
  if (!lack.dirty.empty()) lack.dirty.clear_all();
}

bool Primary::is_on_history(const HistoryPoint& point) const {
  if (const auto ours = ring_.point(point.sequence)) return *ours == point;
  if (point.sequence >= ring_.next()) return false;
  if (point.epoch == epoch_) return point.sequence > inherited_.sequence;
  if (point == HistoryPoint{}) return true;  // where every history begins
  return std::ranges::any_of(terms_, [&](const Term& term) {
    return term.epoch == point.epoch && point.sequence <= term.end;
  });
}

bool Primary::is_own_term(const Epoch& epoch) const {
  return epoch == epoch_ || std::ranges::any_of(terms_, [&](const Term& term) {
           return term.is_own && term.epoch == epoch;
         });
}

bool Primary::knows_lack(PeerIndex index, const AttachedMessage& message) const {
  const Peer& peer = peers_[index];
  if (peer.diverged || !is_on_history(message.logged)) return false;
  // The blocks of an interrupted resync are those of the term it belonged to.
  const bool resumes = message.consistent || (message.resync && is_own_term(*message.resync));
  const Sequence from = message.logged.sequence;
  return resumes && (from >= peer.lack.base || is_on_trail(peer, from));
}

/// Of one on another history: it says where that left this one, and what it has changed since.
bool Primary::knows_parting(const Peer& peer, const AttachedMessage& message) const {
  if (!message.parted || !message.consistent || peer.diverged) return false;
  if (!has_feature(message.features, feature_trail)) return false;
  const AttachedMessage::Parted& parted = *message.parted;
  const bool is_past = std::ranges::any_of(terms_, [&](const Term& term) {
    return term.epoch == parted.epoch && parted.sequence <= term.end;
  });
  const bool fits_all = std::ranges::all_of(parted.ranges, [&](const Range& range) {
    return range.disk < disk_bytes_.size() && fits(range, disk_bytes_[range.disk]);
  });
  return is_past && fits_all &&
         (parted.sequence >= peer.lack.base || is_on_trail(peer, parted.sequence));
}

std::vector<HistoryTerm> Primary::past_terms() const {
  std::vector<HistoryTerm> terms;
  for (const Term& term : terms_)
    terms.push_back({term.epoch, term.end});
  if (terms.size() > history_terms_max) {
    terms.erase(terms.begin(), terms.end() - static_cast<std::ptrdiff_t>(history_terms_max));
  }
  return terms;
}

/// What is known of its lack goes back to where the trail ends, and the trail from there to where it stands.
bool Primary::is_on_trail(const Peer& peer, Sequence from) const {
  return trail_ && peer.lack.base <= trail_->covers().sequence && from >= trail_->base();
}

/// For one that stands below what is known of its lack.
void Primary::mark_trail(const Peer& peer, Sequence from, BlockMap& suspect) const {
  if (from >= peer.lack.base || !is_on_trail(peer, from)) return;
  for (const Range& range : trail_->changed_since(from))
    suspect.mark(range);
}

/// Decides, for a member that cannot stream, whether a copy starts by itself, and which.
void Primary::want_resync(PeerIndex index, const AttachedMessage& message, Instant now) {
  Peer& peer = peers_[index];
  const bool on_history = is_on_history(message.logged) && !peer.diverged;
  if (!on_history && (message.consistent || message.resync)) {
    peer.resync_wanted = Resync::rewind;  // it may hold the last copy of something
  } else {
    peer.resync_wanted = knows_lack(index, message) ? Resync::lack : Resync::whole;
  }
  peer.resync_from = message.logged.sequence;
  peer.parted.reset();
  if (peer.resync_wanted == Resync::rewind && knows_parting(peer, message)) {
    peer.parted = message.parted;
    peer.resync_from = message.parted->sequence;
  }
  const bool is_calm =
      !peer.resync_ended ||
      now - *peer.resync_ended > resync_calm_factor * peer.resync_delay + resync_calm_min;
  if (is_calm) peer.resync_delay = {};
}

void Primary::advance_resyncs(Instant now, Effects& effects) {
  for (PeerIndex index = 0; index < peers_.size(); ++index) {
    Peer& peer = peers_[index];
    if (!peer.resync_wanted || peer.phase != PeerPhase::detached || peer.removed) continue;
    // A member that a record names, or may name, is not made inconsistent.
    if (peer.close_requested || peer.recorded || peer.proposed) continue;
    if (peer.resync_ended && now < *peer.resync_ended + peer.resync_delay) continue;
    start_copy(index, *peer.resync_wanted, now, effects);
  }
}

void Primary::end_resync(Peer& peer, Instant now) const {
  peer.resync_runs = false;
  peer.resync_ended = now;
  peer.copy_end.reset();
  peer.lack.dirty.merge(peer.lack.before_end);
  peer.lack.before_end.clear_all();
}

/// A stage is brought into the images as it is, so the copy that goes on with it sends, or compares, whatever may be in
/// there: it is of this term, and either compares everything, or brings what the one before was to bring and all that
/// came since.
bool Primary::may_go_on(const Peer& peer, Resync kind) const {
  return kind == Resync::whole || (kind == Resync::lack && peer.interrupted == Resync::lack);
}

void Primary::forget_handed(Peer& peer) const {
  peer.interrupted.reset();
  peer.handed_from = peer.handed_through = 0;
  if (!peer.handed.empty()) peer.handed.clear_all();
}

std::shared_ptr<const ResyncPlan> Primary::plan_lack(Peer& peer) const {
  Lack& lack = peer.lack;
  auto plan = std::make_shared<ResyncPlan>();
  if (lack.plan) {
    *plan = *lack.plan;
    plan->send.merge(lack.dirty);
    plan->compare.merge(lack.suspect);
  } else {
    plan->send = std::move(lack.dirty);
    plan->compare = std::move(lack.suspect);
  }
  lack.dirty = lack.suspect = BlockMap(disk_bytes_);
  mark_trail(peer, peer.resync_from, plan->compare);
  if (peer.parted) {
    for (const Range& range : peer.parted->ranges)
      plan->compare.mark(range);
  }
  const Sequence first = std::max(ring_.first(), peer.resync_from + 1);
  for (Sequence sequence = first; sequence <= peer.taken.sequence; ++sequence) {
    plan->send.mark(range_of(ring_.at(sequence)));
    if (sequence > peer.handed_from && sequence <= peer.handed_through)
      peer.handed.mark(range_of(ring_.at(sequence)));
  }
  // What it has been given before may have come there.
  for (auto run = peer.handed.next(0, 0, region_bytes); run;
       run = peer.handed.next(run->disk, run->end_bytes(), region_bytes)) {
    plan->send.clear(*run);
    plan->compare.mark(*run);
  }
  lack.plan = plan;
  return plan;
}

std::shared_ptr<const ResyncPlan> Primary::plan_whole() const {
  auto plan = std::make_shared<ResyncPlan>();
  plan->send = plan->compare = BlockMap(disk_bytes_);
  plan->compare.mark_all();
  return plan;
}

bool Primary::is_streaming(PeerIndex index) const {
  const Peer& peer = peers_[index];
  return peer.phase == PeerPhase::streaming && !peer.close_requested && !peer.removed;
}

bool Primary::has_everything(PeerIndex index) const {
  const Lack& lack = peers_[index].lack;
  return is_streaming(index) && !lack.plan && lack.suspect.empty() && lack.before_end.empty() &&
         lack.dirty.empty();
}

bool Primary::has_durably(PeerIndex index, const Range& range, Sequence through) const {
  const Peer& peer = peers_[index];
  if (!is_streaming(index) || peer.marks.durable < through) return false;
  const Lack& lack = peer.lack;
  const bool is_planned =
      lack.plan && (lack.plan->send.overlaps_any(range) || lack.plan->compare.overlaps_any(range));
  return !is_planned && !lack.suspect.overlaps_any(range) && !lack.before_end.overlaps_any(range) &&
         !lack.dirty.overlaps_any(range);
}

KnownLack Primary::known_lack(PeerIndex index) const {
  const Peer& peer = peers_[index];
  const Lack& lack = peer.lack;
  KnownLack known{peer.host, lack.base, lack.dirty, lack.suspect};
  known.dirty.merge(lack.before_end);
  if (lack.plan) {
    known.dirty.merge(lack.plan->send);
    known.suspect.merge(lack.plan->compare);
  }
  for (Sequence at = std::max(ring_.first(), lack.base + 1); at < ring_.next(); ++at)
    known.dirty.mark(range_of(ring_.at(at)));
  return known;
}

KnownLack Primary::known_lack(PeerIndex index, Sequence from) const {
  KnownLack known = known_lack(index);
  mark_trail(peers_[index], from, known.suspect);
  return known;
}

Sequence Primary::changed_through(PeerIndex index, const Range& range) const {
  // It is called under the lock that writes need. What is not looked at counts as a change.
  constexpr Sequence looked_at_max = 4096;
  const Sequence last = ring_.next() - 1;
  Sequence known = std::max(ring_.first() - 1, std::min(peers_[index].marks.applied, last));
  if (last - known > looked_at_max) known = last - looked_at_max;
  for (Sequence at = last; at > known; --at) {
    if (overlaps(range_of(ring_.at(at)), range)) return at;
  }
  return known;
}

std::vector<std::string> Primary::member_hosts() const {
  std::vector<std::string> hosts;
  for (const Peer& peer : peers_) {
    if (!peer.removed) hosts.push_back(peer.host);
  }
  return hosts;
}

void Primary::on_event(const primary_event::CopyProgress& event,
                       Instant now,
                       Effects& /*effects*/) {
  peers_[event.peer].last_progress = now;
}

void Primary::end_wait_of_copies(RequestId id, Effects& effects) {
  for (PeerIndex index = 0; index < peers_.size(); ++index) {
    Peer& peer = peers_[index];
    if (!peer.copy_awaits || std::erase(*peer.copy_awaits, id) == 0) continue;
    peer.copy_holds = ring_.next() - 1;
    if (peer.phase == PeerPhase::copying) effects.push_back(primary_effect::Sendable{index});
  }
}

void Primary::on_event(const primary_event::CopyEnding& event,
                       Instant /*now*/,
                       Effects& /*effects*/) {
  Peer& peer = peers_[event.peer];
  if (peer.phase != PeerPhase::copying || peer.close_requested || peer.copy_end) return;
  // An image with a later change than the point it is said to be at would be no prefix. A block that was found equal
  // may hold one, too: the member may have made the same change in another term.
  if (!peer.copy_awaits) {
    peer.copy_awaits.emplace();
    for (const Request& request : admitted_)
      peer.copy_awaits->push_back(request.id);
    peer.copy_holds = ring_.next() - 1;
  }
  if (!peer.copy_awaits->empty() || peer.taken.sequence < peer.copy_holds) return;
  peer.copy_end = peer.taken;
  peer.lack.before_end.merge(peer.lack.dirty);
  peer.lack.dirty.clear_all();
}

}  // namespace replicad
