// Guests whose disk is a replicated volume: what they were told is durable is there after a move, after the loss of a
// host, and while the processes below them are killed. Hosts are replicad processes on loopback (tests/e2e/harness.h).
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "ctl/attach_info.h"
#include "tests/vm/guest_volume.h"

namespace replicad::vm {
namespace {

using e2e::Finished;

/// See tests/e2e/endpoint_test.cpp.
constexpr Millis lives_at_least(3'200);

const std::string guest_files = RD_GUEST;
const std::string examples = RD_EXAMPLES;

std::unique_ptr<Guest> boot(Cluster& cluster, const std::string& name) {
  auto guest =
      std::make_unique<Guest>(cluster.directory() + "/" + name, disk_arguments(cluster, "a"));
  guest->wait_boot();
  return guest;
}

/// kill -9 of all that runs on host a, but QEMU.
void kill_host(Cluster& cluster, pid_t exporter) {
  cluster.host("a").kill9();
  ::kill(exporter, SIGKILL);
}

/// What the example scripts need of a site: their configuration, and a stand-in for ssh that runs the command with the
/// files of that host.
class Site {
 public:
  explicit Site(Cluster& cluster) : cluster_(cluster), dir_(cluster.directory() + "/site") {
    std::filesystem::create_directories(dir_ + "/guests");
    std::filesystem::create_symlink(e2e::replicactl_program, dir_ + "/replicactl");
    write(dir_ + "/hosts", hosts_file());
    write(
        dir_ + "/ssh",
        fmt::format("#!/bin/sh\nhost=$1; shift\nRUN={}/$host/run; export RUN\nexec sh -c \"$*\"\n",
                    cluster.directory()));
    std::filesystem::permissions(dir_ + "/ssh", std::filesystem::perms::owner_all);
    write(dir_ + "/vm.conf",
          fmt::format("DRIVER=qemu SSH={}/ssh STOP_TIMEOUT=120 SYNC_TIMEOUT=120\n"
                      "fence() {{ echo \"$1\" >>{}/fenced; }}\n",
                      dir_,
                      dir_));
  }

  void set_guest(const Guest& guest) const {
    std::string options;
    for (const std::string& word : guest.machine())
      options += " " + ctl::shell_quote(word);
    write(dir_ + "/guests/vm1.conf", "QEMU_OPTIONS=" + ctl::shell_quote(options) + "\n");
  }
  void start_guest() {
    const std::string host = cluster_.primary_host();
    run({"guest-qemu.sh", "start", "vm1"}, {"RUN=" + cluster_.host(host).run_directory()});
  }
  /// Runs one of docs/examples.
  void run(std::vector<std::string> words, const std::vector<std::string>& environment = {}) {
    write(dir_ + "/hosts", hosts_file());  // ports change when a host is started again
    words.front() = examples + "/" + words.front();
    words.insert(words.begin(),
                 {"env",
                  fmt::format("PATH={}:{}:{}", dir_, examples, std::getenv("PATH")),
                  "REPLICACTL_HOSTS=" + dir_ + "/hosts",
                  "VM_CONF=" + dir_ + "/vm.conf",
                  "GUESTS=" + dir_ + "/guests"});
    const Finished finished = e2e::run(words, {.limit = boot_patience, .environment = environment});
    if (finished.exit_code != 0) throw HarnessError(finished.text());
  }
  [[nodiscard]] std::string pid_file(const std::string& host) const {
    return cluster_.host(host).run_directory() + "/vm1.qemu.pid";
  }
  [[nodiscard]] std::string fenced() const { return read_text(dir_ + "/fenced"); }

 private:
  static void write(const std::string& path, const std::string& text) {
    std::ofstream(path) << text;
  }
  [[nodiscard]] std::string hosts_file() const {
    std::string lines;
    for (const std::string& host : cluster_.host_names())
      lines += fmt::format("{} {}\n", host, cluster_.host(host).control());
    return lines;
  }

  Cluster& cluster_;
  std::string dir_;
};

TEST_CASE("vm: moved on purpose by vm-move.sh, every record is there and the file system clean") {
  Cluster cluster(2, scenario_limit);
  install(cluster, {"a", "b"});
  Site site(cluster);
  unsigned long written = 0;
  {
    Guest guest(cluster.directory() + "/guest-a");
    site.set_guest(guest);
    site.start_guest();
    guest.wait_boot();
    guest.start("records write /data/records 0");
    guest.wait_acked(300);
    Guest moved(cluster.directory() + "/guest-b");
    site.set_guest(moved);
    site.run({"vm-move.sh", "vm1", "b"});
    guest.wait_off(site.pid_file("a"));
    written = guest.acked();
    CHECK(cluster.serving_host() == "b");
    moved.wait_boot();
    MESSAGE(moved.run(fmt::format("records verify /data/records {}", written)));
    CHECK(moved.disk_errors().empty());
    moved.shutdown(site.pid_file("b"));
  }
  cluster.stop_and_compare();
  check_file_systems(cluster);
}

TEST_CASE(
    "vm: its host is killed while it writes, vm-failover.sh starts it elsewhere with every record, "
    "vm-return.sh brings it back") {
  Cluster cluster(3, scenario_limit);
  install(cluster, {"a", "b", "c"});
  Site site(cluster);
  Guest guest(cluster.directory() + "/guest-a");
  site.set_guest(guest);
  site.start_guest();
  guest.wait_boot();
  guest.start("records write /data/records 0");
  guest.wait_acked(200);
  const pid_t exporter = cluster.export_pid();
  ::kill(std::atoi(read_text(site.pid_file("a")).c_str()), SIGKILL);
  kill_host(cluster, exporter);
  const unsigned long written = guest.acked();
  std::filesystem::remove(site.pid_file("a"));

  Guest elsewhere(cluster.directory() + "/guest-b");
  site.set_guest(elsewhere);
  const auto began = Clock::now();
  site.run({"vm-failover.sh", "a"});
  MESSAGE("failover and start of QEMU by the script: ",
          std::chrono::duration_cast<Millis>(Clock::now() - began).count(),
          " ms");
  CHECK(site.fenced() == "a\n");
  elsewhere.wait_boot();
  MESSAGE(elsewhere.run(fmt::format("records verify /data/records {}", written)));
  elsewhere.start("records write /data/records 0");
  elsewhere.wait_acked(written + 100);

  const std::string host = cluster.primary_host();  // while a cannot say that it still is
  cluster.host("a").start();
  Guest home(cluster.directory() + "/guest-home");
  site.set_guest(home);
  site.run({"vm-return.sh", "a", "vm1"});
  elsewhere.wait_off(site.pid_file(host));
  CHECK(cluster.serving_host() == "a");
  home.wait_boot();
  MESSAGE(home.run(fmt::format("records verify /data/records {}", elsewhere.acked())));
  CHECK(home.disk_errors().empty());
  home.shutdown(site.pid_file("a"));
  cluster.stop_and_compare();
  check_file_systems(cluster);
}

/// An export that has ended sooner is started again later and later.
void wait_served_for_a_while() {
  const auto began = Clock::now();
  wait_until("it has served for a while", patience, [&] {
    return Clock::now() - began >= lives_at_least;
  });
}

TEST_CASE("vm: nbdkit is killed 20 times under a running guest, which sees a pause and no error") {
  Cluster cluster(2, scenario_limit);
  install(cluster, {"a", "b"});
  const auto guest = boot(cluster, "guest");
  guest->start("records write /data/records 0");
  guest->wait_acked(20);
  pid_t pid = cluster.export_pid();
  Millis downtime_max(0);
  for (int round = 0; round < 20; ++round) {
    CAPTURE(round);
    guest->wait_acked(guest->acked() + 10);
    wait_served_for_a_while();
    const auto killed = Clock::now();
    ::kill(pid, SIGKILL);
    const pid_t old = pid;
    wait_until("another export serves", patience, [&] {
      const json view = cluster.volume("a");
      if (view.at("state") != "serving" || !view.at("export").is_object()) return false;
      pid = view.at("export").at("pid").get<pid_t>();
      return pid != old;
    });
    downtime_max =
        std::max(downtime_max, std::chrono::duration_cast<Millis>(Clock::now() - killed));
  }
  guest->wait_acked(guest->acked() + 10);
  const unsigned long pause = guest->stop_writer();
  MESSAGE("longest downtime of the export: ",
          downtime_max.count(),
          " ms; longest fsync of the guest: ",
          pause,
          " ms");
  CHECK(guest->disk_errors().empty());
  guest->run(fmt::format("records verify /data/records {}", guest->acked()));
  guest->shutdown();
  cluster.wait_streaming();
  cluster.stop_and_compare();
  check_file_systems(cluster);
}

TEST_CASE("vm: replicad and export are exchanged under a running guest, which sees no error") {
  Cluster cluster(2, scenario_limit);
  install(cluster, {"a", "b"});
  const auto guest = boot(cluster, "guest");
  guest->start("records write /data/records 0");
  guest->wait_acked(20);
  for (const char* host : {"b", "a"}) {
    CHECK(cluster.host(host).stop() == 0);
    cluster.host(host).start();
    guest->wait_acked(guest->acked() + 20);
    cluster.wait_streaming();
  }
  cluster.ctl_ok({"restart", "vm1"});
  guest->wait_acked(guest->acked() + 20);
  MESSAGE("longest fsync of the guest: ", guest->stop_writer(), " ms");
  CHECK(guest->disk_errors().empty());
  guest->shutdown();
}

std::string real_path(const std::string& path) {
  return std::filesystem::canonical(path).string();
}

/// A host in a guest, whose kernel has network block devices: one volume, vm1, on a tmpfs.
class HostInGuest {
 public:
  explicit HostInGuest(const std::string& directory)
      : guest_(directory + "/guest", disks(directory)) {
    guest_.wait_boot();
    guest_.run("ifconfig lo up; mkdir /tmp/host && mount /dev/vdb /tmp/host && cd /tmp/host");
    guest_.run("mount -t proc none proc; mount -t sysfs none sys; mount -t devtmpfs none dev");
    guest_.run("mount -t tmpfs none run");
    const std::string options =
        " --host=a --transport=plaintext --state-dir=/run/state --run-dir=/run/replica"
        " --listen=127.0.0.1:7400 --control=127.0.0.1:7401 --nbdkit=/usr/bin/nbdkit --plugin=";
    guest_.start("chroot . " + real_path(e2e::replicad_program) + options +
                 real_path(e2e::plugin_path) + " >run/log 2>&1");
    guest_.run("until [ -S run/replica/control.sock ]; do sleep 0.2; done");
    ctl("create vm1 --size 48M --on a --copies 1");
    // Under TCG on a busy machine nbdkit may need longer than replicad gives it.
    wait_until("the guest's replicad serves", boot_patience, [this] {
      return ctl("activate vm1 || echo failed").find("failed") == std::string::npos;
    });
  }

  std::string ctl(const std::string& words) {
    return guest_.run("chroot . " + real_path(e2e::replicactl_program) +
                      " --hosts a=127.0.0.1:7401 --timeout 60 " + words);
  }
  Guest& guest() { return guest_; }

 private:
  static std::vector<std::string> disks(const std::string& directory) {
    const std::string root = directory + "/host-root.raw";
    std::filesystem::copy_file(guest_files + "/root.raw", root);
    return {"-m",
            "640",
            "-drive",
            "if=virtio,format=raw,file=" + root,
            "-drive",
            "if=virtio,format=raw,file.locking=off,file=" + guest_files + "/tools.raw,snapshot=on"};
  }

  Guest guest_;
};

TEST_CASE("vm: a kernel device of replicactl attach outlives its export, and passes discards on") {
  const Cluster cluster(0, scenario_limit);  // its directory and its deadline
  HostInGuest host(cluster.directory());
  Guest& guest = host.guest();
  host.ctl("attach vm1 /dev/nbd0");
  CHECK(guest.run("cat /sys/block/nbd0/queue/scheduler").find("[none]") != std::string::npos);
  guest.run("chroot . /usr/sbin/mke2fs -q -t ext4 /dev/nbd0");
  guest.run("mkdir /tmp/m && mount /dev/nbd0 /tmp/m");
  guest.start("records churn /tmp/m/records 256");
  guest.wait_acked(20);
  for (int round = 0; round < 5; ++round) {
    CAPTURE(round);
    wait_served_for_a_while();
    guest.run("kill -9 $(cat run/replica/vm1.pid)");
    guest.wait_acked(guest.acked() + 20);
  }
  host.ctl("restart vm1");
  guest.wait_acked(guest.acked() + 20);
  const Millis pause = guest.longest_request();
  MESSAGE("longest request on the device: ", pause.count(), " ms");
  CHECK(pause < Millis(15'000));  // the kernel's own 30 s are not waited for
  guest.end_job("TERM");
  CHECK(guest.last_said("verified ") == 256);
  CHECK(guest.disk_errors().empty());
  // Discard: what a file took is free in the image.
  const auto used_kib = [&] {
    const std::string said = guest.run("du -k run/state/images/vm1/vda.raw");
    return std::stoul(said.substr(said.find_first_of("0123456789")));
  };
  guest.run("fstrim /tmp/m");
  const unsigned long before = used_kib();
  guest.run("dd if=/dev/urandom of=/tmp/m/big bs=1M count=16 && sync");
  CHECK(used_kib() >= before + 15'000);
  guest.run("rm /tmp/m/big && sync && fstrim /tmp/m");
  CHECK(used_kib() <= before + 2'000);
  CHECK(host.ctl("detach vm1 2>&1 || echo refused").find("is in use") != std::string::npos);
  guest.run("umount /tmp/m");
  host.ctl("detach vm1");
  guest.run("grep -qx 0 /sys/block/nbd0/size");
  host.ctl("deactivate vm1");
}

TEST_CASE("vm: what the guest trims is free on every host") {
  Cluster cluster(2, scenario_limit);
  install(cluster, {"a", "b"});
  const auto guest = boot(cluster, "guest");
  const auto used = [&](const std::string& host) {
    return e2e::allocated_bytes(cluster.image_path(host));
  };
  guest->run("fstrim /");
  const std::uint64_t before = used("a");
  guest->run("dd if=/dev/urandom of=/data/big bs=1M count=48 && sync");
  cluster.ctl_ok({"wait", "vm1", "--for", "in-sync", "--timeout", "60"}, patience);
  for (const std::string host : {"a", "b"}) {
    wait_until(
        "the data is on " + host, patience, [&] { return used(host) >= before + (40 << 20); });
  }
  guest->run("rm /data/big && sync && fstrim /");
  for (const std::string host : {"a", "b"}) {
    wait_until(
        "the space is free on " + host, patience, [&] { return used(host) <= before + (8 << 20); });
    MESSAGE(host, ": ", before >> 20, " MiB before, ", used(host) >> 20, " MiB after the trim");
  }
  guest->shutdown();
  cluster.stop_and_compare();
  check_file_systems(cluster);
}

}  // namespace
}  // namespace replicad::vm
