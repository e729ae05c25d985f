#pragma once
// Addresses and sockets. An address is "host:port", "[v6]:port" or "unix:/path".

#include <string>

#include <sys/socket.h>

#include "core/base/result.h"
#include "io/fd.h"

namespace replicad {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;

  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  [[nodiscard]] int family() const { return storage.ss_family; }
  /// Loopback IP or unix socket.
  [[nodiscard]] bool is_local() const;
};

/// Resolves numerically first, then by getaddrinfo (blocking). Errors: Errc::invalid_argument.
[[nodiscard]] Result<SocketAddress> resolve(const std::string& address);
/// A listening socket, CLOEXEC. Errors: Errc::busy "... is in use" with the address. A stale unix socket file
/// whose owner is gone is replaced. Unix sockets get mode 0660.
[[nodiscard]] Result<Fd> listen_on(const std::string& address);
/// An unconnected socket for `address`, CLOEXEC; for TCP with TCP_NODELAY and TCP_USER_TIMEOUT.
[[nodiscard]] Result<Fd> make_socket(const SocketAddress& address);
/// TCP_NODELAY etc. on an accepted socket; harmless on unix sockets.
void tune_socket(int fd);
/// Connects, blocking, within `timeout_ms`.
[[nodiscard]] Result<Fd> connect_blocking(const std::string& address, int timeout_ms);

}  // namespace replicad
