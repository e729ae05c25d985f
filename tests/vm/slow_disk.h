#pragma once
// A file system on a disk that takes its time for each write: nbdkit's delay filter, nbdfuse, a loop device. Needs
// root. Main thread only.

#include <memory>
#include <string>

#include "tests/e2e/process.h"

namespace replicad::vm {

class SlowDisk {
 public:
  /// Mounted at `directory`/mnt, in a mount namespace that the calling thread and what it starts are in from then on:
  /// nothing stays mounted when they have ended.
  SlowDisk(const std::string& directory, std::uint64_t bytes, e2e::Millis write_delay);
  SlowDisk(const SlowDisk&) = delete;
  SlowDisk& operator=(const SlowDisk&) = delete;
  ~SlowDisk();

  [[nodiscard]] std::string path() const { return directory_ + "/mnt"; }
  /// From now on a write returns when the disk has it (mount option `sync`); before, when memory has it.
  void write_through(bool on);

 private:
  [[nodiscard]] std::string device() const { return directory_ + "/disk"; }

  std::string directory_;
  std::unique_ptr<e2e::Process> process_;
};

}  // namespace replicad::vm
