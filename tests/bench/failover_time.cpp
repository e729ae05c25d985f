// How long a guest waits when its primary is killed: from kill -9 of nbdkit and replicad to an export that
// greets clients on another host, and to a write that is answered there. `replicactl failover` is given at once.
// RD_ROUNDS (10).
#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <thread>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

using Clock = std::chrono::steady_clock;

struct Times {
  double greeted_ms = 0;
  double answered_ms = 0;
};

double since_ms(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

/// A guest with a patient driver: looks for the export, sends its write again.
Times wait_for_guest(Cluster& cluster, Clock::time_point begin) {
  const std::vector<std::byte> block(4096, std::byte{2});
  while (since_ms(begin) < 60'000) {
    const auto found = cluster.find_export("vm1", "vda");
    try {
      if (found && found->host != "a") {
        NbdClient client(found->uri);
        const double greeted = since_ms(begin);
        client.write(0, block);
        return {greeted, since_ms(begin)};
      }
    } catch (const NbdError&) {
      // Not quite there yet.
    }
    std::this_thread::sleep_for(Millis(2));
  }
  throw HarnessError("no export took over within 60 s");
}

Times fail_over_once() {
  Cluster cluster(3);
  cluster.create({});
  cluster.activate();
  cluster.wait_streaming();
  Load load(cluster, {.writers_per_disk = 2, .zeroes = false});
  load.start();
  load.wait_answered(500);
  const pid_t exporter = cluster.export_pid();
  const auto begin = Clock::now();
  ::kill(exporter, SIGKILL);
  cluster.host("a").kill9();
  Times times;
  std::string error;
  std::thread guest([&] {
    try {
      times = wait_for_guest(cluster, begin);
    } catch (const HarnessError& failure) {
      error = failure.what();
    }
  });
  const Finished done = cluster.ctl({"failover", "vm1"});
  guest.join();
  CHECK_MESSAGE(done.exit_code == 0, done.text());
  CHECK_MESSAGE(error.empty(), error);
  load.stop();
  return times;
}

void show(const char* what, std::vector<double> values) {
  std::ranges::sort(values);
  MESSAGE(fmt::format("{}: median {:.0f} ms, {:.0f} to {:.0f} ms, {} rounds",
                      what,
                      values[values.size() / 2],
                      values.front(),
                      values.back(),
                      values.size()));
}

TEST_CASE("bench: from kill -9 of the primary's processes to a write answered by another host") {
  const char* wanted = std::getenv("RD_ROUNDS");
  const long rounds = wanted == nullptr ? 10 : std::strtol(wanted, nullptr, 10);
  std::vector<double> greeted;
  std::vector<double> answered;
  for (long i = 0; i < rounds; ++i) {
    const Times times = fail_over_once();
    greeted.push_back(times.greeted_ms);
    answered.push_back(times.answered_ms);
  }
  REQUIRE_FALSE(answered.empty());
  show("export served", greeted);
  show("guest's write answered", answered);
}

TEST_CASE("bench: how long a switchover under load holds the guest") {
  const char* wanted = std::getenv("RD_ROUNDS");
  const long rounds = wanted == nullptr ? 10 : std::strtol(wanted, nullptr, 10);
  Cluster cluster(3);
  cluster.create({});
  cluster.activate();
  cluster.wait_streaming();
  Load load(cluster, {.writers_per_disk = 2, .zeroes = false});
  load.start();
  const std::vector<std::string> hosts = cluster.host_names();
  std::vector<double> held;
  for (long round = 1; round <= rounds; ++round) {
    load.wait_answered(500);
    const std::string& to = hosts[static_cast<std::size_t>(round) % hosts.size()];
    cluster.wait_streaming("vm1", {to});
    const auto proof = cluster.ctl_json({"switchover", "vm1", "--to=" + to}).at("proof");
    held.push_back(proof.at("held_ms").get<double>());
  }
  load.stop();
  show("guest held by a switchover", held);
  MESSAGE("longest wait of a request: ", load.longest_wait().count(), " ms");
}

}  // namespace
}  // namespace replicad::e2e
