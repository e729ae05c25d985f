#pragma once
// Which 4 KiB blocks of a volume's disks somebody lacks. Sparse: a bit per block only where some
// but not all blocks of a region (4 MiB) are marked, and for a bounded number of regions; beyond
// that a region is marked as a whole, which is always allowed: a mark says "may differ". Not
// thread-safe.

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "core/base/limits.h"
#include "core/base/range.h"

namespace replicad {

constexpr std::uint64_t block_bytes = compare_block_bytes;
constexpr std::uint64_t region_bytes = std::uint64_t{4} << 20;
constexpr std::uint64_t blocks_per_region = region_bytes / block_bytes;

class BlockMap {
 public:
  /// Regions with a bitmap of their own: bounds the memory at about 50 MiB.
  static constexpr std::size_t bitmaps_max_default = std::size_t{1} << 18;

  explicit BlockMap(std::vector<std::uint64_t> disk_bytes = {},
                    std::size_t bitmaps_max = bitmaps_max_default);

  /// Marks every block that `range` touches. The range lies within its disk.
  void mark(const Range& range);
  void mark_all();
  /// Clears every block that lies wholly within `range`; a disk's last block ends with the disk.
  void clear(const Range& range);
  void clear_all();
  /// Marks what `other`, of the same disks, has marked.
  void merge(const BlockMap& other);

  [[nodiscard]] bool empty() const { return blocks_ == 0; }
  /// Blocks that are marked.
  [[nodiscard]] std::uint64_t blocks() const { return blocks_; }
  [[nodiscard]] bool overlaps_any(const Range& range) const;
  /// The first run of marked blocks at or behind byte `offset_bytes` of `disk`, or of a later disk:
  /// whole blocks, clipped to the disk and to `length_max` bytes (a multiple of block_bytes).
  /// `offset_bytes` is a multiple of block_bytes, or the disk's size.
  [[nodiscard]] std::optional<Range> next(DiskIndex disk,
                                          std::uint64_t offset_bytes,
                                          std::uint64_t length_max) const;
  [[nodiscard]] const std::vector<std::uint64_t>& disk_bytes() const { return disk_bytes_; }
  /// Regions that have a bitmap.
  [[nodiscard]] std::size_t bitmaps() const { return bitmaps_; }

 private:
  using Bitmap = std::array<std::uint64_t, blocks_per_region / 64>;
  struct Disk {
    std::vector<bool> whole;  ///< by region; empty while no region is
    std::uint64_t wholes = 0;
    std::map<std::uint64_t, Bitmap> partial;
  };

  [[nodiscard]] std::uint64_t blocks_of_disk(std::size_t disk) const;
  [[nodiscard]] std::uint64_t blocks_of_region(std::size_t disk, std::uint64_t region) const;
  [[nodiscard]] bool is_whole(const Disk& disk, std::uint64_t region) const;
  /// The first block at or behind `block` that is marked (or not); `end` if there is none before.
  [[nodiscard]] std::uint64_t find(const Disk& disk,
                                   std::uint64_t block,
                                   std::uint64_t end,
                                   bool marked) const;
  [[nodiscard]] std::uint64_t find_in(const Bitmap& bitmap,
                                      std::uint64_t first,
                                      std::uint64_t end,
                                      bool marked) const;
  void mark_in(std::size_t index, std::uint64_t region, std::uint64_t first, std::uint64_t end);
  void mark_whole(std::size_t index, std::uint64_t region);
  void clear_in(std::size_t index, std::uint64_t region, std::uint64_t first, std::uint64_t end);

  std::vector<std::uint64_t> disk_bytes_;
  std::size_t bitmaps_max_;
  std::vector<Disk> disks_;
  std::size_t bitmaps_ = 0;
  std::uint64_t blocks_ = 0;
};

}  // namespace replicad
