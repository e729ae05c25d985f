#include "tests/vm/slow_disk.h"

#include <filesystem>
#include <fstream>

#include <fmt/format.h>
#include <sched.h>
#include <sys/mount.h>

namespace replicad::vm {

using e2e::HarnessError;
using e2e::Millis;
using e2e::run_ok;
using e2e::wait_until;

namespace fs = std::filesystem;

SlowDisk::SlowDisk(const std::string& directory, std::uint64_t bytes, Millis write_delay)
    : directory_(directory) {
  if (::unshare(CLONE_NEWNS) != 0 ||
      ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
    throw HarnessError("cannot have mounts of its own (this test needs root)");
  fs::create_directories(path());
  const std::string raw = directory_ + "/disk.raw";
  std::ofstream(raw).flush();
  fs::resize_file(raw, bytes);
  run_ok({"mke2fs", "-q", "-t", "ext4", "-F", raw});
  std::ofstream(device()).flush();
  const std::string log = directory_ + "/log";
  process_ = std::make_unique<e2e::Process>(
      std::vector<std::string>{"nbdfuse",
                               device(),
                               "[",
                               "nbdkit",
                               "--exit-with-parent",
                               "--filter=delay",
                               "file",
                               raw,
                               fmt::format("wdelay={}ms", write_delay.count()),
                               "]"},
      log,
      log);
  wait_until("the slow disk is there", Millis(20'000), [&] {
    if (!process_->running()) throw HarnessError("nbdfuse: " + e2e::read_text(log));
    return fs::file_size(device()) == bytes;
  });
  run_ok({"mount", "-o", "loop", device(), path()});
}

SlowDisk::~SlowDisk() {
  ::umount2(path().c_str(), MNT_DETACH);
  ::umount2(device().c_str(), MNT_DETACH);
}

void SlowDisk::write_through(bool on) {
  run_ok({"mount", "-o", on ? "remount,sync" : "remount,async", path()});
}

}  // namespace replicad::vm
