#include "replicad/endpoint.h"

#include <array>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/base/log.h"
#include "io/net.h"

namespace replicad {

namespace {

constexpr int connect_timeout_ms = 1000;
constexpr std::size_t group_buffer_bytes = 16384;
/// At once; the rest waits for the next time.
constexpr int turned_away_max = 64;

/// Whether `fd` is a unix socket that listens at `path`.
bool listens_at(int fd, const std::string& path) {
  int listening = 0;
  socklen_t length = sizeof listening;
  if (::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) != 0 || listening == 0)
    return false;
  sockaddr_un address{};
  length = sizeof address;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return false;
  return address.sun_family == AF_UNIX &&
         std::strncmp(address.sun_path, path.c_str(), sizeof address.sun_path) == 0;
}

Status give_to_group(const std::string& path, const std::string& group) {
  ::group entry{};
  ::group* found = nullptr;
  std::array<char, group_buffer_bytes> buffer{};
  const int error = ::getgrnam_r(group.c_str(), &entry, buffer.data(), buffer.size(), &found);
  if (error != 0) return fail_errno(error, "look up the group {}", group);
  if (found == nullptr) {
    return with_hint(fail(Errc::not_found, "socket-group={}: there is no such group", group),
                     "correct socket-group in the configuration of replicad");
  }
  if (::chown(path.c_str(), static_cast<uid_t>(-1), entry.gr_gid) != 0)
    return fail_errno(errno, "give {} to the group {}", path, group);
  return {};
}

}  // namespace

Result<Fd> Endpoint::open_socket(const ExportCommand& command, const std::string& group) {
  const std::string path = command.socket();
  if (connect_blocking("unix:" + path, connect_timeout_ms)) {
    return with_hint(
        fail(Errc::busy, "a process still serves on {}", path),
        "it may be an export that has not come back to this replicad yet; wait, or end it");
  }
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return fail_errno(errno, "remove {}", path);
  auto socket = listen_on("unix:" + path);
  if (!socket || group.empty()) return socket;
  if (const Status given = give_to_group(path, group); !given) {
    ::unlink(path.c_str());
    return tl::unexpected(given.error());
  }
  return socket;
}

Result<Fd> Endpoint::duplicate() const {
  Fd copy(::fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) return fail_errno(errno, "duplicate the socket {}", path_);
  return copy;
}

void Endpoint::hold(Fd socket) {
  drop();
  fd_ = std::move(socket);
  is_units_ = false;
  store_endpoint(volume_, fd_.get());
}

void Endpoint::take_given(GivenSockets& given) {
  for (const bool is_units : {true, false}) {
    const auto found = given.find(is_units ? volume_ : stored_endpoint_name(volume_));
    if (found == given.end()) continue;
    if (!fd_.valid() && listens_at(found->second.get(), path_)) {
      fd_ = std::move(found->second);
      is_units_ = is_units;
    } else if (!fd_.valid()) {
      log(LogLevel::warn, "socket_not_taken", "volume={} wanted={}", volume_, log_value(path_));
    }
    given.erase(found);
  }
}

Status Endpoint::take_from(const ExportProcess& process) {
  if (fd_.valid()) return {};
  auto socket = process.duplicate_fd(export_listen_fd);
  if (!socket) return tl::unexpected(socket.error());
  if (!listens_at(socket->get(), path_))
    return fail(Errc::not_found, "process {} does not listen on {}", process.pid(), path_);
  hold(std::move(*socket));
  return {};
}

void Endpoint::drop() {
  if (!fd_.valid() || is_units_) return;
  fd_.reset();
  ::unlink(path_.c_str());
  forget_endpoint(volume_);
}

void Endpoint::turn_away() const {
  for (int i = 0; fd_.valid() && i < turned_away_max; ++i) {
    pollfd waiting{fd_.get(), POLLIN, 0};
    if (::poll(&waiting, 1, 0) <= 0) return;
    const Fd client(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  }
}

}  // namespace replicad
