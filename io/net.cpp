#include "io/net.h"

#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>
#include <string_view>

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

namespace replicad {

namespace {

constexpr std::string_view unix_prefix = "unix:";
constexpr int backlog = 256;
// A peer that takes nothing for so long is gone, whatever the kernel's retransmissions still hope for.
constexpr int tcp_user_timeout_ms = 20'000;
constexpr int keepalive_idle_s = 10;
constexpr int keepalive_interval_s = 5;
constexpr int keepalive_probes = 3;

struct HostPort {
  std::string host;
  std::string port;
};

Result<SocketAddress> unix_address(const std::string& address) {
  const std::string path = address.substr(unix_prefix.size());
  SocketAddress result;
  auto* target = reinterpret_cast<sockaddr_un*>(&result.storage);
  if (path.empty()) return fail(Errc::invalid_argument, "address '{}' names no path", address);
  if (path.size() >= sizeof target->sun_path) {
    return with_hint(fail(Errc::invalid_argument,
                          "path of unix socket {} has {} bytes, at most {} are possible",
                          path,
                          path.size(),
                          sizeof target->sun_path - 1),
                     "choose a shorter run directory");
  }
  target->sun_family = AF_UNIX;
  std::memcpy(target->sun_path, path.c_str(), path.size() + 1);
  result.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
  return result;
}

Result<HostPort> split_host_port(const std::string& address) {
  const auto bad = [&] {
    return with_hint(fail(Errc::invalid_argument, "'{}' is no address", address),
                     "write host:port, [v6]:port or unix:/path");
  };
  const std::size_t colon = address.rfind(':');
  if (colon == std::string::npos) return bad();
  HostPort parts{address.substr(0, colon), address.substr(colon + 1)};
  if (parts.host.size() > 2 && parts.host.front() == '[' && parts.host.back() == ']') {
    parts.host = parts.host.substr(1, parts.host.size() - 2);
  } else if (parts.host.find_first_of(":[]") != std::string::npos) {
    return bad();
  }
  unsigned port = 0;
  const char* end = parts.port.data() + parts.port.size();
  const auto parsed = std::from_chars(parts.port.data(), end, port);
  const bool port_good = parsed.ec == std::errc() && parsed.ptr == end && port <= 65535;
  if (parts.host.empty() || !port_good) return bad();
  return parts;
}

/// nullptr on failure, with `error` = what getaddrinfo said.
std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> look_up(const HostPort& parts,
                                                             int flags,
                                                             int& error) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  error = ::getaddrinfo(parts.host.c_str(), parts.port.c_str(), &hints, &found);
  return {error == 0 ? found : nullptr, &::freeaddrinfo};
}

/// Whether nobody listens on the unix socket file any more.
bool is_stale_socket(const SocketAddress& address) {
  const char* path = reinterpret_cast<const sockaddr_un*>(&address.storage)->sun_path;
  struct stat status {};
  if (::lstat(path, &status) != 0 || !S_ISSOCK(status.st_mode)) return false;
  const Fd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe.valid()) return false;
  return ::connect(probe.get(), address.get(), address.length) != 0 && errno == ECONNREFUSED;
}

int bind_unix(int fd, const SocketAddress& address) {
  if (::bind(fd, address.get(), address.length) == 0) return 0;
  if (errno != EADDRINUSE || !is_stale_socket(address)) return errno;
  ::unlink(reinterpret_cast<const sockaddr_un*>(&address.storage)->sun_path);
  return ::bind(fd, address.get(), address.length) == 0 ? 0 : errno;
}

tl::unexpected<Error> listen_error(int sys_errno, const std::string& address) {
  if (sys_errno == EADDRINUSE) {
    return tl::unexpected(Error{Errc::busy,
                                sys_errno,
                                fmt::format("{} is in use", address),
                                "stop the program that listens there, or choose another address"});
  }
  auto error = fail_errno(sys_errno, "listen on {}", address);
  if (sys_errno != EADDRNOTAVAIL) return error;
  error.value().code = Errc::invalid_argument;
  return with_hint(std::move(error), "the address is none of this host");
}

void set_option(int fd, int level, int name, int value) {
  // Tuning only: a socket without it works.
  (void)::setsockopt(fd, level, name, &value, sizeof value);
}

void set_send_timeout(int fd, int timeout_ms) {
  timeval time{};
  time.tv_sec = timeout_ms / 1000;
  time.tv_usec = suseconds_t{timeout_ms % 1000} * 1000;
  (void)::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
}

tl::unexpected<Error> connect_error(int sys_errno, const std::string& address, int timeout_ms) {
  if (sys_errno == EINPROGRESS || sys_errno == EAGAIN || sys_errno == ETIMEDOUT) {
    return tl::unexpected(
        Error{Errc::timeout,
              sys_errno,
              fmt::format("connect to {}: no answer within {} ms", address, timeout_ms),
              {}});
  }
  auto error = fail_errno(sys_errno, "connect to {}", address);
  // A unix socket that is not there: its owner does not run.
  if (sys_errno == ENOENT) error.value().code = Errc::unreachable;
  return error;
}

}  // namespace

bool SocketAddress::is_local() const {
  if (family() == AF_UNIX) return true;
  if (family() == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(&storage);
    return (ntohl(v4->sin_addr.s_addr) >> 24) == IN_LOOPBACKNET;
  }
  if (family() != AF_INET6) return false;
  const in6_addr& v6 = reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_addr;
  if (IN6_IS_ADDR_V4MAPPED(&v6)) return v6.s6_addr[12] == IN_LOOPBACKNET;
  return IN6_IS_ADDR_LOOPBACK(&v6);
}

Result<SocketAddress> resolve(const std::string& address) {
  if (address.starts_with(unix_prefix)) return unix_address(address);
  const auto parts = split_host_port(address);
  if (!parts) return tl::unexpected(parts.error());
  int error = 0;
  auto found = look_up(*parts, AI_NUMERICHOST, error);
  if (!found) found = look_up(*parts, 0, error);
  if (!found) {
    return with_hint(fail(Errc::invalid_argument, "resolve {}: {}", address, ::gai_strerror(error)),
                     "use a numeric address, or a name that this host resolves");
  }
  SocketAddress result;
  std::memcpy(&result.storage, found->ai_addr, found->ai_addrlen);
  result.length = found->ai_addrlen;
  return result;
}

Result<Fd> listen_on(const std::string& address) {
  const auto resolved = resolve(address);
  if (!resolved) return tl::unexpected(resolved.error());
  Fd fd(::socket(resolved->family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return fail_errno(errno, "socket for {}", address);
  int failed = 0;
  if (resolved->family() == AF_UNIX) {
    failed = bind_unix(fd.get(), *resolved);
    // Before listen(): nobody can connect with other permissions.
    const std::string path = address.substr(unix_prefix.size());
    if (failed == 0 && ::chmod(path.c_str(), 0660) != 0) failed = errno;
  } else {
    set_option(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
    failed = ::bind(fd.get(), resolved->get(), resolved->length) == 0 ? 0 : errno;
  }
  if (failed == 0 && ::listen(fd.get(), backlog) != 0) failed = errno;
  if (failed != 0) return listen_error(failed, address);
  return fd;
}

Result<Fd> make_socket(const SocketAddress& address) {
  Fd fd(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return fail_errno(errno, "socket");
  tune_socket(fd.get());
  return fd;
}

void tune_socket(int fd) {
  int domain = 0;
  socklen_t length = sizeof domain;
  if (::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) != 0) return;
  if (domain != AF_INET && domain != AF_INET6) return;
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, tcp_user_timeout_ms);
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, keepalive_idle_s);
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, keepalive_interval_s);
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, keepalive_probes);
}

Result<Fd> connect_blocking(const std::string& address, int timeout_ms) {
  const auto resolved = resolve(address);
  if (!resolved) return tl::unexpected(resolved.error());
  auto fd = make_socket(*resolved);
  if (!fd) return fd;
  // The send timeout bounds connect() too, for TCP and for a unix socket whose backlog is full.
  set_send_timeout(fd->get(), timeout_ms);
  int result = 0;
  do {
    // After an interruption a second call goes on waiting for the same connection.
    result = ::connect(fd->get(), resolved->get(), resolved->length);
  } while (result != 0 && errno == EINTR);
  if (result != 0 && errno != EISCONN) return connect_error(errno, address, timeout_ms);
  set_send_timeout(fd->get(), 0);
  return fd;
}

}  // namespace replicad
