#pragma once
// One thread, one io_uring: sockets, files, timers and posted functions of a process. Every call is for the
// reactor's own thread unless it says "any thread". A buffer handed to an operation must stay valid until its
// `done` ran, also after cancel_fd().

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include <sys/socket.h>
#include <sys/uio.h>

#include "core/base/result.h"
#include "core/base/time.h"

namespace replicad {

class Reactor {
 public:
  /// Result of an operation: bytes or fd >= 0, or -errno.
  using Done = std::function<void(int result)>;
  using TimerId = std::uint64_t;

  /// Sets up the ring. Errors: Errc::not_supported when the kernel or a sandbox forbids io_uring; the message
  /// names the errno and the hint names the sysctl (kernel.io_uring_disabled) or seccomp. The thread that calls
  /// run() need not be the one that called create().
  [[nodiscard]] static Result<std::unique_ptr<Reactor>> create(unsigned entries = 1024);
  virtual ~Reactor() = default;

  /// Runs until stop(), once per reactor, on any one thread; until then the creating thread may queue operations
  /// and timers. After stop() it cancels what is in flight and waits for it (their `done` runs, new operations
  /// end with -ECANCELED, posted functions still run, timers and the turn hook do not), then returns.
  virtual void run() = 0;
  virtual void stop() = 0;  ///< any thread
  virtual void post(
      std::function<void()> function) = 0;  ///< any thread; runs on the reactor thread, in order
  /// Any thread. Makes the loop take another turn if it sleeps; almost free if it is awake.
  virtual void wake() = 0;
  /// `hook` runs in every turn, after completions and before sleeping. One per reactor.
  virtual void set_turn_hook(std::function<void()> hook) = 0;
  /// Runs `function` once, at the end of this turn, before what was queued is handed to the kernel: the place to
  /// gather what many callbacks of one turn produced.
  virtual void at_turn_end(std::function<void()> function) = 0;
  /// CLOCK_BOOTTIME at the start of this turn.
  [[nodiscard]] virtual Instant now() const = 0;

  virtual TimerId add_timer(Duration delay, std::function<void()> function) = 0;
  virtual void cancel_timer(TimerId id) = 0;  ///< unknown ids are ignored

  virtual void accept(int fd, Done done) = 0;  ///< result: new fd, CLOEXEC
  virtual void connect(int fd, const sockaddr* address, socklen_t length, Done done) = 0;
  virtual void recv(int fd, std::span<std::byte> buffer, Done done) = 0;
  virtual void sendmsg(int fd,
                       const msghdr* message,
                       Done done) = 0;  ///< with MSG_NOSIGNAL; may be short
  virtual void read(int fd, std::span<std::byte> buffer, std::uint64_t offset, Done done) = 0;
  virtual void write(int fd,
                     std::span<const std::byte> buffer,
                     std::uint64_t offset,
                     Done done) = 0;
  /// `piece_bytes`: longest single write into the page cache.
  virtual void writev(int fd,
                      const iovec* vectors,
                      unsigned count,
                      std::uint64_t offset,
                      std::size_t piece_bytes,
                      Done done) = 0;
  virtual void fdatasync(int fd, Done done) = 0;
  virtual void fallocate(
      int fd, int mode, std::uint64_t offset, std::uint64_t length, Done done) = 0;
  /// Every operation in flight on `fd` ends with -ECANCELED or its result. `fd` may be closed at once after it.
  virtual void cancel_fd(int fd) = 0;
};

/// Whether io_uring works here with every operation the reactor uses; leaves nothing behind, so that it can be
/// called before a fork. Errors: as Reactor::create; names a missing operation.
[[nodiscard]] Status probe_io_uring();

}  // namespace replicad
