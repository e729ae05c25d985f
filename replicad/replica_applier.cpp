#include "replicad/replica_applier.h"

#include <algorithm>
#include <utility>

#include "core/base/check.h"
#include "io/read_fully.h"

namespace replicad {

namespace {

// One largest frame: a small chunk is still in the processor's cache when it is checked and written.
constexpr std::size_t chunk_bytes = frame_header_bytes + data_payload_bytes_max;
constexpr std::size_t chunks_max = 2;

}  // namespace

ReplicaApplier::ReplicaApplier(Reactor& reactor,
                               Worker& worker,
                               std::shared_ptr<ImageSet> images,
                               std::vector<std::uint64_t> disk_bytes,
                               std::shared_ptr<LogStore> log,
                               Hooks hooks)
    : reactor_(reactor),
      disk_bytes_(std::move(disk_bytes)),
      log_(std::move(log)),
      hooks_(std::move(hooks)),
      writer_(std::make_shared<ImageWriter>(reactor, worker, std::move(images))) {}

void ReplicaApplier::start(const Start& start) {
  const std::weak_ptr<ReplicaApplier> weak = weak_from_this();
  writer_->set_hooks({.on_progress =
                          [weak](ImageWriter::Tag tag) {
                            if (const auto self = weak.lock()) self->on_progress(tag);
                          },
                      .on_error =
                          [weak](const Error& error) {
                            if (const auto self = weak.lock()) self->fail(error);
                          }});
  read_point_ = start.point;
  offset_bytes_ = start.offset_bytes;
  if (start.segment_index < log_->segments().size()) {
    segment_ = log_->segments()[start.segment_index];
  }
  kick();
}

void ReplicaApplier::stop(std::function<void()> done) {
  stopped_ = true;
  writer_->stop([self = shared_from_this(), done = std::move(done)]() mutable {
    if (self->reading_) {
      self->read_ended_ = std::move(done);
    } else {
      done();
    }
  });
}

void ReplicaApplier::fail(const Error& error) {
  if (failed_) return;
  failed_ = true;
  if (!stopped_) hooks_.on_error(error);
}

std::string ReplicaApplier::segment_path() const {
  return log_->directory() + "/" + segment_->file->name;
}

/// Goes to the segment that has, or will have, the next frame. False if there is nothing to read.
bool ReplicaApplier::find_segment() {
  if (segment_ && offset_bytes_ < segment_->end_bytes) return true;
  for (const auto& segment : log_->segments()) {
    if (segment->before.sequence != read_point_.sequence || segment == segment_) continue;
    if (segment->end_bytes == segment_header_bytes) return false;
    segment_ = segment;
    offset_bytes_ = segment_header_bytes;
    return true;
  }
  return false;
}

void ReplicaApplier::kick() {
  if (reading_ || stopped_ || failed_ || read_point_.sequence >= log_->durable()) return;
  std::erase_if(chunks_, [](const std::weak_ptr<Chunk>& chunk) { return chunk.expired(); });
  if (chunks_.size() < chunks_max && find_segment()) read_next();
}

void ReplicaApplier::read_next() {
  const std::uint64_t left = segment_->end_bytes - offset_bytes_;
  const auto bytes = static_cast<std::size_t>(std::min<std::uint64_t>(left, chunk_bytes));
  auto chunk = std::make_shared<Chunk>();
  chunk->bytes.reset(new std::byte[bytes]);
  chunks_.push_back(chunk);
  reading_ = true;
  read_fully(
      reactor_,
      segment_->file->fd.get(),
      std::span(chunk->bytes.get(), bytes),
      offset_bytes_,
      [self = shared_from_this(), segment = segment_, chunk, bytes](int sys_errno) {
        self->end_read();
        if (sys_errno == 0) {
          self->on_read(chunk, bytes);
        } else {
          self->fail(errno_to_error(
              sys_errno == ENODATA ? EIO : sys_errno,
              fmt::format("read {} at offset {}", self->segment_path(), self->offset_bytes_)));
        }
      });
}

void ReplicaApplier::end_read() {
  reading_ = false;
  if (read_ended_) std::exchange(read_ended_, nullptr)();
}

void ReplicaApplier::on_read(const std::shared_ptr<Chunk>& chunk, std::size_t bytes) {
  if (stopped_ || failed_) return;
  const ScanResult found = scan_frames(std::span(chunk->bytes.get(), bytes), read_point_);
  for (const ScannedFrame& frame : found.frames) {
    if (frame.after.sequence > log_->durable()) return kick();
    if (!hand_over(frame, chunk)) return;
    offset_bytes_ += frame.frame_bytes();
  }
  if (found.end == ScanEnd::invalid || found.valid_bytes == 0) {
    fail(Error{Errc::corrupt,
               0,
               fmt::format("log {} at offset {} is damaged: {}",
                           segment_path(),
                           offset_bytes_,
                           found.reason.empty() ? "a frame is cut short" : found.reason),
               "the disk returned other bytes than were written to it; a full copy brings the "
               "replica back"});
    return;
  }
  kick();
}

bool ReplicaApplier::hand_over(const ScannedFrame& frame, const std::shared_ptr<Chunk>& chunk) {
  const Range& range = frame.header.range;
  const bool in_bounds = frame.header.type == FrameType::flush ||
                         (range.disk < disk_bytes_.size() && fits(range, disk_bytes_[range.disk]));
  if (!in_bounds) {
    fail(Error{Errc::corrupt,
               0,
               fmt::format("log {}: sequence {} does not lie within its disk",
                           segment_path(),
                           frame.header.sequence),
               {}});
    return false;
  }
  const std::span<const std::byte> payload(
      chunk->bytes.get() + frame.offset_bytes + frame_header_bytes, frame.header.payload_bytes);
  hooks_.on_frame(frame.header);
  const ImageWriter::Tag tag = writer_->add(frame.header, payload, chunk);
  read_point_ = frame.after;
  applying_.push_back({tag, frame.after, frame.frame_bytes()});
  return true;
}

void ReplicaApplier::on_progress(ImageWriter::Tag tag) {
  if (stopped_ || failed_) return;
  HistoryPoint point;
  std::uint64_t bytes = 0;
  while (!applying_.empty() && applying_.front().tag <= tag) {
    point = applying_.front().after;
    bytes += applying_.front().frame_bytes;
    applying_.pop_front();
  }
  RD_CHECK(bytes > 0);
  hooks_.on_applied(point, bytes);
  kick();
}

}  // namespace replicad
