#pragma once
// The replica's half of the replication protocol as a state machine: events in, effects out. It sees headers
// and checksums, never payload; it reads no clock and does no I/O. Not thread-safe.
//
// A session with the primary:
//
//   AttachArrived -> promising -> settling -> idle --start--------------> streaming
//                    RecordState  log at rest  |                              ^
//                                              +--start copy--> marking ------+ (CopyDone)
//                                              |   -> draining -> copying -> finishing
//                                              +--start copy, staged, keep or save--> applying -> marking ...
//
// A copy to a consistent replica is *staged* unless the primary asks for it in place or for a rewind: its frames go
// to a file of their own, the images stay what they are, and the replica stays promotable to its old point, until
// the commit. If its session ends before that, the stage is *parked*: a session of the same term may go on with it, as
// long as the replica stands where the stage began.
//
// applying: the log is applied, then the images are synced. marking: RecordState(staging, resyncing, rewinding or
// inconsistent) is under way. draining: what was received reaches the log, then the log is dropped. finishing:
// stage or images are synced, then RecordState(committed or copy_done). Whatever was begun there is finished even
// if the session ends meanwhile; the next session waits in `settling`. Behind the commit the stage is brought into
// the images (*unstaging*) while the session streams; the log is applied after that.
//
// Which effect must be complete before which: a promise is durable before SendAttached; the images are synced up
// to the point that a staging, resyncing or rewinding mark names before it is recorded; the mark before DropLog and
// before the first WriteImage; SyncImages before RecordState(copy_done), SyncStage before RecordState(committed),
// those before SendCopyDone; the images are synced with all of the stage before RecordState(unstaged), that before
// EndStage; a sequence is reported as logged after Logged, as durable after LogSynced. That the member is not whole
// is on record before SendAttached: whatever it tells from then on, a crash may take away again.

#include <cstdint>
#include <deque>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "core/base/time.h"
#include "core/store/log_segment.h"
#include "core/wire/messages.h"

namespace replicad {

/// Chosen by the runtime for each connection that attaches; never used twice.
using SessionId = std::uint64_t;

struct ReplicaConfig {
  std::string host;
  std::string volume;
  std::string volume_uuid;
  std::vector<std::uint64_t> disk_bytes;
  std::string boot_id;
  std::uint64_t sync_bytes = 16 * mib;            ///< the log is synced after so many bytes
  Duration sync_delay = std::chrono::seconds(1);  ///< or when the oldest unsynced byte is so old
  Duration alive_delay =
      std::chrono::milliseconds(50);  ///< between reports while a copy begins or ends
  Duration report_delay =
      std::chrono::milliseconds(50);  ///< least time between reports of `applied`
};

/// Where the replica stands when it starts: what the state file says and the log's recovery has proven.
struct ReplicaStanding {
  Epoch promised;
  std::string primary;  ///< host that the promise was given to
  bool consistent = true;
  HistoryPoint logged;
  Sequence durable = 0;
  HistoryPoint applied;
  /// Inconsistent: the term whose resync was interrupted; `applied` is then the point it began from.
  std::optional<Epoch> resync = {};
  /// A committed stage is not yet in the images: the runtime brings it there and reports StageApplied.
  bool unstaging = false;
  bool whole = true;  ///< VolumeState::whole; false: it may lack what it has told a primary
  /// The term of a stage that began at `logged`, which is `applied`, was not committed, and is there still.
  std::optional<Epoch> parked = {};
};

/// A change of the volume's state file. It is durable when StateRecorded says so.
struct ReplicaRecord {
  enum class Kind : std::uint8_t {
    promise,       ///< epoch := `epoch`, primary := `primary` and whole := false, unless empty
    staging,       ///< checkpoint := `point`
    committed,     ///< checkpoint := `point`, stage := `stage_bytes`
    unstaged,      ///< stage := none
    inconsistent,  ///< consistent := false, resync := none
    resyncing,     ///< consistent := false, resync := `epoch`, checkpoint := `point`
    /// consistent := false, resync := none; `primary` and `epoch` are of the history that replaces the one that
    /// ends at `point`. From here on WriteImage keeps aside what a block held before it changes it first.
    rewinding,
    copy_done,  ///< consistent := true, checkpoint := `point`, resync := none
  };
  Kind kind = Kind::promise;
  Epoch epoch;
  std::string primary;
  HistoryPoint point;
  std::uint64_t stage_bytes = 0;
};

namespace replica_event {
/// A connection's attach frame. `is_primary`: this host is recorded as the volume's primary.
struct AttachArrived {
  SessionId session = 0;
  AttachMessage message;
  bool is_primary = false;
};
struct StartArrived {
  SessionId session = 0;
  StartMessage message;
};
/// Any frame without a message of its own here: numbered, copy_data, copy_zero, heartbeat, sync_request and
/// whatever a primary must not send. Checksums are verified.
struct FrameArrived {
  SessionId session = 0;
  FrameHeader header;
};
struct DigestArrived {
  SessionId session = 0;
  HistoryPoint point;
};
struct CopyEndArrived {
  SessionId session = 0;
  HistoryPoint point;
};
struct SessionClosed {
  SessionId session = 0;
};
/// The log file has every frame up to `through` (in the order of the AppendFrame effects).
struct Logged {
  Sequence through = 0;
};
/// Answer to SyncLog: the log was on stable storage up to `through`.
struct LogSynced {
  Sequence through = 0;
};
/// The image has everything up to `point`; its digest was taken over the bytes that were written. Only what is
/// durable in the log may be brought into the image: of the rest a power loss could take the frame and leave the write.
struct Applied {
  HistoryPoint point;
};
/// Copy: the image, or the stage, has every numbered frame up to `through` that the session sent.
struct CopyWritten {
  SessionId session = 0;
  Sequence through = 0;
};
/// Somebody waits for what is logged now to be applied.
struct SyncWanted {};
/// Answer to the oldest unanswered RecordState; on error the file is unchanged.
struct StateRecorded {
  Status status;
};
/// Answer to SyncStage: its first `bytes` bytes are on stable storage, and are all frames given to it.
struct StageSynced {
  std::uint64_t bytes = 0;
};
/// The stage cannot take what it was given (no space, as a rule). The log and the images are well.
struct StageFailed {
  Error error;
};
/// Every frame of the committed stage is in the images; not yet synced.
struct StageApplied {};
/// Answer to DropLog.
struct LogDropped {};
/// Answer to SyncImages.
struct ImagesSynced {};
/// Another part of the daemon has durably promised this epoch.
struct PromiseRaised {
  Epoch epoch;
};
/// `point` nullopt: wherever the log ends when everything taken is logged.
struct PromotionRequested {
  Epoch epoch;
  std::optional<HistoryPoint> point;
};
/// Log or image failed: nothing more is taken. The runtime recovers with a new Replica.
struct Failed {
  Error error;
};
/// wake_at() has come.
struct TimePassed {};
}  // namespace replica_event

using ReplicaEvent = std::variant<replica_event::AttachArrived,
                                  replica_event::StartArrived,
                                  replica_event::FrameArrived,
                                  replica_event::DigestArrived,
                                  replica_event::CopyEndArrived,
                                  replica_event::SessionClosed,
                                  replica_event::Logged,
                                  replica_event::LogSynced,
                                  replica_event::Applied,
                                  replica_event::CopyWritten,
                                  replica_event::StageSynced,
                                  replica_event::StageFailed,
                                  replica_event::StageApplied,
                                  replica_event::SyncWanted,
                                  replica_event::StateRecorded,
                                  replica_event::LogDropped,
                                  replica_event::ImagesSynced,
                                  replica_event::PromiseRaised,
                                  replica_event::PromotionRequested,
                                  replica_event::Failed,
                                  replica_event::TimePassed>;

namespace replica_effect {
struct SendAttached {
  SessionId session = 0;
  AttachedMessage message;
};
struct SendWatermarks {
  SessionId session = 0;
  Watermarks marks;
  std::uint64_t heartbeat = 0;  ///< number of the last one
};
struct SendCopyDone {
  SessionId session = 0;
  HistoryPoint point;
};
/// Send `refuse` with the error, then close. The session is over.
struct Refuse {
  SessionId session = 0;
  Error error;
};
/// Close without a word. The session is over.
struct CloseSession {
  SessionId session = 0;
  Error error;
};
/// The frame of this event goes to the end of the log; the history is at `after` with it.
struct AppendFrame {
  HistoryPoint after;
};
/// The frame of this event goes straight to the image, in the order of these effects.
struct WriteImage {};
/// Begin an empty stage, of the term `epoch` and for a replica at `base`. `go_on`: go on with the parked one; blocks
/// are compared with the images as they will be behind what it holds. If it is not there or damaged, with an empty one.
struct OpenStage {
  Epoch epoch;
  HistoryPoint base;
  bool go_on = false;
};
/// The frame of this event goes to the end of the stage.
struct StageFrame {};
/// Make all of the stage durable, then StageSynced.
struct SyncStage {};
/// No more frames come for the stage, which is kept.
struct ParkStage {};
/// Remove the stage, which is not committed.
struct DropStage {};
/// The committed stage is in the images, durably: remove it, and apply the log, which goes on from `point`.
struct EndStage {
  HistoryPoint point;
};
/// Compare the blocks of this event's frame (block_sums) with the images, at any time and in any order, and
/// answer with `block_diffs`.
struct CompareBlocks {
  SessionId session = 0;
};
/// Likewise on a stream, but only when VerifyNow of this session names `after` or more, and with what the medium has.
/// The runtime ends a session that leaves too many unanswered.
struct VerifyBlocks {
  SessionId session = 0;
  Sequence after = 0;
};
/// The images have everything up to `through`.
struct VerifyNow {
  SessionId session = 0;
  Sequence through = 0;
};
/// Make the log durable up to what is logged now, then LogSynced.
struct SyncLog {};
/// Stop applying, wait for image writes in flight, remove the log, then LogDropped.
struct DropLog {};
/// Wait for image writes in flight, fdatasync every image, then ImagesSynced.
struct SyncImages {};
/// The log begins anew behind `point`, which is the checkpoint. `stage_bytes` > 0: bring so much of the stage into the
/// images, then StageApplied; nothing of the log is applied before EndStage.
struct RestartLog {
  HistoryPoint point;
  std::uint64_t stage_bytes = 0;
};
/// Make the change durable, then StateRecorded. In order.
struct RecordState {
  ReplicaRecord record;
};
/// Result of a PromotionRequested.
struct PromotionDone {
  Status status;
};
}  // namespace replica_effect

using ReplicaEffect = std::variant<replica_effect::SendAttached,
                                   replica_effect::SendWatermarks,
                                   replica_effect::SendCopyDone,
                                   replica_effect::Refuse,
                                   replica_effect::CloseSession,
                                   replica_effect::AppendFrame,
                                   replica_effect::WriteImage,
                                   replica_effect::OpenStage,
                                   replica_effect::StageFrame,
                                   replica_effect::SyncStage,
                                   replica_effect::ParkStage,
                                   replica_effect::DropStage,
                                   replica_effect::EndStage,
                                   replica_effect::CompareBlocks,
                                   replica_effect::VerifyBlocks,
                                   replica_effect::VerifyNow,
                                   replica_effect::SyncLog,
                                   replica_effect::DropLog,
                                   replica_effect::SyncImages,
                                   replica_effect::RestartLog,
                                   replica_effect::RecordState,
                                   replica_effect::PromotionDone>;

class Replica {
 public:
  enum class Phase : std::uint8_t {
    none,  ///< no session
    promising,
    settling,
    idle,
    streaming,
    copying,
    waiting,  ///< a copy is being begun or ended
  };

  Replica(ReplicaConfig config, const ReplicaStanding& standing);

  /// Takes one event and appends what is to be done, in this order.
  void step(const ReplicaEvent& event, Instant now, std::vector<ReplicaEffect>& effects);

  /// Whether frames of the session may be handed in now; else the runtime keeps them for later, in order.
  [[nodiscard]] bool takes_input() const;
  /// When TimePassed is wanted; nullopt = never.
  [[nodiscard]] std::optional<Instant> wake_at() const;

  [[nodiscard]] Watermarks marks() const;
  /// What it tells a primary that attaches now.
  [[nodiscard]] AttachedMessage standing() const;
  [[nodiscard]] HistoryPoint logged() const { return logged_; }
  [[nodiscard]] HistoryPoint applied() const { return applied_; }
  [[nodiscard]] Epoch promised() const { return promised_; }
  [[nodiscard]] bool is_consistent() const { return consistent_; }
  /// It may lack something that it told a primary before a crash or a failure, and none has found since that it does
  /// not.
  [[nodiscard]] bool is_short() const { return short_; }
  [[nodiscard]] bool is_copying() const { return copy_ != CopyStep::none; }
  /// A committed stage is on its way into the images, which are no point of any history meanwhile.
  [[nodiscard]] bool is_unstaging() const { return unstaging_ != UnstageStep::none; }
  [[nodiscard]] Phase phase() const;
  /// The session whose frames are taken; nullopt if there is none.
  [[nodiscard]] std::optional<SessionId> session() const;
  [[nodiscard]] const std::optional<Error>& failure() const { return failure_; }

  /// For tests: aborts if the state contradicts itself.
  void check_invariants() const;

 private:
  using Effects = std::vector<ReplicaEffect>;

  enum class CopyStep : std::uint8_t {
    none,
    applying,
    syncing_before,
    marking,
    draining,
    dropping,
    copying,
    syncing,
    recording
  };
  enum class UnstageStep : std::uint8_t { none, applying, syncing, recording };
  enum class PromotionStep : std::uint8_t { none, promising, applying, syncing, done };

  struct Session {
    SessionId id = 0;
    Epoch epoch;
    std::string primary;
    Phase phase = Phase::promising;
    bool knows_go_on = false;               ///< the primary does
    bool knows_verify = false;              ///< likewise
    std::multiset<Sequence> verifies = {};  ///< of VerifyBlocks: what is not applied yet
    std::uint64_t heartbeat = 0;            ///< number of the last one
  };
  /// Received and not yet logged.
  struct Pending {
    HistoryPoint after;
    std::uint64_t frame_bytes = 0;
    bool wants_sync = false;
  };

  void on_event(const replica_event::AttachArrived& event, Instant now, Effects& effects);
  void on_event(const replica_event::StartArrived& event, Instant now, Effects& effects);
  void on_event(const replica_event::FrameArrived& event, Instant now, Effects& effects);
  void on_event(const replica_event::DigestArrived& event, Instant now, Effects& effects);
  void on_event(const replica_event::CopyEndArrived& event, Instant now, Effects& effects);
  void on_event(const replica_event::SessionClosed& event, Instant now, Effects& effects);
  void on_event(const replica_event::Logged& event, Instant now, Effects& effects);
  void on_event(const replica_event::LogSynced& event, Instant now, Effects& effects);
  void on_event(const replica_event::Applied& event, Instant now, Effects& effects);
  void on_event(const replica_event::CopyWritten& event, Instant now, Effects& effects);
  void on_event(const replica_event::StageSynced& event, Instant now, Effects& effects);
  void on_event(const replica_event::StageFailed& event, Instant now, Effects& effects);
  void on_event(const replica_event::StageApplied& event, Instant now, Effects& effects);
  void on_event(const replica_event::SyncWanted& event, Instant now, Effects& effects);
  void on_event(const replica_event::StateRecorded& event, Instant now, Effects& effects);
  void on_event(const replica_event::LogDropped& event, Instant now, Effects& effects);
  void on_event(const replica_event::ImagesSynced& event, Instant now, Effects& effects);
  void on_event(const replica_event::PromiseRaised& event, Instant now, Effects& effects);
  void on_event(const replica_event::PromotionRequested& event, Instant now, Effects& effects);
  void on_event(const replica_event::Failed& event, Instant now, Effects& effects);
  void on_event(const replica_event::TimePassed& event, Instant now, Effects& effects);

  [[nodiscard]] bool is_current(SessionId session) const;
  [[nodiscard]] Status check_attach(const AttachMessage& message, bool is_primary) const;
  [[nodiscard]] Status check_epoch(const AttachMessage& message) const;
  [[nodiscard]] Status check_frame(const FrameHeader& header) const;
  void take_numbered(const FrameHeader& header, Effects& effects);
  void take_copy_frame(const FrameHeader& header, Effects& effects);
  void take_verify(const FrameHeader& header, Effects& effects);
  void verify_applied(Effects& effects);
  void begin_stream(const StartMessage& message, Effects& effects);
  void begin_copy(const StartMessage& message, Instant now, Effects& effects);
  void go_on_copying(const StartMessage& message, Effects& effects);
  void drop_parked(Effects& effects);
  void on_promised(const ReplicaRecord& record, const Status& status, Effects& effects);
  void on_marked(const ReplicaRecord& record, const Status& status, Effects& effects);
  void mark_copy(Effects& effects);
  void mark_rewind(Effects& effects);
  void on_copy_recorded(const ReplicaRecord& record, const Status& status, Effects& effects);
  void on_unstaged(const Status& status, Effects& effects);
  void record(ReplicaRecord record, Effects& effects);
  void refuse(Error error, Effects& effects);
  void leave_session(Effects& effects);
  void note_whole();
  void request_sync(Instant now, Effects& effects);
  void want_sync(Instant now, Effects& effects);
  void sync_if_due(Instant now, Effects& effects);
  void report(Effects& effects);
  void report_later(Instant now);
  /// Goes on with what waited for the log to come to rest: the session, a copy, a promotion.
  void advance_waiting(Effects& effects);
  void advance_promotion(Effects& effects);
  void end_promotion(Status status, Effects& effects);

  ReplicaConfig config_;
  Epoch promised_;          ///< refuses what is lower; may not be durable yet
  Epoch promised_durable_;  ///< what the state file says
  std::string primary_;     ///< recorded with it
  bool consistent_;
  bool recorded_whole_;  ///< what the state file says
  bool short_;
  std::optional<Sequence> whole_at_;  ///< short no longer when this is durable
  std::optional<Error> failure_;
  std::deque<ReplicaRecord> records_;  ///< unanswered RecordState effects

  std::optional<Session> session_;
  HistoryPoint received_;
  std::deque<Pending> pending_;
  HistoryPoint logged_;
  Sequence durable_ = 0;
  HistoryPoint applied_;

  bool sync_in_flight_ = false;
  bool sync_due_ = false;  ///< something logged and not durable must become so at once
  std::uint64_t unsynced_bytes_ = 0;
  std::optional<Instant> unsynced_since_;
  std::optional<Instant> report_at_;
  std::optional<Sequence> report_applied_at_;  ///< somebody waits for this to be applied

  /// As of ReplicaStanding; the point that belongs to it.
  std::optional<Epoch> resync_;
  HistoryPoint resync_base_;
  CopyStep copy_ = CopyStep::none;
  bool copy_saves_ = false;      ///< a rewind
  bool staged_ = false;          ///< the copy under way, if there is one
  bool keep_ = false;            ///< likewise
  std::optional<Epoch> parked_;  ///< as of ReplicaStanding
  HistoryPoint copy_taken_;      ///< last numbered frame of the copy; its digest is not known
  Sequence copy_written_ = 0;
  HistoryPoint copy_end_;
  UnstageStep unstaging_ = UnstageStep::none;
  HistoryPoint unstaged_point_;  ///< where the images are when it has ended

  PromotionStep promotion_ = PromotionStep::none;
  Epoch promotion_epoch_;
  std::optional<HistoryPoint> promotion_point_;
};

}  // namespace replicad
