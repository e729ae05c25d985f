#include "replicad/rewind_saver.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <unistd.h>

#include "core/base/check.h"
#include "io/file.h"
#include "replicad/replica_offload.h"

namespace replicad {

namespace {

/// Looked at in one piece of work, at least one change: the worker's thread has other things to do.
constexpr std::uint64_t rewind_batch_bytes_max = 16 * mib;
constexpr std::uint64_t rewind_piece_bytes = 1 * mib;

/// Whole blocks around `range`.
Range around(const Range& range, std::uint64_t disk_bytes) {
  const std::uint64_t begin = range.offset_bytes / block_bytes * block_bytes;
  const std::uint64_t end = (range.end_bytes() + block_bytes - 1) / block_bytes * block_bytes;
  return {range.disk, begin, std::min(end, disk_bytes) - begin};
}

}  // namespace

struct RewindSaver::Work {
  std::shared_ptr<ImageSet> images;
  std::unique_ptr<LostFileWriter> file;
  BlockMap kept;
  std::vector<std::byte> old;

  [[nodiscard]] Status keep(const Change& change);
  [[nodiscard]] Status keep_piece(const Change& change, const Range& piece);
  [[nodiscard]] bool changes_block(const Change& change,
                                   const Range& block,
                                   std::span<const std::byte> content) const;
  [[nodiscard]] bool is_hole(const Range& piece) const;
};

/// Whether the change makes another content of the block, of which `content` is the old one.
bool RewindSaver::Work::changes_block(const Change& change,
                                      const Range& block,
                                      std::span<const std::byte> content) const {
  const Range& range = change.header.range;
  const std::uint64_t begin = std::max(range.offset_bytes, block.offset_bytes);
  const std::uint64_t end = std::min(range.end_bytes(), block.end_bytes());
  const auto before = content.subspan(begin - block.offset_bytes, end - begin);
  if (change.payload.empty()) {
    return !std::ranges::all_of(before, [](std::byte byte) { return byte == std::byte{0}; });
  }
  const auto after = change.payload.subspan(begin - range.offset_bytes, end - begin);
  return std::memcmp(before.data(), after.data(), before.size()) != 0;
}

/// Of a file: nothing was ever written there. A device has no holes.
bool RewindSaver::Work::is_hole(const Range& piece) const {
  const auto at = static_cast<off_t>(piece.offset_bytes);
  const off_t data = ::lseek(images->fd(piece.disk), at, SEEK_DATA);
  if (data < 0) return errno == ENXIO;
  return static_cast<std::uint64_t>(data) >= piece.end_bytes();
}

Status RewindSaver::Work::keep_piece(const Change& change, const Range& piece) {
  old.resize(piece.length_bytes);
  if (change.payload.empty() && is_hole(piece)) return {};
  if (const Status read = read_all_at(images->fd(piece.disk), old, piece.offset_bytes); !read) {
    return tl::unexpected(errno_to_error(
        read.error().sys_errno != 0 ? read.error().sys_errno : EIO,
        fmt::format(
            "read {} at {} before it is changed", images->path(piece.disk), piece.offset_bytes)));
  }
  Range run{piece.disk, piece.offset_bytes, 0};
  const auto end_run = [&]() -> Status {
    const std::uint64_t at = run.offset_bytes - piece.offset_bytes;
    if (run.length_bytes > 0) {
      RD_TRY(file->append(run, std::span<const std::byte>(old).subspan(at, run.length_bytes)));
      kept.mark(run);
    }
    return {};
  };
  for (std::uint64_t at = 0; at < piece.length_bytes; at += block_bytes) {
    const Range block{
        piece.disk, piece.offset_bytes + at, std::min(block_bytes, piece.length_bytes - at)};
    const auto content = std::span<const std::byte>(old).subspan(at, block.length_bytes);
    if (!kept.overlaps_any(block) && changes_block(change, block, content)) {
      if (run.length_bytes == 0) run.offset_bytes = block.offset_bytes;
      run.length_bytes += block.length_bytes;
      continue;
    }
    RD_TRY(end_run());
    run.length_bytes = 0;
  }
  return end_run();
}

Status RewindSaver::Work::keep(const Change& change) {
  const Range& range = change.header.range;
  if (range.length_bytes == 0) return {};
  const Range whole = around(range, kept.disk_bytes()[range.disk]);
  for (std::uint64_t at = whole.offset_bytes; at < whole.end_bytes(); at += rewind_piece_bytes) {
    const Range piece{range.disk, at, std::min(rewind_piece_bytes, whole.end_bytes() - at)};
    RD_TRY(keep_piece(change, piece));
  }
  // What it covers wholly holds the new history's content from now on.
  Range covered = range;
  covered.offset_bytes = (range.offset_bytes + block_bytes - 1) / block_bytes * block_bytes;
  std::uint64_t end = range.end_bytes();
  if (end != kept.disk_bytes()[range.disk]) end = end / block_bytes * block_bytes;
  if (end <= covered.offset_bytes) return {};
  covered.length_bytes = end - covered.offset_bytes;
  kept.mark(covered);
  return {};
}

// --- the reactor's side

RewindSaver::RewindSaver(Reactor& reactor,
                         Worker& worker,
                         std::shared_ptr<ImageSet> images,
                         std::unique_ptr<LostFileWriter> file,
                         BlockMap kept)
    : reactor_(reactor),
      worker_(worker),
      file_number_(file->number()),
      work_(std::make_shared<Work>(Work{std::move(images), std::move(file), std::move(kept), {}})) {
}

void RewindSaver::add(const FrameHeader& header,
                      std::span<const std::byte> payload,
                      std::shared_ptr<void> owner) {
  if (stopped_ || failed_) return;
  Change change{header, payload, std::move(owner)};
  if (payload.empty()) {
    Range& range = change.header.range;
    const std::uint64_t end = range.end_bytes();
    change.header.sequence = 0;
    while (end - range.offset_bytes > rewind_batch_bytes_max) {
      range.length_bytes = rewind_batch_bytes_max;
      queue_.push_back(change);
      range.offset_bytes += rewind_batch_bytes_max;
    }
    range.length_bytes = end - range.offset_bytes;
    change.header.sequence = header.sequence;
  }
  queue_.push_back(std::move(change));
  begin_later();
}

void RewindSaver::note_equal(const Range& range, const std::vector<bool>& differs) {
  if (stopped_ || failed_) return;
  for (std::size_t i = 0; i < differs.size(); ++i) {
    const std::uint64_t at = range.offset_bytes + i * block_bytes;
    const Range block{range.disk, at, std::min(block_bytes, range.end_bytes() - at)};
    if (differs[i]) continue;
    if (!equal_.empty() && equal_.back().disk == block.disk &&
        equal_.back().end_bytes() == block.offset_bytes) {
      equal_.back().length_bytes += block.length_bytes;
    } else {
      equal_.push_back(block);
    }
  }
}

void RewindSaver::begin_later() {
  if (begin_scheduled_ || working_) return;
  begin_scheduled_ = true;
  reactor_.at_turn_end([self = shared_from_this()] {
    self->begin_scheduled_ = false;
    self->begin();
  });
}

void RewindSaver::begin() {
  if (working_ || stopped_ || failed_) return;
  if (queue_.empty()) {
    if (idle_done_) std::exchange(idle_done_, nullptr)();
    return;
  }
  working_ = true;
  std::vector<Change> changes;
  std::uint64_t bytes = 0;
  while (!queue_.empty() && bytes < rewind_batch_bytes_max) {
    bytes += queue_.front().header.range.length_bytes;
    changes.push_back(std::move(queue_.front()));
    queue_.pop_front();
  }
  // The changes are let go on the reactor's thread: their owners belong there.
  auto batch = std::make_shared<std::vector<Change>>(std::move(changes));
  offload(
      worker_,
      reactor_,
      [work = work_, batch = batch.get(), equal = std::exchange(equal_, {})]() -> Status {
        for (const Range& range : equal)
          work->kept.mark(range);
        for (const Change& change : *batch)
          RD_TRY(work->keep(change));
        return work->file->sync();
      },
      [self = shared_from_this(), batch](const Status& status) {
        const std::vector<Change> kept = std::move(*batch);
        self->on_kept(status, kept);
      });
}

void RewindSaver::on_kept(const Status& status, const std::vector<Change>& changes) {
  working_ = false;
  if (stopped_) {
    if (stop_done_) std::exchange(stop_done_, nullptr)();
    return;
  }
  if (!status) {
    failed_ = true;
    queue_.clear();
    hooks_.on_error(status.error());
    return;
  }
  for (const Change& change : changes) {
    if (stopped_) return;
    hooks_.on_ready(change);
  }
  begin();
}

void RewindSaver::when_idle(std::function<void()> done) {
  idle_done_ = std::move(done);
  begin_later();
}

void RewindSaver::stop(std::function<void()> done) {
  stopped_ = true;
  queue_.clear();
  idle_done_ = nullptr;
  if (working_) {
    stop_done_ = std::move(done);
  } else {
    reactor_.post(std::move(done));
  }
}

}  // namespace replicad
