#pragma once
// The log of one replicated volume, while it is in use: appends frames as they arrived to preallocated segment
// files, many by one write, syncs, recycles and removes segments. Format: docs/disk-format.md. Reactor thread
// only; operations in flight keep the object alive.

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <sys/uio.h>

#include "io/reactor.h"
#include "io/worker.h"
#include "replicad/replica_log_files.h"

namespace replicad {

class LogStore : public std::enable_shared_from_this<LogStore> {
 public:
  struct Limits {
    std::uint64_t segment_bytes = segment_bytes_default;
    std::uint64_t log_bytes = log_bytes_default;  ///< of all segments and spares together
  };
  struct Hooks {
    /// The file has every frame up to this sequence: it survives this process, not yet a power loss.
    std::function<void(Sequence)> on_logged;
    /// More of the log is on stable storage; after the sync's own `done`.
    std::function<void()> on_durable;
    /// The budget is used up: frames wait until recycle() makes room.
    std::function<void()> on_full;
    /// Once; nothing more is appended after it.
    std::function<void(const Error&)> on_error;
    /// Looked at when a segment is begun.
    std::function<Limits()> limits;
  };
  using SyncDone = std::function<void(Result<Sequence>)>;

  LogStore(Reactor& reactor,
           Worker& worker,
           std::string directory,
           std::string volume_uuid,
           Hooks hooks);
  LogStore(const LogStore&) = delete;
  LogStore& operator=(const LogStore&) = delete;
  LogStore(LogStore&&) = delete;
  LogStore& operator=(LogStore&&) = delete;
  ~LogStore() = default;

  /// Goes on where the recovery ended.
  void adopt(RecoveredLog recovered);

  /// Queues a whole frame; `after` is the history with it. `bytes` stay valid as long as `owner` lives. What one
  /// turn of the reactor queues is written together.
  void append(std::span<const std::byte> bytes,
              const HistoryPoint& after,
              std::shared_ptr<void> owner);
  /// Makes everything logged so far durable; `done` gets the last such sequence. An error also goes to on_error.
  /// Several may be under way; they are answered in order, and all fail once one has.
  void sync(SyncDone done);
  /// The image durably has everything up to `through`: segments that hold nothing else are used again.
  void recycle(Sequence through);
  /// Removes every file, durably. Requires that nothing is queued. The log then begins anew with restart().
  void drop(std::function<void(Status)> done);
  void restart(const HistoryPoint& point) {
    logged_ = point;
    durable_ = point.sequence;
  }
  /// Drops what is queued; `done` runs when no operation is in flight any more. The last call.
  void stop(std::function<void()> done);

  /// Segments in order; the last one grows.
  [[nodiscard]] const std::deque<std::shared_ptr<LogSegment>>& segments() const {
    return segments_;
  }
  [[nodiscard]] const HistoryPoint& logged() const { return logged_; }
  /// The log is on stable storage up to here.
  [[nodiscard]] Sequence durable() const { return durable_; }
  [[nodiscard]] bool waits_for_space() const { return waits_for_space_; }
  /// Space that segments and spares take.
  [[nodiscard]] std::uint64_t bytes() const;
  [[nodiscard]] const std::string& directory() const { return directory_; }

 private:
  struct Queued {
    std::span<const std::byte> bytes;
    HistoryPoint after;
    std::shared_ptr<void> owner;
  };
  struct SyncJob {
    Sequence through = 0;
    std::size_t waits = 0;  ///< operations not finished
    std::optional<Error> error;
    SyncDone done;
  };

  void pump_later();
  void pump();
  [[nodiscard]] bool tail_has_room(std::size_t bytes) const;
  /// Begins the next segment; false if that has to wait.
  bool roll();
  void write_batch();
  void start_write();
  void on_written(int result);
  void take_written();
  void prepare_spare();
  void on_no_spare(const Error& error);
  void wait_for_space();
  void remove_later(const std::string& name);
  void sync_directory_later();
  void finish_sync(const std::shared_ptr<SyncJob>& job);
  void answer_syncs();
  void fail(const Error& error);
  void begin_operation() { ++in_flight_; }
  void end_operation();
  [[nodiscard]] std::string path(const std::string& name) const { return directory_ + "/" + name; }

  Reactor& reactor_;
  Worker& worker_;
  std::string directory_;
  std::string volume_uuid_;
  Hooks hooks_;

  std::deque<std::shared_ptr<LogSegment>> segments_;
  std::vector<std::shared_ptr<LogFile>> spares_;
  std::uint64_t next_spare_ = 1;
  bool creating_ = false;
  bool no_spare_ = false;  ///< the last attempt to make one has failed
  std::uint64_t creating_bytes_ = 0;
  HistoryPoint logged_;
  Sequence durable_ = 0;

  std::deque<Queued> queue_;
  bool pump_scheduled_ = false;
  bool waits_for_space_ = false;

  // The one write in flight: the first `batch_frames_` of the queue, and the header if the segment is new.
  bool writing_ = false;
  std::size_t batch_frames_ = 0;
  std::vector<iovec> vectors_;
  std::size_t vector_index_ = 0;
  std::uint64_t write_offset_ = 0;
  std::shared_ptr<LogSegment> write_segment_;
  bool header_unwritten_ = false;
  std::array<std::byte, segment_header_bytes> header_{};

  bool directory_syncing_ = false;
  std::vector<std::shared_ptr<SyncJob>> directory_waiters_;
  std::deque<std::shared_ptr<SyncJob>> syncs_;  ///< unanswered, in the order of the calls

  std::size_t in_flight_ = 0;
  bool stopped_ = false;
  std::optional<Error> failure_;
  std::function<void()> stop_done_;
};

}  // namespace replicad
