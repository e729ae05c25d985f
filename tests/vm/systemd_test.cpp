// A host that systemd runs, in a guest: the units of packaging/ under a kernel device that is in use.
#include <doctest/doctest.h>

#include "tests/vm/guest_volume.h"

namespace replicad::vm {
namespace {

const std::string root_image = std::string(RD_GUEST) + "/systemd.raw";

std::vector<std::string> machine_with_systemd() {
  return {"-m",
          "512",
          "-drive",
          "if=virtio,format=raw,file.locking=off,file=" + root_image + ",snapshot=on"};
}

/// Serves vm1 in the guest, whose kernel has it as a device.
class HostUnderSystemd {
 public:
  explicit HostUnderSystemd(const std::string& directory)
      : guest_(directory + "/guest", machine_with_systemd()) {
    guest_.wait_boot();
    guest_.run("grep -qx systemd /proc/1/comm");
    guest_.run("systemd-analyze verify --man=no replicad.service replica-nbd@vm1.socket");
  }

  Guest& guest() { return guest_; }
  void serve() {
    guest_.run("systemctl enable --now replicad");  // until it has said that it is ready
    guest_.run(ctl + "create vm1 --size 48M --on a --copies 1 --set=autostart=yes");
    guest_.run(ctl + "activate vm1");
    guest_.run("systemd-run --unit=attach " + ctl + "attach vm1 /dev/nbd0 --foreground");
    guest_.run("until grep -qvx 0 /sys/block/nbd0/size; do sleep 0.2; done");
    guest_.run("/usr/sbin/mke2fs -q -t ext4 /dev/nbd0 && mount /dev/nbd0 /mnt");
    guest_.start("records churn /mnt/records 256");
    go_on();
  }
  void go_on() { guest_.wait_acked(guest_.acked() + 20); }
  /// An export that has ended early is started later.
  void kill_export() {
    wait_served_for_a_while();
    guest_.run("kill -9 $(cat /run/replica/vm1.pid)");
  }
  /// Runs it, which kills replicad; until systemd has started that again.
  void kill_replicad(const std::string& command) {
    guest_.run("systemctl show -P MainPID replicad >/tmp/pid");
    guest_.run(command);
    guest_.run(
        "until systemctl is-active -q replicad && "
        "! systemctl show -P MainPID replicad | cmp -s - /tmp/pid; do sleep 0.2; done");
  }
  void finish() {
    MESSAGE("longest request on the device: ", guest_.longest_request().count(), " ms");
    guest_.end_job("TERM");
    CHECK(guest_.last_said("verified ") == 256);
    CHECK(guest_.disk_errors().empty());
    guest_.run("umount /mnt");
    guest_.run(ctl + "detach vm1");
    guest_.run(ctl + "deactivate vm1");
  }

 private:
  const std::string ctl = "replicactl --hosts a=127.0.0.1:7401 --timeout 60 ";
  Guest guest_;
};

TEST_CASE("vm: under systemd nbdkit and replicad are killed, a device above them sees no error") {
  for (const bool socket_unit : {false, true}) {
    CAPTURE(socket_unit);
    const Cluster cluster(0, scenario_limit);  // its directory and its deadline
    HostUnderSystemd host(cluster.directory());
    Guest& guest = host.guest();
    if (socket_unit) guest.run("systemctl enable --now replica-nbd@vm1.socket");
    host.serve();
    guest.run("stat -c %i /run/replica/vm1.sock >/tmp/socket");
    host.kill_export();
    host.go_on();
    guest.run("systemctl restart replicad");
    host.go_on();
    host.kill_replicad("systemctl kill --kill-who=main -s KILL replicad");
    host.go_on();
    // Both at once: systemd has the socket.
    wait_served_for_a_while();
    host.kill_replicad("kill -9 $(cat /run/replica/vm1.pid /tmp/pid)");
    host.go_on();
    if (socket_unit) {
      // Stopped on purpose the export goes on; without it requests wait in the socket.
      guest.run("systemctl stop replicad");
      host.go_on();
      host.kill_export();
      guest.run("systemctl start replicad");
      host.go_on();
    }
    guest.run("stat -c %i /run/replica/vm1.sock | cmp - /tmp/socket");
    host.finish();
  }
}

}  // namespace
}  // namespace replicad::vm
