#pragma once
// Half-open byte ranges of a disk, and the set of ranges that are being written: overlapping
// requests are admitted one after the other, others at once. Not thread-safe: the owner locks.

#include <cstdint>
#include <vector>

#include "core/base/ids.h"

namespace replicad {

/// [offset_bytes, offset_bytes + length_bytes) of one disk. Length 0 overlaps nothing.
struct Range {
  DiskIndex disk = 0;
  std::uint64_t offset_bytes = 0;
  std::uint64_t length_bytes = 0;

  [[nodiscard]] std::uint64_t end_bytes() const { return offset_bytes + length_bytes; }
  friend bool operator==(const Range&, const Range&) = default;
};

[[nodiscard]] inline bool overlaps(const Range& a, const Range& b) {
  return a.disk == b.disk && a.length_bytes != 0 && b.length_bytes != 0 &&
         a.offset_bytes < b.end_bytes() && b.offset_bytes < a.end_bytes();
}

/// Whether `range` lies within a disk of `disk_bytes`, without overflow.
[[nodiscard]] inline bool fits(const Range& range, std::uint64_t disk_bytes) {
  return range.offset_bytes <= disk_bytes && range.length_bytes <= disk_bytes - range.offset_bytes;
}

/// Ranges held by requests in flight. Linear: there are at most a few hundred.
class RangeSet {
 public:
  [[nodiscard]] bool overlaps_any(const Range& range) const {
    for (const Entry& entry : entries_) {
      if (overlaps(entry.range, range)) return true;
    }
    return false;
  }
  void insert(std::uint64_t owner, const Range& range) { entries_.push_back({owner, range}); }
  /// Removes the range that `owner` inserted; returns false if there is none.
  bool erase(std::uint64_t owner) {
    for (Entry& entry : entries_) {
      if (entry.owner == owner) {
        entry = entries_.back();
        entries_.pop_back();
        return true;
      }
    }
    return false;
  }
  [[nodiscard]] bool empty() const { return entries_.empty(); }
  [[nodiscard]] std::size_t count() const { return entries_.size(); }

 private:
  struct Entry {
    std::uint64_t owner;
    Range range;
  };
  std::vector<Entry> entries_;
};

}  // namespace replicad
