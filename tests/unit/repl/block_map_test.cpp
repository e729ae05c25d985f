// Sparse maps of blocks (core/repl/block_map.h).

#include "core/repl/block_map.h"

#include <cstdlib>
#include <random>
#include <set>

#include <doctest/doctest.h>

#include "core/base/limits.h"

namespace replicad {
namespace {

TEST_CASE("blocks: what a range touches is marked, what lies wholly within one is cleared") {
  BlockMap map({64 * mib, 16 * mib + 512});
  CHECK(map.empty());
  map.mark({0, 4095, 2});
  CHECK(map.blocks() == 2);
  CHECK(map.next(0, 0, mib) == Range{0, 0, 8192});
  CHECK(map.next(0, 0, 4096) == Range{0, 0, 4096});
  map.clear({0, 1, 8191});
  CHECK(map.next(0, 0, mib) == Range{0, 0, 4096});
  map.clear({0, 0, 4096});
  CHECK(map.empty());
  CHECK(map.bitmaps() == 0);
  map.mark({1, 16 * mib, 512});  // the last block ends with the disk
  CHECK(map.next(0, 0, mib) == Range{1, 16 * mib, 512});
  CHECK(map.overlaps_any({1, 16 * mib + 511, 1}));
  CHECK_FALSE(map.overlaps_any({1, 0, 16 * mib}));
  map.clear({1, 16 * mib, 512});
  CHECK(map.empty());
  CHECK_FALSE(map.next(0, 0, mib).has_value());
}

TEST_CASE("blocks: an empty range touches nothing, wherever it lies") {
  BlockMap map({64 * mib});
  map.mark({0, 100, 0});
  map.mark({7, 0, 0});  // a flush is of no disk
  CHECK(map.empty());
  map.mark({0, 0, 4096});
  map.clear({7, 0, 0});
  CHECK_FALSE(map.overlaps_any({0, 100, 0}));
  CHECK_FALSE(map.overlaps_any({7, 0, 0}));
  CHECK(map.blocks() == 1);
}

TEST_CASE("blocks: a region has one bitmap at most, and keeps it beyond the bound") {
  BlockMap map({64 * mib}, 1);
  map.mark({0, 0, 4096});
  map.mark({0, 8192, 4096});
  CHECK(map.bitmaps() == 1);
  CHECK(map.blocks() == 2);
  map.clear({0, 0, 64 * mib});
  map.mark({0, 0, region_bytes});
  map.clear({0, 0, region_bytes});
  CHECK(map.bitmaps() == 0);
}

TEST_CASE("blocks: a whole region costs no bitmap, a part of one comes back as blocks") {
  BlockMap map({64 * mib});
  map.mark_all();
  CHECK(map.blocks() == 64 * mib / block_bytes);
  CHECK(map.bitmaps() == 0);
  CHECK(map.next(0, 8 * mib, 32 * mib) == Range{0, 8 * mib, 32 * mib});
  map.clear({0, 6 * mib, mib});
  CHECK(map.blocks() == 63 * mib / block_bytes);
  CHECK(map.next(0, 0, 64 * mib) == Range{0, 0, 6 * mib});
  CHECK(map.next(0, 6 * mib, 64 * mib) == Range{0, 7 * mib, 57 * mib});
  map.mark({0, 6 * mib, mib});
  CHECK(map.next(0, 0, 64 * mib) == Range{0, 0, 64 * mib});
}

TEST_CASE("blocks: beyond the bound on bitmaps whole regions are marked") {
  BlockMap map({std::uint64_t{16} * 1024 * gib}, 4);
  for (std::uint64_t region = 0; region < 100; ++region)
    map.mark({0, region * 1024 * region_bytes, 4096});
  CHECK(map.bitmaps() == 4);
  CHECK(map.blocks() == 4 + 96 * blocks_per_region);
  for (std::uint64_t region = 0; region < 100; ++region)
    CHECK(map.overlaps_any({0, region * 1024 * region_bytes, 1}));
  map.clear_all();
  CHECK(map.empty());
}

/// The same by a set of block numbers.
void run_random(std::uint64_t seed) {
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  const std::vector<std::uint64_t> disks{12 * mib + 1536, 9 * mib};
  BlockMap map(disks);
  BlockMap other(disks);
  std::set<std::pair<DiskIndex, std::uint64_t>> marked;
  for (int step = 0; step < 200; ++step) {
    const auto disk = static_cast<DiskIndex>(random() % 2);
    const std::uint64_t offset = random() % disks[disk];
    const std::uint64_t most = disks[disk] - offset;
    const std::uint64_t length = 1 + random() % std::min(most, random() % 4 == 0 ? most : 40'000);
    const Range range{disk, offset, length};
    const std::uint64_t blocks = (disks[disk] + block_bytes - 1) / block_bytes;
    if (random() % 3 != 0) {
      (random() % 4 == 0 ? other : map).mark(range);
      for (std::uint64_t block = offset / block_bytes; block * block_bytes < range.end_bytes();
           ++block)
        marked.emplace(disk, block);
      map.merge(other);
    } else {
      map.clear(range);
      other.clear(range);
      for (std::uint64_t block = 0; block < blocks; ++block) {
        const bool within = block * block_bytes >= offset &&
                            std::min((block + 1) * block_bytes, disks[disk]) <= range.end_bytes();
        if (within) marked.erase({disk, block});
      }
    }
    REQUIRE(map.blocks() == marked.size());
  }
  std::set<std::pair<DiskIndex, std::uint64_t>> found;
  DiskIndex disk = 0;
  std::uint64_t offset = 0;
  while (const auto run = map.next(disk, offset, (1 + random() % 300) * block_bytes)) {
    for (std::uint64_t at = run->offset_bytes; at < run->end_bytes(); at += block_bytes)
      found.emplace(run->disk, at / block_bytes);
    disk = run->disk;
    offset = run->end_bytes();
  }
  CHECK(found == marked);
}

TEST_CASE("blocks: random marks and clears agree with a set of blocks") {
  if (const char* given = std::getenv("RD_SEED"))
    return run_random(std::strtoull(given, nullptr, 10));
  for (std::uint64_t seed = 1; seed <= 60; ++seed)
    run_random(seed);
}

}  // namespace
}  // namespace replicad
