#include "io/read_fully.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/base/check.h"

namespace replicad {

void read_fully(Reactor& reactor,
                int fd,
                std::span<std::byte> to,
                std::uint64_t offset,
                std::function<void(int sys_errno)> done) {
  reactor.read(fd, to, offset, [&reactor, fd, to, offset, done = std::move(done)](int result) {
    if (result <= 0) {
      done(result == 0 ? ENODATA : -result);
      return;
    }
    const auto count = static_cast<std::size_t>(result);
    if (count == to.size()) {
      done(0);
    } else {
      read_fully(reactor, fd, to.subspan(count), offset + count, done);
    }
  });
}

std::size_t consume_vectors(std::span<iovec> vectors, std::size_t first, std::size_t bytes) {
  while (bytes > 0) {
    RD_CHECK(first < vectors.size());
    iovec& vector = vectors[first];
    const std::size_t step = std::min(bytes, vector.iov_len);
    vector.iov_base = static_cast<std::byte*>(vector.iov_base) + step;
    vector.iov_len -= step;
    bytes -= step;
    if (vector.iov_len == 0) ++first;
  }
  return first;
}

}  // namespace replicad
