// Two histories of one volume: a forced failover while others may have gone on.
#include <csignal>

#include <doctest/doctest.h>

#include "tests/e2e/harness.h"
#include "tests/e2e/nbd_client.h"

namespace replicad::e2e {
namespace {

std::string state_of(Cluster& cluster, const std::string& host) {
  const auto view = cluster.host(host).get("/v1/volumes/vm1");
  return view ? view->value("state", "") : "";
}

void write_block(const std::string& uri, std::uint64_t offset, int value) {
  NbdClient client(uri);
  const std::vector<std::byte> block(4096, static_cast<std::byte>(value));
  client.write(offset, block);
  client.flush();
}

int read_block(const std::string& uri, std::uint64_t offset) {
  NbdClient client(uri);
  std::vector<std::byte> block(4096);
  client.read(offset, block);
  return static_cast<int>(block[17]);
}

void kill_host(Cluster& cluster, const std::string& host) {
  const pid_t exporter = cluster.export_pid();
  cluster.host(host).kill9();
  ::kill(exporter, SIGKILL);
}

/// a served and is gone, b was forced and has written since.
void force_b(Cluster& cluster) {
  cluster.create({.members = {"a", "b"}});
  cluster.activate();
  cluster.wait_streaming();
  write_block(cluster.uri(), 0, 1);
  kill_host(cluster, "a");
  cluster.ctl_ok({"failover", "vm1", "--force"});
  write_block(cluster.uri(), 4096, 2);
}

/// What `host` alone has is kept there.
bool keeps_lost_writes(Cluster& cluster, const std::string& host) {
  const json files = cluster.ctl_json({"lost-writes", "vm1"}).at("files");
  return files.size() == 1 && files[0].at("host") == host && files[0].at("bytes") == 4096;
}

TEST_CASE("split: a former primary that has not gone on stands back, and resolve brings it in") {
  Cluster cluster(2);
  force_b(cluster);
  cluster.host("a").start();
  wait_until("a stands back", patience, [&] { return state_of(cluster, "a") == "split"; });
  CHECK(state_of(cluster, "b") == "serving");
  write_block(cluster.uri(), 8192, 3);
  const Finished status = cluster.ctl({"status", "vm1"});
  CHECK_MESSAGE(status.out.find("two histories of volume vm1") != std::string::npos, status.out);
  CHECK_MESSAGE(status.out.find("replicactl resolve vm1 --keep") != std::string::npos, status.out);
  // It stays so when it comes back once more.
  cluster.host("a").kill9();
  cluster.host("a").start();
  CHECK(state_of(cluster, "a") == "split");
  const Finished wrong = cluster.ctl({"resolve", "vm1", "--keep=a", "--dry-run"});
  CHECK_MESSAGE(wrong.out.find("given up: b: history") != std::string::npos, wrong.text());

  cluster.ctl_ok({"resolve", "vm1", "--keep=b"});
  CHECK(state_of(cluster, "b") == "serving");
  cluster.wait_streaming();
  CHECK(read_block(cluster.uri(), 4096) == 2);
  CHECK(cluster.ctl({"resolve", "vm1", "--keep=b"}).exit_code == 3);
  cluster.stop_and_compare();
}

/// Both went on alone; then they meet, with `first` back before the other.
void go_on_alone(Cluster& cluster, const std::string& first) {
  force_b(cluster);
  kill_host(cluster, "b");
  cluster.host("a").start();
  cluster.activate();
  write_block(cluster.uri(), 4096, 9);
  const std::string second = first == "a" ? "b" : "a";
  if (second == "a") {
    kill_host(cluster, "a");
    cluster.host("b").start();
    cluster.activate();
  }
  cluster.host(second).start();
  wait_until("both stop", patience, [&] {
    return state_of(cluster, "a") == "split" && state_of(cluster, "b") == "split" &&
           !cluster.serving_host();
  });
  CHECK(cluster.ctl({"activate", "vm1"}).exit_code != 0);
  // Not even by force.
  for (const char* host : {"a", "b"})
    static_cast<void>(cluster.ctl({"failover", "vm1", "--force", std::string("--to=") + host}));
  CHECK_FALSE(cluster.serving_host());
  CHECK(state_of(cluster, "a") == "split");
  CHECK(state_of(cluster, "b") == "split");
}

TEST_CASE("split: two histories that both went on stop both, and the one chosen is kept") {
  for (const std::string first : {"a", "b"}) {
    CAPTURE(first);
    Cluster cluster(2);
    go_on_alone(cluster, first);
    cluster.ctl_ok({"resolve", "vm1", "--keep=" + first});
    CHECK(cluster.primary_host() == first);
    cluster.activate();
    CHECK(read_block(cluster.uri(), 0) == 1);
    CHECK(read_block(cluster.uri(), 4096) == (first == "a" ? 9 : 2));
    cluster.wait_streaming();
    CHECK(keeps_lost_writes(cluster, first == "a" ? "b" : "a"));
    cluster.stop_and_compare();
  }
}

}  // namespace
}  // namespace replicad::e2e
