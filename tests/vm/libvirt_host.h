#pragma once
// libvirtd of one host, with its guests under emulated CPUs. Needs root. Main thread only.

#include <memory>
#include <string>
#include <vector>

#include "tests/vm/guest.h"

namespace replicad::vm {

class LibvirtHost {
 public:
  /// Started, with `environment`. Its files go to `directory`/libvirt; what its guests find at /run/replica is
  /// `directory`/run. `hook`: with that of docs/examples.
  explicit LibvirtHost(std::string directory,
                       std::vector<std::string> environment = {},
                       bool hook = false);

  /// The domain vm1: `guest`'s console, and disks as the guide says for libvirt before 9.2.
  void define(const Guest& guest, const std::vector<std::string>& disk_arguments);
  void virsh(const std::vector<std::string>& words);
  /// Of the QEMU of vm1.
  [[nodiscard]] std::string pid_file() const { return run() + "/qemu/vm1.pid"; }
  /// libvirtd and its guests.
  void kill9();
  /// After kill9(): what was in /run is gone, the definitions are there.
  void start();

 private:
  [[nodiscard]] std::string run() const { return directory_ + "/libvirt/run"; }
  /// A path below `directory`/run is the same on every host then.
  [[nodiscard]] std::string seen_by_guests(std::string text) const;

  std::string directory_;
  std::vector<std::string> environment_;
  std::unique_ptr<e2e::Process> process_;
};

}  // namespace replicad::vm
