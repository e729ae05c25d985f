// The primary is lost, hangs, or is cut off from the voters.
#include <algorithm>
#include <thread>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <libnbd.h>
#include <signal.h>

#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

void kill_primary(Cluster& cluster, const std::string& host) {
  const pid_t exporter = cluster.export_pid();
  cluster.host(host).kill9();
  ::kill(exporter, SIGKILL);
}

std::size_t count_serving(Cluster& cluster) {
  std::size_t serving = 0;
  for (const std::string& name : cluster.host_names()) {
    const auto view = cluster.host(name).get("/v1/volumes/vm1");
    if (view && view->value("role", "") == "primary" && view->value("state", "") == "serving")
      ++serving;
  }
  return serving;
}

bool shows(Cluster& cluster, const std::string& host, const char* field, const json& value) {
  const auto view = cluster.host(host).get("/v1/volumes/vm1");
  return view && view->contains(field) && (*view)[field] == value;
}

TEST_CASE("failover: the primary's processes are killed under load, nothing answered is lost") {
  Cluster cluster(3);
  cluster.create({});
  cluster.activate();
  cluster.wait_streaming();
  Load load(cluster, {.reconnect_limit = Millis(60'000)});
  load.start();
  load.wait_answered(200);
  kill_primary(cluster, "a");
  const Finished done = cluster.ctl({"failover", "vm1"});
  CHECK_MESSAGE(done.exit_code == 0, done.text());
  load.wait_answered(100);
  const std::string primary = cluster.primary_host();
  CHECK(primary != "a");
  load.stop();
  CHECK(load.reconnects() > 0);
  load.check_through_nbd();
  // The old primary finds out that it is none, and stays one of the replicas.
  cluster.host("a").start();
  wait_until(
      "a is a replica", Millis(30'000), [&] { return shows(cluster, "a", "role", "replica"); });
  CHECK(shows(cluster, "a", "primary", primary));
  CHECK(count_serving(cluster) == 1);
}

TEST_CASE(
    "failover: of two members without a witness the primary goes on alone, the other refuses") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}, .create_options = {"--set=ack-timeout=1s"}});
  cluster.activate();
  cluster.wait_streaming();
  // The planned move needs no third vote: the tie-break moves with the old primary's.
  for (const char* to : {"b", "a"}) {
    const Finished moved = cluster.ctl({"switchover", "vm1", fmt::format("--to={}", to)});
    REQUIRE_MESSAGE(moved.exit_code == 0, moved.text());
    cluster.wait_streaming();
  }
  NbdClient client(cluster.uri());
  std::vector<std::byte> block(4096, std::byte{1});
  client.write(0, block);
  cluster.host("b").kill9();
  client.write(4096, block);
  client.flush();
  cluster.host("b").start();
  cluster.wait_streaming();
  client.write(8192, block);
  kill_primary(cluster, "a");
  const Finished refused = cluster.ctl({"failover", "vm1"});
  CHECK(refused.exit_code != 0);
  CHECK_MESSAGE(refused.err.find("1 of the 2 voters") != std::string::npos, refused.text());
  CHECK_MESSAGE(refused.err.find("b: in sync, at write") != std::string::npos, refused.text());
  CHECK(shows(cluster, "b", "role", "replica"));
  // An operator who knows that a is off may say so.
  const Finished forced = cluster.ctl({"failover", "vm1", "--force"});
  CHECK_MESSAGE(forced.exit_code == 0, forced.text());
  NbdClient moved(cluster.uri());
  std::vector<std::byte> read(4096);
  moved.read(8192, read);
  CHECK(read == block);
  moved.write(0, block);
  moved.flush();
}

TEST_CASE(
    "failover: all in sync are short: the longest takes over if all answer, else by force only") {
  Cluster cluster(3);
  cluster.create({.mode = "semi-sync"});
  cluster.activate();
  cluster.wait_streaming();
  std::vector<std::byte> block(4096, std::byte{6});
  {
    NbdClient client(cluster.uri());
    client.write(0, block);
  }
  cluster.deactivate();
  for (const char* host : {"b", "c"}) {
    cluster.host(host).kill9();
    cluster.host(host).start();
    wait_until("it is short", Millis(30'000), [&] {
      const auto view = cluster.host(host).get("/v1/volumes/vm1");
      return view && (*view)["replica"]["short"] == true;
    });
  }
  cluster.host("a").stop();
  const Finished refused = cluster.ctl({"failover", "vm1"});
  CHECK(refused.exit_code == 3);
  CHECK_MESSAGE(
      refused.err.find("every member in sync answers, and a does not") != std::string::npos,
      refused.text());
  cluster.host("a").start();
  const Finished done = cluster.ctl({"failover", "vm1", "--to=c"});
  CHECK_MESSAGE(done.exit_code == 0, done.text());
  CHECK(cluster.primary_host() == "c");
  NbdClient moved(cluster.uri());
  std::vector<std::byte> read(4096);
  moved.read(0, read);
  CHECK(read == block);
}

TEST_CASE("failover: a refusal says what would be lost of each disk") {
  Cluster cluster(3);
  cluster.create({.create_options = {"--set=ack-timeout=1s"}});
  cluster.activate();
  cluster.wait_streaming();
  const std::vector<std::byte> block(4096, std::byte{3});
  {
    NbdClient client(cluster.uri());
    client.write(0, block);
    client.flush();
    cluster.host("c").kill9();
    for (std::uint64_t i = 1; i <= 3; ++i)
      client.write(i * block.size(), block);
    client.flush();
  }
  kill_primary(cluster, "a");
  cluster.host("c").start();
  const Finished refused = cluster.ctl({"failover", "vm1", "--to=c"});
  CHECK(refused.exit_code != 0);
  CHECK_MESSAGE(refused.err.find("c: not in sync, at write") != std::string::npos, refused.text());
  CHECK_MESSAGE(refused.err.find("it lacks of vda: 3 writes, 12 KiB") != std::string::npos,
                refused.text());
  // Nothing has changed by that: who lacks nothing takes over.
  const Finished done = cluster.ctl({"failover", "vm1"});
  CHECK_MESSAGE(done.exit_code == 0, done.text());
  CHECK(cluster.primary_host() == "b");
}

TEST_CASE("failover: with a witness the other of two members takes over") {
  Cluster cluster(3);
  cluster.create({.members = {"a", "b"}, .create_options = {"--witness=c"}});
  CHECK(shows(cluster, "c", "state", "witness"));
  CHECK(cluster.volume("c").at("disks").empty());
  cluster.activate();
  cluster.wait_streaming("vm1", {"b"});
  NbdClient client(cluster.uri());
  std::vector<std::byte> block(4096, std::byte{7});
  client.write(0, block);
  CHECK(cluster.ctl_ok({"status", "vm1"}).out.find("witness") != std::string::npos);
  CHECK(cluster.ctl({"failover", "vm1"}).exit_code == 3);
  kill_primary(cluster, "a");
  const Finished done = cluster.ctl({"failover", "vm1"});
  CHECK_MESSAGE(done.exit_code == 0, done.text());
  CHECK(cluster.primary_host() == "b");
  NbdClient moved(cluster.uri());
  std::vector<std::byte> read(4096);
  moved.read(0, read);
  CHECK(read == block);
}

TEST_CASE("failover: two at once give one primary") {
  Cluster cluster(3);
  cluster.create({});
  cluster.activate();
  cluster.wait_streaming();
  NbdClient client(cluster.uri());
  std::vector<std::byte> block(4096, std::byte{3});
  client.write(0, block);
  kill_primary(cluster, "a");
  const auto start = [&](const std::string& to) {
    const std::string out = cluster.directory() + "/failover-" + to;
    return std::make_unique<Process>(std::vector<std::string>{replicactl_program,
                                                              "--hosts=" + cluster.hosts_option(),
                                                              "failover",
                                                              "vm1",
                                                              "--to=" + to},
                                     out,
                                     out);
  };
  const auto to_b = start("b");
  const auto to_c = start("c");
  const int code_b = to_b->wait(Millis(60'000));
  const int code_c = to_c->wait(Millis(60'000));
  CHECK_MESSAGE((code_b == 0) != (code_c == 0),
                read_text(cluster.directory() + "/failover-b"),
                read_text(cluster.directory() + "/failover-c"));
  wait_until("one serves", Millis(30'000), [&] { return count_serving(cluster) == 1; });
  CHECK(cluster.primary_host() == (code_b == 0 ? "b" : "c"));
  NbdClient moved(cluster.uri());
  std::vector<std::byte> read(4096);
  moved.read(0, read);
  CHECK(read == block);
}

TEST_CASE("failover: a primary that hung is fenced and never answers another write") {
  Cluster cluster(3);
  cluster.create({.create_options = {"--set=ack-timeout=500ms"}});
  cluster.activate();
  cluster.wait_streaming();
  NbdClient client(cluster.uri());
  std::vector<std::byte> block(4096, std::byte{4});
  client.write(0, block);
  const pid_t exporter = cluster.export_pid();
  pause_process(exporter);
  cluster.host("a").signal(SIGSTOP);
  wait_until("nobody hears a any more", Millis(60'000), [&] {
    return cluster.ctl({"failover", "vm1", "--to=b"}).exit_code == 0;
  });
  CHECK(cluster.primary_host() == "b");
  // Into the socket of the one that sleeps.
  std::vector<std::byte> late(4096, std::byte{9});
  std::string answer = "answered";
  std::thread writer([&] {
    try {
      client.write(4096, late);
    } catch (const NbdError& error) {
      answer = error.connection_lost ? "connection lost" : error.what();
    }
  });
  cluster.host("a").signal(SIGCONT);
  ::kill(exporter, SIGCONT);
  writer.join();
  CHECK(answer == "connection lost");
  wait_until(
      "a is a replica", Millis(30'000), [&] { return shows(cluster, "a", "role", "replica"); });
  NbdClient moved(cluster.uri());
  std::vector<std::byte> read(4096);
  moved.read(4096, read);
  CHECK(read == std::vector<std::byte>(4096));
  moved.read(0, read);
  CHECK(read == block);
}

/// Writes that are all under way at once, on several connections.
class DeepLoad {
 public:
  DeepLoad(const std::string& uri, unsigned connections, unsigned depth) : block_(4096) {
    for (unsigned i = 0; i < connections; ++i)
      clients_.push_back(std::make_unique<NbdClient>(uri));
    for (unsigned i = 0; i < connections; ++i) {
      for (unsigned k = 0; k < depth; ++k) {
        const std::uint64_t offset = (std::uint64_t{i} * depth + k) * block_.size();
        const std::int64_t cookie = nbd_aio_pwrite(clients_[i]->handle(),
                                                   block_.data(),
                                                   block_.size(),
                                                   offset,
                                                   nbd_completion_callback{},
                                                   0);
        REQUIRE(cookie >= 0);
        cookies_.emplace_back(i, cookie);
      }
    }
  }
  /// Answered so far: with success, with an error.
  std::pair<unsigned, unsigned> look() {
    for (const auto& client : clients_) {
      while (nbd_poll(client->handle(), 0) == 1) {
      }
    }
    std::erase_if(cookies_, [&](const auto& item) {
      nbd_handle* handle = clients_[item.first]->handle();
      const int completed = nbd_aio_command_completed(handle, static_cast<uint64_t>(item.second));
      if (completed == 1) ++good_;
      if (completed < 0) ++bad_;
      return completed != 0;
    });
    return {good_, bad_};
  }

 private:
  std::vector<std::byte> block_;
  std::vector<std::unique_ptr<NbdClient>> clients_;
  std::vector<std::pair<unsigned, std::int64_t>> cookies_;
  unsigned good_ = 0;
  unsigned bad_ = 0;
};

constexpr unsigned deep_connections = 4;
constexpr unsigned deep_depth = 64;
constexpr unsigned deep_requests = deep_connections * deep_depth;

/// A volume whose primary has lost both replicas, and with them the majority.
/// Returns the URI of its disk.
std::string lose_quorum(Cluster& cluster, const std::string& setting) {
  cluster.create({.create_options = {"--set=ack-timeout=500ms", "--set=" + setting}});
  cluster.activate();
  cluster.wait_streaming();
  const std::string uri = cluster.uri();
  cluster.host("b").kill9();
  cluster.host("c").kill9();
  return uri;
}

TEST_CASE(
    "fenced: without a quorum every write waits, status says why, and its return answers all") {
  Cluster cluster(3);
  const std::string uri = lose_quorum(cluster, "quorum-timeout=0");
  DeepLoad load(uri, deep_connections, deep_depth);
  wait_until("status says why", Millis(30'000), [&] {
    static_cast<void>(load.look());
    const json view = cluster.volume("a");
    return view.at("state") == "held" && view.at("error").is_object() &&
           view["error"]["message"].get<std::string>().find("no quorum of the 3 voters") !=
               std::string::npos;
  });
  CHECK(load.look() == std::pair(0U, 0U));
  CHECK(cluster.ctl({"status", "vm1"}).out.find("no quorum") != std::string::npos);
  cluster.host("b").start();
  wait_until("all are answered", Millis(60'000), [&] {
    return load.look() == std::pair(deep_requests, 0U);
  });
}

TEST_CASE("fenced: with every worker waiting SIGTERM ends nbdkit soon, and nothing was answered") {
  Cluster cluster(3);
  const std::string uri = lose_quorum(cluster, "quorum-timeout=0");
  DeepLoad load(uri, deep_connections, deep_depth);
  wait_until("it waits", Millis(30'000), [&] {
    static_cast<void>(load.look());
    return cluster.volume("a").at("state") == "held";
  });
  const pid_t exporter = cluster.export_pid();
  const auto start = std::chrono::steady_clock::now();
  ::kill(exporter, SIGTERM);
  wait_until("nbdkit has ended", Millis(30'000), [&] { return ::kill(exporter, 0) != 0; });
  const auto took = std::chrono::steady_clock::now() - start;
  CHECK(took < std::chrono::seconds(10));  // two on a machine that is not busy
  CHECK(load.look().first == 0);
}

TEST_CASE("fenced: after quorum-timeout requests fail, and succeed again when the quorum is back") {
  Cluster cluster(3);
  const std::string uri = lose_quorum(cluster, "quorum-timeout=2s");
  DeepLoad load(uri, deep_connections, deep_depth);
  wait_until("all have failed", Millis(60'000), [&] {
    return load.look() == std::pair(0U, deep_requests);
  });
  cluster.host("b").start();
  NbdClient client(uri);
  std::vector<std::byte> block(4096, std::byte{5});
  wait_until("writes succeed again", Millis(60'000), [&] {
    try {
      client.write(0, block);
      return true;
    } catch (const NbdError& error) {
      if (error.connection_lost) throw;
      return false;
    }
  });
}

}  // namespace
}  // namespace replicad::e2e
