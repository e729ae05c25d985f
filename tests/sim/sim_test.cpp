// What ctest runs of the simulator.

#include <functional>
#include <memory>

#include <doctest/doctest.h>

#include "tests/sim/campaign.h"
#include "tests/sim/cluster.h"

namespace replicad::sim {
namespace {

constexpr std::uint64_t first_seed = 1;

TEST_CASE("sim: a thousand counted seeds break no promise") {
  Totals totals;
  std::uint64_t seed = first_seed;
  for (; totals.counted < 1000; ++seed) {
    const RunResult result = run_options(Options::draw(seed), false, &totals);
    if (!result.violation) continue;
    FAIL("replay with `sim --shrink --seed ", seed, "`: ", *result.violation);
  }
  MESSAGE(report(totals));
  // A world that never gets into trouble proves nothing.
  CHECK(totals.faults.size() == fault_count);
  for (const char* branch : {"unclean claim",
                             "clean stop",
                             "full copy completed",
                             "copy interrupted",
                             "torn tail of a log cut",
                             "log full: the stream waits",
                             "log segment used again",
                             "fdatasync of the log failed",
                             "replica recovered after a failure",
                             "promoted",
                             "promoted by failover",
                             "another image refused",
                             "another image readmitted",
                             "all short: the longest is chosen",
                             "transfer settled: promoted",
                             "transfer settled: not promoted",
                             "primary goes on in a higher epoch",
                             "former primary gave up its role",
                             "proposal made again",
                             "export rejoined",
                             "no space on the primary",
                             "the primary's image failed",
                             "sequences reserved"}) {
    CAPTURE(branch);
    CHECK(totals.branches[branch] > 0);
  }
}

/// Steps the world until `holds`; false if it does not within `longest`.
bool runs_until(Cluster& cluster, Duration longest, const std::function<bool()>& holds) {
  const Instant until = cluster.world.now() + longest;
  while (!holds()) {
    if (cluster.world.now() > until) return false;
    cluster.world.step();
  }
  return true;
}

TEST_CASE("sim: a primary that is refused by a promise that led to nothing takes a term above it") {
  for (const Mode mode : {Mode::sync, Mode::semi_sync, Mode::async}) {
    CAPTURE(mode_name(mode));
    Options options;
    options.mode = mode;
    options.ack_timeout = std::chrono::milliseconds(200);
    Cluster cluster(options, false);
    for (const auto& daemon : cluster.daemons)
      daemon->start();
    const auto streams = [&cluster] {
      auto& plugin = cluster.plugins[0];
      if (!plugin && cluster.daemons[0]->can_activate()) {
        plugin = std::make_shared<Plugin>(cluster, 0);
        plugin->start();
      }
      if (!plugin || !plugin->is_serving()) return false;
      const auto peer = plugin->core().find_peer("b");
      return peer && plugin->core().is_streaming(*peer);
    };
    REQUIRE(runs_until(cluster, std::chrono::seconds(30), streams));
    // Somebody who is gone had b promise a later term.
    const std::uint64_t later = cluster.machines[0]->state.epoch.number + 1;
    cluster.machines[1]->state.epoch = {later, 77};
    cluster.network.reset_links(0, 1);
    REQUIRE(runs_until(cluster, std::chrono::seconds(30), [&] { return !streams(); }));
    CHECK(runs_until(cluster, std::chrono::seconds(30), [&] {
      return streams() && cluster.plugins[0]->core().epoch().number > later;
    }));
  }
}

TEST_CASE("sim: a seed replays exactly") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    CAPTURE(seed);
    const RunResult one = run_options(Options::draw(seed), false, nullptr);
    const RunResult two = run_options(Options::draw(seed), false, nullptr);
    CHECK(one.trace_hash == two.trace_hash);
    CHECK(one.trace_hash != run_options(Options::draw(seed + 1), false, nullptr).trace_hash);
  }
}

}  // namespace
}  // namespace replicad::sim
