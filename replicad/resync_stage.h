#pragma once
// The file that a staged copy goes to until it is committed, and the way from there into the images. Format and
// order of the crash-safe steps: docs/disk-format.md, "Stage". Reactor thread only; operations in flight keep the
// objects alive.

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <sys/uio.h>

#include "core/store/resync_stage.h"
#include "io/reactor.h"
#include "io/worker.h"
#include "replicad/replica_images.h"

namespace replicad {

/// What an interrupted copy has left of its stage, to look through it at the images.
struct StageOverlay {
  std::shared_ptr<Fd> fd;
  std::string path;
  StageIndex index;
};

/// Takes frames as they arrive. Its space is reserved before they are written.
class StageWriter : public std::enable_shared_from_this<StageWriter> {
 public:
  struct Hooks {
    /// The file has every numbered frame up to this sequence.
    std::function<void(Sequence)> on_written;
    std::function<void(const Error&)> on_error;  ///< once; nothing more is written
    /// Bytes that must stay free on the file system: the log's.
    std::function<std::uint64_t()> reserve_bytes;
  };

  StageWriter(Reactor& reactor, Worker& worker, std::string directory, Hooks hooks);
  StageWriter(const StageWriter&) = delete;
  StageWriter& operator=(const StageWriter&) = delete;
  StageWriter(StageWriter&&) = delete;
  StageWriter& operator=(StageWriter&&) = delete;
  ~StageWriter() = default;

  /// Begins an empty stage, in place of the one that is there. Frames may be added at once.
  void open(const StageHeader& header);
  /// Goes on with the one that is there, behind the last frame that is whole; if it has not this header, as open().
  /// `disk_bytes`: of the volume.
  void go_on(const StageHeader& header, const std::vector<std::uint64_t>& disk_bytes);
  /// Runs `function` when it is known what go_on() found, or that nothing will be: at once or later, once.
  void when_known(std::function<void()> function);
  /// What go_on() found; null: nothing.
  [[nodiscard]] std::shared_ptr<const StageOverlay> overlay() const { return overlay_; }
  /// Queues a whole frame; `sequence` 0: not numbered. `bytes` stay valid as long as `owner` lives.
  void append(std::span<const std::byte> bytes, Sequence sequence, std::shared_ptr<void> owner);
  /// `done` gets the file's length when all that was appended, and the file's name, is on stable storage. An error
  /// goes to on_error instead. Nothing is appended after it.
  void sync(std::function<void(std::uint64_t bytes)> done);
  /// Drops what is queued; `done` runs when no operation is in flight any more. The last call.
  void stop(std::function<void()> done);

 private:
  struct Queued {
    std::span<const std::byte> bytes;
    Sequence sequence = 0;
    std::shared_ptr<void> owner;
  };

  /// A file that is open for writing, and what of it counts.
  struct Opened {
    std::shared_ptr<Fd> fd;
    std::uint64_t end_bytes = stage_header_bytes;
    std::shared_ptr<const StageOverlay> overlay;
  };

  [[nodiscard]] static Status forbid_going_on(int fd, StageHeader header);
  [[nodiscard]] static Result<Opened> create(const std::string& path, const StageHeader& header);
  [[nodiscard]] static Result<Opened> find(const std::string& path,
                                           const StageHeader& header,
                                           const std::vector<std::uint64_t>& disk_bytes);
  void on_opened(Result<Opened> opened);
  void tell_known();
  void pump_later();
  void pump();
  void reserve();
  void write_batch();
  void start_write();
  void on_written(int result);
  void sync_if_written();
  void fail(const Error& error);
  void begin_operation() { ++in_flight_; }
  void end_operation();

  Reactor& reactor_;
  Worker& worker_;
  std::string directory_;
  std::string path_;
  Hooks hooks_;
  StageHeader header_;
  std::shared_ptr<Fd> fd_;
  std::shared_ptr<const StageOverlay> overlay_;
  std::vector<std::function<void()>> when_known_;
  bool opened_ = false;
  bool reserving_ = false;
  bool writing_ = false;
  bool syncing_ = false;
  bool pump_scheduled_ = false;
  bool stopped_ = false;
  bool failed_ = false;
  std::deque<Queued> queue_;
  std::size_t batch_frames_ = 0;
  std::vector<iovec> vectors_;
  std::size_t vector_index_ = 0;
  std::uint64_t end_bytes_ = stage_header_bytes;  ///< of whole frames
  std::uint64_t write_offset_ = 0;
  std::uint64_t reserved_bytes_ = 0;
  std::size_t in_flight_ = 0;
  std::function<void(std::uint64_t)> sync_done_;
  std::function<void()> stop_done_;
};

/// Brings a committed stage into the images, from its beginning: what is there already is written again.
class StageApplier : public std::enable_shared_from_this<StageApplier> {
 public:
  struct Hooks {
    std::function<void()> on_done;               ///< all of it is in the images, not synced
    std::function<void(const Error&)> on_error;  ///< once; nothing more is applied
  };

  StageApplier(Reactor& reactor,
               Worker& worker,
               std::shared_ptr<ImageSet> images,
               std::vector<std::uint64_t> disk_bytes,
               Hooks hooks);
  StageApplier(const StageApplier&) = delete;
  StageApplier& operator=(const StageApplier&) = delete;
  StageApplier(StageApplier&&) = delete;
  StageApplier& operator=(StageApplier&&) = delete;
  ~StageApplier() = default;

  /// The first `bytes` of the stage in `directory`, header included.
  void start(const std::string& directory, const std::string& volume_uuid, std::uint64_t bytes);
  /// `done` runs when no operation is in flight any more. The last call.
  void stop(std::function<void()> done);

 private:
  struct Chunk {
    std::unique_ptr<std::byte[]> bytes;
  };

  void kick();
  void on_read(const std::shared_ptr<Chunk>& chunk, std::size_t bytes);
  void end_read();
  void fail(const Error& error);
  void fail_damaged(const std::string& reason);

  Reactor& reactor_;
  Worker& worker_;
  std::vector<std::uint64_t> disk_bytes_;
  Hooks hooks_;
  std::shared_ptr<ImageWriter> writer_;
  std::string path_;
  Fd fd_;
  std::uint64_t end_bytes_ = 0;
  std::uint64_t offset_bytes_ = stage_header_bytes;
  std::vector<std::weak_ptr<Chunk>> chunks_;
  bool reading_ = false;
  bool stopped_ = false;
  bool failed_ = false;
  bool ended_ = false;
  std::function<void()> read_ended_;
};

/// The term of the stage in `directory`, if a replica that stands at `standing` may go on with it in that term.
/// Blocking, any thread.
[[nodiscard]] std::optional<Epoch> find_parked_stage(const std::string& directory,
                                                     const std::string& volume_uuid,
                                                     const HistoryPoint& standing,
                                                     const std::string& boot_id);

/// Removes the stage, durably. One that is not there is fine. Blocking, any thread.
[[nodiscard]] Status remove_stage(const std::string& directory);

}  // namespace replicad
