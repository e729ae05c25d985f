#pragma once
// Reads and vectors that go on where a short one stopped.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include <sys/uio.h>

#include "io/reactor.h"

namespace replicad {

/// Fills `to` from `offset` on, through short reads. `done` gets 0, an errno, or ENODATA where the file ends before.
/// Reactor thread only; `fd` and `to` stay valid until `done` has run.
void read_fully(Reactor& reactor,
                int fd,
                std::span<std::byte> to,
                std::uint64_t offset,
                std::function<void(int sys_errno)> done);

/// `bytes` of the vectors from `first` on have been transferred: cuts them off, and returns the first
/// that has any left. Requires that there are so many.
[[nodiscard]] std::size_t consume_vectors(std::span<iovec> vectors,
                                          std::size_t first,
                                          std::size_t bytes);

}  // namespace replicad
