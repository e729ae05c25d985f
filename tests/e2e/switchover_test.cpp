// Planned moves of a served volume, under load.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

void check_proof(const json& proof, const std::string& from, const std::string& to) {
  CAPTURE(proof.dump(1));
  CHECK(proof.at("from") == from);
  CHECK(proof.at("to") == to);
  CHECK(proof.at("equal") == true);
  CHECK(proof.at("held_ms").get<double>() < 30'000);
  const json& point = proof.at("history");
  bool target_listed = false;
  for (const json& replica : proof.at("replicas")) {
    if (replica.at("host") != to) continue;
    target_listed = true;
    CHECK(replica.at("applied") == point.at("sequence"));
    CHECK(replica.at("durable") == point.at("sequence"));
    CHECK(replica.at("digest") == proof.at("primary_digest"));
  }
  CHECK(target_listed);
}

TEST_CASE("switchover: 20 times in a row under load, nothing answered is lost") {
  Cluster cluster(3);
  cluster.create({.disk_bytes = {16 << 20, 8 << 20}});
  cluster.activate();
  cluster.wait_streaming();
  Load load(cluster, {.disks = {{"vda", 16 << 20}, {"vdb", 8 << 20}}, .write_bytes_max = 16 << 10});
  load.start();
  const std::vector<std::string> hosts = cluster.host_names();
  std::string from = "a";
  for (std::size_t round = 1; round <= 20; ++round) {
    const std::string to = hosts[round % hosts.size()];
    CAPTURE(round);
    load.wait_answered(40);
    cluster.wait_streaming("vm1", {to});
    check_proof(cluster.ctl_json({"switchover", "vm1", "--to=" + to}).at("proof"), from, to);
    from = to;
  }
  load.wait_answered(40);
  CHECK(load.reconnects() >= 20);
  load.stop();
  load.check_through_nbd();
  MESSAGE("longest wait of a request: ", load.longest_wait().count(), " ms");
  cluster.wait_streaming();
  cluster.stop_and_compare();
  load.check_images(cluster);
  // Nobody needed a copy for it.
  for (const std::string& host : hosts) {
    CHECK(cluster.host(host).log().find("copy_started") == std::string::npos);
    CHECK(cluster.volume(host).value("state", "") != "inconsistent");
  }
}

TEST_CASE(
    "switchover: without a target the control platform chooses one, a stopped volume moves too") {
  Cluster cluster(3);
  cluster.create({});
  cluster.activate();
  cluster.wait_streaming();
  const json proof = cluster.ctl_json({"switchover", "vm1"}).at("proof");
  const auto to = proof.at("to").get<std::string>();
  CHECK(to != "a");
  CHECK(cluster.primary_host() == to);
  CHECK(cluster.serving_host() == to);
  CHECK(cluster.volume("a").at("role") == "replica");
}

TEST_CASE("switchover: --dry-run changes nothing") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}});
  cluster.activate();
  cluster.wait_streaming();
  const json before = cluster.volume("a").at("epoch");
  cluster.ctl_ok({"switchover", "vm1", "--to=b", "--dry-run"});
  CHECK(cluster.serving_host() == "a");
  CHECK(cluster.volume("a").at("epoch") == before);
  CHECK(cluster.volume("b").at("role") == "replica");
}

TEST_CASE("switchover: each disk is flushed before the guest is held, and once more while it is") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}, .disk_bytes = {16 << 20, 8 << 20}});
  cluster.activate();
  cluster.wait_streaming();
  // Nothing is written behind the first one.
  const auto move = [&](const std::string& to) {
    const json proof = cluster.ctl_json({"switchover", "vm1", "--to=" + to}).at("proof");
    cluster.wait_streaming();
    return proof.at("history").at("sequence").get<std::uint64_t>();
  };
  const std::uint64_t before = move("b");
  CHECK(move("a") == before + 3);
  cluster.stop_and_compare();
}

TEST_CASE("switchover: to a host that is down is refused and the old primary serves on") {
  Cluster cluster(3);
  cluster.create({.create_options = {"--set=ack-timeout=1s"}});
  cluster.activate();
  cluster.wait_streaming();
  Load load(cluster, {});
  load.start();
  load.wait_answered(50);
  cluster.host("b").kill9();
  const Finished refused = cluster.ctl({"switchover", "vm1", "--to=b"});
  CHECK(refused.exit_code != 0);
  CHECK_MESSAGE(refused.err.find("b") != std::string::npos, refused.text());
  CHECK(cluster.serving_host() == "a");
  load.wait_answered(50);
  CHECK(load.reconnects() == 0);
  cluster.host("b").start();
  cluster.wait_streaming();
  load.stop();
  cluster.stop_and_compare();
  load.check_images(cluster);
}

TEST_CASE("switchover: to a host that hangs ends at the deadline and the old primary serves on") {
  Cluster cluster(3);
  cluster.create({.create_options = {"--set=ack-timeout=1s", "--set=ring-bytes=512M"}});
  cluster.activate();
  cluster.wait_streaming();
  Load load(cluster, {.writers_per_disk = 2, .write_bytes_max = 4 << 10});
  load.start();
  load.wait_answered(50);
  cluster.host("b").signal(SIGSTOP);
  const Finished refused =
      cluster.ctl({"switchover", "vm1", "--to=b", "--deadline=2s"}, Millis(30'000));
  cluster.host("b").signal(SIGCONT);
  CHECK(refused.exit_code != 0);
  load.wait_answered(50);
  CHECK(cluster.serving_host() == "a");
  cluster.wait_streaming();
  load.stop();
  cluster.stop_and_compare();
  load.check_images(cluster);
}

void copy_to_detached(Cluster& cluster) {
  const auto serving = cluster.serving_host();
  REQUIRE(serving.has_value());
  wait_until("every replica streams or is detached", Millis(30'000), [&] {
    return std::ranges::all_of(cluster.volume(*serving).at("replicas"), [](const json& replica) {
      return replica.at("state") == "streaming" || replica.at("state") == "detached";
    });
  });
  const json replicas = cluster.volume(*serving).at("replicas");
  for (const json& replica : replicas) {
    if (replica.at("state") != "detached") continue;
    const std::string host = "--host=" + replica.at("host").get<std::string>();
    cluster.ctl_ok({"resync", "vm1", host, "--wait"}, Millis(60'000));
  }
}

TEST_CASE("switchover: the target dies in the middle, again and again, and nothing is lost") {
  Cluster cluster(3);
  cluster.create({.disk_bytes = {8 << 20}, .create_options = {"--set=ack-timeout=1s"}});
  cluster.activate();
  cluster.wait_streaming();
  Load load(cluster, {.disks = {{"vda", 8 << 20}}, .write_bytes_max = 8 << 10});
  load.start();
  for (const int delay_ms : {0, 5, 15, 30, 60}) {
    CAPTURE(delay_ms);
    load.wait_answered(30);
    const std::string from = cluster.primary_host();
    const std::string to = from == "b" ? "c" : "b";
    cluster.wait_streaming("vm1", {to});
    const std::string out = cluster.directory() + "/switchover.out";
    Process command({replicactl_program,
                     "--hosts=" + cluster.hosts_option(),
                     "switchover",
                     "vm1",
                     "--to=" + to,
                     "--deadline=3s"},
                    out,
                    out);
    // The moment is what varies; whatever it hits must end well.
    const auto end = std::chrono::steady_clock::now() + Millis(delay_ms);
    wait_until("the moment has come", Millis(10'000), [&] {
      return std::chrono::steady_clock::now() >= end;
    });
    cluster.host(to).kill9();
    cluster.host(to).start();
    command.wait(Millis(60'000));
    // A target that died behind the point of no return is the primary: its export is started by hand,
    // and if it had claimed the volume already, the others need a copy.
    wait_until("the volume is served", Millis(60'000), [&] {
      if (cluster.serving_host()) return true;
      cluster.ctl({"activate", "vm1"}, Millis(30'000));
      return cluster.serving_host().has_value();
    });
    load.wait_answered(30);
    copy_to_detached(cluster);
  }
  load.stop();
  load.check_through_nbd();
  cluster.wait_streaming();
  cluster.stop_and_compare();
  load.check_images(cluster);
}

}  // namespace
}  // namespace replicad::e2e
