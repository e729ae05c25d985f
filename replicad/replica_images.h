#pragma once
// The images of a volume on a replica, and the writer that brings changes into them in order: changes that overlap
// run one after the other, others at once. Reactor thread only; operations in flight keep the objects alive.

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <sys/uio.h>

#include "core/base/range.h"
#include "core/store/volume_state.h"
#include "core/wire/frame.h"
#include "io/fd.h"
#include "io/reactor.h"
#include "io/worker.h"

namespace replicad {

/// Opened and locked images, one per disk of the volume.
class ImageSet : public std::enable_shared_from_this<ImageSet> {
 public:
  /// Blocking. Errors: as open_image_locked.
  [[nodiscard]] static Result<std::shared_ptr<ImageSet>> open(const std::vector<DiskState>& disks);

  [[nodiscard]] int fd(DiskIndex disk) const { return images_[disk].fd.get(); }
  [[nodiscard]] const std::string& path(DiskIndex disk) const { return images_[disk].path; }
  [[nodiscard]] std::size_t count() const { return images_.size(); }
  /// A write of `range` has ended; one that ends after sync() was called needs another sync.
  void note_written(const Range& range);
  /// Where to sample each image: among others what was written last.
  using SampleOffsets = std::vector<std::vector<std::uint64_t>>;
  [[nodiscard]] SampleOffsets sample_offsets() const;
  /// Marks of the images (image_check.h). Blocking, any thread.
  [[nodiscard]] Result<std::vector<ImageMark>> mark(const SampleOffsets& offsets,
                                                    bool at_rest) const;
  [[nodiscard]] std::vector<int> fds() const;

  /// fdatasync of every image that was written to; `done` later, in the order of the calls. One that finds nothing
  /// written waits for those before it, and fails with them. On error the images stay marked.
  void sync(Reactor& reactor, std::function<void(Status)> done);
  /// After a failed sync the kernel may hold pages that it takes for written and that are not on the disk. It is made
  /// to forget them: what is read from here on is what the disk has. Blocking, any thread.
  [[nodiscard]] Status drop_cache() const;

 private:
  void sync_next(Reactor& reactor);
  struct Image {
    Fd fd;
    std::string path;
    std::uint64_t bytes = 0;
    bool dirty = true;                      ///< an earlier process may have written
    std::deque<std::uint64_t> recent = {};  ///< blocks that were written last, the last one first
  };
  std::vector<Image> images_;
  bool syncing_ = false;
  std::deque<std::function<void(Status)>> syncs_;  ///< that wait for the one under way
};

class ImageWriter : public std::enable_shared_from_this<ImageWriter> {
 public:
  /// Number of a change: 1, 2, 3 ...
  using Tag = std::uint64_t;
  struct Hooks {
    std::function<void(Tag)> on_progress;        ///< every change up to this one is in the images
    std::function<void(const Error&)> on_error;  ///< once; nothing more is begun
  };

  ImageWriter(Reactor& reactor, Worker& worker, std::shared_ptr<ImageSet> images);
  ImageWriter(const ImageWriter&) = delete;
  ImageWriter& operator=(const ImageWriter&) = delete;
  ImageWriter(ImageWriter&&) = delete;
  ImageWriter& operator=(ImageWriter&&) = delete;
  ~ImageWriter() = default;

  /// Before the first add().
  void set_hooks(Hooks hooks) { hooks_ = std::move(hooks); }
  /// Queues a change: write, copy_data, zero, trim, copy_zero, or flush (which changes nothing). Its range lies
  /// within its disk. `payload` stays valid as long as `owner` lives. Begun at the end of the reactor's turn.
  Tag add(const FrameHeader& header,
          std::span<const std::byte> payload,
          std::shared_ptr<void> owner);
  [[nodiscard]] Tag completed() const { return completed_; }
  [[nodiscard]] bool is_idle() const { return completed_ == last_; }
  /// `done` runs, later, when every change added so far is in the images; not after an error.
  void when_idle(std::function<void()> done);
  /// Forgets what has not begun; `done` runs when no operation is in flight any more. The last call.
  void stop(std::function<void()> done);

 private:
  struct Change {
    FrameHeader header;
    std::span<const std::byte> payload;
    std::shared_ptr<void> owner;
  };
  /// One operation on one image: one change, or adjacent writes.
  struct Operation {
    Tag last = 0;  ///< of the changes in it
    FrameType kind = FrameType::flush;
    bool may_punch = false;
    Range range;
    std::vector<iovec> vectors;
    std::size_t vector_index = 0;
    std::uint64_t done_bytes = 0;
    std::vector<std::shared_ptr<void>> owners;
    bool finished = false;
  };
  using OperationPtr = std::shared_ptr<Operation>;

  void pump_later();
  void pump();
  void begin_what_may();
  [[nodiscard]] OperationPtr gather() const;
  void begin(const OperationPtr& operation);
  void write(const OperationPtr& operation);
  void on_written(const OperationPtr& operation, int result);
  void zero(const OperationPtr& operation);
  void zero_blocking(const OperationPtr& operation);
  void finish(const OperationPtr& operation);
  void advance();
  void fail(const Error& error);
  void end_operation();

  Reactor& reactor_;
  Worker& worker_;
  std::shared_ptr<ImageSet> images_;
  Hooks hooks_;
  std::deque<Change> queue_;
  std::deque<OperationPtr> operations_;  ///< begun, in order; finished ones leave from the front
  RangeSet busy_;
  Tag last_ = 0;  ///< added
  Tag begun_ = 0;
  Tag completed_ = 0;
  std::size_t in_flight_ = 0;
  bool pump_scheduled_ = false;
  bool failed_ = false;
  bool stopped_ = false;
  std::function<void()> idle_done_;
  std::function<void()> stop_done_;
};

}  // namespace replicad
