#include "io/medium_sums.h"

#include <algorithm>
#include <cerrno>
#include <span>

#include <fcntl.h>
#include <unistd.h>

#include "core/base/limits.h"
#include "io/file.h"

namespace replicad {

namespace {

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
void forget(int fd, std::uint64_t offset, std::uint64_t length) {
  static_cast<void>(::posix_fadvise(
      fd, static_cast<off_t>(offset), static_cast<off_t>(length), POSIX_FADV_DONTNEED));
}

}  // namespace

MediumSums read_medium_sums(int fd, std::uint64_t offset, std::uint64_t length) {
  MediumSums result;
  std::vector<std::byte> bytes(length);
  const bool hole = is_hole(fd, offset, length);
  bool whole = true;
  if (!hole) {
    forget(fd, offset, length);
    whole = read_errno(fd, bytes, offset) == 0;
  }
  for (std::uint64_t at = 0; at < length; at += compare_block_bytes) {
    const auto block = std::span(bytes).subspan(at, std::min(compare_block_bytes, length - at));
    // One bad sector says nothing of the others.
    const int error = whole ? 0 : read_errno(fd, block, offset + at);
    if (error != 0) result.sys_errno = error;
    result.unreadable.push_back(error != 0);
    result.sums.push_back(error == 0 ? block_sum(block) : Digest{});
  }
  if (!hole) forget(fd, offset, length);
  return result;
}

}  // namespace replicad
