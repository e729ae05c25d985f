// Kernel devices of replicactl attach, in a guest that is two hosts itself.
#include <filesystem>
#include <map>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/vm/guest_volume.h"

namespace replicad::vm {
namespace {

const std::string guest_files = RD_GUEST;

std::string real_path(const std::string& path) {
  return std::filesystem::canonical(path).string();
}

/// Hosts a and b in one guest, whose kernel has network block devices: a volume, vm1, with a copy at each, on a tmpfs.
/// Host a serves it.
class HostsInGuest {
 public:
  static constexpr std::uint64_t disk_mib = 48;

  explicit HostsInGuest(const std::string& directory)
      : guest_(directory + "/guest", disks(directory)) {
    guest_.wait_boot();
    guest_.run("ifconfig lo up; mkdir /tmp/host && mount /dev/vdb /tmp/host && cd /tmp/host");
    guest_.run("mount -t proc none proc; mount -t sysfs none sys; mount -t devtmpfs none dev");
    guest_.run("mount -t tmpfs none run");
    start_host("a", 7400);
    start_host("b", 7402);
    ctl(fmt::format(
        "create vm1 --size {}M --on a,b --primary a --set=segment-bytes=8M --set=log-bytes=64M",
        disk_mib));
    // Under TCG on a busy machine nbdkit may need longer than replicad gives it.
    wait_until("the guest's replicad serves", boot_patience, [this] {
      return ctl("activate vm1 || echo failed").find("failed") == std::string::npos;
    });
    ctl("wait vm1 --for in-sync");
  }

  std::string ctl(const std::string& words) {
    return in_root(real_path(e2e::replicactl_program) +
                   " --hosts a=127.0.0.1:7401,b=127.0.0.1:7403 --timeout 100 " + words);
  }
  /// A program of the hosts' root file system.
  std::string in_root(const std::string& command) { return guest_.run("chroot . " + command); }
  Guest& guest() { return guest_; }
  void kill_export() { guest_.run("kill -9 $(cat run/a/vm1.pid)"); }
  static std::string image(const std::string& host) {
    return "run/" + host + "/state/images/vm1/vda.raw";
  }
  std::uint64_t used_kib(const std::string& host) {
    return first_number(guest_.run("du -k " + image(host)));
  }
  /// Writes that the device has answered.
  std::uint64_t device_writes() {
    return first_number(guest_.run("awk '{print $5}' /sys/block/nbd0/stat"));
  }

 private:
  static std::uint64_t first_number(const std::string& said) {
    return std::stoul(said.substr(said.find_first_of("0123456789")));
  }
  void start_host(const std::string& name, unsigned port) {
    const std::string dir = "run/" + name;
    guest_.start(fmt::format(
        "chroot . {0} --host={1} --transport=plaintext --state-dir=/{2}/state --run-dir=/{2} "
        "--listen=127.0.0.1:{3} --control=127.0.0.1:{4} --nbdkit=/usr/bin/nbdkit --plugin={5} "
        ">run/{1}.log 2>&1",
        real_path(e2e::replicad_program),
        name,
        dir,
        port,
        port + 1,
        real_path(e2e::plugin_path)));
    guest_.run("until [ -S " + dir + "/control.sock ]; do sleep 0.2; done");
  }
  static std::vector<std::string> disks(const std::string& directory) {
    const std::string root = directory + "/host-root.raw";
    std::filesystem::copy_file(guest_files + "/root.raw", root);
    return {"-m",
            "1024",
            "-drive",
            "if=virtio,format=raw,file=" + root,
            "-drive",
            "if=virtio,format=raw,file.locking=off,file=" + guest_files + "/tools.raw,snapshot=on"};
  }

  Guest guest_;
};

TEST_CASE("vm: a kernel device of replicactl attach outlives its export, and passes discards on") {
  const Cluster cluster(0, scenario_limit);  // its directory and its deadline
  HostsInGuest hosts(cluster.directory());
  Guest& guest = hosts.guest();
  hosts.ctl("attach vm1 /dev/nbd0");
  CHECK(guest.run("cat /sys/block/nbd0/queue/scheduler").find("[none]") != std::string::npos);
  hosts.in_root("/usr/sbin/mke2fs -q -t ext4 /dev/nbd0");
  guest.run("mount /dev/nbd0 mnt");
  guest.start("records churn mnt/records 256");
  guest.wait_acked(20);
  for (int round = 0; round < 5; ++round) {
    CAPTURE(round);
    wait_served_for_a_while();
    hosts.kill_export();
    guest.wait_acked(guest.acked() + 20);
  }
  hosts.ctl("restart vm1");
  guest.wait_acked(guest.acked() + 20);
  const Millis pause = guest.longest_request();
  MESSAGE("longest request on the device: ", pause.count(), " ms");
  CHECK(pause < Millis(15'000));  // the kernel's own 30 s are not waited for
  guest.end_job("TERM");
  CHECK(guest.last_said("verified ") == 256);
  CHECK(guest.disk_errors().empty());
  // Discard: what a file took is free in every image.
  guest.run("fstrim mnt");
  std::map<std::string, std::uint64_t> before;
  for (const std::string host : {"a", "b"})
    before[host] = hosts.used_kib(host);
  guest.run("dd if=/dev/urandom of=mnt/big bs=1M count=16 && sync");
  for (const auto& [host, used] : before) {
    wait_until("the file is in the image", patience, [&, host = host, used = used] {
      return hosts.used_kib(host) >= used + 15'000;
    });
  }
  guest.run("rm mnt/big && sync && fstrim mnt");
  for (const auto& [host, used] : before) {
    wait_until("it is free in the image", patience, [&, host = host, used = used] {
      return hosts.used_kib(host) <= used + 2'000;
    });
  }
  CHECK(hosts.ctl("detach vm1 2>&1 || echo refused").find("is in use") != std::string::npos);
  guest.run("umount mnt");
  hosts.ctl("detach vm1");
  guest.run("grep -qx 0 /sys/block/nbd0/size");
  hosts.ctl("deactivate vm1");
}

TEST_CASE("vm: fio verifies what it writes to a kernel device, its export is killed meanwhile") {
  const Cluster cluster(0, scenario_limit);
  HostsInGuest hosts(cluster.directory());
  Guest& guest = hosts.guest();
  hosts.ctl("attach vm1 /dev/nbd0");
  hosts.in_root("/usr/sbin/mke2fs -q -t ext4 /dev/nbd0");
  guest.run("mount /dev/nbd0 mnt");
  const std::string fio =
      "chroot . /usr/bin/fio --name=verify --thread --filename=/mnt/file --size=12M --direct=1 "
      "--rw=randwrite --bsrange=4k-64k --ioengine=libaio --iodepth=8 --fsync=64 "
      "--verify=crc32c --verify_fatal=1 ";
  // Each pass writes the whole file, reads again some of it at once, and all of it at the end.
  guest.start("while [ ! -e run/enough ]; do " + fio +
              "--verify_backlog=64 >>run/fio 2>&1 || break; echo fio-passed; done");
  const auto go_on = [&] {
    const std::uint64_t from = hosts.device_writes();
    wait_until("fio writes", guest_patience, [&] { return hosts.device_writes() >= from + 200; });
  };
  go_on();
  for (int round = 0; round < 5; ++round) {
    CAPTURE(round);
    wait_served_for_a_while();
    hosts.kill_export();
    go_on();
  }
  hosts.ctl("restart vm1");
  go_on();
  guest.run("touch run/enough");
  guest.run("wait $job", boot_patience);
  CHECK_MESSAGE(e2e::contains(guest.console(), "fio-passed"), guest.run("cat run/fio"));
  CHECK_MESSAGE(guest.run("grep -c 'err= 0' run/fio") == guest.run("grep -c 'err=' run/fio"),
                guest.run("cat run/fio"));
  // What the device has, not the page cache.
  guest.run("umount mnt && echo 3 >/proc/sys/vm/drop_caches && mount /dev/nbd0 mnt");
  guest.run(fio + "--verify_only=1", boot_patience);
  CHECK(guest.disk_errors().empty());
  guest.run("umount mnt");
  hosts.ctl("detach vm1");
  hosts.ctl("wait vm1 --for in-sync");
  hosts.ctl("deactivate vm1");
  guest.run(fmt::format("cmp {} {}", HostsInGuest::image("a"), HostsInGuest::image("b")));
  hosts.in_root("/usr/sbin/e2fsck -fn /" + HostsInGuest::image("b"));
}

TEST_CASE("vm: discards and zeroes written to a kernel device are in the image of every host") {
  const Cluster cluster(0, scenario_limit);
  HostsInGuest hosts(cluster.directory());
  Guest& guest = hosts.guest();
  hosts.ctl("attach vm1 /dev/nbd0");
  guest.run("dd if=/dev/urandom of=/tmp/expected bs=1M count=16");
  guest.run("dd if=/tmp/expected of=/dev/nbd0 bs=1M conv=fsync");
  const auto wait_equal = [&] {
    for (const std::string host : {"a", "b"}) {
      wait_until(host + " has what the device has", patience, [&] {
        const std::string copy = "dd bs=1M count=16 2>/dev/null if=" + HostsInGuest::image(host);
        return e2e::contains(guest.run(copy + " | cmp - /tmp/expected && echo equal || true"),
                             "equal");
      });
    }
  };
  wait_equal();
  std::map<std::string, std::uint64_t> before;
  for (const std::string host : {"a", "b"})
    before[host] = hosts.used_kib(host);
  const auto expect_zeroes = [&](unsigned first_block, unsigned blocks) {
    guest.run(fmt::format("dd if=/dev/zero of=/tmp/expected bs=4k seek={} count={} conv=notrunc",
                          first_block,
                          blocks));
  };
  // A kernel without NBD's WRITE_ZEROES (its limit is 0) sends these as writes.
  MESSAGE("write_zeroes_max_bytes: ",
          guest.run("cat /sys/block/nbd0/queue/write_zeroes_max_bytes"));
  hosts.in_root("/usr/sbin/blkdiscard -z -o 4096 -l 8192 /dev/nbd0");
  expect_zeroes(1, 2);
  hosts.in_root("/usr/sbin/blkdiscard -z -o 2M -l 3M /dev/nbd0");
  expect_zeroes(512, 768);
  hosts.in_root("/usr/bin/fallocate -z -o 8M -l 1M /dev/nbd0");
  expect_zeroes(2048, 256);
  wait_equal();
  for (const auto& [host, used] : before) {
    MESSAGE(host, ": ", used, " KiB before the zeroes, ", hosts.used_kib(host), " KiB behind");
  }
  hosts.in_root("/usr/sbin/blkdiscard -o 12M -l 2M /dev/nbd0");
  expect_zeroes(3072, 512);
  wait_equal();
  for (const auto& [host, used] : before)
    CHECK(hosts.used_kib(host) <= used - 2'000);
  guest.run(
      "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/nbd0 bs=1M count=16 | cmp - /tmp/expected");
  CHECK(guest.disk_errors().empty());
  hosts.ctl("detach vm1");
  hosts.ctl("deactivate vm1");
}

}  // namespace
}  // namespace replicad::vm
