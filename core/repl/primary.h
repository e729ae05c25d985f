#pragma once
// The primary's half of the replication protocol as a state machine: events in, effects out. It
// sees request handles, ranges, lengths and checksums, never payload; it reads no clock and does no
// I/O. Not thread-safe: the runtime (nbd-plugin/volume.h) calls it under one lock.
//
// Life of a write:   WriteArrived -> Admitted  no overlapping write in flight, ring space set aside
//                    (runtime writes the image)
//                    LocalWritten -> Placed    sequence given, range released
//                    (runtime copies the frame into the ring)
//                    FrameReady                sealed in order: digest, may be sent
//                    PeerMarks    -> Answer    when every member of the acknowledging set has it
//                                              (docs/architecture.md)
// The image is written before the sequence is given, so a failed local write never reaches a
// replica.
//
// Acknowledging set: members recorded in sync, members of a proposed record, and members about to
// join. A member leaves it only after the record without it is durable; it is in it before the
// record with it is proposed.

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/base/modes.h"
#include "core/base/range.h"
#include "core/repl/block_map.h"
#include "core/repl/ring_index.h"
#include "core/repl/send_pacer.h"
#include "core/store/trail.h"
#include "core/vote/record.h"

namespace replicad {

/// Handle of a guest request, chosen by the runtime, unique among those in flight.
using RequestId = std::uint64_t;
/// Index of a peer; stays valid after other peers are removed.
using PeerIndex = std::size_t;

/// A term of this history and the last sequence that it may have given out.
struct Term {
  Epoch epoch;
  Sequence end = 0;
  bool is_own = false;  ///< this host was the primary, and what is known of its members goes on

  friend bool operator==(const Term&, const Term&) = default;
};

/// What a member may lack of the history behind `base`, as its primary knows it.
struct KnownLack {
  std::string host;
  Sequence base = 0;  ///< nothing is known of what it lacks below that
  BlockMap dirty;     ///< blocks that it lacks
  BlockMap suspect;   ///< blocks that may differ
};

/// What a copy brings.
struct ResyncPlan {
  BlockMap send;     ///< blocks to send
  BlockMap compare;  ///< blocks of which to send those that differ
};

struct PrimaryConfig {
  Epoch epoch;
  HistoryPoint history;   ///< where the history stands; nothing of it is in the ring
  Sequence reserved = 0;  ///< highest sequence that may be given out
  std::vector<std::uint64_t> disk_bytes;
  std::vector<std::string> peers;    ///< host names of the other members
  std::vector<std::string> in_sync;  ///< recorded hosts, own name included
  std::string host;                  ///< own name
  Mode mode = Mode::sync;
  Congestion congestion = Congestion::throttle;
  OnLocalError on_local_error = OnLocalError::hold;
  std::uint64_t ring_bytes = ring_bytes_default;
  Duration ack_timeout{};
  VoterSet voters;  ///< in `async` a majority of them must be heard; no hosts: of nobody
  /// When the term was asked for: they have been heard since. nullopt: now.
  std::optional<Instant> asked_at;
  std::vector<Term> terms;  ///< earlier terms of this history, beside that of `history`
  std::vector<KnownLack>
      lacks;  ///< of members; one that is not named lacks nothing since `history`
  /// How the images came to where this host's first term began, if that is known. May be null.
  std::shared_ptr<const Trail> trail = {};
};

/// What kind of change a request makes, for frames of type write, zero, trim and flush.
struct Change {
  FrameType kind = FrameType::write;
  std::uint16_t flags = 0;  ///< frame_flag_*
  Range range;              ///< empty for flush; at most data_payload_bytes_max / range_bytes_max
};

namespace primary_event {
/// A guest's change (or one piece of it). `change.range` lies within its disk.
struct WriteArrived {
  RequestId id = 0;
  Change change;
};
/// The image holds it (a FUA write: durably; a flush: not yet). `wants_answer`: last piece of its
/// request.
struct LocalWritten {
  RequestId id = 0;
  bool wants_answer = false;
};
/// The change was not made and will not be: gives range and ring space back.
struct Abandoned {
  RequestId id = 0;
};
/// A flush's fdatasync of the local images is done.
struct LocalSynced {
  RequestId id = 0;
};
/// The request is no longer waited for: it was not admitted yet, or its answer does not matter any
/// more.
struct Cancelled {
  RequestId id = 0;
};
/// The bytes of placed frame `sequence` are complete in the ring. In sequence order.
struct FrameReady {
  Sequence sequence = 0;
  std::uint32_t payload_crc32c = 0;
};
struct PeerAttached {
  PeerIndex peer = 0;
  AttachedMessage message;
};
/// The connection ended or could not be made; `error` says why.
struct PeerLost {
  PeerIndex peer = 0;
  Error error;
};
struct PeerMarks {
  PeerIndex peer = 0;
  Watermarks marks;
};
/// `bytes` of what take() returned have left; their ring memory is no longer read.
struct PeerSent {
  PeerIndex peer = 0;
  std::uint64_t bytes = 0;
};
/// Compare everything with a detached peer now and send what differs; one of another history keeps
/// what only it has. Ignored for others, and while a record names the peer.
struct CopyRequested {
  PeerIndex peer = 0;
};
/// Wait until no write in `range` is in flight and keep new ones out. One lock per peer, which is copied to or
/// streams (a verify).
struct CopyLock {
  PeerIndex peer = 0;
  Range range;
};
struct CopyUnlock {
  PeerIndex peer = 0;
};
/// The peer has answered a compare frame.
struct CopyProgress {
  PeerIndex peer = 0;
};
/// Everything of the plan was compared or sent. Once every change that its content holds was taken, too,
/// copy_end() tells the point of the copy_end frame, which comes next; until then this event comes
/// again.
struct CopyEnding {
  PeerIndex peer = 0;
};
struct CopyDone {
  PeerIndex peer = 0;
  HistoryPoint point;
};
/// The in-sync set of the last Record effect is durable.
struct Recorded {};
struct ReserveGranted {
  Sequence reserved = 0;
};
struct SettingsChanged {
  Mode mode;
  Congestion congestion;
  Duration ack_timeout;
  OnLocalError on_local_error = OnLocalError::hold;
};
struct PeerAdded {
  std::string host;
};
struct PeerRemoved {
  PeerIndex peer = 0;
};
/// Hold new writes, drain, flush; with `target`: until that peer has applied everything with an
/// equal digest.
struct Hold {
  std::optional<PeerIndex> target;
  Instant deadline;
  bool only_untouched = false;  ///< refused once a change of the guest was let in (is_touched())
};
/// Result of the SyncImages effect. `ok` false fails the volume: what was written may be lost.
struct ImagesSynced {
  bool ok = false;
};
/// No deadline ends the hold any more, and the in-sync set does not change. Ignored unless a hold
/// is reached (is_sealed() tells).
struct Seal {};
/// Ends a hold; with `epoch`, if that is a later one, in that new term.
struct Resume {
  std::optional<Epoch> epoch;
};
/// The images are not trusted any more. Every request, waiting and to come, is answered with an error;
/// with on-local-error=hold none is answered at all, until that is changed or the process ends.
struct Fail {
  Error error;
};
/// Voter `host`, asked at `at`, has answered that `fence` is the highest epoch it knows of. A member on the stream is
/// one that knows of no later epoch than its session's. This host's own voter is taken as heard, but for its fence.
struct VoterHeard {
  std::string host;
  Instant at;
  Epoch fence;
};
/// Of those that were no voters before nobody has heard yet.
struct VotersChanged {
  VoterSet voters;
};
/// Somebody knows of a later epoch than `epoch`, in which this primary asked. Ignored if it has a new one by now.
struct LaterEpoch {
  Epoch epoch;
};
/// Time has passed; call at least every 100 ms.
struct Tick {};
}  // namespace primary_event

using PrimaryEvent = std::variant<primary_event::WriteArrived,
                                  primary_event::LocalWritten,
                                  primary_event::Abandoned,
                                  primary_event::LocalSynced,
                                  primary_event::Cancelled,
                                  primary_event::FrameReady,
                                  primary_event::PeerAttached,
                                  primary_event::PeerLost,
                                  primary_event::PeerMarks,
                                  primary_event::PeerSent,
                                  primary_event::CopyRequested,
                                  primary_event::CopyLock,
                                  primary_event::CopyUnlock,
                                  primary_event::CopyProgress,
                                  primary_event::CopyEnding,
                                  primary_event::CopyDone,
                                  primary_event::Recorded,
                                  primary_event::ReserveGranted,
                                  primary_event::SettingsChanged,
                                  primary_event::PeerAdded,
                                  primary_event::PeerRemoved,
                                  primary_event::Hold,
                                  primary_event::ImagesSynced,
                                  primary_event::Seal,
                                  primary_event::Resume,
                                  primary_event::Fail,
                                  primary_event::VoterHeard,
                                  primary_event::VotersChanged,
                                  primary_event::LaterEpoch,
                                  primary_event::Tick>;

namespace primary_effect {
/// Write the image now.
struct Admitted {
  RequestId id = 0;
};
/// Put the frame at `ring_offset` of the ring, then FrameReady. `id` is nullopt for a frame of our
/// own (flush).
struct Placed {
  std::optional<RequestId> id;
  FrameHeader header;  ///< complete but for payload_crc32c
  std::uint64_t ring_offset = 0;
};
/// Answer the guest. `failed`: with an error.
struct Answer {
  RequestId id = 0;
  bool failed = false;
};
/// Send `start` to the peer. Its bytes come from take() afterwards.
struct StartPeer {
  PeerIndex peer = 0;
  StartMessage message;
};
/// Run the image copy to the peer (StartPeer with copy was sent before).
struct RunCopy {
  PeerIndex peer = 0;
  std::shared_ptr<const ResyncPlan> plan;
};
struct CopyLocked {
  PeerIndex peer = 0;
};
/// Close the connection, also one that is only being made; PeerLost follows if there was one.
struct ClosePeer {
  PeerIndex peer = 0;
  Error error;
};
/// There is something to send for this peer.
struct Sendable {
  PeerIndex peer = 0;
};
/// Send `sync_request`.
struct RequestSync {
  PeerIndex peer = 0;
};
/// Send `heartbeat`: the peer reports at once.
struct Ping {
  PeerIndex peer = 0;
};
/// Make this in-sync set durable, then Recorded. Not repeated before Recorded.
struct Record {
  std::vector<std::string> in_sync;
  std::string reason;
};
/// Sequences run short: ask for more.
struct Reserve {
  Sequence until = 0;
};
/// fdatasync every image, then ImagesSynced.
struct SyncImages {};
/// A hold has reached its aim.
struct HoldReached {
  HistoryPoint point;
};
/// A hold has failed or timed out; requests go on.
struct HoldFailed {
  Error error;
};
}  // namespace primary_effect

using PrimaryEffect = std::variant<primary_effect::Admitted,
                                   primary_effect::Placed,
                                   primary_effect::Answer,
                                   primary_effect::StartPeer,
                                   primary_effect::RunCopy,
                                   primary_effect::CopyLocked,
                                   primary_effect::ClosePeer,
                                   primary_effect::Sendable,
                                   primary_effect::RequestSync,
                                   primary_effect::Ping,
                                   primary_effect::Record,
                                   primary_effect::Reserve,
                                   primary_effect::SyncImages,
                                   primary_effect::HoldReached,
                                   primary_effect::HoldFailed>;

enum class PeerPhase : std::uint8_t {
  disconnected,
  detached,   ///< attached; a copy is needed, by itself after a while or at somebody's request
  streaming,  ///< takes numbered frames
  copying,
};

/// What a peer has not logged of one disk.
struct DiskLag {
  DiskIndex disk = 0;
  std::uint64_t writes = 0;  ///< changes of any kind
  std::uint64_t bytes = 0;  ///< of the disk that they name; one that was changed twice counts twice
  Duration lag{};           ///< since the first of them
};

/// What `status` shows of a peer.
struct PeerView {
  std::string host;
  PeerPhase phase = PeerPhase::disconnected;
  bool in_sync = false;
  bool caught_up = false;
  Sequence sent = 0;
  Watermarks marks;
  std::uint64_t lag_bytes = 0;
  Duration lag{};
  std::vector<DiskLag> disks;  ///< those of which it lacks something, in their order
  std::optional<Error> error;
};

class Primary {
 public:
  enum class HoldPhase : std::uint8_t { none, draining, flushing, reached };

  Primary(const PrimaryConfig& config, Instant now);

  /// Takes one event and appends what is to be done. Effects are done in order, before the next
  /// event's.
  void step(const PrimaryEvent& event, Instant now, std::vector<PrimaryEffect>& effects);

  /// What may be sent to a peer next: ring bytes [begin, end), whole frames, at most `bytes_max`
  /// (one frame is always whole). Advances the peer's cursor; PeerSent must follow. Empty if there
  /// is nothing.
  struct SendWindow {
    std::uint64_t begin_bytes = 0;
    std::uint64_t end_bytes = 0;
  };
  [[nodiscard]] SendWindow take(PeerIndex index, std::uint64_t bytes_max);
  /// History point right behind what take() gave out: where copy_end and digest frames may be put.
  [[nodiscard]] HistoryPoint taken_point(PeerIndex peer) const;
  /// Where the copy to this peer ends; nullopt before an effective CopyEnding.
  [[nodiscard]] std::optional<HistoryPoint> copy_end(PeerIndex peer) const {
    return peers_[peer].copy_end;
  }

  [[nodiscard]] const Epoch& epoch() const { return epoch_; }
  [[nodiscard]] HistoryPoint history() const { return ring_.sealed_point(); }
  [[nodiscard]] std::vector<std::string> in_sync() const;
  [[nodiscard]] HoldPhase hold_phase() const { return hold_phase_; }
  [[nodiscard]] bool is_sealed() const { return hold_sealed_; }
  /// A write, zero or trim of the guest was admitted, in this or an earlier term of this object.
  [[nodiscard]] bool is_touched() const { return is_touched_; }
  [[nodiscard]] const std::optional<Error>& failure() const { return failure_; }
  /// Since when, in `async`, nothing is admitted or answered: a later epoch was heard of (is_overtaken()), or no
  /// majority of the voters has been heard for ack_timeout. nullopt: it goes on.
  [[nodiscard]] const std::optional<Instant>& cut_off_since() const { return cut_off_since_; }
  [[nodiscard]] bool is_overtaken() const { return overtaken_; }
  [[nodiscard]] std::size_t peer_count() const { return peers_.size(); }
  [[nodiscard]] bool is_removed(PeerIndex peer) const { return peers_[peer].removed; }
  [[nodiscard]] PeerView view(PeerIndex index, Instant now) const;
  /// What waits to be taken for a peer; nullopt if it takes no frames.
  [[nodiscard]] std::optional<SendPacer::Backlog> backlog(PeerIndex index) const;
  /// Changes of the guest that are being made or wait for members.
  [[nodiscard]] std::size_t requests_under_way() const {
    return admitted_.size() + wait_received_.size() + wait_logged_.size() + wait_durable_.size();
  }
  [[nodiscard]] Mode mode() const { return mode_; }
  [[nodiscard]] std::optional<PeerIndex> find_peer(std::string_view host) const;
  [[nodiscard]] std::vector<std::string> member_hosts() const;  ///< of the other members
  /// What an attach tells of the terms before this one; the newest history_terms_max.
  [[nodiscard]] std::vector<HistoryTerm> past_terms() const;

  // What the runtime needs to know before it forgets that a range was written to.

  /// A change in `range` is admitted and not numbered.
  [[nodiscard]] bool is_being_written(const Range& range) const {
    return active_.overlaps_any(range);
  }
  [[nodiscard]] bool is_streaming(PeerIndex index) const;
  /// The peer has all of this history durable up to the last position it reported.
  [[nodiscard]] bool has_everything(PeerIndex index) const;
  /// Likewise in `range`, up to sequence `through`.
  [[nodiscard]] bool has_durably(PeerIndex index, const Range& range, Sequence through) const;
  /// Where what is known of the peer's lack begins.
  [[nodiscard]] Sequence lack_base(PeerIndex peer) const { return peers_[peer].lack.base; }
  /// What the peer may lack now, frames in the ring included.
  [[nodiscard]] KnownLack known_lack(PeerIndex index) const;
  /// Likewise, of one that stands at sequence `from`.
  [[nodiscard]] KnownLack known_lack(PeerIndex index, Sequence from) const;
  /// Whether that is all that the peer lacks if it stands as it says; else everything has to be compared.
  [[nodiscard]] bool knows_lack(PeerIndex index, const AttachedMessage& message) const;
  [[nodiscard]] const RingIndex& ring() const { return ring_; }
  [[nodiscard]] Sequence applied(PeerIndex index) const { return peers_[index].marks.applied; }
  /// A sequence that, once this streaming peer has applied it, tells that its image has every numbered change in
  /// `range`: as low as a short look at what it has not applied finds.
  [[nodiscard]] Sequence changed_through(PeerIndex index, const Range& range) const;

  /// For tests: aborts if the state contradicts itself.
  void check_invariants() const;

 private:
  /// How far a member must be before a request is answered.
  enum class Level : std::uint8_t { none, received, logged, durable };

  struct Request {
    RequestId id = 0;
    Change change;
  };
  struct Waiting {  ///< for acknowledgements, in sequence order per level
    RequestId id = 0;
    Sequence sequence = 0;
    bool is_flush = false;
  };
  /// What a copy to this peer must bring: complete for a peer that stands on this history at `base`
  /// or later.
  struct Lack {
    Sequence base = 0;  ///< the highest durable position that it has reported on this history
    Sequence last_marked = 0;
    std::shared_ptr<const ResyncPlan> plan;  ///< of copies that have begun and not ended well
    BlockMap suspect;
    BlockMap before_end;  ///< marked since the plan was made, up to copy_end
    BlockMap dirty;       ///< marked since
  };
  enum class Resync : std::uint8_t {
    lack,    ///< what the peer is known to lack
    whole,   ///< everything is compared
    rewind,  ///< likewise; the peer keeps what only it has
  };
  struct Behind {
    std::uint64_t writes = 0;
    std::uint64_t bytes = 0;
    Instant since;  ///< when the first of them was placed
    void add(const RingIndex::Entry& entry);
  };
  struct Peer {
    std::string host;
    PeerPhase phase = PeerPhase::disconnected;
    bool removed = false;
    bool recorded = false;  ///< in the durable in-sync set
    bool proposed = false;  ///< in the set of the Record effect under way
    bool joining = false;   ///< acknowledgements are waited for, the record does not have it yet
    bool leaving = false;   ///< to be recorded without it
    bool sync_requested = false;
    bool close_requested = false;
    bool diverged = false;  ///< a digest differed: only a copy helps, wherever it says it stands
    std::optional<Error> copy_error;  ///< why the last copy ended, until one ends well
    Sequence join_sequence = 0;
    Watermarks marks;
    HistoryPoint taken;              ///< history behind what take() gave out
    std::uint64_t taken_bytes = 0;   ///< ring offset of the cursor
    std::uint64_t sent_bytes = 0;    ///< ring offset up to which memory is no longer read
    std::uint64_t logged_bytes = 0;  ///< ring offset behind marks.logged
    std::optional<Instant>
        behind_since;  ///< when the first frame it lacks was placed, once that left the ring
    std::map<DiskIndex, Behind> behind;  ///< what it lacks of each disk and the ring has no more
    Instant last_progress;               ///< in the stream, or there was nothing to wait for
    Instant last_durable;                ///< likewise, of durability that was waited for
    std::optional<Range> copy_lock;      ///< asked for or held
    bool copy_locked = false;
    Sequence copy_holds = 0;  ///< no block that was sent or compared holds a later change
    /// What was being written when the last block had been compared, which takes no lock: the image may have it, and
    /// it has no number yet. nullopt before the first CopyEnding.
    std::optional<std::vector<RequestId>> copy_awaits;
    Lack lack;
    /// Where it attached, on this history and consistent; no copy has changed its images since.
    std::optional<Sequence> stands_at;
    bool offers_stage = false;          ///< it has kept what a copy of this term has brought
    bool offers_image = false;          ///< likewise, in its image, which is inconsistent
    std::optional<Resync> interrupted;  ///< the last copy, if it ended without copy_done
    BlockMap handed;  ///< blocks that it, and those it went on with, have handed to the link
    Sequence handed_from = 0;             ///< it was sent numbered frames behind this
    Sequence handed_through = 0;          ///< and up to this
    std::optional<Resync> resync_wanted;  ///< starts by itself when its time has come
    Sequence resync_from = 0;             ///< where the peer stands, or the histories part
    /// What it has changed behind that itself, if that is known.
    std::optional<AttachedMessage::Parted> parted;
    bool resync_runs = false;              ///< a copy has begun and not ended
    bool stage_full = false;               ///< the last one found no space to be staged
    std::optional<Instant> resync_ended;   ///< the last one, well or not
    Duration resync_delay{};               ///< from there to the next
    std::optional<HistoryPoint> copy_end;  ///< of the copy under way, once it was sent
    std::optional<Error> error;
  };
  using Effects = std::vector<PrimaryEffect>;

  // primary.cpp: guest requests, ring, answers
  void on_event(const primary_event::WriteArrived& event, Instant now, Effects& effects);
  void on_event(const primary_event::LocalWritten& event, Instant now, Effects& effects);
  void on_event(const primary_event::Abandoned& event, Instant now, Effects& effects);
  void on_event(const primary_event::LocalSynced& event, Instant now, Effects& effects);
  void on_event(const primary_event::Cancelled& event, Instant now, Effects& effects);
  void on_event(const primary_event::FrameReady& event, Instant now, Effects& effects);
  void on_event(const primary_event::ReserveGranted& event, Instant now, Effects& effects);
  void on_event(const primary_event::SettingsChanged& event, Instant now, Effects& effects);
  void on_event(const primary_event::Fail& event, Instant now, Effects& effects);
  void on_event(const primary_event::Tick& event, Instant now, Effects& effects);
  void answer(RequestId id, Effects& effects);
  [[nodiscard]] bool is_blocked(const Request& request, std::size_t queue_index) const;
  void admit_waiting(Effects& effects);
  void grant_copy_locks(Effects& effects);
  void place(std::optional<RequestId> id, const Change& change, Instant now, Effects& effects);
  void wait_for_answer(RequestId id, Sequence sequence, const Change& change, Effects& effects);
  void answer_ready(Effects& effects);
  void answer_all_failed(Effects& effects);
  void answer_queue(std::deque<Waiting>& queue, Sequence reached_sequence, Effects& effects);
  void acknowledge(const Waiting& waiting, Effects& effects);
  void leave_async();
  [[nodiscard]] Level level_for(const Change& change) const;
  [[nodiscard]] std::deque<Waiting>& queue_for(Level level);
  [[nodiscard]] Sequence reached(Level level) const;
  bool make_room(std::uint64_t frame_bytes, Effects& effects);
  bool drop_oldest_frame(Effects& effects);
  [[nodiscard]] bool is_pinned_by(const Peer& peer, Sequence sequence) const;
  [[nodiscard]] bool makes_ring_scarce(const Peer& peer) const;
  void reserve_sequences(Effects& effects);

  // primary_peers.cpp: sessions, in-sync set, copies
  void on_event(const primary_event::PeerAttached& event, Instant now, Effects& effects);
  void on_event(const primary_event::PeerLost& event, Instant now, Effects& effects);
  void on_event(const primary_event::PeerMarks& event, Instant now, Effects& effects);
  void on_event(const primary_event::PeerSent& event, Instant now, Effects& effects);
  void on_event(const primary_event::CopyRequested& event, Instant now, Effects& effects);
  void on_event(const primary_event::CopyLock& event, Instant now, Effects& effects);
  void on_event(const primary_event::CopyUnlock& event, Instant now, Effects& effects);
  void on_event(const primary_event::CopyDone& event, Instant now, Effects& effects);
  void on_event(const primary_event::Recorded& event, Instant now, Effects& effects);
  void on_event(const primary_event::PeerAdded& event, Instant now, Effects& effects);
  void on_event(const primary_event::PeerRemoved& event, Instant now, Effects& effects);
  void start_stream(PeerIndex index, const HistoryPoint& point, Instant now, Effects& effects);
  void start_copy(PeerIndex index, Resync kind, Instant now, Effects& effects);
  [[nodiscard]] bool has_other_promotable(PeerIndex peer) const;
  void detach(PeerIndex index, Error error);
  void close_peer(PeerIndex index, Error error, Effects& effects);
  void expel(PeerIndex index, Error error, Effects& effects);
  void leave(PeerIndex index, Effects& effects);
  void update_joining(PeerIndex index, Effects& effects);
  void start_joining(Peer& peer);
  void propose_record(Effects& effects);
  void check_progress(Instant now, Effects& effects);
  [[nodiscard]] bool owes_progress(const Peer& peer) const;
  [[nodiscard]] bool owes_durability(const Peer& peer) const;
  [[nodiscard]] std::optional<Error> check_marks(const Peer& peer, const Watermarks& marks) const;
  [[nodiscard]] std::optional<Error> why_not_stream(const Peer& peer,
                                                    const HistoryPoint& logged) const;

  // primary_resync.cpp: what members lack, and copies that start by themselves
  void on_event(const primary_event::CopyProgress& event, Instant now, Effects& effects);
  void on_event(const primary_event::CopyEnding& event, Instant now, Effects& effects);
  /// The request is numbered, or has changed nothing.
  void end_wait_of_copies(RequestId id, Effects& effects);
  [[nodiscard]] Lack make_lack(Sequence base) const;
  void note_dropped(const RingIndex::Entry& entry);
  void note_durable(Peer& peer) const;
  void end_resync(Peer& peer, Instant now) const;
  void want_resync(PeerIndex index, const AttachedMessage& message, Instant now);
  void advance_resyncs(Instant now, Effects& effects);
  [[nodiscard]] bool is_on_history(const HistoryPoint& point) const;
  [[nodiscard]] bool is_own_term(const Epoch& epoch) const;
  [[nodiscard]] bool knows_parting(const Peer& peer, const AttachedMessage& message) const;
  [[nodiscard]] bool is_on_trail(const Peer& peer, Sequence from) const;
  void mark_trail(const Peer& peer, Sequence from, BlockMap& suspect) const;
  [[nodiscard]] bool may_go_on(const Peer& peer, Resync kind) const;
  void forget_handed(Peer& peer) const;
  [[nodiscard]] std::shared_ptr<const ResyncPlan> plan_lack(Peer& peer) const;
  [[nodiscard]] std::shared_ptr<const ResyncPlan> plan_whole() const;
  void request_sync(PeerIndex index, Effects& effects);
  [[nodiscard]] bool acknowledges(const Peer& peer) const;

  // primary_quorum.cpp: whether this term may still be the last one
  void on_event(const primary_event::VoterHeard& event, Instant now, Effects& effects);
  void on_event(const primary_event::VotersChanged& event, Instant now, Effects& effects);
  void on_event(const primary_event::LaterEpoch& event, Instant now, Effects& effects);
  void note_heard(std::string_view host, Instant at);
  void set_voters(VoterSet voters, Instant unknown_heard);
  [[nodiscard]] Instant latest_majority() const;
  void look_at_quorum(Instant now, Effects& effects);

  // primary_hold.cpp: hold, seal, resume
  void on_event(const primary_event::Hold& event, Instant now, Effects& effects);
  void on_event(const primary_event::ImagesSynced& event, Instant now, Effects& effects);
  void on_event(const primary_event::Seal& event, Instant now, Effects& effects);
  void on_event(const primary_event::Resume& event, Instant now, Effects& effects);
  void advance_hold(Instant now, Effects& effects);
  void place_hold_flush(Instant now, Effects& effects);
  bool has_target_applied(bool durable, Effects& effects);
  void fail_hold(Error error, Effects& effects);
  void end_hold(Effects& effects);

  Epoch epoch_;
  HistoryPoint inherited_;  ///< where the history stood when this epoch began
  std::string host_;
  std::vector<std::uint64_t> disk_bytes_;
  Mode mode_;
  Congestion congestion_;
  OnLocalError on_local_error_;
  Duration ack_timeout_;
  RingIndex ring_;
  Sequence reserved_;
  bool reserve_requested_ = false;
  std::optional<Error> failure_;

  std::vector<Term> terms_;
  std::shared_ptr<const Trail> trail_;
  std::vector<Peer> peers_;
  bool record_pending_ = false;
  std::string record_reason_;

  std::deque<Request> queue_;                ///< arrived, not admitted; in order of arrival
  std::vector<Request> admitted_;            ///< being written to the image
  RangeSet active_;                          ///< ranges of admitted_
  std::vector<RequestId> flushing_;          ///< flushes whose local sync is under way
  std::vector<Waiting> flush_acknowledged_;  ///< those of flushing_ that the members have
  std::deque<Waiting> wait_received_;
  std::deque<Waiting> wait_logged_;
  std::deque<Waiting> wait_durable_;

  VoterSet voters_;
  /// When each voter was last heard; this host's own vote always counts.
  std::map<std::string, Instant, std::less<>> heard_;
  Instant
      majority_heard_;  ///< a majority was heard then or later; that of this host alone always is
  bool is_quorum_alone_ = false;  ///< this host's own vote is a majority
  bool overtaken_ = false;
  std::optional<Instant> cut_off_since_;
  std::vector<RequestId> held_answers_;  ///< what could be answered but for that

  HoldPhase hold_phase_ = HoldPhase::none;
  bool is_touched_ = false;
  bool hold_sealed_ = false;
  bool hold_images_synced_ = false;
  unsigned hold_syncs_under_way_ = 0;  ///< SyncImages effects without their ImagesSynced
  bool hold_ping_pending_ = false;
  std::optional<PeerIndex> hold_target_;
  Instant hold_deadline_;
  Sequence hold_sequence_ = 0;
};

/// Stable name of a phase as in docs/control-api.md; `caught_up` tells streaming from catching-up.
[[nodiscard]] std::string_view peer_state_name(PeerPhase phase, bool caught_up, bool refused);

}  // namespace replicad
