#include "tests/e2e/process.h"

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <thread>

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/e2e/sanitizer.h"

namespace replicad::e2e {

namespace fs = std::filesystem;

void wait_until(const std::string& what, Millis limit, const std::function<bool()>& condition) {
  limit *= sanitizer_slowdown;
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) {
      throw HarnessError(fmt::format("not within {} ms: {}", limit.count(), what));
    }
    std::this_thread::sleep_for(Millis(15));
  }
}

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

namespace {

/// Those of io_uring, which nothing starts while the others are stopped, do not count.
bool is_paused(const fs::path& task) {
  const std::string stat = read_text(task / "stat");
  const std::size_t name_end = stat.rfind(')');
  if (name_end == std::string::npos || name_end + 2 >= stat.size()) return true;  // it has ended
  return contains(stat, "(iou-") || stat[name_end + 2] == 'T';
}

}  // namespace

void pause_process(pid_t pid) {
  if (::kill(pid, SIGSTOP) != 0) throw HarnessError(fmt::format("cannot stop process {}", pid));
  wait_until(fmt::format("process {} is stopped", pid), Millis(10'000), [pid] {
    std::error_code error;
    fs::directory_iterator task(fmt::format("/proc/{}/task", pid), error);
    for (; !error && task != fs::directory_iterator(); task.increment(error)) {
      if (!is_paused(task->path())) return false;
    }
    return true;
  });
}

TempDir::TempDir() {
  const char* base = std::getenv("TMPDIR");
  std::string pattern = fmt::format("{}/rd-e2e-XXXXXX", base != nullptr ? base : "/tmp");
  if (::mkdtemp(pattern.data()) == nullptr) throw HarnessError("cannot make " + pattern);
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

namespace {

[[noreturn]] void become(const std::vector<std::string>& arguments,
                         const std::string& out,
                         const std::string& err,
                         const std::vector<std::string>& environment) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const int null_fd = ::open("/dev/null", O_RDONLY);
  const int out_fd = ::open(out.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  const int err_fd = ::open(err.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  ::dup2(null_fd, 0);
  ::dup2(out_fd, 1);
  ::dup2(err_fd, 2);
  for (int fd = 3; fd < 1024; ++fd)
    ::close(fd);
  for (const std::string& entry : environment) {
    const auto equals = entry.find('=');
    ::setenv(entry.substr(0, equals).c_str(), entry.substr(equals + 1).c_str(), 1);
  }
  std::vector<char*> pointers;
  for (const std::string& argument : arguments) {
    pointers.push_back(const_cast<char*>(argument.c_str()));
  }
  pointers.push_back(nullptr);
  ::execvp(pointers[0], pointers.data());
  ::_exit(127);
}

int code_of(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

Process::Process(const std::vector<std::string>& arguments,
                 const std::string& stdout_path,
                 const std::string& stderr_path,
                 const std::vector<std::string>& environment)
    : name_(arguments.at(0)) {
  pid_ = ::fork();
  if (pid_ < 0) throw HarnessError("fork failed");
  if (pid_ == 0) become(arguments, stdout_path, stderr_path, environment);
}

Process::~Process() {
  if (pid_ > 0 && !ended_) kill9();
}

bool Process::running() {
  if (ended_) return false;
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG) == pid_) {
    ended_ = true;
    code_ = code_of(status);
  }
  return !ended_;
}

void Process::signal(int number) const {
  if (ended_) return;
  if (number == SIGSTOP) return pause_process(pid_);
  ::kill(pid_, number);
}

int Process::wait(Millis limit) {
  wait_until(
      fmt::format("{} (process {}) ends", name_, pid_), limit, [this] { return !running(); });
  return code_;
}

void Process::kill9() {
  signal(SIGKILL);
  int status = 0;
  if (!ended_ && ::waitpid(pid_, &status, 0) == pid_) {
    ended_ = true;
    code_ = code_of(status);
  }
}

std::string Finished::text() const {
  return fmt::format("exit code {}\n-- stdout:\n{}\n-- stderr:\n{}", exit_code, out, err);
}

Finished run(const std::vector<std::string>& arguments, const RunOptions& options) {
  const TempDir dir;
  const std::string out = dir.path() + "/out";
  const std::string err = dir.path() + "/err";
  Process process(arguments, out, err, options.environment);
  try {
    const int code = process.wait(options.limit);
    return {code, read_text(out), read_text(err)};
  } catch (const HarnessError& error) {
    process.kill9();
    throw HarnessError(fmt::format("{}\ncommand: {}\n{}{}",
                                   error.what(),
                                   fmt::join(arguments, " "),
                                   read_text(out),
                                   read_text(err)));
  }
}

Finished run_ok(const std::vector<std::string>& arguments, const RunOptions& options) {
  Finished finished = run(arguments, options);
  if (finished.exit_code != 0) {
    throw HarnessError(fmt::format("command: {}\n{}", fmt::join(arguments, " "), finished.text()));
  }
  return finished;
}

std::vector<pid_t> processes_with(const std::string& text) {
  std::vector<pid_t> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/proc", ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const auto pid = static_cast<pid_t>(std::stol(name));
    if (pid == ::getpid()) continue;
    const std::string command_line = read_text("/proc/" + name + "/cmdline");
    if (command_line.find(text) != std::string::npos) found.push_back(pid);
  }
  return found;
}

void kill_processes_with(const std::string& text) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  for (auto left = processes_with(text); !left.empty(); left = processes_with(text)) {
    for (const pid_t pid : left)
      ::kill(pid, SIGKILL);
    if (std::chrono::steady_clock::now() > end) return;
    std::this_thread::sleep_for(Millis(5));
  }
}

}  // namespace replicad::e2e
