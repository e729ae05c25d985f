#include "io/cached_writes.h"

#include <algorithm>
#include <array>
#include <cerrno>

#include <sys/uio.h>

#include "io/clock.h"

namespace replicad {

namespace {

/// The next piece of `vectors`, which begins `skip` bytes into the first of them: at most `piece_bytes`. Returns the
/// number of vectors in `piece`.
int cut_piece(std::span<const iovec> vectors,
              std::size_t skip,
              std::size_t piece_bytes,
              std::span<iovec> piece) {
  std::size_t count = 0;
  std::size_t bytes = 0;
  for (const iovec& vector : vectors) {
    if (count == piece.size() || bytes == piece_bytes) break;
    const std::size_t take = std::min(vector.iov_len - skip, piece_bytes - bytes);
    piece[count++] = {static_cast<std::byte*>(vector.iov_base) + skip, take};
    bytes += take;
    skip = 0;
  }
  return static_cast<int>(count);
}

/// Bytes written, or -errno if there are none.
int write_now(const RingOperation& operation) {
  const iovec single{operation.address, operation.length};
  std::span<const iovec> vectors =
      operation.opcode == RingOpcode::write
          ? std::span(&single, 1)
          : std::span(static_cast<const iovec*>(operation.address), operation.length);
  const std::size_t piece_bytes =
      operation.piece_bytes > 0 ? operation.piece_bytes : CachedWrites::operation_bytes_max;
  std::array<iovec, 64> piece{};
  std::size_t written = 0;
  std::size_t skip = 0;
  while (!vectors.empty() && written < CachedWrites::operation_bytes_max) {
    const int count = cut_piece(vectors, skip, piece_bytes, piece);
    const auto offset = static_cast<off_t>(operation.offset_bytes + written);
    const ssize_t result = ::pwritev(operation.fd, piece.data(), count, offset);
    if (result < 0 && written == 0) return -errno;
    if (result <= 0) break;
    written += static_cast<std::size_t>(result);
    skip += static_cast<std::size_t>(result);
    while (!vectors.empty() && skip >= vectors.front().iov_len) {
      skip -= vectors.front().iov_len;
      vectors = vectors.subspan(1);
    }
  }
  return static_cast<int>(written);
}

}  // namespace

bool CachedWrites::may_take(Instant now) const {
  const bool sync_hangs = !syncs_.empty() && now - syncs_.front().since > sync_time_max;
  return !sync_hangs && now >= slow_until_;
}

void CachedWrites::run() {
  for (const RingOperation& operation : queue_) {
    const Instant begin = boot_time_now();
    done_.push_back({operation.user_data, write_now(operation)});
    note_time(begin, boot_time_now());
  }
  queue_.clear();
}

std::size_t CachedWrites::reap(std::span<RingCompletion> completions) {
  const std::size_t count = std::min(completions.size(), done_.size());
  std::copy_n(done_.begin(), count, completions.begin());
  done_.erase(done_.begin(), done_.begin() + static_cast<std::ptrdiff_t>(count));
  return count;
}

void CachedWrites::sync_ends(std::uint64_t user_data) {
  std::erase_if(syncs_, [=](const Sync& sync) { return sync.user_data == user_data; });
}

void CachedWrites::note_time(Instant begin, Instant end) {
  if (end - begin > write_time_max) slow_until_ = end + slow_time;
}

}  // namespace replicad
