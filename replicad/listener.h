#pragma once
// Accepts connections on a listening socket and hands them out. Reactor thread only.

#include <functional>
#include <memory>

#include "io/fd.h"
#include "io/reactor.h"

namespace replicad {

class Listener {
 public:
  using OnConnection = std::function<void(Fd)>;

  /// Begins to accept. When the process runs out of descriptors it waits a little instead of
  /// failing.
  Listener(Reactor& reactor, Fd socket, OnConnection on_connection);
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  /// Stops; the socket is closed once the kernel has let go of it.
  ~Listener();

 private:
  struct Shared;
  static void accept_next(const std::shared_ptr<Shared>& shared);

  std::shared_ptr<Shared> shared_;
};

/// "address:port" or "[v6]:port" that `fd` is bound to. Errors: Errc::io_error.
[[nodiscard]] Result<std::string> bound_address(int fd);

}  // namespace replicad
