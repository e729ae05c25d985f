// Volumes that are served again by themselves: power cuts of all hosts, exports that are killed,
// promotions that a crash cut short.
#include <csignal>

#include <doctest/doctest.h>
#include <fmt/ranges.h>

#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

/// Every daemon and the export are gone at once.
void cut_power(Cluster& cluster) {
  const pid_t exporter = cluster.export_pid();
  for (const std::string& name : cluster.host_names())
    cluster.host(name).kill9();
  ::kill(exporter, SIGKILL);
}

bool serves(Cluster& cluster, const std::string& host) {
  return cluster.serving_host() == host;
}

bool says(Cluster& cluster, const std::string& text) {
  const Finished status = cluster.ctl({"status", "vm1"});
  return status.out.find(text) != std::string::npos;
}

TEST_CASE(
    "autostart: after a power cut of all hosts the volume is served again, in whatever order they "
    "return") {
  Cluster cluster(3);
  cluster.create({.create_options = {"--autostart"}});
  cluster.activate();
  cluster.wait_streaming();
  Load load(cluster, {.reconnect_limit = Millis(120'000)});
  load.start();
  for (const std::vector<std::string>& order :
       {std::vector<std::string>{"a", "b", "c"}, {"c", "b", "a"}, {"b", "a", "c"}}) {
    INFO(fmt::format("order {}", fmt::join(order, ",")));
    load.wait_answered(100, patience);
    cut_power(cluster);
    for (const std::string& host : order)
      cluster.host(host).start();
    load.wait_answered(100, patience);
    CHECK(serves(cluster, "a"));
  }
  load.stop();
  load.check_through_nbd();
  cluster.wait_streaming();
  cluster.stop_and_compare();
  load.check_images(cluster);
}

TEST_CASE("autostart: until those who are needed are back, status names who is awaited") {
  Cluster cluster(3);
  cluster.create({.create_options = {"--autostart"}});
  cluster.activate();
  cluster.wait_streaming();
  cut_power(cluster);
  cluster.host("a").start();
  wait_until("a waits for a quorum", patience, [&] {
    const json view = cluster.volume("a");
    return view.at("state") == "starting" && view.at("error").is_object() &&
           contains(view["error"]["message"].get<std::string>(), " b (") &&
           contains(view["error"]["message"].get<std::string>(), " c (");
  });
  CHECK(says(cluster, "awaited "));
  cluster.host("c").start();
  wait_until("two of three serve", patience, [&] { return serves(cluster, "a"); });

  cluster.host("b").start();
  cluster.wait_streaming();
  cut_power(cluster);
  cluster.host("b").start();
  cluster.host("c").start();
  wait_until("the primary is awaited", patience, [&] {
    return says(cluster, "the primary of vm1, a, does not answer");
  });
  CHECK(says(cluster, "replicactl failover vm1"));
  CHECK_FALSE(cluster.serving_host());
  cluster.host("a").start();
  wait_until("the primary is back", patience, [&] { return serves(cluster, "a"); });
}

TEST_CASE("autostart: an export that was killed comes back, one that was deactivated does not") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}});
  cluster.activate();
  cluster.wait_streaming();
  cluster.ctl_ok({"set", "vm1", "autostart=yes"});
  const pid_t first = cluster.export_pid();
  ::kill(first, SIGKILL);
  wait_until("another export serves", patience, [&] {
    const auto view = cluster.host("a").get("/v1/volumes/vm1");
    return serves(cluster, "a") && view && view->at("export").is_object() &&
           view->at("export").at("pid") != first;
  });
  cluster.deactivate();
  cluster.host("a").kill9();
  cluster.host("a").start();
  CHECK(cluster.volume("a").at("state") == "stopped");
  CHECK(cluster.volume("a").at("active") == false);
}

TEST_CASE("autostart: without it nothing is served again after a power cut") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}});
  cluster.activate();
  cut_power(cluster);
  cluster.host("b").start();
  cluster.host("a").start();
  wait_until(
      "a has its images", patience, [&] { return cluster.volume("a").at("state") == "stopped"; });
  CHECK(cluster.ctl_ok({"status", "vm1"}).out.find("ended uncleanly") != std::string::npos);
  cluster.activate();
  CHECK(serves(cluster, "a"));
}

TEST_CASE(
    "autostart: a failover whose target dies in the middle is finished and served, or has changed "
    "nothing") {
  Cluster cluster(3);
  cluster.create({});
  cluster.activate();
  cluster.wait_streaming();
  const pid_t exporter = cluster.export_pid();
  cluster.host("a").kill9();
  ::kill(exporter, SIGKILL);
  const std::string out = cluster.directory() + "/failover";
  int deaths = 0;
  const auto is_b_primary = [&] {
    const auto view = cluster.host("c").get("/v1/volumes/vm1");
    return view && view->at("vote").at("record").at("primary") == "b";
  };
  for (int delay_ms = 20; !is_b_primary(); delay_ms += 5) {
    REQUIRE(delay_ms < 2000);
    Process failover(
        {replicactl_program, "--hosts=" + cluster.hosts_option(), "failover", "vm1", "--to=b"},
        out,
        out);
    const auto begin = std::chrono::steady_clock::now();
    wait_until("it is under way", patience, [&] {
      return std::chrono::steady_clock::now() - begin >= Millis(delay_ms) || is_b_primary();
    });
    cluster.host("b").kill9();
    ++deaths;
    cluster.host("b").start();
    failover.kill9();
  }
  MESSAGE("the target died " << deaths << " times");
  wait_until("b serves", patience, [&] { return serves(cluster, "b"); });
}

}  // namespace
}  // namespace replicad::e2e
