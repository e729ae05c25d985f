#include "replicad/export.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

// glibc 2.36 leaves the linkage to whoever includes it.
extern "C" {
#include <sys/pidfd.h>
}

#include "io/file.h"
#include "io/net.h"

namespace replicad {

namespace {

constexpr std::size_t output_bytes_max = 4096;
constexpr std::size_t output_lines_max = 10;

/// Owns the attributes and file actions of one posix_spawn.
class SpawnSetup {
 public:
  SpawnSetup() {
    ::posix_spawnattr_init(&attributes);
    ::posix_spawn_file_actions_init(&actions);
  }
  SpawnSetup(const SpawnSetup&) = delete;
  SpawnSetup& operator=(const SpawnSetup&) = delete;
  ~SpawnSetup() {
    ::posix_spawnattr_destroy(&attributes);
    ::posix_spawn_file_actions_destroy(&actions);
  }

  posix_spawnattr_t attributes{};
  posix_spawn_file_actions_t actions{};
};

/// No descriptor but 0..2, no blocked or ignored signal of ours goes to the child.
void isolate(SpawnSetup& setup, const std::string& log_file) {
  sigset_t none;
  sigset_t all;
  ::sigemptyset(&none);
  ::sigfillset(&all);
  ::posix_spawnattr_setsigmask(&setup.attributes, &none);
  ::posix_spawnattr_setsigdefault(&setup.attributes, &all);
  ::posix_spawnattr_setflags(&setup.attributes,
                             POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  ::posix_spawn_file_actions_addopen(&setup.actions, 0, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_addopen(
      &setup.actions, 1, log_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0640);
  ::posix_spawn_file_actions_adddup2(&setup.actions, 1, 2);
  ::posix_spawn_file_actions_addclosefrom_np(&setup.actions, 3);
}

std::vector<std::string> arguments_of(const ExportCommand& command) {
  return {command.nbdkit,
          "-f",
          "-U",
          command.socket(),
          "-P",
          command.pid_file(),
          command.plugin,
          "volume=" + command.volume,
          "agent=" + command.agent_socket};
}

Status receive_exactly(int fd,
                       std::byte* to,
                       std::size_t count,
                       std::chrono::milliseconds timeout) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  while (count > 0) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        end - std::chrono::steady_clock::now());
    pollfd waiting{fd, POLLIN, 0};
    if (left.count() <= 0 || ::poll(&waiting, 1, static_cast<int>(left.count())) == 0) {
      return fail(Errc::timeout, "no NBD greeting within {} ms", timeout.count());
    }
    const ssize_t got = ::recv(fd, to, count, MSG_DONTWAIT);
    if (got == 0) return fail(Errc::unreachable, "the NBD server closed the connection");
    if (got < 0 && errno != EAGAIN && errno != EINTR)
      return fail_errno(errno, "receive the NBD greeting");
    if (got > 0) {
      to += got;
      count -= static_cast<std::size_t>(got);
    }
  }
  return {};
}

}  // namespace

Result<std::shared_ptr<ExportProcess>> ExportProcess::spawn(const ExportCommand& command) {
  SpawnSetup setup;
  isolate(setup, command.log_file());
  std::vector<std::string> arguments = arguments_of(command);
  std::vector<char*> pointers;
  pointers.reserve(arguments.size() + 1);
  for (std::string& argument : arguments)
    pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  pid_t pid = 0;
  const int failed = ::posix_spawnp(
      &pid, command.nbdkit.c_str(), &setup.actions, &setup.attributes, pointers.data(), environ);
  if (failed != 0) {
    return with_hint(fail_errno(failed, "start {} for volume {}", command.nbdkit, command.volume),
                     "is nbdkit installed, and does nbdkit= in the configuration name it?");
  }
  Fd pid_fd(::pidfd_open(pid, 0));
  if (!pid_fd.valid()) {
    const int error = errno;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return fail_errno(error, "pidfd_open");
  }
  return std::shared_ptr<ExportProcess>(new ExportProcess(pid, std::move(pid_fd), true));
}

Result<std::shared_ptr<ExportProcess>> ExportProcess::adopt(pid_t pid) {
  if (pid <= 1 || pid == ::getpid()) {
    return fail(Errc::invalid_argument, "process {} cannot be an export", pid);
  }
  Fd pid_fd(::pidfd_open(pid, 0));
  if (!pid_fd.valid()) return fail_errno(errno == ESRCH ? ENOENT : errno, "process {}", pid);
  return std::shared_ptr<ExportProcess>(new ExportProcess(pid, std::move(pid_fd), false));
}

bool ExportProcess::wait_exit(std::chrono::milliseconds timeout) {
  if (exited_) return true;
  pollfd waiting{pid_fd_.get(), POLLIN, 0};
  if (::poll(&waiting, 1, static_cast<int>(timeout.count())) <= 0) return false;
  const std::lock_guard lock(reap_mutex_);
  if (!exited_ && is_child_) {
    siginfo_t info{};
    ::waitid(P_PIDFD, static_cast<id_t>(pid_fd_.get()), &info, WEXITED | WNOHANG);
  }
  exited_ = true;
  return true;
}

void ExportProcess::kill(int signal) {
  if (!exited_) ::pidfd_send_signal(pid_fd_.get(), signal, nullptr, 0);
}

bool ExportProcess::terminate(std::chrono::milliseconds grace) {
  kill(SIGTERM);
  if (wait_exit(grace)) return true;
  kill(SIGKILL);
  return wait_exit(std::chrono::seconds(5));
}

std::string last_output(const ExportCommand& command) {
  const Fd file(::open(command.log_file().c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return {};
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) return {};
  const off_t from = std::max<off_t>(0, info.st_size - static_cast<off_t>(output_bytes_max));
  std::string text(output_bytes_max, '\0');
  const ssize_t got = ::pread(file.get(), text.data(), text.size(), from);
  text.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
  while (!text.empty() && text.back() == '\n')
    text.pop_back();
  std::size_t begin = text.size();
  for (std::size_t lines = 0; lines < output_lines_max && begin != std::string::npos && begin > 0;
       ++lines) {
    begin = text.rfind('\n', begin - 1);
  }
  if (begin != std::string::npos && begin > 0) text.erase(0, begin + 1);
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < ' ') c = c == '\n' ? '|' : ' ';
  }
  return text;
}

Status remove_stale_socket(const ExportCommand& command) {
  const std::string path = command.socket();
  if (connect_blocking("unix:" + path, 1000)) {
    return with_hint(
        fail(Errc::busy, "a process still serves on {}", path),
        "it may be an export that has not come back to this replicad yet; wait, or end it");
  }
  for (const std::string& file : {path, command.pid_file()}) {
    if (::unlink(file.c_str()) != 0 && errno != ENOENT) return fail_errno(errno, "remove {}", file);
  }
  return {};
}

Status probe_nbd(const std::string& socket, std::chrono::milliseconds timeout) {
  auto connection = connect_blocking("unix:" + socket, static_cast<int>(timeout.count()));
  if (!connection) return tl::unexpected(connection.error());
  std::array<std::byte, 18> greeting{};
  RD_TRY(receive_exactly(connection->get(), greeting.data(), greeting.size(), timeout));
  if (std::memcmp(greeting.data(), "NBDMAGICIHAVEOPT", 16) != 0) {
    return fail(Errc::protocol, "what listens on {} is no NBD server", socket);
  }
  // Client flags (fixed newstyle), then NBD_OPT_ABORT: the polite way to leave.
  constexpr std::string_view farewell("\0\0\0\1IHAVEOPT\0\0\0\2\0\0\0\0", 20);
  static_cast<void>(::send(connection->get(), farewell.data(), farewell.size(), MSG_NOSIGNAL));
  std::array<std::byte, 20> answer{};
  static_cast<void>(receive_exactly(connection->get(), answer.data(), answer.size(), timeout));
  return {};
}

}  // namespace replicad
