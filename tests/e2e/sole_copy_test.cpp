// A primary that alone is in sync is lost before another member is: it is waited for.
#include <doctest/doctest.h>

#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

void write_block(Cluster& cluster, unsigned char value) {
  NbdClient client(cluster.uri());
  client.write(block_bytes, std::vector<std::byte>(block_bytes, std::byte{value}));
  client.flush();
}

std::byte read_block(Cluster& cluster) {
  NbdClient client(cluster.uri());
  std::vector<std::byte> content(block_bytes);
  client.read(block_bytes, content);
  return content.front();
}

/// The host's replicad and its export.
void kill_host(Cluster& cluster, const std::string& name) {
  const pid_t served_by = cluster.export_pid();
  cluster.host(name).kill9();
  ::kill(served_by, SIGKILL);
}

void check_not_taken_over(Cluster& cluster, const std::string& by) {
  const Finished refused = cluster.ctl({"failover", "vm1"});
  CHECK_MESSAGE(refused.exit_code == 3, refused.text());
  CHECK(cluster.volume(by).at("primary") != by);
}

/// The witness has no images.
void stop_and_compare_copies(Cluster& cluster, const std::string& replica) {
  cluster.ctl_ok({"wait", "vm1", "--for=in-sync", "--timeout=60"});
  cluster.deactivate();
  cluster.wait_applied("vm1", {replica});
  CHECK(files_difference(cluster.image_path("a"), cluster.image_path("b")) == "");
}

TEST_CASE("sole copy: who took over and dies before others are in sync is waited for") {
  Cluster cluster(3);
  cluster.create({.members = {"a", "b"}, .create_options = {"--witness=c"}});
  cluster.activate();
  cluster.wait_streaming("vm1", {"b"});
  write_block(cluster, 1);
  kill_host(cluster, "a");
  wait_until("b takes over", Millis(60'000), [&] {
    return cluster.ctl({"failover", "vm1"}).exit_code == 0;
  });
  write_block(cluster, 2);
  kill_host(cluster, "b");
  // a lacks what b has answered.
  cluster.host("a").start();
  wait_until("a knows that b has taken over", Millis(30'000), [&] {
    return cluster.volume("a").at("primary") == "b";
  });
  check_not_taken_over(cluster, "a");
  cluster.host("b").start();
  cluster.activate();
  CHECK(cluster.primary_host() == "b");
  CHECK(read_block(cluster) == std::byte{2});
  stop_and_compare_copies(cluster, "a");
}

TEST_CASE(
    "sole copy: a restarted primary that was read before others were compared is waited for") {
  Cluster cluster(3);
  cluster.create({.members = {"a", "b"}, .create_options = {"--witness=c"}});
  cluster.activate();
  cluster.wait_streaming("vm1", {"b"});
  write_block(cluster, 1);
  // b cannot be compared: whatever a's image holds beyond it stays a's alone.
  cluster.host("b").signal(SIGSTOP);
  const std::uint64_t term = cluster.find_export("vm1", "vda")->epoch;
  ::kill(cluster.export_pid(), SIGKILL);
  wait_until("a serves in a new term", Millis(60'000), [&] {
    const auto served = cluster.find_export("vm1", "vda");
    return served && served->epoch > term;
  });
  CHECK(read_block(cluster) == std::byte{1});
  kill_host(cluster, "a");
  cluster.host("b").signal(SIGCONT);
  wait_until("b knows the term", Millis(30'000), [&] {
    const json view = cluster.volume("b");
    return view.at("vote").at("record").at("in_sync") == json::array({"a"});
  });
  check_not_taken_over(cluster, "b");
  cluster.host("a").start();
  cluster.activate();
  CHECK(read_block(cluster) == std::byte{1});
  stop_and_compare_copies(cluster, "b");
}

}  // namespace
}  // namespace replicad::e2e
