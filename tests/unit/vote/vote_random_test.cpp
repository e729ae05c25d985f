#include <cstdlib>

#include <doctest/doctest.h>

#include "tests/unit/vote/vote_world.h"

namespace replicad {
namespace {

constexpr unsigned steps_per_seed = 1500;

/// RD_SEEDS asks for another number of worlds than the test command runs.
std::uint32_t wanted_seeds() {
  const char* seeds = std::getenv("RD_SEEDS");
  return seeds == nullptr ? 150 : static_cast<std::uint32_t>(std::strtoul(seeds, nullptr, 10));
}

/// RD_SEED replays one world.
std::optional<std::uint32_t> wanted_seed() {
  const char* seed = std::getenv("RD_SEED");
  if (seed == nullptr) return std::nullopt;
  return static_cast<std::uint32_t>(std::strtoul(seed, nullptr, 10));
}

TEST_CASE("vote: whatever the network and crashes do, chosen records form one chain") {
  const std::uint32_t first = wanted_seed().value_or(1);
  const std::uint32_t seeds = wanted_seed() ? 1 : wanted_seeds();
  std::size_t chosen = 0;
  std::size_t done = 0;
  std::size_t voter_changes = 0;
  std::size_t put_back = 0;
  std::size_t come_back = 0;
  for (std::uint32_t seed = first; seed < first + seeds; ++seed) {
    VoteWorld world(seed, PlantedBug::none);
    std::string violation = world.run(steps_per_seed);
    if (violation.empty()) violation = world.converge();
    INFO("RD_SEED=", seed);
    REQUIRE(violation == "");
    chosen += world.chosen_count();
    done += world.done_count();
    voter_changes += world.voter_changes();
    put_back += world.put_back_count();
    come_back += world.come_back_count();
  }
  MESSAGE(
      "records chosen: ", chosen, ", proposals done: ", done, ", voters changed: ", voter_changes);
  MESSAGE("states put back: ", put_back, ", voters come back: ", come_back);
  CHECK(chosen > seeds);
  if (!wanted_seed()) CHECK(come_back > seeds / 2);
  if (!wanted_seed()) CHECK(voter_changes > seeds);
}

TEST_CASE("vote: the checks of the random test find every planted bug") {
  for (int bug = 1; bug < static_cast<int>(PlantedBug::count); ++bug) {
    std::string violation;
    std::uint32_t seed = 1;
    for (; seed <= 3000 && violation.empty(); ++seed) {
      VoteWorld world(seed, static_cast<PlantedBug>(bug));
      violation = world.run(steps_per_seed);
    }
    MESSAGE("bug ", bug, " found after ", seed - 1, " worlds: ", violation);
    CHECK_MESSAGE(violation != "", "bug ", bug);
  }
}

}  // namespace
}  // namespace replicad
