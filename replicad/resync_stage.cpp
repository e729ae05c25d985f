#include "replicad/resync_stage.h"

#include <algorithm>
#include <array>
#include <climits>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/base/check.h"
#include "core/base/log.h"
#include "io/file.h"
#include "io/read_fully.h"
#include "replicad/replica_offload.h"

namespace replicad {

namespace {

constexpr std::uint64_t reserve_step_bytes = 4 * mib;
constexpr std::size_t stage_batch_bytes_max = 8 * mib;
constexpr std::size_t stage_vectors_max = IOV_MAX;
// Two largest frames, as the log's applier.
constexpr std::size_t stage_chunk_bytes = 2 * (frame_header_bytes + data_payload_bytes_max);
constexpr std::size_t stage_chunks_max = 2;

std::string stage_path(const std::string& directory) {
  return directory + "/" + std::string(stage_file_name);
}

Error out_of_space(const std::string& path, std::uint64_t lacking_bytes) {
  return Error{
      Errc::no_space,
      0,
      fmt::format(
          "the resync cannot be staged: {} bytes more are needed for {}", lacking_bytes, path),
      "free space there; without it the copy is made in place as soon as another in-sync "
      "replica stays promotable meanwhile"};
}

/// Makes room for `bytes` more behind `offset`, and leaves `left_bytes` free.
Status reserve_space(int fd,
                     const std::string& path,
                     std::uint64_t offset,
                     std::uint64_t bytes,
                     std::uint64_t left_bytes) {
  struct statvfs space {};
  if (::fstatvfs(fd, &space) != 0) return fail_errno(errno, "statvfs {}", path);
  const std::uint64_t free_bytes = space.f_bavail * space.f_frsize;
  if (free_bytes < bytes + left_bytes) {
    return tl::unexpected(out_of_space(path, bytes + left_bytes - free_bytes));
  }
  if (::fallocate(fd, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset), static_cast<off_t>(bytes)) ==
          0 ||
      errno == EOPNOTSUPP) {
    return {};
  }
  if (errno == ENOSPC) return tl::unexpected(out_of_space(path, bytes));
  return fail_errno(errno, "reserve {} bytes for {}", bytes, path);
}

Result<StageHeader> read_header(int fd) {
  std::array<std::byte, stage_header_bytes> header{};
  RD_TRY(read_all_at(fd, header, 0));
  return decode_stage_header(header);
}

Result<std::shared_ptr<Fd>> open_stage(const std::string& path, const std::string& volume_uuid) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return fail_errno(errno, "open {}", path);
  const auto header = read_header(fd.get());
  if (!header) return tl::unexpected(header.error());
  if (header->volume_uuid != volume_uuid) {
    return fail(Errc::corrupt, "{} belongs to another volume, uuid {}", path, header->volume_uuid);
  }
  return std::make_shared<Fd>(std::move(fd));
}

/// Takes whole frames into `index` up to the first that is cut, damaged or has no room there. Result: the end of the
/// last one taken.
Result<std::uint64_t> scan_file(int fd, const std::string& path, StageIndex& index) {
  std::vector<std::byte> buffer(stage_chunk_bytes);
  for (std::uint64_t end = stage_header_bytes;;) {
    const auto got = ::pread(fd, buffer.data(), buffer.size(), static_cast<off_t>(end));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(errno, "read {}", path);
    const StageScan found = scan_stage(std::span(buffer).first(static_cast<std::size_t>(got)));
    const std::uint64_t begin = end;
    for (const StagedFrame& frame : found.frames) {
      if (!index.add(frame.header, begin + frame.offset_bytes + frame_header_bytes)) return end;
      end += frame.frame_bytes();
    }
    if (end == begin || found.end == ScanEnd::invalid) return end;
  }
}

}  // namespace

Status remove_stage(const std::string& directory) {
  if (::unlink(stage_path(directory).c_str()) != 0) {
    if (errno == ENOENT) return {};
    return fail_errno(errno, "remove {}", stage_path(directory));
  }
  return sync_directory(directory);
}

std::optional<Epoch> find_parked_stage(const std::string& directory,
                                       const std::string& volume_uuid,
                                       const HistoryPoint& standing,
                                       const std::string& boot_id) {
  const Fd fd(::open(stage_path(directory).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return std::nullopt;
  const auto header = read_header(fd.get());
  if (!header || !may_go_on(*header, volume_uuid, standing, boot_id)) return std::nullopt;
  return header->epoch;
}

// --- StageWriter

StageWriter::StageWriter(Reactor& reactor, Worker& worker, std::string directory, Hooks hooks)
    : reactor_(reactor),
      worker_(worker),
      directory_(std::move(directory)),
      path_(stage_path(directory_)),
      hooks_(std::move(hooks)) {}

/// A new file under the name: what a loss of power may leave of an earlier one is not in it.
Result<StageWriter::Opened> StageWriter::create(const std::string& path,
                                                const StageHeader& header) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return fail_errno(errno, "remove {}", path);
  auto fd = std::make_shared<Fd>(::open(path.c_str(),
                                        O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
                                        S_IRUSR | S_IWUSR | S_IRGRP));
  if (!fd->valid()) return fail_errno(errno, "create {}", path);
  std::array<std::byte, stage_header_bytes> bytes{};
  encode_stage_header(header, bytes);
  RD_TRY(write_all_at(fd->get(), bytes, 0));
  return Opened{std::move(fd), stage_header_bytes, nullptr};
}

/// A sync that fails may leave pages that the kernel takes for written: whoever finds the file after that, in this
/// boot, does not go on with it.
Status StageWriter::forbid_going_on(int fd, StageHeader header) {
  header.epoch = {};
  std::array<std::byte, stage_header_bytes> bytes{};
  encode_stage_header(header, bytes);
  return write_all_at(fd, bytes, 0);
}

Result<StageWriter::Opened> StageWriter::find(const std::string& path,
                                              const StageHeader& header,
                                              const std::vector<std::uint64_t>& disk_bytes) {
  auto fd = std::make_shared<Fd>(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!fd->valid()) return fail_errno(errno, "open {}", path);
  const auto found = read_header(fd->get());
  if (!found) return tl::unexpected(found.error());
  if (*found != header) return replicad::fail(Errc::corrupt, "{} is of another copy", path);
  StageOverlay overlay{fd, path, StageIndex(disk_bytes)};
  const auto end = scan_file(fd->get(), path, overlay.index);
  if (!end) return tl::unexpected(end.error());
  // What comes next is never mistaken for what is cut off here.
  if (::ftruncate(fd->get(), static_cast<off_t>(*end)) != 0)
    return fail_errno(errno, "cut {}", path);
  return Opened{fd, *end, std::make_shared<const StageOverlay>(std::move(overlay))};
}

void StageWriter::open(const StageHeader& header) {
  header_ = header;
  begin_operation();
  offload(
      worker_,
      reactor_,
      [path = path_, header] { return create(path, header); },
      [self = shared_from_this()](Result<Opened> opened) { self->on_opened(std::move(opened)); });
}

void StageWriter::go_on(const StageHeader& header, const std::vector<std::uint64_t>& disk_bytes) {
  if (stopped_) return;
  header_ = header;
  begin_operation();
  offload(
      worker_,
      reactor_,
      [path = path_, header, disk_bytes]() -> Result<Opened> {
        auto found = find(path, header, disk_bytes);
        if (found) return found;
        log(LogLevel::warn, "stage_begun_anew", "error={}", log_value(found.error().message));
        return create(path, header);
      },
      [self = shared_from_this()](Result<Opened> opened) { self->on_opened(std::move(opened)); });
}

void StageWriter::on_opened(Result<Opened> opened) {
  if (opened) {
    fd_ = std::move(opened->fd);
    overlay_ = std::move(opened->overlay);
    opened_ = true;
    end_bytes_ = reserved_bytes_ = opened->end_bytes;
    if (overlay_) {
      log(LogLevel::info,
          "stage_goes_on",
          "path={} bytes={} extents={}",
          path_,
          end_bytes_,
          overlay_->index.extents());
    }
    tell_known();
    pump();
  } else {
    fail(opened.error());
  }
  end_operation();
}

void StageWriter::when_known(std::function<void()> function) {
  if (opened_ || stopped_ || failed_) {
    function();
  } else {
    when_known_.push_back(std::move(function));
  }
}

void StageWriter::tell_known() {
  for (const auto& function : std::exchange(when_known_, {}))
    function();
}

void StageWriter::append(std::span<const std::byte> bytes,
                         Sequence sequence,
                         std::shared_ptr<void> owner) {
  RD_CHECK(!sync_done_);
  if (stopped_ || failed_) return;
  queue_.push_back({bytes, sequence, std::move(owner)});
  pump_later();
}

void StageWriter::pump_later() {
  if (pump_scheduled_) return;
  pump_scheduled_ = true;
  reactor_.at_turn_end([self = shared_from_this()] {
    self->pump_scheduled_ = false;
    self->pump();
  });
}

void StageWriter::pump() {
  if (!opened_ || reserving_ || writing_ || stopped_ || failed_) return;
  if (queue_.empty()) {
    sync_if_written();
  } else if (end_bytes_ + queue_.front().bytes.size() > reserved_bytes_) {
    reserve();
  } else {
    write_batch();
  }
}

void StageWriter::reserve() {
  reserving_ = true;
  begin_operation();
  offload(
      worker_,
      reactor_,
      [self = shared_from_this(), left_bytes = hooks_.reserve_bytes()] {
        return reserve_space(
            self->fd_->get(), self->path_, self->reserved_bytes_, reserve_step_bytes, left_bytes);
      },
      [self = shared_from_this()](const Status& status) {
        self->reserving_ = false;
        if (status) {
          self->reserved_bytes_ += reserve_step_bytes;
          self->pump();
        } else {
          self->fail(status.error());
        }
        self->end_operation();
      });
}

void StageWriter::write_batch() {
  vectors_.clear();
  vector_index_ = 0;
  batch_frames_ = 0;
  write_offset_ = end_bytes_;
  std::uint64_t end = end_bytes_;
  for (const Queued& frame : queue_) {
    const std::size_t size = frame.bytes.size();
    const bool fits = end + size <= reserved_bytes_ &&
                      end - end_bytes_ + size <= stage_batch_bytes_max &&
                      vectors_.size() < stage_vectors_max;
    if (!fits) break;
    vectors_.push_back({const_cast<std::byte*>(frame.bytes.data()), size});
    end += size;
    ++batch_frames_;
  }
  RD_CHECK(batch_frames_ > 0);
  writing_ = true;
  start_write();
}

void StageWriter::start_write() {
  begin_operation();
  reactor_.writev(fd_->get(),
                  &vectors_[vector_index_],
                  static_cast<unsigned>(vectors_.size() - vector_index_),
                  write_offset_,
                  append_write_bytes_max,
                  [self = shared_from_this()](int result) {
                    self->on_written(result);
                    self->end_operation();
                  });
}

void StageWriter::on_written(int result) {
  if (result <= 0) {
    writing_ = false;
    fail(errno_to_error(result == 0 ? ENOSPC : -result, fmt::format("write {}", path_)));
    return;
  }
  const auto written = static_cast<std::size_t>(result);
  write_offset_ += written;
  vector_index_ = consume_vectors(vectors_, vector_index_, written);
  if (vector_index_ < vectors_.size()) {
    start_write();
    return;
  }
  writing_ = false;
  end_bytes_ = write_offset_;
  Sequence through = 0;
  for (std::size_t i = 0; i < batch_frames_; ++i) {
    through = std::max(through, queue_.front().sequence);
    queue_.pop_front();
  }
  if (through > 0 && !stopped_) hooks_.on_written(through);
  pump();
}

void StageWriter::sync(std::function<void(std::uint64_t)> done) {
  sync_done_ = std::move(done);
  pump_later();
}

void StageWriter::sync_if_written() {
  if (!sync_done_ || syncing_) return;
  syncing_ = true;
  begin_operation();
  offload(
      worker_,
      reactor_,
      [self = shared_from_this()]() -> Status {
        RD_TRY(forbid_going_on(self->fd_->get(), self->header_));
        if (::fsync(self->fd_->get()) != 0) return fail_errno(errno, "fsync {}", self->path_);
        return sync_directory(self->directory_);
      },
      [self = shared_from_this()](const Status& status) {
        if (!status) {
          self->fail(status.error());
        } else if (!self->stopped_ && !self->failed_) {
          std::exchange(self->sync_done_, nullptr)(self->end_bytes_);
        }
        self->end_operation();
      });
}

void StageWriter::stop(std::function<void()> done) {
  stopped_ = true;
  stop_done_ = std::move(done);
  tell_known();
  begin_operation();
  reactor_.post([self = shared_from_this()] { self->end_operation(); });
}

void StageWriter::fail(const Error& error) {
  if (failed_) return;
  failed_ = true;
  if (!stopped_) hooks_.on_error(error);
  tell_known();
}

void StageWriter::end_operation() {
  RD_CHECK(in_flight_ > 0);
  if (--in_flight_ > 0 || !stop_done_) return;
  queue_.clear();
  std::exchange(stop_done_, nullptr)();
}

// --- StageApplier

StageApplier::StageApplier(Reactor& reactor,
                           Worker& worker,
                           std::shared_ptr<ImageSet> images,
                           std::vector<std::uint64_t> disk_bytes,
                           Hooks hooks)
    : reactor_(reactor),
      worker_(worker),
      disk_bytes_(std::move(disk_bytes)),
      hooks_(std::move(hooks)),
      writer_(std::make_shared<ImageWriter>(reactor, worker, std::move(images))) {}

void StageApplier::start(const std::string& directory,
                         const std::string& volume_uuid,
                         std::uint64_t bytes) {
  const std::weak_ptr<StageApplier> weak = weak_from_this();
  writer_->set_hooks({.on_progress =
                          [weak](ImageWriter::Tag /*tag*/) {
                            if (const auto self = weak.lock()) self->kick();
                          },
                      .on_error =
                          [weak](const Error& error) {
                            if (const auto self = weak.lock()) self->fail(error);
                          }});
  path_ = stage_path(directory);
  end_bytes_ = bytes;
  reading_ = true;
  offload(
      worker_,
      reactor_,
      [path = path_, volume_uuid] { return open_stage(path, volume_uuid); },
      [self = shared_from_this()](const Result<std::shared_ptr<Fd>>& fd) {
        self->end_read();
        if (self->stopped_) return;
        if (!fd) {
          self->fail_damaged(fd.error().message);
          return;
        }
        self->fd_ = std::move(**fd);
        self->kick();
      });
}

void StageApplier::stop(std::function<void()> done) {
  stopped_ = true;
  writer_->stop([self = shared_from_this(), done = std::move(done)]() mutable {
    if (self->reading_) {
      self->read_ended_ = std::move(done);
    } else {
      done();
    }
  });
}

void StageApplier::fail(const Error& error) {
  if (failed_) return;
  failed_ = true;
  if (!stopped_) hooks_.on_error(error);
}

void StageApplier::fail_damaged(const std::string& reason) {
  fail(Error{Errc::corrupt,
             0,
             fmt::format("{} at offset {} is damaged: {}", path_, offset_bytes_, reason),
             "the images are partly behind a resync that was committed: remove the member and add "
             "it again, it gets a full copy"});
}

void StageApplier::kick() {
  if (reading_ || stopped_ || failed_ || ended_) return;
  if (offset_bytes_ >= end_bytes_) {
    if (!writer_->is_idle()) return;
    ended_ = true;
    hooks_.on_done();
    return;
  }
  std::erase_if(chunks_, [](const std::weak_ptr<Chunk>& chunk) { return chunk.expired(); });
  if (chunks_.size() >= stage_chunks_max) return;
  const auto bytes = static_cast<std::size_t>(
      std::min<std::uint64_t>(end_bytes_ - offset_bytes_, stage_chunk_bytes));
  auto chunk = std::make_shared<Chunk>();
  chunk->bytes.reset(new std::byte[bytes]);
  chunks_.push_back(chunk);
  reading_ = true;
  read_fully(reactor_,
             fd_.get(),
             std::span(chunk->bytes.get(), bytes),
             offset_bytes_,
             [self = shared_from_this(), chunk, bytes](int sys_errno) {
               self->end_read();
               if (sys_errno == 0) {
                 self->on_read(chunk, bytes);
               } else if (sys_errno == ENODATA) {
                 self->fail_damaged("the file is cut short");
               } else {
                 self->fail(errno_to_error(sys_errno, fmt::format("read {}", self->path_)));
               }
             });
}

void StageApplier::end_read() {
  reading_ = false;
  if (read_ended_) std::exchange(read_ended_, nullptr)();
}

void StageApplier::on_read(const std::shared_ptr<Chunk>& chunk, std::size_t bytes) {
  if (stopped_ || failed_) return;
  const StageScan found = scan_stage(std::span(chunk->bytes.get(), bytes));
  for (const StagedFrame& frame : found.frames) {
    const Range& range = frame.header.range;
    const bool in_bounds =
        frame.header.type == FrameType::flush ||
        (range.disk < disk_bytes_.size() && fits(range, disk_bytes_[range.disk]));
    if (!in_bounds) return fail_damaged("a frame does not lie within its disk");
    writer_->add(
        frame.header,
        {chunk->bytes.get() + frame.offset_bytes + frame_header_bytes, frame.header.payload_bytes},
        chunk);
    offset_bytes_ += frame.frame_bytes();
  }
  if (found.end == ScanEnd::invalid || found.valid_bytes == 0) {
    return fail_damaged(found.reason.empty() ? "a frame is cut short" : found.reason);
  }
  kick();
}

}  // namespace replicad
