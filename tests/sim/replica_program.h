#pragma once
// The replica's update agent (replicad/replica_runtime*) on simulated disks and connections, around the real Replica.

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "core/repl/replica_state.h"
#include "tests/sim/network.h"
#include "tests/sim/oracle.h"
#include "tests/sim/stage_model.h"

namespace replicad::sim {

class ReplicaProgram : public std::enable_shared_from_this<ReplicaProgram> {
 public:
  using StateChange = std::function<void(VolumeState&)>;
  struct Hooks {
    std::function<void(StateChange, std::function<void(Status)>)> update_state;
    std::function<const VolumeState&()> state;
  };

  ReplicaProgram(World& world,
                 Machine& machine,
                 const Options& options,
                 Histories& histories,
                 Life life,
                 Hooks hooks);

  /// Recovers log and image. On error nothing runs.
  Status open();
  void attach(const std::shared_ptr<Connection>& connection, const AttachMessage& message);
  void prepare_promotion(const Epoch& epoch,
                         const std::optional<HistoryPoint>& point,
                         std::function<void(Status)> done);
  void shutdown(bool discard_log, std::function<void()> done);

  [[nodiscard]] const Replica& core() const { return *core_; }
  [[nodiscard]] bool has_failed() const { return failure_.has_value(); }
  /// Image and log together are exactly the history's content at logged(): P2.
  void check_prefix() const;
  /// Image alone is the history's content at applied(); nothing is being applied.
  void check_image() const;

 private:
  struct Session {
    std::shared_ptr<Connection> connection;
    bool knows_trail = false;
    std::vector<HistoryTerm> history;
    bool has_told = false;
  };
  struct PendingAttach {
    std::shared_ptr<Connection> connection;
    AttachMessage message;
  };
  struct Applying {
    WriterModel::Tag tag = {};
    HistoryPoint after;
    std::size_t frame_bytes = 0;
  };
  struct TrailSave {
    bool anew = false;
    std::vector<std::tuple<DiskIndex, std::uint32_t, std::vector<Sequence>>> pages;
    TrailHeader header;
    std::uint64_t core = 0;
    std::function<void()> done;
  };
  struct CopyFrame {
    WriterModel::Tag tag;
    Sequence sequence;
  };
  template <typename Function>
  auto guarded(Function function) {
    return life_.guard([weak = weak_from_this(),
                        generation = generation_,
                        function = std::move(function)](auto&&... arguments) mutable {
      const auto self = weak.lock();
      if (self && self->generation_ == generation) {
        function(*self, std::forward<decltype(arguments)>(arguments)...);
      }
    });
  }

  struct Found {
    FoundLog log;
    std::optional<Epoch> parked;
  };
  Result<Found> recover() const;
  Status drop_image_cache() const;
  void begin(const Found& recovered);
  void start_compare(SessionId session, const Range& range, const std::vector<Digest>& sums);
  void feed(ReplicaEvent event);
  void after_step();
  void arm_timer();
  void learn_promise();
  void send(SessionId session, std::vector<std::byte> frame);
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
  void check_log_has(const Watermarks& marks);
  void perform(const replica_effect::RestartLog& effect);
  void perform(const replica_effect::RecordState& effect);
  void perform(const replica_effect::PromotionDone& effect);

  void open_session(const std::shared_ptr<Connection>& connection, const AttachMessage& message);
  Status on_frame(SessionId session, const FrameView& frame);
  void on_closed(SessionId session);

  void start_applier(const HistoryPoint& point, std::size_t segment, std::uint64_t offset);
  void apply_more();
  bool find_segment();
  void on_applied(WriterModel::Tag tag);
  void start_copy_writer();
  void drop_stage();
  void start_unstaging(std::uint64_t bytes);
  [[nodiscard]] StageScan staged_frames(std::uint64_t bytes) const;
  void stop_images(std::function<void()> done);
  void checkpoint_if_due();
  void save_trail(const HistoryPoint& point, std::function<void()> done);
  void write_trail();
  void end_trail_save(int error);
  void record_checkpoint(const HistoryPoint& point, std::uint64_t bytes);
  void fail(const Error& error);
  void stop_all(std::function<void()> done);
  void retry();
  void take_pending_attach();
  void refuse_pending_attach(const Error& error);
  void record_last_checkpoint(const std::function<void()>& done);
  void finish_shutdown(bool discard_log, std::function<void()> done);

  World& world_;
  Machine& machine_;
  const Options& options_;
  Histories& histories_;
  Life life_;
  Hooks hooks_;
  std::uint64_t generation_ = 0;
  std::uint64_t core_serial_ = 0;

  std::optional<Replica> core_;
  std::deque<ReplicaEvent> events_;
  std::vector<ReplicaEffect> effects_;
  bool feeding_ = false;
  const FrameView* frame_ = nullptr;
  std::optional<Instant> timer_at_;
  SessionId last_session_ = 0;
  std::map<SessionId, Session> sessions_;
  std::function<void(Status)> promotion_done_;

  std::shared_ptr<LogModel> log_;
  std::shared_ptr<WriterModel> applier_;
  std::shared_ptr<WriterModel> copy_writer_;
  std::shared_ptr<LogModel::Segment> read_segment_;
  HistoryPoint read_point_;
  std::uint64_t read_offset_ = 0;
  std::deque<Applying> applying_;
  std::deque<CopyFrame> copy_frames_;
  std::shared_ptr<StageModel> stage_;
  unsigned parking_ = 0;
  std::function<void()> when_parked_;
  std::shared_ptr<WriterModel> unstaging_;
  Trail trail_;
  HistoryPoint trail_point_;
  std::uint64_t trail_generation_ = 0;
  std::deque<TrailSave> trail_saves_;  ///< the first one is being written
  std::uint64_t checkpoint_bytes_ = 0;
  bool checkpointing_ = false;

  std::optional<Error> failure_;
  bool quiet_ = false;
  bool recovering_ = false;
  bool retrying_ = false;
  bool closing_ = false;
  std::optional<PendingAttach> pending_attach_;
  std::function<void()> quiet_done_;
};

}  // namespace replicad::sim
