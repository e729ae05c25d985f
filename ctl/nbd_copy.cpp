#include "ctl/nbd_copy.h"

#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <vector>

#include <fcntl.h>
#include <libnbd.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/control/text.h"
#include "io/fd.h"
#include "io/file.h"

namespace replicad::ctl {

namespace {

constexpr int child_progress_fd = 3;
constexpr std::size_t child_stderr_bytes_max = 4096;

bool is_uri(const std::string& text) {
  return text.starts_with("nbd://") || text.starts_with("nbds://") ||
         text.starts_with("nbd+unix://") || text.starts_with("nbds+unix://");
}

Status refuse_qcow2(int fd, const std::string& path) {
  std::array<char, 4> magic{};
  if (::pread(fd, magic.data(), magic.size(), 0) != static_cast<ssize_t>(magic.size())) return {};
  if (std::string_view(magic.data(), magic.size()) != std::string_view("QFI\xfb", 4)) return {};
  return with_hint(
      fail(Errc::invalid_argument, "{} is a qcow2 image, not a raw one", printable(path)),
      "serve its content by `qemu-nbd -r -f qcow2 -k /path/socket IMAGE` and import "
      "nbd+unix:///?socket=/path/socket");
}

struct Pipe {
  Fd read_end;
  Fd write_end;
};

Result<Pipe> make_pipe() {
  std::array<int, 2> fds{-1, -1};
  if (::pipe2(fds.data(), O_CLOEXEC) != 0) return fail_errno(errno, "pipe");
  return Pipe{Fd(fds[0]), Fd(fds[1])};
}

/// posix_spawn's file actions and attributes, freed at the end.
struct SpawnSetup {
  posix_spawn_file_actions_t actions{};
  posix_spawnattr_t attributes{};

  SpawnSetup() {
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
  }
  ~SpawnSetup() {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }
  SpawnSetup(const SpawnSetup&) = delete;
  SpawnSetup& operator=(const SpawnSetup&) = delete;
};

Result<pid_t> spawn(const std::vector<std::string>& arguments, int progress_fd, int stderr_fd) {
  SpawnSetup setup;
  posix_spawn_file_actions_addopen(&setup.actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&setup.actions, stderr_fd, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&setup.actions, stderr_fd, STDERR_FILENO);
  posix_spawn_file_actions_adddup2(&setup.actions, progress_fd, child_progress_fd);
  // We ignore SIGPIPE; the child shall not, so that it ends when we have gone.
  sigset_t defaults;
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGPIPE);
  posix_spawnattr_setsigdefault(&setup.attributes, &defaults);
  posix_spawnattr_setflags(&setup.attributes, POSIX_SPAWN_SETSIGDEF);

  std::vector<char*> argv;
  argv.reserve(arguments.size() + 1);
  for (const std::string& argument : arguments)
    argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t pid = -1;
  const int error =
      posix_spawnp(&pid, argv[0], &setup.actions, &setup.attributes, argv.data(), environ);
  if (error == ENOENT) {
    return with_hint(fail(Errc::not_found, "nbdcopy is not installed"),
                     "it is in the package libnbd-bin");
  }
  if (error != 0) return fail_errno(error, "cannot start nbdcopy");
  return pid;
}

/// Reads "N/100" lines until the child closes its end.
void follow_progress(int fd, const std::function<void(unsigned percent)>& on_percent) {
  std::string pending;
  std::array<char, 512> buffer{};
  while (true) {
    const ssize_t bytes = ::read(fd, buffer.data(), buffer.size());
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes <= 0) return;
    pending.append(buffer.data(), static_cast<std::size_t>(bytes));
    for (std::size_t end = pending.find('\n'); end != std::string::npos; end = pending.find('\n')) {
      unsigned percent = 0;
      const auto [stop, error] = std::from_chars(pending.data(), pending.data() + end, percent);
      if (error == std::errc() && *stop == '/' && percent <= 100) on_percent(percent);
      pending.erase(0, end + 1);
    }
    if (pending.size() > buffer.size()) pending.clear();
  }
}

Result<int> wait_for(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return fail_errno(errno, "waiting for nbdcopy");
  }
  return status;
}

std::string read_stderr(int fd) {
  std::string text(child_stderr_bytes_max, '\0');
  const ssize_t bytes = ::pread(fd, text.data(), text.size(), 0);
  text.resize(bytes > 0 ? static_cast<std::size_t>(bytes) : 0);
  while (!text.empty() && (text.back() == '\n' || text.back() == ' '))
    text.pop_back();
  for (char& letter : text) {
    if (letter == '\n') letter = ';';
  }
  return text;
}

}  // namespace

Result<std::uint64_t> export_bytes(const std::string& uri) {
  const std::unique_ptr<nbd_handle, void (*)(nbd_handle*)> handle(nbd_create(), nbd_close);
  if (!handle) return fail(Errc::io_error, "libnbd: {}", nbd_get_error());
  if (nbd_connect_uri(handle.get(), uri.c_str()) != 0) {
    return fail(
        Errc::unreachable, "cannot open {}: {}", printable(uri), printable(nbd_get_error()));
  }
  const std::int64_t bytes = nbd_get_size(handle.get());
  nbd_shutdown(handle.get(), 0);
  if (bytes < 0) return fail(Errc::io_error, "{}: {}", printable(uri), printable(nbd_get_error()));
  return static_cast<std::uint64_t>(bytes);
}

Result<ImportSource> open_source(const std::string& text) {
  if (is_uri(text)) {
    const auto bytes = export_bytes(text);
    if (!bytes) return tl::unexpected(bytes.error());
    return ImportSource{text, *bytes};
  }
  const Fd fd(::open(text.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return fail_errno(errno, "cannot open {}", printable(text));
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return fail_errno(errno, "cannot look at {}", printable(text));
  if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode)) {
    return fail(Errc::invalid_argument, "{} is neither a file nor a block device", printable(text));
  }
  const auto bytes = image_bytes(fd.get());
  if (!bytes) return tl::unexpected(bytes.error());
  RD_TRY(refuse_qcow2(fd.get(), text));
  const std::unique_ptr<char, void (*)(void*)> path(::realpath(text.c_str(), nullptr), std::free);
  if (!path) return fail_errno(errno, "cannot resolve {}", printable(text));
  return ImportSource{path.get(), *bytes};
}

std::size_t count_connections(std::string_view proc_net_unix, std::string_view path) {
  // Num RefCount Protocol Flags Type St Inode Path; state 3 is a connected socket, and the ones
  // that the server has accepted carry its path.
  std::istringstream lines{std::string(proc_net_unix)};
  std::string line;
  std::size_t count = 0;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::array<std::string, 7> fields;
    for (std::string& field : fields)
      words >> field;
    std::string socket;
    words >> std::ws;
    std::getline(words, socket);
    if (fields[5] == "03" && socket == path) ++count;
  }
  return count;
}

Status run_nbdcopy(const std::string& source,
                   const std::string& destination_uri,
                   const std::function<void(unsigned percent)>& on_percent) {
  auto progress = make_pipe();
  if (!progress) return tl::unexpected(progress.error());
  const Fd errors(::memfd_create("nbdcopy-stderr", MFD_CLOEXEC));
  if (!errors.valid()) return fail_errno(errno, "memfd_create");
  // dup2 onto the same number would keep close-on-exec.
  if (progress->write_end.get() == child_progress_fd) {
    progress->write_end =
        Fd(::fcntl(progress->write_end.get(), F_DUPFD_CLOEXEC, child_progress_fd + 1));
    if (!progress->write_end.valid()) return fail_errno(errno, "dup");
  }
  const auto pid = spawn({"nbdcopy",
                          fmt::format("--progress={}", child_progress_fd),
                          "--flush",
                          "--",
                          source,
                          destination_uri},
                         progress->write_end.get(),
                         errors.get());
  if (!pid) return tl::unexpected(pid.error());
  progress->write_end.reset();
  follow_progress(progress->read_end.get(), on_percent);
  const auto status = wait_for(*pid);
  if (!status) return tl::unexpected(status.error());
  if (WIFEXITED(*status) && WEXITSTATUS(*status) == 0) return {};
  const std::string said = read_stderr(errors.get());
  return fail(
      Errc::io_error,
      "nbdcopy {}{}{}",
      WIFSIGNALED(*status) ? fmt::format("was killed by signal {}", WTERMSIG(*status)) : "failed",
      said.empty() ? "" : ": ",
      printable(said));
}

}  // namespace replicad::ctl
