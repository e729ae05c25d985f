#pragma once
// What drives the replica's state machine (core/repl/replica.h) with real connections, log and images. One per
// volume; replica_volume.cpp is the door to it. Reactor thread only. Components outlive it while operations of
// theirs are in flight; it waits for its worker's thread when it ends.

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/repl/replica_state.h"
#include "io/medium_sums.h"
#include "replicad/block_compare.h"
#include "replicad/log_store.h"
#include "replicad/replica_applier.h"
#include "replicad/replica_images.h"
#include "replicad/replica_volume.h"
#include "replicad/resync_stage.h"
#include "replicad/rewind_saver.h"
#include "replicad/trail_file.h"

namespace replicad {

class ReplicaRuntime : public std::enable_shared_from_this<ReplicaRuntime> {
 public:
  struct Setup {
    std::string host;
    std::string log_dir;
    std::string boot_id;
    /// Holds the boot id while what is in the log file counts as kept (replica_volume.cpp).
    std::string kept_marker;
    bool kept = false;  ///< it did when the replica was opened
    std::shared_ptr<ImageSet> images;
    ReplicaVolume::Hooks hooks;
  };

  ReplicaRuntime(Reactor& reactor, Setup setup);
  ReplicaRuntime(const ReplicaRuntime&) = delete;
  ReplicaRuntime& operator=(const ReplicaRuntime&) = delete;
  ReplicaRuntime(ReplicaRuntime&&) = delete;
  ReplicaRuntime& operator=(ReplicaRuntime&&) = delete;
  ~ReplicaRuntime();

  /// What the log of this volume holds, as recovery proves it; an inconsistent replica's log is removed, and its
  /// images' cache dropped. Blocking, any thread.
  [[nodiscard]] static Result<RecoveredLog> recover(const std::string& log_dir,
                                                    const VolumeState& state,
                                                    const std::string& host,
                                                    const std::string& boot_id,
                                                    const ImageSet& images);
  /// Goes on from there.
  void begin(RecoveredLog recovered);

  void attach(std::shared_ptr<FrameConnection> connection, const AttachMessage& message);
  [[nodiscard]] ReplicaStatus status() const;
  [[nodiscard]] std::vector<int> image_fds() const { return setup_.images->fds(); }
  void sync_soon();
  void prepare_promotion(const Epoch& epoch,
                         const std::optional<HistoryPoint>& point,
                         std::function<void(Status)> done);
  void shutdown(bool discard_log, std::function<void()> done);

 private:
  /// Keeps the receive buffer of a connection, and what is in it, while operations use it.
  class BufferHold;
  struct Session {
    std::shared_ptr<FrameConnection> connection;
    std::weak_ptr<BufferHold> hold;
    bool knows_trail = false;          ///< the primary does
    std::vector<HistoryTerm> history;  ///< of the primary
    std::vector<Range> parted = {};    ///< what it was told that only this host may have
    bool has_told = false;             ///< it was told
  };
  /// Blocks of a stream's block_sums frame that are not answered.
  struct Verify {
    SessionId session = 0;
    Sequence after = 0;
    Range range;
    std::vector<Digest> sums;
    bool runs = false;
  };
  struct VerifierState {
    std::atomic<bool> ends = false;
    std::map<DiskIndex, MediumReader> readers = {};  ///< on its thread only
  };
  struct PendingAttach {
    std::shared_ptr<FrameConnection> connection;
    AttachMessage message;
  };
  struct CopyFrame {
    ImageWriter::Tag tag = 0;
    Sequence sequence = 0;  ///< 0: not numbered
  };

  /// `function`, which does nothing once the runtime is gone or has dropped or replaced its log since.
  template <typename Function>
  auto guarded(Function function) {
    return [weak = weak_from_this(), generation = generation_, function = std::move(function)](
               auto&&... arguments) {
      const auto self = weak.lock();
      if (self && self->generation_ == generation) {
        function(*self, std::forward<decltype(arguments)>(arguments)...);
      }
    };
  }

  /// The same, as long as the runtime lives.
  template <typename Function>
  auto guarded_always(Function function) {
    return [weak = weak_from_this(), function = std::move(function)](auto&&... arguments) {
      if (const auto self = weak.lock()) {
        function(*self, std::forward<decltype(arguments)>(arguments)...);
      }
    };
  }

  // replica_runtime.cpp: events, effects, sessions
  void feed(ReplicaEvent event);
  void perform(const replica_effect::SendAttached& effect);
  void perform(const replica_effect::SendWatermarks& effect);
  void perform(const replica_effect::SendCopyDone& effect);
  void perform(const replica_effect::Refuse& effect);
  void perform(const replica_effect::CloseSession& effect);
  void perform(const replica_effect::AppendFrame& effect);
  void perform(const replica_effect::WriteImage& effect);
  void perform(const replica_effect::OpenStage& effect);
  void perform(const replica_effect::StageFrame& effect);
  void perform(const replica_effect::SyncStage& effect);
  void perform(const replica_effect::ParkStage& effect);
  void perform(const replica_effect::DropStage& effect);
  void perform(const replica_effect::EndStage& effect);
  void perform(const replica_effect::CompareBlocks& effect);
  void perform(const replica_effect::VerifyBlocks& effect);
  void perform(const replica_effect::VerifyNow& effect);
  void perform(const replica_effect::SyncLog& effect);
  void perform(const replica_effect::DropLog& effect);
  void perform(const replica_effect::SyncImages& effect);
  void perform(const replica_effect::RestartLog& effect);
  void perform(const replica_effect::RecordState& effect);
  void perform(const replica_effect::PromotionDone& effect);
  void start_compare(std::uint64_t id, SessionId session, const Range& range);
  [[nodiscard]] bool may_compare(SessionId session);
  void start_verify(std::uint64_t id, Verify& verify);
  void on_verified(std::uint64_t id, const MediumSums& own);
  void send(SessionId session, std::vector<std::byte> frame);
  [[nodiscard]] bool is_repeated(const Error& error);
  void after_step();
  void mark_kept_if_whole();
  void arm_timer();
  void learn_promise();
  void open_session(const std::shared_ptr<FrameConnection>& connection,
                    const AttachMessage& message);
  Status on_frame(SessionId session, const FrameView& frame);
  void on_closed(SessionId session, const Error& error);
  std::shared_ptr<BufferHold> hold_of_current();

  // replica_runtime_rewind.cpp: keeping aside what only this host has
  using SaverReady = std::function<void(Result<std::shared_ptr<RewindSaver>>)>;
  void tell_parted(Session& session, AttachedMessage& message);
  void prepare_rewind(const HistoryPoint& left, SaverReady ready);
  void begin_rewind(const ReplicaRecord& record);
  void record_held();

  // replica_runtime_disk.cpp: log, images, checkpoint, failure
  void start_applier(const ReplicaApplier::Start& start);
  void on_applied(const HistoryPoint& point, std::uint64_t bytes);
  void begin_copy_images();
  void start_copy_writer(std::shared_ptr<RewindSaver> saver);
  void write_copied(const FrameHeader& header,
                    std::span<const std::byte> payload,
                    std::shared_ptr<void> owner);
  void record_state(const ReplicaRecord& record);
  void start_unstaging(std::uint64_t bytes);
  void remove_stage_later();
  void on_copy_progress(ImageWriter::Tag tag);
  void sync_copy_if_due();
  void stop_images(std::function<void()> done);
  void checkpoint_if_due();
  void save_trail(const HistoryPoint& point, std::function<void()> done);
  void mark_images(bool at_rest, std::function<void(std::vector<ImageMark>)> done);
  void record_checkpoint(const HistoryPoint& point,
                         std::uint64_t bytes,
                         std::vector<ImageMark> marks);
  void fail(const Error& error);
  void stop_all(std::function<void()> then);
  void retry();
  void recover_again();
  void on_recovered(Result<RecoveredLog> recovered);
  void take_pending_attach();
  void refuse_pending_attach(const Error& error);
  void record_last_checkpoint(const std::function<void()>& done);
  void record_end(const HistoryPoint& point,
                  bool is_whole,
                  const std::vector<ImageMark>& marks,
                  std::function<void()> done);
  void finish_shutdown(bool discard_log, std::function<void()> done);
  void when_quiet(std::function<void()> function);

  Reactor& reactor_;
  Setup setup_;
  std::unique_ptr<Worker> worker_;
  std::uint64_t generation_ = 0;
  std::uint64_t core_serial_ = 0;  ///< counts Replica objects

  std::optional<Replica> core_;
  std::deque<ReplicaEvent> events_;
  std::vector<ReplicaEffect> effects_;
  bool feeding_ = false;
  const FrameView* frame_ = nullptr;  ///< that the current event is about
  std::optional<Reactor::TimerId> timer_;
  Instant timer_at_;

  SessionId last_session_ = 0;
  Instant last_frame_at_{};
  std::map<SessionId, Session> sessions_;
  std::optional<Error> session_error_;  ///< why the last session ended
  std::string last_trouble_;            ///< logged last; empty after a session has begun
  std::function<void(Status)> promotion_done_;

  std::shared_ptr<LogStore> log_;
  std::shared_ptr<ReplicaApplier> applier_;
  std::shared_ptr<ImageWriter> copy_writer_;
  std::shared_ptr<RewindSaver>
      saver_;  ///< of a rewind: changes pass it on their way to copy_writer_
  std::shared_ptr<RewindSaver> next_saver_;  ///< for the copy that begins; its file exists
  std::optional<std::vector<Range>>
      own_ranges_;                 ///< all else that a rewind replaces is not its own
  bool preparing_rewind_ = false;  ///< its record, and those in held_records_, wait for the file
  std::deque<ReplicaRecord> held_records_;
  std::optional<Error> rewind_error_;  ///< why the last rewind got no further
  std::deque<CopyFrame> copy_frames_;
  std::shared_ptr<StageWriter> stage_;
  unsigned parking_ = 0;               ///< stages whose last writes are in flight
  std::function<void()> when_parked_;  ///< goes on with the last one
  std::shared_ptr<StageApplier> stage_applier_;
  std::uint64_t stage_bytes_ = 0;  ///< committed and not yet in the images
  std::map<std::uint64_t, std::shared_ptr<BlockCompare>> compares_;
  std::map<std::uint64_t, Verify> verifies_;
  std::unique_ptr<Worker> verifier_;  ///< reads for them; made when it is first needed
  std::shared_ptr<VerifierState> verifier_state_;
  std::uint64_t last_compare_ = 0;
  std::uint64_t copy_unsynced_bytes_ = 0;
  bool copy_syncing_ = false;

  Trail trail_;
  HistoryPoint trail_point_;  ///< where the images are that it speaks of
  std::uint64_t trail_generation_ = 0;

  std::uint64_t backlog_bytes_ = 0;
  std::uint64_t checkpoint_bytes_ = 0;  ///< applied since the checkpoint
  bool checkpointing_ = false;

  std::optional<Error> failure_;
  bool quiet_ = false;  ///< nothing runs: log, applier and writer are gone
  bool recovering_ = false;
  bool marked_kept_ = false;
  bool retrying_ =
      false;  ///< recovered after a failure; the backlog must prove that the images take it
  bool closing_ = false;
  std::optional<PendingAttach> pending_attach_;
  std::function<void()> quiet_done_;
};

}  // namespace replicad
