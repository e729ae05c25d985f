#pragma once
// The replica's log and image writer as replicad has them (replicad/log_store, replica_images, replica_applier), on
// simulated disks. They are models: what they do in which order is copied from there; the bytes of segments, the scan
// and the recovery are the real ones.

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "core/store/log_recovery.h"
#include "tests/sim/program.h"

namespace replicad::sim {

constexpr const char* volume_uuid = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9";

class LogModel : public std::enable_shared_from_this<LogModel> {
 public:
  struct Segment {
    std::string name;
    std::shared_ptr<File> file;
    HistoryPoint before;
    std::uint64_t end_bytes = segment_header_bytes;
    bool dirty = false;
  };
  struct Hooks {
    std::function<void(Sequence)> on_logged;
    std::function<void()> on_full;
    std::function<void(const Error&)> on_error;
  };
  using SyncDone = std::function<void(Result<Sequence>)>;

  LogModel(World& world, Machine& machine, const Options& options, Life life, Hooks hooks);

  void adopt(const FoundLog& found);
  void append(std::vector<std::byte> bytes, const HistoryPoint& after);
  void sync(SyncDone done);
  void recycle(Sequence through);
  void drop(std::function<void(Status)> done);
  void restart(const HistoryPoint& point);
  void stop(std::function<void()> done);

  [[nodiscard]] const std::deque<std::shared_ptr<Segment>>& segments() const { return segments_; }
  [[nodiscard]] const HistoryPoint& logged() const { return logged_; }
  [[nodiscard]] Sequence durable() const { return durable_; }
  [[nodiscard]] bool waits_for_space() const { return waits_for_space_; }

 private:
  struct Queued {
    std::vector<std::byte> bytes;
    HistoryPoint after;
  };
  struct SyncJob {
    Sequence through = 0;
    std::size_t waits = 0;
    std::optional<Error> error;
    SyncDone done;
  };

  void io(Machine::Action effect, Machine::IoDone done, bool takes_space = false);
  void pump();
  bool roll();
  void write_batch();
  void on_written(const std::shared_ptr<Segment>& segment, std::uint64_t end, std::size_t frames);
  void prepare_spare();
  void wait_for_space();
  void sync_names_later();
  void sync_segment(const std::shared_ptr<Segment>& segment, const std::shared_ptr<SyncJob>& job);
  void finish_sync(const std::shared_ptr<SyncJob>& job);
  void fail(const Error& error);
  void end_operation();

  World& world_;
  Machine& machine_;
  const Options& options_;
  Life life_;
  Hooks hooks_;
  std::deque<std::shared_ptr<Segment>> segments_;
  std::vector<std::string> spares_;
  std::uint64_t next_spare_ = 1;
  bool creating_ = false;
  HistoryPoint logged_;
  Sequence durable_ = 0;
  std::deque<Queued> queue_;
  bool waits_for_space_ = false;
  bool writing_ = false;
  bool header_unwritten_ = false;
  bool pump_scheduled_ = false;
  bool names_syncing_ = false;
  std::deque<std::shared_ptr<SyncJob>> syncs_;  ///< not answered yet, in the order of the calls
  std::vector<std::shared_ptr<SyncJob>> names_waiters_;
  std::size_t in_flight_ = 0;
  bool stopped_ = false;
  std::optional<Error> failure_;
  std::function<void()> stop_done_;
};

/// Brings changes into the images: overlapping ones one after the other, others at once.
class WriterModel : public std::enable_shared_from_this<WriterModel> {
 public:
  using Tag = std::uint64_t;
  struct Hooks {
    std::function<void(Tag)> on_progress;
    std::function<void(const Error&)> on_error;
    std::function<void()> check;  ///< before each change of an image
  };
  WriterModel(Machine& machine, Life life) : machine_(machine), life_(std::move(life)) {}

  void set_hooks(Hooks hooks) { hooks_ = std::move(hooks); }
  /// A planted bug: overlapping changes are made at once.
  void let_overtake() { overtakes_ = true; }
  Tag add(const FrameHeader& header, std::span<const std::byte> payload);
  void when_idle(std::function<void()> done);
  void stop(std::function<void()> done);

 private:
  struct Change {
    Tag tag = 0;
    Range range;
    Blocks stamps;
    bool begun = false;
    bool finished = false;
  };
  void pump();
  void advance();

  Machine& machine_;
  Life life_;
  Hooks hooks_;
  std::deque<std::shared_ptr<Change>> changes_;
  Tag last_ = 0;
  std::size_t in_flight_ = 0;
  bool overtakes_ = false;
  bool failed_ = false;
  bool stopped_ = false;
  std::function<void()> idle_done_;
  std::function<void()> stop_done_;
};

/// fdatasync of every image.
void sync_images(Machine& machine,
                 const Life& life,
                 std::function<void(Status)> done,
                 bool keeps_on_error);

}  // namespace replicad::sim
