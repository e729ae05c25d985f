#include "replicad/log_store.h"

#include <algorithm>
#include <climits>
#include <numeric>

#include <fcntl.h>
#include <unistd.h>

#include "core/base/check.h"
#include "core/base/log.h"
#include "io/file.h"
#include "io/read_fully.h"
#include "replicad/replica_offload.h"

namespace replicad {

namespace {

constexpr std::size_t batch_bytes_max = 8 * mib;
constexpr std::size_t append_vectors_max = IOV_MAX;
constexpr std::size_t spares_max = 2;  ///< kept for reuse; the disk gets the others back

}  // namespace

LogStore::LogStore(
    Reactor& reactor, Worker& worker, std::string directory, std::string volume_uuid, Hooks hooks)
    : reactor_(reactor),
      worker_(worker),
      directory_(std::move(directory)),
      volume_uuid_(std::move(volume_uuid)),
      hooks_(std::move(hooks)) {}

void LogStore::adopt(RecoveredLog recovered) {
  segments_.assign(recovered.segments.begin(), recovered.segments.end());
  spares_ = std::move(recovered.spares);
  next_spare_ = recovered.next_spare;
  logged_ = recovered.logged;
  durable_ = logged_.sequence;
  while (spares_.size() > spares_max) {
    remove_later(spares_.back()->name);
    spares_.pop_back();
  }
}

std::uint64_t LogStore::bytes() const {
  std::uint64_t sum = creating_bytes_;
  for (const auto& segment : segments_)
    sum += segment->file->bytes;
  for (const auto& spare : spares_)
    sum += spare->bytes;
  return sum;
}

void LogStore::end_operation() {
  RD_CHECK(in_flight_ > 0);
  if (--in_flight_ > 0 || !stop_done_) return;
  queue_.clear();
  std::exchange(stop_done_, nullptr)();
}

void LogStore::stop(std::function<void()> done) {
  stopped_ = true;
  stop_done_ = std::move(done);
  begin_operation();
  reactor_.post([self = shared_from_this()] { self->end_operation(); });
}

void LogStore::fail(const Error& error) {
  if (failure_) return;
  failure_ = error;
  if (!stopped_ && hooks_.on_error) hooks_.on_error(error);
}

// --- appending

void LogStore::append(std::span<const std::byte> bytes,
                      const HistoryPoint& after,
                      std::shared_ptr<void> owner) {
  if (stopped_ || failure_) return;
  queue_.push_back({bytes, after, std::move(owner)});
  pump_later();
}

void LogStore::pump_later() {
  if (pump_scheduled_) return;
  pump_scheduled_ = true;
  reactor_.at_turn_end([self = shared_from_this()] {
    self->pump_scheduled_ = false;
    self->pump();
  });
}

void LogStore::pump() {
  if (writing_ || queue_.empty() || stopped_ || failure_) return;
  if (!tail_has_room(queue_.front().bytes.size()) && !roll()) return;
  write_batch();
}

bool LogStore::tail_has_room(std::size_t bytes) const {
  if (segments_.empty()) return false;
  const LogSegment& tail = *segments_.back();
  return tail.end_bytes + bytes <= tail.file->bytes;
}

/// The name of the segment before is durable before the next one gets a name: what a crash leaves of the
/// directory has no hole.
bool LogStore::roll() {
  if (directory_syncing_ || creating_ || waits_for_space_) return false;
  const Limits limits = hooks_.limits();
  std::erase_if(spares_, [&](const std::shared_ptr<LogFile>& spare) {
    if (spare->bytes == limits.segment_bytes) return false;
    (void)::unlink(path(spare->name).c_str());
    return true;
  });
  if (spares_.empty()) {
    if (bytes() + limits.segment_bytes <= limits.log_bytes) {
      prepare_spare();
    } else {
      wait_for_space();
    }
    return false;
  }
  const std::shared_ptr<LogFile> file = spares_.back();
  const std::string name = segment_file_name(logged_.sequence + 1);
  if (::rename(path(file->name).c_str(), path(name).c_str()) != 0) {
    fail(errno_to_error(errno, fmt::format("rename {} to {}", path(file->name), name)));
    return false;
  }
  spares_.pop_back();
  file->name = name;
  auto segment = std::make_shared<LogSegment>();
  segment->file = file;
  segment->before = logged_;
  encode_segment_header({.volume_uuid = volume_uuid_,
                         .before = logged_,
                         .segment_bytes = file->bytes,
                         .durable = durable_},
                        header_);
  header_unwritten_ = true;
  segments_.push_back(std::move(segment));
  sync_directory_later();
  return true;
}

void LogStore::write_batch() {
  const LogSegment& tail = *segments_.back();
  vectors_.clear();
  vector_index_ = 0;
  batch_frames_ = 0;
  write_segment_ = segments_.back();
  write_offset_ = tail.end_bytes;
  if (header_unwritten_) {
    RD_CHECK(tail.end_bytes == segment_header_bytes);
    write_offset_ = 0;
    vectors_.push_back({header_.data(), header_.size()});
  }
  std::uint64_t end = tail.end_bytes;
  for (const Queued& frame : queue_) {
    const std::size_t size = frame.bytes.size();
    if (end + size > tail.file->bytes || end - tail.end_bytes + size > batch_bytes_max) break;
    auto* data = const_cast<std::byte*>(frame.bytes.data());
    iovec* last = vectors_.empty() ? nullptr : &vectors_.back();
    if (last != nullptr && static_cast<std::byte*>(last->iov_base) + last->iov_len == data) {
      last->iov_len += size;
    } else if (vectors_.size() < append_vectors_max) {
      vectors_.push_back({data, size});
    } else {
      break;
    }
    end += size;
    ++batch_frames_;
  }
  RD_CHECK(batch_frames_ > 0);
  writing_ = true;
  start_write();
}

void LogStore::start_write() {
  begin_operation();
  reactor_.writev(write_segment_->file->fd.get(),
                  &vectors_[vector_index_],
                  static_cast<unsigned>(vectors_.size() - vector_index_),
                  write_offset_,
                  append_write_bytes_max,
                  [self = shared_from_this()](int result) {
                    self->on_written(result);
                    self->end_operation();
                  });
}

void LogStore::on_written(int result) {
  if (result <= 0) {
    writing_ = false;
    const int sys_errno = result == 0 ? ENOSPC : -result;
    fail(errno_to_error(sys_errno, fmt::format("append to {}", path(write_segment_->file->name))));
    return;
  }
  const auto written = static_cast<std::size_t>(result);
  write_offset_ += written;
  write_segment_->dirty = true;
  vector_index_ = consume_vectors(vectors_, vector_index_, written);
  if (vector_index_ < vectors_.size()) {
    start_write();
    return;
  }
  take_written();
}

void LogStore::take_written() {
  writing_ = false;
  header_unwritten_ = false;
  write_segment_->end_bytes = write_offset_;
  logged_ = queue_[batch_frames_ - 1].after;
  queue_.erase(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(batch_frames_));
  const bool half_full = write_offset_ > write_segment_->file->bytes / 2;
  write_segment_.reset();
  if (!stopped_) hooks_.on_logged(logged_.sequence);
  if (half_full && spares_.empty() && !no_spare_) prepare_spare();
  pump();
}

/// Preallocates the next segment's file ahead of time; roll() waits for it if it comes too late.
void LogStore::prepare_spare() {
  if (creating_ || stopped_ || failure_) return;
  const Limits limits = hooks_.limits();
  if (bytes() + limits.segment_bytes > limits.log_bytes) return;
  creating_ = true;
  creating_bytes_ = limits.segment_bytes;
  begin_operation();
  offload(
      worker_,
      reactor_,
      [directory = directory_,
       name = spare_file_name(next_spare_++),
       bytes = limits.segment_bytes] { return create_log_file(directory, name, bytes); },
      [self = shared_from_this()](Result<std::shared_ptr<LogFile>> file) {
        self->creating_ = false;
        self->creating_bytes_ = 0;
        if (file) {
          self->no_spare_ = false;
          self->spares_.push_back(*file);
          self->pump();
        } else {
          self->on_no_spare(file.error());
        }
        self->end_operation();
      });
}

/// Without a frame that waits for it this is no failure yet, and not tried again before one does. With older
/// segments in use, one of them comes free when it has been applied.
void LogStore::on_no_spare(const Error& error) {
  no_spare_ = true;
  if (queue_.empty() || tail_has_room(queue_.front().bytes.size())) return;
  if (error.code == Errc::no_space && segments_.size() > 1) {
    wait_for_space();
  } else {
    fail(error);
  }
}

void LogStore::wait_for_space() {
  if (waits_for_space_) return;
  waits_for_space_ = true;
  if (hooks_.on_full) hooks_.on_full();
}

// --- durability

void LogStore::sync_directory_later() {
  RD_CHECK(!directory_syncing_);
  directory_syncing_ = true;
  begin_operation();
  offload(
      worker_,
      reactor_,
      [directory = directory_] { return sync_directory(directory); },
      [self = shared_from_this()](const Status& status) {
        self->directory_syncing_ = false;
        if (!status) self->fail(status.error());
        for (const auto& job : std::exchange(self->directory_waiters_, {})) {
          if (!status) job->error = status.error();
          self->finish_sync(job);
        }
        self->pump();
        self->end_operation();
      });
}

void LogStore::sync(SyncDone done) {
  auto job = std::make_shared<SyncJob>();
  job->through = logged_.sequence;
  job->done = std::move(done);
  job->error = failure_;
  job->waits = 1;
  syncs_.push_back(job);
  if (directory_syncing_) {
    ++job->waits;
    directory_waiters_.push_back(job);
  }
  for (const auto& segment : segments_) {
    if (!segment->dirty) continue;
    segment->dirty = false;
    ++job->waits;
    begin_operation();
    reactor_.fdatasync(
        segment->file->fd.get(), [self = shared_from_this(), job, segment](int result) {
          if (result < 0) {
            job->error = errno_to_error(
                -result, fmt::format("fdatasync {}", self->path(segment->file->name)));
          }
          self->finish_sync(job);
          self->end_operation();
        });
  }
  finish_sync(job);
}

void LogStore::finish_sync(const std::shared_ptr<SyncJob>& job) {
  if (--job->waits == 0) answer_syncs();
}

/// In the order of the calls: a sync that found no segment dirty depends on the one before it, which may still be at
/// work on what this one is to promise.
void LogStore::answer_syncs() {
  while (!syncs_.empty() && syncs_.front()->waits == 0) {
    const std::shared_ptr<SyncJob> job = syncs_.front();
    syncs_.pop_front();
    if (job->error) {
      if (!syncs_.empty()) syncs_.front()->error = job->error;
      fail(*job->error);
      job->done(tl::unexpected(*job->error));
      continue;
    }
    durable_ = std::max(durable_, job->through);
    job->done(job->through);
    if (!stopped_ && hooks_.on_durable) hooks_.on_durable();
  }
}

// --- space

void LogStore::recycle(Sequence through) {
  if (stopped_ || failure_) return;
  const Limits limits = hooks_.limits();
  while (segments_.size() > 1 && segments_[1]->before.sequence <= through) {
    const std::shared_ptr<LogFile> file = segments_.front()->file;
    segments_.pop_front();
    const std::string spare = spare_file_name(next_spare_++);
    const bool keep = spares_.size() < spares_max && file->bytes == limits.segment_bytes &&
                      bytes() + file->bytes <= limits.log_bytes;
    if (keep && ::rename(path(file->name).c_str(), path(spare).c_str()) == 0) {
      file->name = spare;
      spares_.push_back(file);
      continue;
    }
    remove_later(file->name);
  }
  if (waits_for_space_) {
    waits_for_space_ = false;
    pump();
  }
}

void LogStore::remove_later(const std::string& name) {
  begin_operation();
  offload(
      worker_,
      reactor_,
      [path = path(name)] { return ::unlink(path.c_str()) == 0 ? 0 : errno; },
      [self = shared_from_this(), name](int result) {
        if (result != 0) {
          log(LogLevel::warn, "log_unlink_failed", "file={} errno={}", name, result);
        }
        self->end_operation();
      });
}

void LogStore::drop(std::function<void(Status)> done) {
  RD_CHECK(queue_.empty() || stopped_ || failure_.has_value());
  begin_operation();
  offload(
      worker_,
      reactor_,
      [directory = directory_] { return remove_log(directory); },
      [self = shared_from_this(), done = std::move(done)](const Status& status) {
        if (status) {
          self->segments_.clear();
          self->spares_.clear();
          self->logged_ = {};
          self->header_unwritten_ = false;
        } else {
          self->fail(status.error());
        }
        done(status);
        self->end_operation();
      });
}

}  // namespace replicad
