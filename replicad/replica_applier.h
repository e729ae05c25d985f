#pragma once
// Brings a log into the images, in the background and in order: reads the segments in large pieces, checks every
// frame again, and takes the applied digest over the bytes that are handed to the images. Only what is on stable
// storage in the log is applied: else a power loss could keep a write in the image whose frame is gone. Reactor thread
// only; operations in flight keep the object alive.

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "replicad/log_store.h"
#include "replicad/replica_images.h"

namespace replicad {

class ReplicaApplier : public std::enable_shared_from_this<ReplicaApplier> {
 public:
  struct Hooks {
    /// The images have everything up to `point`; `bytes`: of the log, since the last call.
    std::function<void(const HistoryPoint& point, std::uint64_t bytes)> on_applied;
    std::function<void(const Error&)> on_error;  ///< once; nothing more is applied
    /// A frame is about to change the images, in the order of the history.
    std::function<void(const FrameHeader&)> on_frame;
  };
  /// Where in the log the first frame behind `point` is, or will be.
  struct Start {
    HistoryPoint point;
    std::size_t segment_index = 0;
    std::uint64_t offset_bytes = segment_header_bytes;
  };

  ReplicaApplier(Reactor& reactor,
                 Worker& worker,
                 std::shared_ptr<ImageSet> images,
                 std::vector<std::uint64_t> disk_bytes,
                 std::shared_ptr<LogStore> log,
                 Hooks hooks);
  ReplicaApplier(const ReplicaApplier&) = delete;
  ReplicaApplier& operator=(const ReplicaApplier&) = delete;
  ReplicaApplier(ReplicaApplier&&) = delete;
  ReplicaApplier& operator=(ReplicaApplier&&) = delete;
  ~ReplicaApplier() = default;

  void start(const Start& start);
  /// More of the log is on stable storage.
  void kick();
  /// `done` runs when no operation is in flight any more. The last call.
  void stop(std::function<void()> done);

 private:
  struct Chunk {
    std::unique_ptr<std::byte[]> bytes;
  };
  struct Applying {
    ImageWriter::Tag tag = 0;
    HistoryPoint after;
    std::uint64_t frame_bytes = 0;
  };

  bool find_segment();
  void read_next();
  void on_read(const std::shared_ptr<Chunk>& chunk, std::size_t bytes);
  bool hand_over(const ScannedFrame& frame, const std::shared_ptr<Chunk>& chunk);
  void on_progress(ImageWriter::Tag tag);
  void fail(const Error& error);
  void end_read();
  [[nodiscard]] std::string segment_path() const;

  Reactor& reactor_;
  std::vector<std::uint64_t> disk_bytes_;
  std::shared_ptr<LogStore> log_;
  Hooks hooks_;
  std::shared_ptr<ImageWriter> writer_;

  std::shared_ptr<LogSegment> segment_;  ///< that is being read
  std::uint64_t offset_bytes_ = segment_header_bytes;
  HistoryPoint read_point_;  ///< of what was handed to the writer
  std::deque<Applying> applying_;
  std::vector<std::weak_ptr<Chunk>> chunks_;
  bool reading_ = false;
  bool stopped_ = false;
  bool failed_ = false;
  std::function<void()> read_ended_;
};

}  // namespace replicad
