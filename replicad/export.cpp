#include "replicad/export.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
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

/// No descriptor but 0..2 and the listening socket, no blocked or ignored signal of ours goes to the
/// child.
void isolate(SpawnSetup& setup, const std::string& log_file, int listening) {
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
  ::posix_spawn_file_actions_adddup2(&setup.actions, listening, export_listen_fd);
  ::posix_spawn_file_actions_addclosefrom_np(&setup.actions, export_listen_fd + 1);
}

/// nbdkit believes in its socket only if LISTEN_PID is its own pid, which nobody knows before it runs.
constexpr const char* start_script = "export LISTEN_PID=$$; exec \"$@\"";

std::vector<std::string> arguments_of(const ExportCommand& command, const std::string& program) {
  return {"sh",
          "-c",
          start_script,
          "sh",
          program,
          "-f",
          "-P",
          command.pid_file(),
          command.plugin,
          "volume=" + command.volume,
          "agent=" + command.agent_socket};
}

/// This process's, without what its own service manager has told it.
std::vector<std::string> child_environment() {
  std::vector<std::string> variables{"LISTEN_FDS=1"};
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view variable = *entry;
    const bool is_ours = variable.starts_with("LISTEN_") ||
                         variable.starts_with("NOTIFY_SOCKET=") ||
                         variable.starts_with("WATCHDOG_");
    if (!is_ours) variables.emplace_back(variable);
  }
  return variables;
}

std::vector<char*> pointers_to(std::vector<std::string>& words) {
  std::vector<char*> pointers;
  pointers.reserve(words.size() + 1);
  for (std::string& word : words)
    pointers.push_back(word.data());
  pointers.push_back(nullptr);
  return pointers;
}

/// Where the program is, as execvp(3) would find it.
Result<std::string> find_program(const std::string& name) {
  const char* path = std::getenv("PATH");  // NOLINT(concurrency-mt-unsafe): nothing sets it
  std::string_view rest =
      path != nullptr ? path : "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  if (name.find('/') != std::string::npos) {
    if (::access(name.c_str(), X_OK) == 0) return name;
    return fail_errno(errno, "start {}", name);
  }
  while (!rest.empty()) {
    const auto colon = rest.find(':');
    const std::string candidate = fmt::format("{}/{}", rest.substr(0, colon), name);
    if (::access(candidate.c_str(), X_OK) == 0) return candidate;
    rest = colon == std::string_view::npos ? std::string_view{} : rest.substr(colon + 1);
  }
  return fail_errno(ENOENT, "start {}", name);
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

Result<std::shared_ptr<ExportProcess>> ExportProcess::spawn(const ExportCommand& command,
                                                            const Fd& listening) {
  const auto program = find_program(command.nbdkit);
  if (!program) {
    return with_hint(tl::unexpected(program.error()),
                     "is nbdkit installed, and does nbdkit= in the configuration name it?");
  }
  SpawnSetup setup;
  isolate(setup, command.log_file(), listening.get());
  std::vector<std::string> arguments = arguments_of(command, *program);
  std::vector<std::string> environment = child_environment();
  pid_t pid = 0;
  const int failed = ::posix_spawn(&pid,
                                   "/bin/sh",
                                   &setup.actions,
                                   &setup.attributes,
                                   pointers_to(arguments).data(),
                                   pointers_to(environment).data());
  if (failed != 0) return fail_errno(failed, "start {} for volume {}", *program, command.volume);
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

Result<Fd> ExportProcess::duplicate_fd(int number) const {
  Fd copy(::pidfd_getfd(pid_fd_.get(), number, 0));
  if (!copy.valid()) return fail_errno(errno, "take descriptor {} of process {}", number, pid_);
  return copy;
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
