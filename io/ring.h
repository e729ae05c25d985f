#pragma once
// The seam under the reactor: one submission queue and one completion queue. UringRing is the kernel's; the
// tests put a ring in between that shortens, delays, fails and reorders (tests/io/faulty_ring.h).
// One thread, the reactor's, except for construction.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "core/base/result.h"
#include "core/base/time.h"
#include "io/reactor.h"

namespace replicad {

enum class RingOpcode : std::uint8_t {
  accept,
  connect,
  recv,
  sendmsg,
  read,
  write,
  writev,
  fdatasync,
  fallocate,
  cancel,
};

/// One operation. What `address` points to stays valid until the completion was reaped.
struct RingOperation {
  RingOpcode opcode = RingOpcode::read;
  int fd = -1;
  /// recv, read, write: buffer; writev: iovec array; sendmsg: msghdr; connect: sockaddr.
  void* address = nullptr;
  /// recv, read, write: bytes; writev: count; connect: socklen_t.
  std::uint32_t length = 0;
  std::uint64_t offset_bytes = 0;      ///< read, write, writev, fallocate
  std::uint64_t range_bytes = 0;       ///< fallocate
  std::size_t piece_bytes = 0;         ///< writev: of a single write into the page cache; 0: any
  int mode = 0;                        ///< fallocate
  std::uint64_t cancel_user_data = 0;  ///< cancel: whom
  std::uint64_t user_data = 0;         ///< comes back in the completion
};

struct RingCompletion {
  std::uint64_t user_data = 0;
  int result = 0;
};

class Ring {
 public:
  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  Ring(Ring&&) = delete;
  Ring& operator=(Ring&&) = delete;
  virtual ~Ring() = default;

  /// Binds the ring to the calling thread. Before it, only prepare() may be called, and only that thread's
  /// predecessor may have called it.
  [[nodiscard]] virtual Status enable() = 0;
  /// Queues an operation; false when the submission queue is full (submit, then try again).
  [[nodiscard]] virtual bool prepare(const RingOperation& operation) = 0;
  /// Hands what is queued to the kernel. Returns -errno or the number taken, which may be fewer.
  virtual int submit() = 0;
  /// submit(), then waits for a completion: not at all for a zero `timeout`, for ever for none.
  /// Returns >= 0, or -errno; -ETIME, -EINTR, -EBUSY and -EAGAIN are no failures.
  virtual int submit_and_wait(std::optional<Duration> timeout) = 0;
  /// Whether reap() has something to take. Without a system call; may be wrong for a moment, both ways.
  [[nodiscard]] virtual bool ready() const = 0;
  /// Takes up to `completions.size()` finished operations; returns how many.
  [[nodiscard]] virtual std::size_t reap(std::span<RingCompletion> completions) = 0;
};

/// The kernel's ring, disabled until enable(). Errors: as Reactor::create.
[[nodiscard]] Result<std::unique_ptr<Ring>> create_uring_ring(unsigned entries);

/// A reactor on any ring.
[[nodiscard]] std::unique_ptr<Reactor> create_reactor(std::unique_ptr<Ring> ring);

/// The Error for an io_uring_setup that failed with `sys_errno`; `sysctl_value`: content of
/// kernel.io_uring_disabled, empty if there is no such sysctl.
[[nodiscard]] Error io_uring_refused(int sys_errno, const std::string& sysctl_value);

}  // namespace replicad
