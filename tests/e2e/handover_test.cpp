// The disks of a live migration: clients that do what QEMU does at its source and its target. What QEMU itself does
// with them is in docs/decisions/0011.
#include <atomic>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <libnbd.h>
#include <signal.h>

#include "tests/e2e/load.h"
#include "tests/e2e/nbd_client.h"
#include "tests/e2e/sanitizer.h"

namespace replicad::e2e {
namespace {

using Block = std::vector<std::byte>;

Block block_of(unsigned value) {
  return Block(block_bytes, static_cast<std::byte>(value));
}

std::string socket_uri(Cluster& cluster, const std::string& host) {
  return fmt::format("nbd+unix:///vda?socket={}/vm1.sock", cluster.host(host).run_directory());
}

/// A VM's disk: it connects again when its connection ends, and sends what was not answered again (reconnect-delay),
/// until its process is killed.
class VmDisk {
 public:
  VmDisk(Cluster& cluster, const std::string& host) : uri_(socket_uri(cluster, host)) {
    client_ = std::make_unique<NbdClient>(uri_, [this] { return killed_.load(); });
  }
  VmDisk(const VmDisk&) = delete;
  VmDisk& operator=(const VmDisk&) = delete;
  ~VmDisk() { kill(); }

  void write(std::uint64_t number, unsigned value) {
    const Block data = block_of(value);
    with_client([&](NbdClient& client) { client.write(number * block_bytes, data); });
  }
  Block read(std::uint64_t number) {
    Block data(block_bytes);
    with_client([&](NbdClient& client) { client.read(number * block_bytes, data); });
    return data;
  }
  void flush() {
    with_client([](NbdClient& client) { client.flush(); });
  }
  /// The request under way, if any, throws HarnessError, and its connection ends.
  void kill() { killed_ = true; }

 private:
  void with_client(const std::function<void(NbdClient&)>& request) {
    while (true) {
      try {
        if (!client_)
          client_ = std::make_unique<NbdClient>(uri_, [this] { return killed_.load(); });
        return request(*client_);
      } catch (const NbdError& error) {
        client_.reset();
        if (killed_ || !error.connection_lost) throw;
        std::this_thread::yield();
      }
    }
  }

  std::string uri_;
  std::atomic<bool> killed_{false};
  std::unique_ptr<NbdClient> client_;
};

/// A request that may have to wait.
template <typename Request>
auto later(Request request) {
  return std::async(std::launch::async, std::move(request));
}
template <typename Future>
bool is_held(const Future& future) {
  return future.wait_for(Millis(0)) != std::future_status::ready;
}
template <typename Future>
auto answer_of(Future& future) {
  if (future.wait_for(patience) != std::future_status::ready)
    throw HarnessError("a request was not answered in time");
  return future.get();
}

json handover_at(Cluster& cluster, const std::string& host) {
  const auto view = cluster.host(host).get("/v1/volumes/vm1");
  return view ? view->value("handover", json()) : json();
}
void wait_ended(Cluster& cluster, const std::string& host) {
  wait_until("the handover has ended at " + host, patience, [&] {
    const auto view = cluster.host(host).get("/v1/volumes/vm1");
    return view && view->at("handover").is_null();
  });
}
void wait_primary(Cluster& cluster, const std::string& host) {
  wait_until(host + " serves", patience, [&] { return cluster.serving_host() == host; });
}

/// Of the volume vm1, served on a and prepared for b.
struct PreparedMove {
  explicit PreparedMove(Cluster& on, const VolumeSpec& spec = {}) : cluster(on) {
    cluster.create(spec);
    cluster.activate();
    cluster.wait_streaming();
    source = std::make_unique<VmDisk>(cluster, "a");
    source->write(0, 1);
    cluster.ctl_ok({"handover", "vm1", "--to=b"});
    target = std::make_unique<VmDisk>(cluster, "b");
  }
  Cluster& cluster;
  std::unique_ptr<VmDisk> source;
  std::unique_ptr<VmDisk> target;
};

TEST_CASE(
    "handover: what the source has written last is read at the target at once, then it moves") {
  for (const std::string mode : {"sync", "semi-sync", "async"}) {
    CAPTURE(mode);
    Cluster cluster(3);
    PreparedMove move(cluster, {.mode = mode});
    CHECK(cluster.volume("b").at("role") == "replica");
    for (unsigned i = 0; i < 20; ++i) {
      move.source->write(i, 100 + i);
      CHECK(move.target->read(i) == block_of(100 + i));
    }
    move.source->flush();
    move.target->flush();
    CHECK(cluster.serving_host() == "a");
    // The move: the target's first write. The source's last requests come after it.
    move.target->write(3, 7);
    CHECK(cluster.serving_host() == "b");
    CHECK(move.target->read(3) == block_of(7));
    CHECK(move.target->read(19) == block_of(119));
    move.source->flush();
    CHECK(handover_at(cluster, "b").at("term") != 0);
    cluster.ctl_ok({"handover", "vm1", "--end"});
    for (const std::string& host : cluster.host_names())
      wait_ended(cluster, host);
    move.target->write(4, 8);
    CHECK(cluster.volume("b").at("settings").at("mode") == mode);
    cluster.wait_streaming();
    cluster.stop_and_compare();
  }
}

TEST_CASE("handover: there, and with another one back") {
  Cluster cluster(2);
  PreparedMove move(cluster, {.members = {"a", "b"}});
  move.target->write(1, 2);
  cluster.ctl_ok({"handover", "vm1", "--end"});
  cluster.wait_streaming();
  cluster.ctl_ok({"handover", "vm1", "--to=a"});
  move.source = std::make_unique<VmDisk>(cluster, "a");
  CHECK(move.source->read(1) == block_of(2));
  move.source->write(1, 3);
  CHECK(cluster.serving_host() == "a");
  cluster.ctl_ok({"handover", "vm1", "--end"});
  cluster.stop_and_compare();
}

TEST_CASE("handover: finished before the target has written, the role moves and it goes on") {
  Cluster cluster(3);
  PreparedMove move(cluster, {.mode = "async"});
  CHECK(move.target->read(0) == block_of(1));
  const json planned = cluster.ctl_json({"handover", "vm1", "--finish", "--dry-run"});
  CHECK(planned.at("steps").size() == 2);
  CHECK(cluster.serving_host() == "a");
  cluster.ctl_ok({"handover", "vm1", "--finish"});
  CHECK(cluster.serving_host() == "b");
  CHECK(move.target->read(0) == block_of(1));
  move.target->write(0, 2);
  CHECK(move.target->read(0) == block_of(2));
  for (const std::string& host : cluster.host_names())
    wait_ended(cluster, host);
  CHECK(cluster.ctl({"handover", "vm1", "--finish"}).exit_code != 0);
  cluster.wait_streaming();
  cluster.stop_and_compare();
}

TEST_CASE("handover: finished while the target's first write moves the role") {
  Cluster cluster(3);
  PreparedMove move(cluster);
  auto write = later([&] { move.target->write(0, 2); });
  cluster.ctl_ok({"handover", "vm1", "--finish"});
  answer_of(write);
  CHECK(cluster.serving_host() == "b");
  CHECK(move.target->read(0) == block_of(2));
  wait_ended(cluster, "b");
  cluster.wait_streaming();
  cluster.stop_and_compare();
}

TEST_CASE("handover: cancelled before the target wrote, the source goes on") {
  Cluster cluster(3);
  PreparedMove move(cluster);
  CHECK(move.target->read(0) == block_of(1));
  move.target.reset();
  move.source->write(1, 2);
  cluster.ctl_ok({"handover", "vm1", "--end"});
  wait_ended(cluster, "b");
  move.source->write(2, 3);
  CHECK(cluster.serving_host() == "a");
  wait_until("b's socket is closed", patience, [&] {
    try {
      const NbdClient client(socket_uri(cluster, "b"));
      return false;
    } catch (const NbdError&) {
      return true;
    }
  });
  CHECK(move.source->read(2) == block_of(3));
  cluster.stop_and_compare();
}

TEST_CASE("handover: cancelled while the target's write is held, the source takes the role back") {
  Cluster cluster(3);
  PreparedMove move(cluster);
  {
    // It does not come back when its connection ends, which is when the role moves.
    NbdClient doomed(socket_uri(cluster, "b"));
    const Block data = block_of(66);
    CHECK_THROWS_AS(doomed.write(0, data), NbdError);
  }
  move.target->kill();
  wait_primary(cluster, "b");
  CHECK(move.source->read(0) == block_of(1));
  move.source->write(1, 2);
  CHECK(cluster.serving_host() == "a");
  // What was held is carried out nowhere, and the role does not move again.
  CHECK(move.source->read(0) == block_of(1));
  wait_ended(cluster, "a");
  wait_ended(cluster, "b");
  cluster.wait_streaming();
  cluster.stop_and_compare();
}

TEST_CASE("handover: after the target's first write the source is fenced") {
  Cluster cluster(3);
  PreparedMove move(cluster);
  move.target->write(0, 9);
  auto read = later([&] { return move.source->read(0); });
  VmDisk writer(cluster, "a");
  auto write = later([&] { writer.write(0, 5); });
  wait_until("b has refused to give the role back", patience, [&] {
    return handover_at(cluster, "a").value("error", json()).is_object();
  });
  CHECK(contains(handover_at(cluster, "a").at("error").at("message").get<std::string>(),
                 "a write of the guest was let in"));
  CHECK(is_held(read));
  CHECK(is_held(write));
  CHECK(cluster.serving_host() == "b");
  CHECK(move.target->read(0) == block_of(9));
  move.source->kill();
  writer.kill();
  CHECK_THROWS(answer_of(read));
  CHECK_THROWS(answer_of(write));
  cluster.ctl_ok({"handover", "vm1", "--end"});
  cluster.stop_and_compare();
}

TEST_CASE("handover: the target is killed before the move, the source goes on") {
  Cluster cluster(2);
  PreparedMove move(cluster, {.members = {"a", "b"}, .create_options = {"--set=ack-timeout=1s"}});
  cluster.host("b").kill9();
  move.source->write(1, 2);
  CHECK(cluster.serving_host() == "a");
  wait_ended(cluster, "a");
  cluster.host("b").start();
  cluster.wait_streaming();
  // And may be prepared again.
  cluster.ctl_ok({"handover", "vm1", "--to=b"});
  VmDisk again(cluster, "b");
  CHECK(again.read(1) == block_of(2));
  again.write(1, 3);
  CHECK(cluster.serving_host() == "b");
  cluster.ctl_ok({"handover", "vm1", "--end"});
  cluster.stop_and_compare();
}

TEST_CASE("handover: the source is lost before the move, reads wait, failover lets them go on") {
  Cluster cluster(3);
  PreparedMove move(cluster, {.create_options = {"--set=ack-timeout=1s"}});
  const pid_t exporter = cluster.export_pid();
  cluster.host("a").kill9();
  ::kill(exporter, SIGKILL);
  auto read = later([&] { return move.target->read(0); });
  wait_until("b is without its primary", patience, [&] {
    return cluster.volume("b").at("state") == "disconnected";
  });
  CHECK(is_held(read));
  cluster.ctl_ok({"failover", "vm1", "--to=b"});
  CHECK(answer_of(read) == block_of(1));
  move.target->write(0, 2);
  CHECK(handover_at(cluster, "b").is_null());
  move.source->kill();
  cluster.host("a").start();
  wait_until(
      "a is a replica", patience, [&] { return cluster.volume("a").at("role") == "replica"; });
  wait_ended(cluster, "a");
  cluster.wait_streaming();
  cluster.stop_and_compare();
}

TEST_CASE("handover: a command that cannot end it yet says what it waits for") {
  Cluster cluster(3);
  PreparedMove move(cluster, {.create_options = {"--set=ack-timeout=4s"}});
  cluster.host("b").signal(SIGSTOP);
  auto write = later([&] { move.source->write(1, 2); });
  // Until the primary has gone on without b, which ends the handover.
  const Finished finished = cluster.ctl({"handover", "vm1", "--finish", "--timeout=1s"});
  CHECK(finished.exit_code != 0);
  CHECK_MESSAGE(contains(finished.out, " s at most: b cannot take over"), finished.text());
  answer_of(write);
  cluster.host("b").signal(SIGCONT);
  wait_ended(cluster, "b");
  cluster.wait_streaming();
  cluster.stop_and_compare();
}

/// An nbdkit that waits, before it does anything, as long as `gate` exists, and says so by `gate`.waits.
std::string gated_nbdkit(const std::string& directory, const std::string& gate) {
  const std::string path = directory + "/gated-nbdkit";
  std::ofstream(path) << fmt::format(
      "#!/bin/sh\nwhile [ -e {0} ]; do : >{0}.waits; sleep 0.02; done\nexec {1} \"$@\"\n",
      gate,
      nbdkit_program());
  std::filesystem::permissions(path, std::filesystem::perms::owner_all);
  return path;
}

TEST_CASE("handover: a standby that is too late for one does not fail the next") {
  Cluster cluster(0);
  const std::string gate = cluster.directory() + "/gate";
  cluster.add_host({.name = "a",
                    .directory = cluster.directory() + "/a",
                    .image_directory = "",
                    .state_directory = "",
                    .arguments = {},
                    .launcher = {},
                    .nbdkit = gated_nbdkit(cluster.directory(), gate)});
  cluster.add_host({.name = "b",
                    .directory = cluster.directory() + "/b",
                    .image_directory = "",
                    .state_directory = "",
                    .arguments = {},
                    .launcher = {}});
  PreparedMove move(cluster, {.members = {"a", "b"}});
  std::ofstream(gate).flush();
  move.target->write(0, 2);
  wait_primary(cluster, "b");
  // The source's standby is being started when its handover ends.
  wait_until(
      "a has begun a standby", patience, [&] { return std::filesystem::exists(gate + ".waits"); });
  cluster.ctl_ok({"handover", "vm1", "--finish"});
  cluster.wait_streaming();
  auto prepared = later([&] { return cluster.ctl({"handover", "vm1", "--to=a"}); });
  wait_until("a knows of the next one", patience, [&] {
    const json known = handover_at(cluster, "a");
    return known.is_object() && known.at("to") == "a";
  });
  std::filesystem::remove(gate);
  const Finished answer = answer_of(prepared);
  CHECK_MESSAGE(answer.exit_code == 0, answer.text());
  move.source = std::make_unique<VmDisk>(cluster, "a");
  move.source->write(0, 3);
  CHECK(cluster.serving_host() == "a");
  cluster.ctl_ok({"handover", "vm1", "--finish"});
  cluster.stop_and_compare();
}

/// kill -9 of all that runs on b, which serves.
void kill_target(Cluster& cluster) {
  const pid_t exporter = cluster.export_pid();
  cluster.host("b").kill9();
  ::kill(exporter, SIGKILL);
}

TEST_CASE("handover: the target is lost behind its first write, the source waits for a failover") {
  Cluster cluster(3);
  PreparedMove move(cluster, {.create_options = {"--set=ack-timeout=1s"}});
  move.target->write(0, 9);
  kill_target(cluster);
  move.target->kill();
  auto read = later([&] { return move.source->read(0); });
  VmDisk writer(cluster, "a");
  auto write = later([&] { writer.write(1, 5); });
  wait_until("a is without its primary", patience, [&] {
    return cluster.volume("a").at("state") == "disconnected";
  });
  CHECK(is_held(read));
  CHECK(is_held(write));
  const Finished end = cluster.ctl({"handover", "vm1", "--end"});
  CHECK(end.exit_code == 4);
  CHECK_MESSAGE(contains(end.err, "`replicactl failover vm1`"), end.text());
  // What the VM on a holds must not reach the disk: it ends before a takes over.
  move.source->kill();
  writer.kill();
  CHECK_THROWS(answer_of(read));
  CHECK_THROWS(answer_of(write));
  cluster.ctl_ok({"failover", "vm1", "--to=a"});
  CHECK(handover_at(cluster, "a").is_null());
  VmDisk anew(cluster, "a");
  CHECK(anew.read(0) == block_of(9));
  CHECK(anew.read(1) == block_of(0));
  anew.write(1, 6);
  cluster.host("b").start();
  wait_ended(cluster, "b");
  cluster.wait_streaming();
  CHECK(cluster.serving_host() == "a");
  cluster.stop_and_compare();
}

TEST_CASE("handover: the target is lost behind its first write, there is no majority without it") {
  for (const bool force : {true, false}) {
    CAPTURE(force);
    Cluster cluster(2);
    PreparedMove move(cluster, {.members = {"a", "b"}, .create_options = {"--set=ack-timeout=1s"}});
    move.target->write(0, 9);
    kill_target(cluster);
    move.target->kill();
    move.source->kill();
    const Finished refused = cluster.ctl({"failover", "vm1", "--to=a"});
    CHECK_MESSAGE(refused.exit_code == 4, refused.text());
    CHECK(contains(refused.err, "--force"));
    const std::string host = force ? "a" : "b";
    if (force) {
      cluster.ctl_ok({"failover", "vm1", "--to=a", "--force"});
    } else {
      cluster.host("b").start();
      cluster.ctl_ok({"activate", "vm1"});
    }
    VmDisk anew(cluster, host);
    CHECK(anew.read(0) == block_of(9));
    anew.write(1, 6);
    if (force) {
      cluster.host("b").start();
      wait_until("b's history is known", patience, [&] {
        return cluster.volume("b").at("state") == "split";
      });
      cluster.ctl_ok({"resolve", "vm1", "--keep=a"});
    }
    for (const std::string& member : cluster.host_names())
      wait_ended(cluster, member);
    cluster.wait_streaming();
    CHECK(cluster.serving_host() == host);
    cluster.stop_and_compare();
  }
}

TEST_CASE("handover: what does not go with one on record is refused, and says what to do") {
  Cluster cluster(3);
  CHECK(cluster.ctl({"handover", "vm1", "--to=b"}).exit_code != 0);
  PreparedMove move(cluster);
  for (const std::vector<std::string>& command : {std::vector<std::string>{"deactivate", "vm1"},
                                                  {"restart", "vm1"},
                                                  {"delete", "vm1", "--force"},
                                                  {"switchover", "vm1", "--to=c"},
                                                  {"switchover", "vm1", "--to=b"},
                                                  {"handover", "vm1", "--to=c"}}) {
    const Finished refused = cluster.ctl(command);
    CHECK_MESSAGE(refused.exit_code != 0, refused.text());
    CHECK_MESSAGE(contains(refused.err, "`replicactl handover vm1 --finish`, else `--end`"),
                  refused.text());
  }
  CHECK(contains(cluster.ctl_ok({"status", "vm1"}).out, "handover: from a to b"));
  CHECK(cluster.ctl_json({"status", "vm1"}).at("volumes")[0].at("handover").at("moved") == false);
  CHECK(move.target->read(0) == block_of(1));
  cluster.ctl_ok({"handover", "vm1", "--end"});
  const Finished again = cluster.ctl({"handover", "vm1", "--end"});
  CHECK(again.exit_code != 0);
  CHECK_MESSAGE(contains(again.err, "no handover of vm1 is prepared"), again.text());
  CHECK(cluster.ctl({"handover", "vm1"}).exit_code != 0);
  CHECK(cluster.ctl({"handover", "vm1", "--to=b", "--end"}).exit_code != 0);
  CHECK(cluster.ctl({"handover", "vm1", "--finish", "--end"}).exit_code != 0);
  CHECK(cluster.ctl({"handover", "vm1", "--to=a"}).exit_code != 0);
  move.source->write(1, 2);
  cluster.stop_and_compare();
}

}  // namespace
}  // namespace replicad::e2e
