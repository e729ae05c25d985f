// Random short worlds around the primary (primary_world.h). RD_SEED=n replays one of them, RD_SEEDS=n runs so many.

#include <cstdlib>

#include <doctest/doctest.h>

#include "tests/unit/repl/primary_world.h"

namespace replicad {
namespace {

void add(PrimaryWorld::Counters& sum, const PrimaryWorld::Counters& one) {
  sum.answers += one.answers;
  sum.records += one.records;
  sum.holds_reached += one.holds_reached;
  sum.copies += one.copies;
  sum.resyncs += one.resyncs;
  sum.resyncs_continued += one.resyncs_continued;
  sum.losses += one.losses;
  sum.ring_waits += one.ring_waits;
  sum.divergences += one.divergences;
  sum.epochs += one.epochs;
}

void run_world(std::uint64_t seed, PrimaryWorld::Counters& sum) {
  INFO("replay with RD_SEED=", seed);
  PrimaryWorld world(seed);
  try {
    world.run(static_cast<int>(100 + seed % 500));
    if (seed % 16 == 0) {
      world.fail();
    } else {
      world.heal();
    }
  } catch (const Violation& violation) {
    FAIL(violation.text);
  }
  add(sum, world.counters());
}

TEST_CASE("primary: random worlds keep every promise and converge") {
  PrimaryWorld::Counters sum;
  if (const char* seed = std::getenv("RD_SEED")) {
    run_world(std::strtoull(seed, nullptr, 10), sum);
    return;
  }
  const char* asked = std::getenv("RD_SEEDS");
  const std::uint64_t worlds = asked != nullptr ? std::strtoull(asked, nullptr, 10) : 8000;
  for (std::uint64_t seed = 1; seed <= worlds; ++seed)
    run_world(seed, sum);
  MESSAGE("answers ",
          sum.answers,
          ", records ",
          sum.records,
          ", holds ",
          sum.holds_reached,
          ", copies ",
          sum.copies,
          ", resyncs ",
          sum.resyncs,
          ", continued ",
          sum.resyncs_continued,
          ", losses ",
          sum.losses,
          ", ring waits ",
          sum.ring_waits,
          ", divergences ",
          sum.divergences,
          ", epochs ",
          sum.epochs);
  if (asked != nullptr) return;
  // A model that never gets into trouble proves nothing.
  CHECK(sum.answers > 10 * worlds);
  CHECK(sum.records > worlds);
  CHECK(sum.holds_reached > worlds);
  CHECK(sum.copies > worlds / 4);
  CHECK(sum.resyncs > worlds / 20);
  CHECK(sum.resyncs_continued > worlds / 200);
  CHECK(sum.losses > worlds);
  CHECK(sum.ring_waits > worlds);
  CHECK(sum.divergences > worlds / 50);
  CHECK(sum.epochs > worlds / 50);
}

}  // namespace
}  // namespace replicad
