#pragma once
// Stands before the writer of the images while a member rewinds (docs/protocol.md, "Rewind"): each change waits
// here until what its blocks held before is in the file of lost writes, durably. A block is kept once: from then on
// its content is the new history's. Reactor thread only, but for the work that it has done on the worker.

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "core/wire/frame.h"
#include "io/reactor.h"
#include "io/worker.h"
#include "replicad/lost_writes.h"
#include "replicad/replica_images.h"

namespace replicad {

class RewindSaver : public std::enable_shared_from_this<RewindSaver> {
 public:
  /// A change that may go to the images.
  struct Change {
    FrameHeader header;
    std::span<const std::byte> payload;
    std::shared_ptr<void> owner;  ///< keeps the payload
  };
  struct Hooks {
    std::function<void(const Change&)> on_ready;  ///< in the order of add()
    std::function<void(const Error&)> on_error;   ///< once; nothing more is ready
  };

  /// `kept`: blocks whose content is the new history's, or is kept already; of the images' disks, with no limit
  /// of bitmaps.
  RewindSaver(Reactor& reactor,
              Worker& worker,
              std::shared_ptr<ImageSet> images,
              std::unique_ptr<LostFileWriter> file,
              BlockMap kept);

  void set_hooks(Hooks hooks) { hooks_ = std::move(hooks); }
  [[nodiscard]] std::uint64_t file_number() const { return file_number_; }
  /// A numbered or copy frame whose range lies within its disk. Long ranges without a payload become several
  /// changes; all but the last have sequence 0.
  void add(const FrameHeader& header,
           std::span<const std::byte> payload,
           std::shared_ptr<void> owner);
  /// Which blocks of `range` the images held otherwise than the new history.
  void note_equal(const Range& range, const std::vector<bool>& differs);
  /// `done` runs, later, when all that was added is ready; not after an error.
  void when_idle(std::function<void()> done);
  /// Forgets what is not ready; `done` runs when no work is in flight any more. The last call.
  void stop(std::function<void()> done);

 private:
  struct Work;  ///< what the worker's thread has while a batch is under way

  void begin_later();
  void begin();
  void on_kept(const Status& status, const std::vector<Change>& changes);

  Reactor& reactor_;
  Worker& worker_;
  std::uint64_t file_number_;
  std::shared_ptr<Work> work_;
  Hooks hooks_;
  std::deque<Change> queue_;
  std::vector<Range> equal_;
  bool working_ = false;
  bool begin_scheduled_ = false;
  bool failed_ = false;
  bool stopped_ = false;
  std::function<void()> idle_done_;
  std::function<void()> stop_done_;
};

}  // namespace replicad
