#pragma once
// Child processes of a test: started with output in files, waited for with a deadline, ended by
// process id.

#include <chrono>
#include <csignal>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

namespace replicad::e2e {

using Millis = std::chrono::milliseconds;

inline bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

/// Anything the harness finds wrong; doctest reports it as the test's failure.
class HarnessError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Polls `condition` until it holds. After `limit` (more in a build with sanitizers) throws
/// HarnessError naming `what`.
void wait_until(const std::string& what, Millis limit, const std::function<bool()>& condition);

std::string read_text(const std::string& path);

/// SIGSTOP. When it returns no thread of the process runs any more: one on its way to the stop still does.
void pause_process(pid_t pid);

/// A folder below $TMPDIR that goes away with the object.
class TempDir {
 public:
  TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir();
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// A running program. The destructor kills it. Main thread only (it dies with the thread that
/// started it).
class Process {
 public:
  /// stdout and stderr go to the files named; both may be the same one. `environment`: "KEY=VALUE"
  /// to add.
  Process(const std::vector<std::string>& arguments,
          const std::string& stdout_path,
          const std::string& stderr_path,
          const std::vector<std::string>& environment = {});
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process();

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] bool running();
  /// SIGSTOP: pause_process().
  void signal(int number) const;
  /// Waits for the end; exit code, or 128 + signal. Throws after `limit`.
  int wait(Millis limit);
  /// SIGKILL, and waits.
  void kill9();

 private:
  pid_t pid_ = -1;
  bool ended_ = false;
  int code_ = 0;
  std::string name_;
};

struct Finished {
  int exit_code = 0;
  std::string out;
  std::string err;

  /// Command's exit code and output, for messages.
  [[nodiscard]] std::string text() const;
};

struct RunOptions {
  Millis limit{60'000};
  std::vector<std::string> environment;
};

/// Runs a program to its end. Throws only if it does not end in time.
Finished run(const std::vector<std::string>& arguments, const RunOptions& options = {});
/// The same; throws with the output unless it exits with 0.
Finished run_ok(const std::vector<std::string>& arguments, const RunOptions& options = {});

/// Ids of the processes whose command line contains `text`.
std::vector<pid_t> processes_with(const std::string& text);
/// SIGKILLs them all, by id, until none is left.
void kill_processes_with(const std::string& text);

}  // namespace replicad::e2e
