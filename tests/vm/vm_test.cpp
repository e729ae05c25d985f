// Guests whose disk is a replicated volume: what they were told is durable is there after a move, after the loss of a
// host, and while the processes below them are killed. Hosts are replicad processes on loopback (tests/e2e/harness.h).
#include <filesystem>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/vm/guest_volume.h"
#include "tests/vm/site.h"

namespace replicad::vm {
namespace {

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
    guest.run("touch /tmp/miss-press");
    CHECK(e2e::contains(site.run({"vm-move.sh", "vm1", "b"}), "pressing its power button again"));
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

TEST_CASE("vm: moved live by vm-move.sh --live, it goes on where it is when that fails") {
  Cluster cluster(2, scenario_limit);
  install(cluster, {"a", "b"});
  Site site(cluster);
  Guest guest(cluster.directory() + "/guest-a");
  site.set_guest(guest);
  site.start_guest();
  guest.wait_boot();
  guest.start("records churn /data/churn 256");
  guest.wait_acked(20);
  Guest moved(cluster.directory() + "/guest-b");
  // Another machine: QEMU refuses to take the guest in.
  site.set_guest(moved, "-m 256");
  const e2e::Finished failed = site.try_run({"vm-move.sh", "--live", "vm1", "b"});
  CHECK_MESSAGE(failed.exit_code == 1, failed.text());
  CHECK_MESSAGE(e2e::contains(failed.err, "vm1 runs on a as before"), failed.text());
  CHECK(cluster.volume("a").at("handover").is_null());
  guest.wait_acked(guest.acked() + 20);

  site.set_guest(moved);
  site.run({"vm-move.sh", "--live", "vm1", "b"});
  guest.wait_off(site.pid_file("a"));
  CHECK(cluster.serving_host() == "b");
  moved.wait_acked(moved.acked() + 20);
  MESSAGE("longest request of the guest: ", moved.longest_request().count(), " ms");
  moved.end_job("TERM");
  CHECK(moved.last_said("verified ") == 256);
  CHECK(moved.disk_errors().empty());
  moved.shutdown(site.pid_file("b"));
  cluster.wait_streaming();
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

/// Until a serves with another export than `old`, which it returns.
pid_t wait_other_export(Cluster& cluster, pid_t old) {
  pid_t pid = old;
  wait_until("another export serves", patience, [&] {
    const json view = cluster.volume("a");
    if (view.at("state") != "serving" || !view.at("export").is_object()) return false;
    pid = view.at("export").at("pid").get<pid_t>();
    return pid != old;
  });
  return pid;
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
    pid = wait_other_export(cluster, pid);
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

TEST_CASE("vm: a disk through qemu-storage-daemon and vhost-user-blk outlives its export") {
  Cluster cluster(2, scenario_limit);
  install(cluster, {"a", "b"});
  const std::string socket = cluster.directory() + "/vda.vhost";
  const std::string log = cluster.directory() + "/bridge.log";
  // As docs/hypervisors/cloud-hypervisor.md says it.
  e2e::Process bridge({"qemu-storage-daemon",
                       "--blockdev",
                       disk_arguments(cluster, "a").at(1),
                       "--export",
                       "type=vhost-user-blk,id=vda,node-name=vda,addr.type=unix,addr.path=" +
                           socket + ",writable=on,num-queues=2"},
                      log,
                      log);
  wait_until("the bridge listens", patience, [&] {
    if (!bridge.running()) throw HarnessError(read_text(log));
    return std::filesystem::exists(socket);
  });
  Guest guest(cluster.directory() + "/guest",
              {"-object",
               "memory-backend-memfd,id=memory,size=192M,share=on",
               "-machine",
               "memory-backend=memory",
               "-chardev",
               "socket,id=vda,path=" + socket,
               "-device",
               "vhost-user-blk-pci,chardev=vda,num-queues=1"});
  guest.wait_boot();
  guest.start("records churn /data/churn 256");
  guest.wait_acked(20);
  pid_t pid = cluster.export_pid();
  for (int round = 0; round < 3; ++round) {
    CAPTURE(round);
    wait_served_for_a_while();
    ::kill(pid, SIGKILL);
    pid = wait_other_export(cluster, pid);
    guest.wait_acked(guest.acked() + 20);
  }
  cluster.ctl_ok({"restart", "vm1"});
  guest.wait_acked(guest.acked() + 20);
  MESSAGE("longest request of the guest: ", guest.longest_request().count(), " ms");
  guest.end_job("TERM");
  CHECK(guest.last_said("verified ") == 256);
  guest.run("fstrim /");
  CHECK(guest.disk_errors().empty());
  guest.shutdown();
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
