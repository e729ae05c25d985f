#include "io/medium_sums.h"

#include <algorithm>
#include <cerrno>
#include <span>

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include "core/base/limits.h"
#include "io/file.h"

namespace replicad {

namespace {

/// The kernel keeps a folio of which only a part is to be dropped. The longest is a huge page; all are aligned.
constexpr std::uint64_t drop_unit_bytes = 4 * mib;
/// Further ahead than the kernel reads: dropping what it has read ahead would have it read twice.
constexpr std::uint64_t drop_ahead_bytes = 32 * mib;

constexpr std::uint64_t unit_begin(std::uint64_t offset) {
  return offset / drop_unit_bytes * drop_unit_bytes;
}

/// 0 or errno; EIO where the file ends before.
int read_errno(int fd, std::span<std::byte> to, std::uint64_t offset) {
  const Status read = read_all_at(fd, to, offset);
  if (read) return 0;
  return read.error().sys_errno != 0 ? read.error().sys_errno : EIO;
}

bool is_hole(int fd, std::uint64_t offset, std::uint64_t length) {
  const off_t data = ::lseek(fd, static_cast<off_t>(offset), SEEK_DATA);
  return data < 0 ? errno == ENXIO : static_cast<std::uint64_t>(data) >= offset + length;
}

/// Best effort.
void forget(int fd, std::uint64_t begin, std::uint64_t end) {
  static_cast<void>(::posix_fadvise(
      fd, static_cast<off_t>(begin), static_cast<off_t>(end - begin), POSIX_FADV_DONTNEED));
}

}  // namespace

MediumReader::MediumReader(int fd)
    : file_(::open(fmt::format("/proc/self/fd/{}", fd).c_str(), O_RDONLY | O_CLOEXEC)) {
  if (!file_.valid()) file_.reset(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  static_cast<void>(::posix_fadvise(file_.get(), 0, 0, POSIX_FADV_SEQUENTIAL));
}

MediumReader::~MediumReader() {
  if (file_.valid() && left_cached_ < dropped_) forget(file_.get(), left_cached_, dropped_);
}

/// Before [offset, end) is read.
void MediumReader::prepare(std::uint64_t offset, std::uint64_t end) {
  std::uint64_t until = unit_begin(end - 1) + drop_unit_bytes;
  if (offset == next_) {
    until += drop_ahead_bytes;
  } else {
    forget_until(dropped_);
    left_cached_ = dropped_ = unit_begin(offset);
  }
  if (dropped_ < until) {
    forget(file_.get(), dropped_, until);
    dropped_ = until;
  }
}

void MediumReader::forget_until(std::uint64_t end) {
  if (left_cached_ >= end) return;
  forget(file_.get(), left_cached_, end);
  left_cached_ = end;
}

MediumSums MediumReader::read(std::uint64_t offset, std::uint64_t length) {
  MediumSums result;
  std::vector<std::byte> bytes(length);
  bool whole = true;
  prepare(offset, offset + length);
  if (!is_hole(file_.get(), offset, length)) whole = read_errno(file_.get(), bytes, offset) == 0;
  for (std::uint64_t at = 0; at < length; at += compare_block_bytes) {
    const auto block = std::span(bytes).subspan(at, std::min(compare_block_bytes, length - at));
    // One bad sector says nothing of the others.
    const int error = whole ? 0 : read_errno(file_.get(), block, offset + at);
    if (error != 0) result.sys_errno = error;
    result.unreadable.push_back(error != 0);
    result.sums.push_back(error == 0 ? block_sum(block) : Digest{});
  }
  next_ = offset + length;
  forget_until(unit_begin(next_));
  return result;
}

}  // namespace replicad
