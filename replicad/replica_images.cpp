#include "replicad/replica_images.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include "core/base/check.h"
#include "io/file.h"
#include "io/read_fully.h"
#include "replicad/image_check.h"
#include "replicad/replica_offload.h"

namespace replicad {

namespace {

constexpr std::size_t operations_max = 32;
constexpr std::size_t write_vectors_max = 64;
constexpr std::uint64_t gather_bytes_max = 1 * mib;

bool is_data(FrameType type) {
  return type == FrameType::write || type == FrameType::copy_data;
}

bool may_punch(const FrameHeader& header) {
  return header.type == FrameType::trim || header.type == FrameType::copy_zero ||
         (header.flags & frame_flag_may_trim) != 0;
}

bool not_possible_here(int sys_errno) {
  return sys_errno == EOPNOTSUPP || sys_errno == EINVAL || sys_errno == ENOSYS ||
         sys_errno == ENODEV;
}

}  // namespace

// --- ImageSet

Result<std::shared_ptr<ImageSet>> ImageSet::open(const std::vector<DiskState>& disks) {
  auto set = std::make_shared<ImageSet>();
  for (const DiskState& disk : disks) {
    auto fd = open_image_locked(disk.path, disk.bytes);
    if (!fd) return tl::unexpected(fd.error());
    set->images_.push_back({std::move(*fd), disk.path, disk.bytes, true});
  }
  return set;
}

void ImageSet::note_written(const Range& range) {
  Image& image = images_[range.disk];
  image.dirty = true;
  const std::uint64_t block = range.offset_bytes / image_sample_bytes * image_sample_bytes;
  if (!image.recent.empty() && image.recent.front() == block) return;
  std::erase(image.recent, block);
  image.recent.push_front(block);
  if (image.recent.size() > image_samples_recent) image.recent.pop_back();
}

ImageSet::SampleOffsets ImageSet::sample_offsets() const {
  SampleOffsets offsets;
  for (const Image& image : images_) {
    const std::vector<std::uint64_t> recent(image.recent.begin(), image.recent.end());
    offsets.push_back(choose_samples(image.bytes, recent));
  }
  return offsets;
}

Result<std::vector<ImageMark>> ImageSet::mark(const SampleOffsets& offsets, bool at_rest) const {
  std::vector<ImageMark> marks;
  for (std::size_t i = 0; i < images_.size(); ++i) {
    auto mark = mark_image(images_[i].fd.get(), images_[i].bytes, offsets[i], at_rest);
    if (!mark) return tl::unexpected(mark.error());
    marks.push_back(std::move(*mark));
  }
  return marks;
}

std::vector<int> ImageSet::fds() const {
  std::vector<int> all;
  for (const Image& image : images_)
    all.push_back(image.fd.get());
  return all;
}

/// One at a time: the kernel tells of a failed write-back once, so that of two at once one might hear of it and the
/// other be taken for good.
void ImageSet::sync(Reactor& reactor, std::function<void(Status)> done) {
  syncs_.push_back(std::move(done));
  if (!syncing_) sync_next(reactor);
}

void ImageSet::sync_next(Reactor& reactor) {
  struct Job {
    std::size_t waits = 1;
    Status status;
    std::deque<std::function<void(Status)>> done;
  };
  auto job = std::make_shared<Job>();
  job->done.swap(syncs_);
  syncing_ = true;
  const auto finish = [self = shared_from_this(), job, &reactor] {
    if (--job->waits > 0) return;
    // What the later ones rely on may be just what was lost.
    if (!job->status) std::ranges::move(self->syncs_, std::back_inserter(job->done));
    if (!job->status) self->syncs_.clear();
    self->syncing_ = false;
    if (!self->syncs_.empty()) self->sync_next(reactor);
    for (const auto& done : job->done)
      done(job->status);
  };
  for (Image& image : images_) {
    if (!image.dirty) continue;
    image.dirty = false;
    ++job->waits;
    reactor.fdatasync(image.fd.get(), [&image, job, finish](int result) {
      if (result < 0) {
        image.dirty = true;
        job->status = fail_errno(-result, "fdatasync image {}", image.path);
      }
      finish();
    });
  }
  reactor.post(finish);
}

Status ImageSet::drop_cache() const {
  for (const Image& image : images_) {
    if (::fdatasync(image.fd.get()) != 0) return fail_errno(errno, "fdatasync of {}", image.path);
    if (const int error = ::posix_fadvise(image.fd.get(), 0, 0, POSIX_FADV_DONTNEED); error != 0)
      return fail_errno(error, "drop the cache of {}", image.path);
  }
  return {};
}

// --- ImageWriter

ImageWriter::ImageWriter(Reactor& reactor, Worker& worker, std::shared_ptr<ImageSet> images)
    : reactor_(reactor), worker_(worker), images_(std::move(images)) {}

ImageWriter::Tag ImageWriter::add(const FrameHeader& header,
                                  std::span<const std::byte> payload,
                                  std::shared_ptr<void> owner) {
  RD_CHECK(header.range.disk < images_->count());
  RD_CHECK(!is_data(header.type) || payload.size() == header.range.length_bytes);
  ++last_;
  if (!stopped_ && !failed_) {
    queue_.push_back({header, payload, std::move(owner)});
    pump_later();
  }
  return last_;
}

void ImageWriter::when_idle(std::function<void()> done) {
  idle_done_ = std::move(done);
  pump_later();
}

void ImageWriter::stop(std::function<void()> done) {
  stopped_ = true;
  stop_done_ = std::move(done);
  queue_.clear();
  ++in_flight_;
  reactor_.post([self = shared_from_this()] { self->end_operation(); });
}

void ImageWriter::end_operation() {
  RD_CHECK(in_flight_ > 0);
  if (--in_flight_ == 0 && stop_done_) std::exchange(stop_done_, nullptr)();
}

void ImageWriter::fail(const Error& error) {
  if (failed_) return;
  failed_ = true;
  queue_.clear();
  if (!stopped_) hooks_.on_error(error);
}

void ImageWriter::pump_later() {
  if (pump_scheduled_) return;
  pump_scheduled_ = true;
  reactor_.at_turn_end([self = shared_from_this()] {
    self->pump_scheduled_ = false;
    self->pump();
  });
}

/// The next operation: the front of the queue, with the writes behind it that continue it.
ImageWriter::OperationPtr ImageWriter::gather() const {
  const Change& first = queue_.front();
  auto operation = std::make_shared<Operation>();
  operation->last = begun_ + 1;
  operation->kind = first.header.type;
  operation->may_punch = may_punch(first.header);
  operation->range = first.header.range;
  if (!is_data(first.header.type)) return operation;
  operation->range.length_bytes = 0;
  for (const Change& change : queue_) {
    Range& range = operation->range;
    const Range& next = change.header.range;
    const bool adjacent = is_data(change.header.type) && next.disk == range.disk &&
                          next.offset_bytes == range.end_bytes();
    const bool room =
        operation->vectors.size() < write_vectors_max &&
        (range.length_bytes == 0 || range.length_bytes + next.length_bytes <= gather_bytes_max);
    if (!adjacent || !room) break;
    range.length_bytes += next.length_bytes;
    operation->vectors.push_back(
        {const_cast<std::byte*>(change.payload.data()), change.payload.size()});
    if (operation->owners.empty() || operation->owners.back() != change.owner) {
      operation->owners.push_back(change.owner);
    }
    operation->last = begun_ + operation->vectors.size();
  }
  return operation;
}

void ImageWriter::pump() {
  for (;;) {
    begin_what_may();
    const Tag before = completed_;
    advance();
    // Flushes are finished as soon as they are begun: there may be room again.
    if (queue_.empty() || completed_ == before || failed_ || stopped_) return;
  }
}

/// Strictly in order: what overlaps something in flight holds up what is behind it.
void ImageWriter::begin_what_may() {
  while (!queue_.empty() && !failed_ && !stopped_ && operations_.size() < operations_max) {
    const OperationPtr operation = gather();
    if (busy_.overlaps_any(operation->range)) return;
    for (; begun_ < operation->last; ++begun_)
      queue_.pop_front();
    operations_.push_back(operation);
    begin(operation);
  }
}

void ImageWriter::begin(const OperationPtr& operation) {
  if (operation->kind == FrameType::flush) {
    operation->finished = true;
    return;
  }
  busy_.insert(operation->last, operation->range);
  ++in_flight_;
  if (is_data(operation->kind)) {
    write(operation);
  } else {
    zero(operation);
  }
}

void ImageWriter::write(const OperationPtr& operation) {
  reactor_.writev(
      images_->fd(operation->range.disk),
      &operation->vectors[operation->vector_index],
      static_cast<unsigned>(operation->vectors.size() - operation->vector_index),
      operation->range.offset_bytes + operation->done_bytes,
      image_write_bytes_max,
      [self = shared_from_this(), operation](int result) { self->on_written(operation, result); });
}

void ImageWriter::on_written(const OperationPtr& operation, int result) {
  if (result <= 0) {
    const int sys_errno = result == 0 ? ENOSPC : -result;
    fail(errno_to_error(sys_errno,
                        fmt::format("write {} bytes at {} to image {}",
                                    operation->range.length_bytes,
                                    operation->range.offset_bytes,
                                    images_->path(operation->range.disk))));
    end_operation();
    return;
  }
  const auto written = static_cast<std::size_t>(result);
  operation->done_bytes += written;
  operation->vector_index = consume_vectors(operation->vectors, operation->vector_index, written);
  if (operation->done_bytes < operation->range.length_bytes) {
    write(operation);
  } else {
    finish(operation);
  }
}

void ImageWriter::zero(const OperationPtr& operation) {
  const int mode =
      FALLOC_FL_KEEP_SIZE | (operation->may_punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
  reactor_.fallocate(
      images_->fd(operation->range.disk),
      mode,
      operation->range.offset_bytes,
      operation->range.length_bytes,
      [self = shared_from_this(), operation](int result) {
        if (result < 0 && not_possible_here(-result)) {
          self->zero_blocking(operation);
          return;
        }
        if (result < 0) {
          self->fail(errno_to_error(-result,
                                    fmt::format("zero {} bytes at {} of image {}",
                                                operation->range.length_bytes,
                                                operation->range.offset_bytes,
                                                self->images_->path(operation->range.disk))));
          self->end_operation();
          return;
        }
        self->finish(operation);
      });
}

void ImageWriter::zero_blocking(const OperationPtr& operation) {
  offload(
      worker_,
      reactor_,
      [images = images_, range = operation->range, punch = operation->may_punch] {
        return zero_range(images->fd(range.disk), range.offset_bytes, range.length_bytes, punch);
      },
      [self = shared_from_this(), operation](const Status& status) {
        if (status) {
          self->finish(operation);
        } else {
          self->fail(status.error());
          self->end_operation();
        }
      });
}

void ImageWriter::finish(const OperationPtr& operation) {
  images_->note_written(operation->range);
  operation->finished = true;
  operation->owners.clear();
  RD_CHECK(busy_.erase(operation->last));
  pump();
  end_operation();
}

void ImageWriter::advance() {
  const Tag before = completed_;
  while (!operations_.empty() && operations_.front()->finished) {
    completed_ = operations_.front()->last;
    operations_.pop_front();
  }
  if (stopped_ || failed_) return;
  if (completed_ != before) hooks_.on_progress(completed_);
  if (is_idle() && idle_done_) std::exchange(idle_done_, nullptr)();
}

}  // namespace replicad
