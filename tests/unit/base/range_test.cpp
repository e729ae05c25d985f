#include "core/base/range.h"

#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace replicad {
namespace {

constexpr auto u64_max = std::numeric_limits<std::uint64_t>::max();

TEST_CASE("range: neighbours do not overlap, shared bytes do") {
  const Range middle{0, 4096, 4096};
  CHECK_FALSE(overlaps(middle, {0, 0, 4096}));
  CHECK_FALSE(overlaps(middle, {0, 8192, 4096}));
  CHECK(overlaps(middle, {0, 0, 4097}));
  CHECK(overlaps(middle, {0, 8191, 1}));
  CHECK(overlaps(middle, middle));
  CHECK(overlaps(middle, {0, 5000, 10}));
  CHECK(overlaps({0, 5000, 10}, middle));
  CHECK_FALSE(overlaps(middle, {1, 4096, 4096}));
}

TEST_CASE("range: length 0 overlaps nothing, wherever it lies") {
  const Range wide{0, 0, 8192};
  CHECK_FALSE(overlaps(wide, {0, 0, 0}));
  CHECK_FALSE(overlaps(wide, {0, 4096, 0}));
  CHECK_FALSE(overlaps({0, 4096, 0}, wide));
  CHECK_FALSE(overlaps({0, 4096, 0}, {0, 4096, 0}));
}

TEST_CASE("range: fits a disk without overflow") {
  CHECK(fits({0, 0, 4096}, 4096));
  CHECK(fits({0, 4096, 0}, 4096));
  CHECK_FALSE(fits({0, 4096, 1}, 4096));
  CHECK_FALSE(fits({0, 4097, 0}, 4096));
  CHECK_FALSE(fits({0, 1, 4096}, 4096));
  CHECK_FALSE(fits({0, u64_max, 2}, 4096));
  CHECK_FALSE(fits({0, 1, u64_max}, 4096));
  CHECK_FALSE(fits({0, u64_max, u64_max}, u64_max));
  CHECK(fits({0, 0, u64_max}, u64_max));
}

TEST_CASE("range set: an owner's range blocks others until it is erased") {
  RangeSet set;
  CHECK(set.empty());
  set.insert(1, {0, 0, 4096});
  set.insert(2, {0, 8192, 4096});
  set.insert(3, {1, 0, 4096});
  CHECK(set.count() == 3);
  CHECK(set.overlaps_any({0, 4000, 200}));
  CHECK_FALSE(set.overlaps_any({0, 4096, 4096}));
  CHECK(set.erase(1));
  CHECK_FALSE(set.erase(1));
  CHECK_FALSE(set.overlaps_any({0, 4000, 200}));
  CHECK(set.overlaps_any({0, 8000, 200}));
  CHECK(set.overlaps_any({1, 0, 1}));
  CHECK(set.erase(3));
  CHECK(set.erase(2));
  CHECK(set.empty());
}

TEST_CASE("range set: agrees with a map of single bytes under random use") {
  const char* fixed = std::getenv("RD_SEED");
  const std::uint64_t seed =
      fixed != nullptr ? std::strtoull(fixed, nullptr, 10) : std::random_device{}();
  INFO("RD_SEED=", seed);
  std::mt19937_64 random(seed);
  constexpr std::uint64_t disk_bytes = 64;
  RangeSet set;
  std::vector<std::pair<std::uint64_t, Range>> held;
  for (std::uint64_t owner = 1; owner < 4000; ++owner) {
    Range range{static_cast<DiskIndex>(random() % 2), random() % disk_bytes, 0};
    range.length_bytes = random() % (disk_bytes - range.offset_bytes + 1);
    bool expected = false;
    for (std::uint64_t byte = range.offset_bytes; byte < range.end_bytes(); ++byte) {
      for (const auto& [other, taken] : held) {
        expected |=
            taken.disk == range.disk && byte >= taken.offset_bytes && byte < taken.end_bytes();
      }
    }
    REQUIRE(set.overlaps_any(range) == expected);
    set.insert(owner, range);
    held.emplace_back(owner, range);
    while (held.size() > random() % 6) {
      const std::size_t victim = random() % held.size();
      REQUIRE(set.erase(held[victim].first));
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(victim));
    }
    REQUIRE(set.count() == held.size());
  }
}

}  // namespace
}  // namespace replicad
