#pragma once
// Checksums of a file's blocks as its medium has them, for `verify`: what the page cache holds hides bit rot. Blocking,
// any thread.

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/checksum.h"

namespace replicad {

struct MediumSums {
  std::vector<Digest> sums;      ///< one per block; of one that cannot be read it means nothing
  std::vector<bool> unreadable;  ///< likewise
  int sys_errno = 0;             ///< of the last one that cannot be read
};

/// Of the blocks (compare_block_bytes; the last one may be short) of [offset, offset + length), which lies within the
/// file. The kernel is asked to drop what it has cached of them, before and after. That leaves what is not written
/// back yet, which is newer than the medium, and what is mapped; and it is advice, which a file system may not follow.
/// A hole is not read.
[[nodiscard]] MediumSums read_medium_sums(int fd, std::uint64_t offset, std::uint64_t length);

}  // namespace replicad
