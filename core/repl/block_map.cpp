#include "core/repl/block_map.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "core/base/check.h"

namespace replicad {

namespace {

std::uint64_t divide_up(std::uint64_t value, std::uint64_t by) {
  return value / by + (value % by != 0 ? 1 : 0);
}

/// Bits [first, end) of a word; first < end <= 64.
std::uint64_t bits_of(std::uint64_t first, std::uint64_t end) {
  const std::uint64_t below_end = end == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << end) - 1;
  return below_end & ~((std::uint64_t{1} << first) - 1);
}

}  // namespace

BlockMap::BlockMap(std::vector<std::uint64_t> disk_bytes, std::size_t bitmaps_max)
    : disk_bytes_(std::move(disk_bytes)), bitmaps_max_(bitmaps_max), disks_(disk_bytes_.size()) {}

std::uint64_t BlockMap::blocks_of_disk(std::size_t disk) const {
  return divide_up(disk_bytes_[disk], block_bytes);
}

std::uint64_t BlockMap::blocks_of_region(std::size_t disk, std::uint64_t region) const {
  return std::min(blocks_of_disk(disk) - region * blocks_per_region, blocks_per_region);
}

bool BlockMap::is_whole(const Disk& disk, std::uint64_t region) const {
  return region < disk.whole.size() && disk.whole[region];
}

void BlockMap::mark_whole(std::size_t index, std::uint64_t region) {
  Disk& disk = disks_[index];
  if (disk.whole.empty()) disk.whole.resize(divide_up(disk_bytes_[index], region_bytes));
  if (disk.whole[region]) return;
  std::uint64_t before = 0;
  if (const auto found = disk.partial.find(region); found != disk.partial.end()) {
    for (const std::uint64_t word : found->second)
      before += static_cast<std::uint64_t>(std::popcount(word));
    disk.partial.erase(found);
    --bitmaps_;
  }
  disk.whole[region] = true;
  ++disk.wholes;
  blocks_ += blocks_of_region(index, region) - before;
}

void BlockMap::mark_in(std::size_t index,
                       std::uint64_t region,
                       std::uint64_t first,
                       std::uint64_t end) {
  Disk& disk = disks_[index];
  if (is_whole(disk, region)) return;
  const bool is_all = first == 0 && end == blocks_of_region(index, region);
  auto found = disk.partial.find(region);
  if (is_all || (found == disk.partial.end() && bitmaps_ >= bitmaps_max_)) {
    mark_whole(index, region);
    return;
  }
  if (found == disk.partial.end()) {
    found = disk.partial.emplace(region, Bitmap{}).first;
    ++bitmaps_;
  }
  for (std::uint64_t at = first; at < end; at = (at / 64 + 1) * 64) {
    std::uint64_t& word = found->second[at / 64];
    const std::uint64_t bits = bits_of(at % 64, std::min(end - at / 64 * 64, std::uint64_t{64}));
    blocks_ += static_cast<std::uint64_t>(std::popcount(bits & ~word));
    word |= bits;
  }
}

void BlockMap::mark(const Range& range) {
  if (range.length_bytes == 0) return;
  RD_CHECK(range.disk < disks_.size());
  RD_CHECK(fits(range, disk_bytes_[range.disk]));
  const std::uint64_t end = divide_up(range.end_bytes(), block_bytes);
  for (std::uint64_t block = range.offset_bytes / block_bytes; block < end;) {
    const std::uint64_t region = block / blocks_per_region;
    const std::uint64_t base = region * blocks_per_region;
    const std::uint64_t stop = std::min(end - base, blocks_per_region);
    mark_in(range.disk, region, block - base, stop);
    block = base + stop;
  }
}

void BlockMap::mark_all() {
  for (std::size_t disk = 0; disk < disks_.size(); ++disk)
    mark({static_cast<DiskIndex>(disk), 0, disk_bytes_[disk]});
}

void BlockMap::clear_in(std::size_t index,
                        std::uint64_t region,
                        std::uint64_t first,
                        std::uint64_t end) {
  Disk& disk = disks_[index];
  if (is_whole(disk, region)) {
    const std::uint64_t blocks = blocks_of_region(index, region);
    disk.whole[region] = false;
    if (--disk.wholes == 0) disk.whole.clear();
    blocks_ -= blocks;
    if (first == 0 && end == blocks) return;
    // One region at most is between whole and clear, so the bound is not asked here.
    disk.partial.emplace(region, Bitmap{});
    ++bitmaps_;
    if (first > 0) mark_in(index, region, 0, first);
    if (end < blocks) mark_in(index, region, end, blocks);
    return;
  }
  const auto found = disk.partial.find(region);
  if (found == disk.partial.end()) return;
  for (std::uint64_t at = first; at < end; at = (at / 64 + 1) * 64) {
    std::uint64_t& word = found->second[at / 64];
    const std::uint64_t bits = bits_of(at % 64, std::min(end - at / 64 * 64, std::uint64_t{64}));
    blocks_ -= static_cast<std::uint64_t>(std::popcount(bits & word));
    word &= ~bits;
  }
  if (std::ranges::all_of(found->second, [](std::uint64_t word) { return word == 0; })) {
    disk.partial.erase(found);
    --bitmaps_;
  }
}

void BlockMap::clear(const Range& range) {
  if (range.length_bytes == 0) return;
  RD_CHECK(range.disk < disks_.size());
  RD_CHECK(fits(range, disk_bytes_[range.disk]));
  const bool to_the_end = range.end_bytes() == disk_bytes_[range.disk];
  const std::uint64_t end =
      to_the_end ? blocks_of_disk(range.disk) : range.end_bytes() / block_bytes;
  for (std::uint64_t block = divide_up(range.offset_bytes, block_bytes); block < end;) {
    const std::uint64_t region = block / blocks_per_region;
    const std::uint64_t base = region * blocks_per_region;
    const std::uint64_t stop = std::min(end - base, blocks_per_region);
    clear_in(range.disk, region, block - base, stop);
    block = base + stop;
  }
}

void BlockMap::clear_all() {
  for (Disk& disk : disks_)
    disk = {};
  bitmaps_ = 0;
  blocks_ = 0;
}

void BlockMap::merge(const BlockMap& other) {
  RD_CHECK(other.disk_bytes_ == disk_bytes_);
  for (std::size_t index = 0; index < disks_.size(); ++index) {
    const Disk& from = other.disks_[index];
    for (std::uint64_t region = 0; region < from.whole.size(); ++region) {
      if (from.whole[region]) mark_whole(index, region);
    }
    for (const auto& [region, bitmap] : from.partial) {
      const std::uint64_t end = other.blocks_of_region(index, region);
      for (std::uint64_t at = find_in(bitmap, 0, end, true); at < end;) {
        const std::uint64_t stop = find_in(bitmap, at, end, false);
        mark_in(index, region, at, stop);
        at = find_in(bitmap, stop, end, true);
      }
    }
  }
}

std::uint64_t BlockMap::find_in(const Bitmap& bitmap,
                                std::uint64_t first,
                                std::uint64_t end,
                                bool marked) const {
  for (std::uint64_t at = first; at < end; at = (at / 64 + 1) * 64) {
    const std::uint64_t word = marked ? bitmap[at / 64] : ~bitmap[at / 64];
    const std::uint64_t rest = word >> (at % 64);
    if (rest == 0) continue;
    return std::min(end, at + static_cast<std::uint64_t>(std::countr_zero(rest)));
  }
  return end;
}

std::uint64_t BlockMap::find(const Disk& disk,
                             std::uint64_t block,
                             std::uint64_t end,
                             bool marked) const {
  while (block < end) {
    const std::uint64_t region = block / blocks_per_region;
    const std::uint64_t base = region * blocks_per_region;
    const std::uint64_t stop = std::min(end - base, blocks_per_region);
    if (is_whole(disk, region)) {
      if (marked) return block;
    } else if (const auto found = disk.partial.lower_bound(region);
               found != disk.partial.end() && found->first == region) {
      const std::uint64_t at = find_in(found->second, block - base, stop, marked);
      if (at < stop) return base + at;
    } else if (!marked) {
      return block;
    } else {
      // Nothing is marked before the next bitmap or whole region.
      const auto next_partial =
          found == disk.partial.end() ? end : found->first * blocks_per_region;
      std::uint64_t next_whole = region;
      while (next_whole < disk.whole.size() && !disk.whole[next_whole])
        ++next_whole;
      if (next_whole >= disk.whole.size()) {
        next_whole = end;
      } else {
        next_whole *= blocks_per_region;
      }
      block = std::min({end, next_partial, next_whole});
      continue;
    }
    block = base + stop;
  }
  return end;
}

bool BlockMap::overlaps_any(const Range& range) const {
  if (range.length_bytes == 0 || empty()) return false;
  RD_CHECK(range.disk < disks_.size());
  const std::uint64_t end = divide_up(range.end_bytes(), block_bytes);
  return find(disks_[range.disk], range.offset_bytes / block_bytes, end, true) < end;
}

std::optional<Range> BlockMap::next(DiskIndex disk,
                                    std::uint64_t offset_bytes,
                                    std::uint64_t length_max) const {
  RD_CHECK(length_max >= block_bytes);
  std::uint64_t from = divide_up(offset_bytes, block_bytes);
  for (; disk < disks_.size(); ++disk, from = 0) {
    const std::uint64_t end = blocks_of_disk(disk);
    const std::uint64_t first = find(disks_[disk], from, end, true);
    if (first >= end) continue;
    const std::uint64_t limit = std::min(end, first + length_max / block_bytes);
    const std::uint64_t stop = find(disks_[disk], first, limit, false);
    const std::uint64_t offset = first * block_bytes;
    return Range{disk, offset, std::min(stop * block_bytes, disk_bytes_[disk]) - offset};
  }
  return std::nullopt;
}

}  // namespace replicad
