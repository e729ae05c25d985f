#pragma once
// A site for the scripts of docs/examples: their configuration, and a stand-in for ssh that runs the command with the
// files of that host. Main thread only.

#include <string>
#include <vector>

#include "tests/vm/guest_volume.h"

namespace replicad::vm {

class Site {
 public:
  /// `driver`: of the scripts, qemu or virsh. Under virsh libvirtd's socket of host NAME is
  /// NAME/libvirt/run/libvirt-sock.
  explicit Site(Cluster& cluster, const std::string& driver = "qemu");

  /// The options of the next guest that guest-qemu.sh starts, and `more` of them.
  void set_guest(const Guest& guest, const std::string& more = "") const;
  /// On the primary, by guest-qemu.sh.
  void start_guest();
  /// Runs one of docs/examples; what it says. Throws on a status.
  std::string run(const std::vector<std::string>& words,
                  const std::vector<std::string>& environment = {});
  /// The same, with any status.
  e2e::Finished try_run(std::vector<std::string> words,
                        const std::vector<std::string>& environment = {});
  /// Of a guest that guest-qemu.sh has started on `host`.
  [[nodiscard]] std::string pid_file(const std::string& host) const;
  /// PATH=.. with the site's replicactl, and the scripts.
  [[nodiscard]] std::string path() const;
  /// The hosts that were fenced, a line each.
  [[nodiscard]] std::string fenced() const;

 private:
  void write_hosts() const;
  void write_program(const std::string& name, const std::string& text) const;

  Cluster& cluster_;
  std::string dir_;
};

}  // namespace replicad::vm
