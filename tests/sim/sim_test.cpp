// What ctest runs of the simulator.

#include <doctest/doctest.h>

#include "tests/sim/campaign.h"

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
  CHECK(totals.faults.size() == fault_count - 1);  // all but disk_swap
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
