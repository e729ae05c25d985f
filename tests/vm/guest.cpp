#include "tests/vm/guest.h"

#include <filesystem>
#include <fstream>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

namespace replicad::vm {

using e2e::HarnessError;
using e2e::read_text;
using e2e::wait_until;

namespace {

/// The number behind the last `word` in `text` that a line end follows, or -1.
long last_number(const std::string& text, const std::string& word) {
  const auto end = text.rfind('\n');
  const auto at = end == std::string::npos ? end : text.rfind(word, end);
  return at == std::string::npos ? -1 : std::atol(text.c_str() + at + word.size());
}

}  // namespace

Guest::Guest(std::string directory) : directory_(std::move(directory)) {
  std::filesystem::create_directories(directory_);
  std::ofstream(output_path(), std::ios::trunc).flush();
  std::filesystem::remove(input_path());
  if (::mkfifo(input_path().c_str(), 0600) != 0) throw HarnessError("mkfifo " + input_path());
  // Opened for both, a FIFO keeps nobody waiting.
  input_ = Fd(::open(input_path().c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
}

Guest::Guest(const std::string& directory, const std::vector<std::string>& arguments)
    : Guest(directory) {
  std::vector<std::string> words = {"qemu-system-x86_64", "-pidfile", directory_ + "/qemu.pid"};
  for (const auto& more : {machine(), arguments})
    words.insert(words.end(), more.begin(), more.end());
  const std::string log = directory_ + "/qemu.log";
  process_ = std::make_unique<e2e::Process>(words, log, log);
}

std::vector<std::string> Guest::machine() const {
  const std::string guest = RD_GUEST;
  return {"-M",
          "pc,accel=tcg",
          "-cpu",
          // QEMU 7.2 spoils the flags of cmpxchg16b, which Linux 6.12 uses from its start.
          "max,-cx16",
          "-m",
          "192",
          "-nodefaults",
          "-no-user-config",
          "-no-reboot",
          "-display",
          "none",
          "-chardev",
          // Two files: a FIFO for what is typed, a plain file for what is said.
          "pipe,id=console,path=" + console_path(),
          "-serial",
          "chardev:console",
          "-kernel",
          guest + "/kernel",
          "-initrd",
          guest + "/initramfs",
          "-append",
          kernel_options};
}

void Guest::send(const std::string& line) {
  const std::string text = line + "\n";
  if (::write(input_.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    throw HarnessError("the guest's console does not take input");
}

std::string Guest::console() const {
  return read_text(output_path());
}

void Guest::wait_boot() {
  try {
    wait_until("the guest is up", boot_patience, [this] {
      const std::string said = console();
      const bool ended = process_ && !process_->running();
      if (ended || said.find("GUEST-FAILED") != std::string::npos)
        throw HarnessError("the guest did not start: " + read_text(directory_ + "/qemu.log"));
      return said.find("GUEST-READY") != std::string::npos;
    });
  } catch (const HarnessError& error) {
    throw HarnessError(fmt::format("{}\nconsole: {}", error.what(), console()));
  }
}

std::string Guest::run(const std::string& command, Millis limit) {
  const std::string mark = fmt::format("END-{}-", ++commands_);
  const std::size_t from = console().size();
  send(fmt::format("{}; echo \"{}$?\"", command, mark));
  std::string said;
  std::size_t at = std::string::npos;
  try {
    wait_until("the guest has run: " + command, limit, [&] {
      said = console().substr(from);
      at = said.find("\n" + mark);
      if (at == std::string::npos && said.starts_with(mark)) at = 0;
      return at != std::string::npos && said.find('\n', at + 1) != std::string::npos;
    });
  } catch (const HarnessError& error) {
    throw HarnessError(fmt::format("{}\nconsole: {}", error.what(), console()));
  }
  const int status = std::atoi(said.c_str() + said.find(mark) + mark.size());
  if (status != 0)
    throw HarnessError(fmt::format("in the guest: {}: status {}\n{}", command, status, said));
  return said.substr(0, at);
}

void Guest::start(const std::string& command) {
  send(fmt::format("{} & job=$!", command));
}

unsigned long Guest::acked() const {
  return static_cast<unsigned long>(last_number(console(), "acked ") + 1);
}

void Guest::wait_acked(unsigned long count, Millis limit) {
  try {
    wait_until(
        fmt::format("{} records are acknowledged", count), limit, [&] { return acked() >= count; });
  } catch (const HarnessError& error) {
    throw HarnessError(fmt::format("{}\nconsole: {}", error.what(), console()));
  }
}

unsigned long Guest::stop_writer() {
  end_job("TERM");
  return static_cast<unsigned long>(std::max(0L, last_said("pause ")));
}

void Guest::end_job(const std::string& signal) {
  run(fmt::format("kill -{} $job; wait $job", signal));
}

void Guest::wait_said(const std::string& text, Millis limit) {
  try {
    wait_until("the guest says: " + text, limit, [&] { return e2e::contains(console(), text); });
  } catch (const HarnessError& error) {
    throw HarnessError(fmt::format("{}\nconsole: {}", error.what(), console()));
  }
}

long Guest::last_said(const std::string& word) const {
  return last_number(console(), word);
}

Millis Guest::longest_request() {
  const std::size_t from = console().size();
  run("kill -USR1 $job");
  long longest = -1;
  wait_until("the writer says its pause", guest_patience, [&] {
    longest = last_number(console().substr(from), "pause ");
    return longest >= 0;
  });
  return Millis(longest);
}

std::string Guest::disk_errors() {
  return run(
      "dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)|XFS.*(error|corrupt)|remount.*read-only|"
      "Buffer I/O' || true");
}

void Guest::shutdown(const std::string& pid_file) {
  run("sync; mount -o remount,ro /");
  send("poweroff -f");
  wait_off(pid_file);
}

void Guest::wait_off(const std::string& pid_file) {
  const std::string path = pid_file.empty() ? directory_ + "/qemu.pid" : pid_file;
  const pid_t pid = std::atoi(read_text(path).c_str());
  wait_until("the guest is off", guest_patience, [&] {
    if (process_) return !process_->running();
    return pid <= 1 || ::kill(pid, 0) != 0;
  });
}

void Guest::kill9() {
  process_->kill9();
}

}  // namespace replicad::vm
