#include "replicad/service_manager.h"

#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <optional>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace replicad {

namespace {

constexpr int first_given_fd = 3;
constexpr int given_fds_max = 4096;

/// A variable that systemd sets, or null.
const char* variable(const char* name) {
  return std::getenv(name);  // NOLINT(concurrency-mt-unsafe): set before there are threads
}

std::optional<int> number_in(const char* name) {
  const char* text = variable(name);
  if (text == nullptr) return std::nullopt;
  int value = 0;
  const char* end = text + std::strlen(text);
  const auto [after, error] = std::from_chars(text, end, value);
  if (error != std::errc{} || after != end) return std::nullopt;
  return value;
}

/// `passed`: a descriptor that goes along, or -1.
void send_notice(std::string_view message, int passed) {
  const char* path = variable("NOTIFY_SOCKET");
  if (path == nullptr || (path[0] != '/' && path[0] != '@')) return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::size_t length = std::strlen(path);
  if (length >= sizeof address.sun_path) return;
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = '\0';
  const Fd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return;
  iovec part{const_cast<char*>(message.data()), message.size()};
  alignas(cmsghdr) std::byte control[CMSG_SPACE(sizeof passed)] = {};
  msghdr header{};
  header.msg_name = &address;
  header.msg_namelen = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length);
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (passed >= 0) {
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof passed);
    std::memcpy(CMSG_DATA(rights), &passed, sizeof passed);
  }
  static_cast<void>(::sendmsg(socket.get(), &header, MSG_NOSIGNAL));
}

}  // namespace

void notify_service_manager(std::string_view message) {
  send_notice(message, -1);
}

GivenSockets take_given_sockets() {
  GivenSockets given;
  const bool ours = number_in("LISTEN_PID") == ::getpid();
  const int count = ours ? number_in("LISTEN_FDS").value_or(0) : 0;
  const char* names = variable("LISTEN_FDNAMES");
  std::string_view rest = ours && names != nullptr ? names : "";
  for (int i = 0; i < count && i < given_fds_max; ++i) {
    const int fd = first_given_fd + i;
    const auto colon = rest.find(':');
    const std::string name(rest.substr(0, colon));
    rest = colon == std::string_view::npos ? std::string_view{} : rest.substr(colon + 1);
    if (::fcntl(fd, F_SETFD, FD_CLOEXEC) == 0) given.insert_or_assign(name, Fd(fd));
  }
  for (const char* name : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"})
    ::unsetenv(name);  // NOLINT(concurrency-mt-unsafe): before there are threads
  return given;
}

std::string stored_endpoint_name(const std::string& volume) {
  return "stored@" + volume;
}

void store_endpoint(const std::string& volume, int fd) {
  send_notice("FDSTORE=1\nFDNAME=" + stored_endpoint_name(volume), fd);
}

void forget_endpoint(const std::string& volume) {
  send_notice("FDSTOREREMOVE=1\nFDNAME=" + stored_endpoint_name(volume), -1);
}

}  // namespace replicad
