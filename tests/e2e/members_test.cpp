// Members that come and go: a witness, and a host that lost everything.
#include <filesystem>

#include <doctest/doctest.h>
#include <signal.h>

#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

namespace fs = std::filesystem;

/// b has lost its disk: its state and its images.
void wipe(Cluster& cluster, const std::string& host) {
  cluster.host(host).kill9();
  for (const std::string& path :
       {cluster.host(host).state_directory(), cluster.host(host).image_directory()}) {
    fs::remove_all(path);
    fs::create_directories(path);
  }
  cluster.host(host).start();
  CHECK_FALSE(cluster.host(host).get("/v1/volumes/vm1").has_value());
}

TEST_CASE(
    "members: a witness added to two copies makes a failover possible, and is removed again") {
  Cluster cluster(3);
  cluster.create({.mode = "async", .members = {"a", "b"}});
  cluster.activate();
  cluster.wait_streaming("vm1", {"b"});
  cluster.ctl_ok({"add-replica", "vm1", "--witness=c"});
  const json witness = cluster.volume("c");
  CHECK(witness.at("state") == "witness");
  CHECK(witness.at("disks").empty());
  CHECK(cluster.volume("a").at("vote").at("record").at("members").size() == 3);
  CHECK(cluster.volume("a").at("vote").at("record").at("tie_break") == "");
  CHECK(cluster.ctl_ok({"status", "vm1"}).out.find("witness") != std::string::npos);
  {
    NbdClient client(cluster.uri());
    client.write(0, std::vector<std::byte>(block_bytes, std::byte{1}));
  }
  cluster.ctl_ok({"set", "vm1", "mode=sync"});
  {
    NbdClient client(cluster.uri());
    client.write(block_bytes, std::vector<std::byte>(block_bytes, std::byte{2}));
  }
  const pid_t exporter = cluster.export_pid();
  cluster.host("a").kill9();
  ::kill(exporter, SIGKILL);
  const Finished moved = cluster.ctl({"failover", "vm1"});
  CHECK_MESSAGE(moved.exit_code == 0, moved.text());
  CHECK(cluster.primary_host() == "b");
  NbdClient client(cluster.uri());
  std::vector<std::byte> read(block_bytes);
  client.read(block_bytes, read);
  CHECK(read == std::vector<std::byte>(block_bytes, std::byte{2}));
  cluster.host("a").start();
  cluster.ctl_ok({"wait", "vm1", "--for=in-sync", "--timeout=60"});
  cluster.ctl_ok({"remove-replica", "vm1", "c"});
  CHECK_FALSE(cluster.host("c").get("/v1/volumes/vm1").has_value());
  CHECK(cluster.volume("b").at("vote").at("record").at("tie_break") == "b");
  client.write(2 * block_bytes, read);
}

TEST_CASE("members: a host that was wiped is no voter until it is removed and added anew") {
  Cluster cluster(4);
  cluster.create({.members = {"a", "b", "c"}, .create_options = {"--witness=d"}});
  cluster.activate();
  cluster.wait_streaming("vm1", {"b", "c"});
  NbdClient client(cluster.uri());
  client.write(0, std::vector<std::byte>(block_bytes, std::byte{1}));
  wipe(cluster, "b");
  wipe(cluster, "d");
  client.write(block_bytes, std::vector<std::byte>(block_bytes, std::byte{2}));
  CHECK(cluster.ctl({"status", "vm1"}).out.find("missing") != std::string::npos);
  // Under its old name it is a member that knows nothing; it does not come back by itself.
  CHECK(cluster.ctl({"add-replica", "vm1", "b"}).exit_code == 3);
  for (const char* host : {"b", "d"})
    static_cast<void>(cluster.ctl({"remove-replica", "vm1", host}));
  CHECK(cluster.volume("a").at("vote").at("record").at("members").size() == 2);
  cluster.ctl_ok({"add-replica", "vm1", "b"});
  cluster.ctl_ok({"add-replica", "vm1", "--witness=d"});
  CHECK(cluster.volume("a").at("vote").at("record").at("members").size() == 4);
  cluster.wait_streaming("vm1", {"b", "c"});
  client.write(2 * block_bytes, std::vector<std::byte>(block_bytes, std::byte{3}));
  cluster.deactivate();
  cluster.wait_applied("vm1", {"b", "c"});
  for (const char* host : {"b", "c"})
    CHECK(files_difference(cluster.image_path("a"), cluster.image_path(host)).empty());
}

}  // namespace
}  // namespace replicad::e2e
