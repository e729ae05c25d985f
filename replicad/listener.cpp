#include "replicad/listener.h"

#include <array>
#include <cerrno>

#include <arpa/inet.h>
#include <netinet/in.h>

#include "core/base/log.h"
#include "io/net.h"

namespace replicad {

namespace {

constexpr Duration accept_retry_delay = std::chrono::milliseconds(100);

}  // namespace

struct Listener::Shared {
  Reactor& reactor;
  Fd socket;
  OnConnection on_connection;
  bool stopped = false;
  bool complained = false;
};

Listener::Listener(Reactor& reactor, Fd socket, OnConnection on_connection)
    : shared_(new Shared{reactor, std::move(socket), std::move(on_connection)}) {
  accept_next(shared_);
}

Listener::~Listener() {
  shared_->stopped = true;
  shared_->reactor.cancel_fd(shared_->socket.get());
}

void Listener::accept_next(const std::shared_ptr<Shared>& shared) {
  shared->reactor.accept(shared->socket.get(), [shared](int result) {
    Fd connection(result >= 0 ? result : -1);
    if (shared->stopped) return;
    if (connection.valid()) {
      shared->complained = false;
      tune_socket(connection.get());
      shared->on_connection(std::move(connection));
    } else if (result != -ECONNABORTED && result != -EINTR) {
      if (!shared->complained) {
        const Error error = errno_to_error(-result, "accept a connection");
        log(LogLevel::error, "accept_failed", "error={}", log_value(error.message));
        shared->complained = true;
      }
      shared->reactor.add_timer(accept_retry_delay, [shared] {
        if (!shared->stopped) accept_next(shared);
      });
      return;
    }
    if (!shared->stopped) accept_next(shared);
  });
}

Result<std::string> bound_address(int fd) {
  SocketAddress address;
  address.length = sizeof address.storage;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address.storage), &address.length) != 0) {
    return fail_errno(errno, "getsockname");
  }
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (address.family() == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(address.get());
    ::inet_ntop(AF_INET, &v4->sin_addr, text.data(), text.size());
    return fmt::format("{}:{}", text.data(), ntohs(v4->sin_port));
  }
  if (address.family() == AF_INET6) {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(address.get());
    ::inet_ntop(AF_INET6, &v6->sin6_addr, text.data(), text.size());
    return fmt::format("[{}]:{}", text.data(), ntohs(v6->sin6_port));
  }
  return fail(Errc::io_error, "not a TCP socket");
}

}  // namespace replicad
