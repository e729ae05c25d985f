// Guests under libvirt: the scripts of docs/examples with DRIVER=virsh. Each host has a libvirtd of its own.
#include <map>
#include <memory>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/vm/guest_volume.h"
#include "tests/vm/libvirt_host.h"
#include "tests/vm/site.h"

namespace replicad::vm {
namespace {

TEST_CASE("vm: under libvirt it is moved live by vm-move.sh --live, there and back") {
  Cluster cluster(2, scenario_limit);
  install(cluster, {"a", "b"});
  Site site(cluster, "virsh");
  std::map<std::string, LibvirtHost> libvirt;
  for (const std::string& host : cluster.host_names())
    libvirt.emplace(host, cluster.directory() + "/" + host);
  // The domain has the same paths everywhere, its console's too.
  const auto console_on = [&](const std::string& host) {
    return std::make_unique<Guest>(cluster.host(host).run_directory() + "/guest");
  };
  auto guest = console_on("a");
  libvirt.at("a").define(*guest, disk_arguments(cluster, "a"));
  libvirt.at("a").virsh({"start", "vm1"});
  guest->wait_boot();
  guest->start("records churn /data/churn 256");
  guest->wait_acked(20);
  for (const std::string host : {"b", "a"}) {
    auto moved = console_on(host);
    site.run({"vm-move.sh", "--live", "vm1", host});
    CHECK(cluster.serving_host() == host);
    guest = std::move(moved);
    guest->wait_acked(guest->acked() + 20);
    MESSAGE("to ", host, ": longest request ", guest->longest_request().count(), " ms");
  }
  guest->end_job("TERM");
  CHECK(guest->last_said("verified ") == 256);
  CHECK(guest->disk_errors().empty());
  guest->shutdown(libvirt.at("a").pid_file());
  cluster.wait_streaming();
  cluster.stop_and_compare();
  check_file_systems(cluster);
}

TEST_CASE(
    "vm: under libvirt its host is killed, vm-failover.sh starts it elsewhere with every record, "
    "vm-return.sh brings it back") {
  Cluster cluster(3, scenario_limit);
  install(cluster, {"a", "b", "c"});
  Site site(cluster, "virsh");
  std::map<std::string, LibvirtHost> libvirt;
  std::map<std::string, Guest> guests;
  for (const std::string& host : cluster.host_names()) {
    libvirt.emplace(host, cluster.directory() + "/" + host);
    const auto guest = guests.emplace(host, cluster.directory() + "/guest-" + host).first;
    libvirt.at(host).define(guest->second, disk_arguments(cluster, host));
  }
  libvirt.at("a").virsh({"start", "vm1"});
  Guest& guest = guests.at("a");
  guest.wait_boot();
  guest.start("records write /data/records 0");
  guest.wait_acked(200);
  const pid_t exporter = cluster.export_pid();
  libvirt.at("a").kill9();
  cluster.host("a").kill9();
  ::kill(exporter, SIGKILL);
  const unsigned long written = guest.acked();

  const auto began = Clock::now();
  site.run({"vm-failover.sh", "a"});
  MESSAGE("failover and `virsh start` by the script: ",
          std::chrono::duration_cast<Millis>(Clock::now() - began).count(),
          " ms");
  CHECK(site.fenced() == "a\n");
  const std::string host = cluster.primary_host();  // while a cannot say that it still is
  Guest& elsewhere = guests.at(host);
  elsewhere.wait_boot();
  MESSAGE(elsewhere.run(fmt::format("records verify /data/records {}", written)));
  elsewhere.start("records write /data/records 0");
  elsewhere.wait_acked(written + 100);

  cluster.host("a").start();
  libvirt.at("a").start();
  Guest home(cluster.directory() + "/guest-home");
  libvirt.at("a").define(home, disk_arguments(cluster, "a"));
  site.run({"vm-return.sh", "a", "vm1"});
  elsewhere.wait_off(libvirt.at(host).pid_file());
  CHECK(cluster.serving_host() == "a");
  home.wait_boot();
  MESSAGE(home.run(fmt::format("records verify /data/records {}", elsewhere.acked())));
  CHECK(home.disk_errors().empty());
  home.shutdown(libvirt.at("a").pid_file());
  cluster.stop_and_compare();
  check_file_systems(cluster);
}

TEST_CASE(
    "vm: libvirt's hook serves the volume while the guest runs, and lets it in nowhere else") {
  Cluster cluster(2, scenario_limit);
  install(cluster, {"a", "b"});
  Site site(cluster, "virsh");
  std::map<std::string, LibvirtHost> libvirt;
  std::map<std::string, Guest> guests;
  for (const std::string& host : cluster.host_names()) {
    libvirt.try_emplace(
        host, cluster.directory() + "/" + host, std::vector<std::string>{site.path()}, true);
    const auto guest = guests.emplace(host, cluster.host(host).run_directory() + "/guest").first;
    libvirt.at(host).define(guest->second, disk_arguments(cluster, host));
  }
  cluster.ctl_ok({"deactivate", "vm1"});
  std::string refusal;
  try {
    libvirt.at("b").virsh({"start", "vm1"});
  } catch (const HarnessError& error) {
    refusal = error.what();
  }
  CHECK_MESSAGE(e2e::contains(refusal, "its volume's primary is a, not b"), refusal);
  libvirt.at("a").virsh({"start", "vm1"});
  CHECK(cluster.serving_host() == "a");
  guests.at("a").wait_boot();
  guests.at("a").start("records churn /data/churn 256");
  guests.at("a").wait_acked(20);
  site.run({"vm-move.sh", "--live", "vm1", "b"});
  CHECK(cluster.serving_host() == "b");
  Guest& guest = guests.at("b");
  guest.wait_acked(guest.acked() + 20);
  guest.end_job("TERM");
  CHECK(guest.last_said("verified ") == 256);
  CHECK(guest.disk_errors().empty());
  cluster.wait_streaming();
  libvirt.at("b").virsh({"shutdown", "vm1"});
  guest.wait_off(libvirt.at("b").pid_file());
  wait_until("the hook has stopped the volume", patience, [&] {
    return cluster.volume("b").at("state") == "stopped";
  });
  check_file_systems(cluster);
}

}  // namespace
}  // namespace replicad::vm
