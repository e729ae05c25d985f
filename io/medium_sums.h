#pragma once
// Checksums of a file's blocks as its medium has them, for `verify`: what the page cache holds hides bit rot.

#include <cstdint>
#include <vector>

#include "core/base/checksum.h"
#include "io/fd.h"

namespace replicad {

struct MediumSums {
  std::vector<Digest> sums;      ///< one per block; of one that cannot be read it means nothing
  std::vector<bool> unreadable;  ///< likewise
  int sys_errno = 0;             ///< of the last one that cannot be read
};

/// Of one file. Blocking; not for two threads at once. Fastest in pieces of 1 MiB or so that follow one another: the
/// kernel reads ahead of them.
class MediumReader {
 public:
  /// Opens what `fd` refers to once more where it can, so that what the guest reads does not disturb the reading ahead.
  explicit MediumReader(int fd);
  MediumReader(MediumReader&& other) noexcept = default;
  MediumReader& operator=(MediumReader&& other) = delete;
  MediumReader(const MediumReader&) = delete;
  MediumReader& operator=(const MediumReader&) = delete;
  ~MediumReader();

  /// Of the blocks (compare_block_bytes; the last one may be short) of [offset, offset + length), which lies within
  /// the file. The kernel is asked to drop what it has cached around them, before and after. That leaves what is not
  /// written back yet, which is newer than the medium, and what is mapped; and it is advice, which a file system may
  /// not follow. A hole is not read.
  [[nodiscard]] MediumSums read(std::uint64_t offset, std::uint64_t length);

 private:
  void prepare(std::uint64_t offset, std::uint64_t end);
  void forget_until(std::uint64_t end);

  Fd file_;
  std::uint64_t next_ = 0;  ///< end of the read before
  std::uint64_t dropped_ =
      0;  ///< until here nothing is cached but what was read, or read ahead, since
  std::uint64_t left_cached_ = 0;  ///< that begins here
};

}  // namespace replicad
