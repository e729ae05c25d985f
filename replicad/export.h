#pragma once
// The nbdkit process that serves one volume: starting it, finding out that it serves, ending it.
// It is handed the listening socket (endpoint.h) the way systemd does. The process is in a session
// of its own and outlives replicad. Any thread; everything here may block.

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>

#include <sys/types.h>

#include "core/base/result.h"
#include "core/base/time.h"
#include "io/fd.h"

namespace replicad {

/// Where nbdkit finds its listening socket: the first descriptor of sd_listen_fds(3).
constexpr int export_listen_fd = 3;

struct ExportCommand {
  std::string nbdkit;
  std::string plugin;
  std::string volume;
  std::string agent_socket;
  std::string run_dir;

  [[nodiscard]] std::string socket() const { return run_dir + "/" + volume + ".sock"; }
  [[nodiscard]] std::string pid_file() const { return run_dir + "/" + volume + ".pid"; }
  [[nodiscard]] std::string log_file() const { return run_dir + "/" + volume + ".log"; }
};

/// A process by its pidfd, so that no other process is ever signalled in its place.
class ExportProcess {
 public:
  /// Starts nbdkit in the foreground; it takes its clients from `listening`. Errors:
  /// Errc::not_found for the program, others.
  [[nodiscard]] static Result<std::shared_ptr<ExportProcess>> spawn(const ExportCommand& command,
                                                                    const Fd& listening);
  /// A process that somebody else started. Errors: Errc::not_found when it is gone,
  /// Errc::invalid_argument for this process itself.
  [[nodiscard]] static Result<std::shared_ptr<ExportProcess>> adopt(pid_t pid);

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// A duplicate of a descriptor that the process has. Errors: it has none of that number, or this process may not
  /// (ptrace(2) rules).
  [[nodiscard]] Result<Fd> duplicate_fd(int number) const;
  /// Whether it has ended, after waiting for at most `timeout`. Collects the exit status of a
  /// child.
  [[nodiscard]] bool wait_exit(std::chrono::milliseconds timeout);
  /// Sends `signal`; nothing happens if the process has ended.
  void kill(int signal);
  /// Ends it: SIGTERM, after `grace` SIGKILL. False if it is still there after that
  /// (uninterruptible sleep).
  [[nodiscard]] bool terminate(std::chrono::milliseconds grace);

 private:
  ExportProcess(pid_t pid, Fd pid_fd, bool is_child)
      : pid_(pid), pid_fd_(std::move(pid_fd)), is_child_(is_child) {}

  pid_t pid_;
  Fd pid_fd_;
  bool is_child_;
  std::atomic<bool> exited_{false};
  std::mutex reap_mutex_;
};

/// What the process has written to command.log_file() since the start, at most its last 10 lines,
/// as one line.
[[nodiscard]] std::string last_output(const ExportCommand& command);

/// Connects as an NBD client would and takes the server's greeting. Errors say what did not come.
[[nodiscard]] Status probe_nbd(const std::string& socket, std::chrono::milliseconds timeout);

}  // namespace replicad
