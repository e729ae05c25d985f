#pragma once
// A virtual machine under QEMU (TCG), driven by its serial console: Debian's kernel, and the root file system of its
// first disk. Main thread only.

#include <memory>
#include <string>
#include <vector>

#include "io/fd.h"
#include "tests/e2e/process.h"

namespace replicad::vm {

using e2e::Millis;

/// Under TCG, on a machine that does other things as well.
constexpr Millis boot_patience(480'000);
constexpr Millis guest_patience(120'000);

class Guest {
 public:
  /// Starts QEMU. `arguments`: those of `replicactl attach-info`, and others. `directory` is this guest's alone.
  Guest(const std::string& directory, const std::vector<std::string>& arguments);
  /// A guest that something else starts, a script for instance, with the options machine().
  explicit Guest(std::string directory);

  static constexpr const char* kernel_options = "console=ttyS0 quiet panic=-1 no_timer_check";
  /// Of a pair of pipes, PATH.in and PATH.out, as QEMU has them.
  [[nodiscard]] std::string console_path() const { return directory_ + "/console"; }
  /// QEMU's options but for disks and files of its process.
  [[nodiscard]] std::vector<std::string> machine() const;

  void wait_boot();
  /// A shell command in the guest, waited for; its output. Throws on a non-zero status, with the console.
  std::string run(const std::string& command, Millis limit = guest_patience);
  /// Without waiting: the guest's job, until another one is started.
  void start(const std::string& command);
  /// All that the console has said.
  [[nodiscard]] std::string console() const;
  /// How many records the guest has had acknowledged, by what it has said: the last `acked N`, plus one.
  [[nodiscard]] unsigned long acked() const;
  void wait_acked(unsigned long count, Millis limit = guest_patience);
  /// Stops the writer; the longest time a record took, in ms.
  unsigned long stop_writer();
  /// Signals the job, and waits for its end. Throws if it ends with a status.
  void end_job(const std::string& signal);
  /// The longest time that a request of `records churn` took since this was asked before.
  Millis longest_request();
  /// Until the console has said `text`.
  void wait_said(const std::string& text, Millis limit = guest_patience);
  /// The number behind the last `word` that it has said, or -1.
  [[nodiscard]] long last_said(const std::string& word) const;
  /// Of what the console has said.
  [[nodiscard]] std::string output_path() const { return console_path() + ".out"; }
  /// Unmounts and switches off.
  void shutdown(const std::string& pid_file = {});
  /// `pid_file`: of a QEMU that something else has started, here as above.
  void wait_off(const std::string& pid_file = {});
  /// Error messages of the kernel since boot that speak of disks or file systems.
  [[nodiscard]] std::string disk_errors();
  /// Of the QEMU that was started here.
  [[nodiscard]] bool running() { return process_->running(); }
  void kill9();

 private:
  [[nodiscard]] std::string input_path() const { return console_path() + ".in"; }
  void send(const std::string& line);

  std::string directory_;
  Fd input_;
  std::unique_ptr<e2e::Process> process_;
  unsigned commands_ = 0;
};

}  // namespace replicad::vm
