#pragma once
// Writes into the page cache that are made at once, on the reactor's thread, instead of by io_uring: file systems
// without non-blocking buffered writes (ext4) make io_uring hand each of them to a kernel thread, which costs two
// wake-ups for a copy of microseconds (docs/decisions/0006). What may block for long goes to the kernel's threads
// nevertheless: while the disk is slow, nothing is taken. Not thread-safe.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/base/limits.h"
#include "core/base/time.h"
#include "io/ring.h"

namespace replicad {

class CachedWrites {
 public:
  static constexpr auto sync_time_max = std::chrono::seconds(2);
  static constexpr auto write_time_max = std::chrono::milliseconds(250);
  static constexpr auto slow_time = std::chrono::seconds(1);
  /// Of one operation; what is beyond is left to the next, as after any short write.
  static constexpr std::size_t operation_bytes_max = 1 * mib;

  /// Whether a write that is prepared now should be made here: no fdatasync has been under way for longer than
  /// sync_time_max, and no write has taken longer than write_time_max within slow_time.
  [[nodiscard]] bool may_take(Instant now) const;
  /// A write or writev to a regular file or block device, made by the next run().
  void add(const RingOperation& operation) { queue_.push_back(operation); }
  /// Nothing to make and nothing to reap.
  [[nodiscard]] bool idle() const { return queue_.empty() && done_.empty(); }
  void run();
  /// Takes up to `completions.size()` results: bytes written or -errno.
  [[nodiscard]] std::size_t reap(std::span<RingCompletion> completions);

  void sync_begins(std::uint64_t user_data, Instant now) { syncs_.push_back({user_data, now}); }
  void sync_ends(std::uint64_t user_data);
  void note_time(Instant begin, Instant end);

 private:
  struct Sync {
    std::uint64_t user_data = 0;
    Instant since;
  };

  std::vector<RingOperation> queue_;
  std::vector<RingCompletion> done_;
  std::vector<Sync> syncs_;  ///< in flight, oldest first
  Instant slow_until_{};
};

}  // namespace replicad
