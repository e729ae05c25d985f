#pragma once
// Positions in a volume's history. Words: docs/architecture.md, "Words".

#include <compare>
#include <cstdint>

namespace replicad {

/// Position in the stream: 1, 2, 3 ...; 0 means "before the first". Never reset, continues across
/// epochs.
using Sequence = std::uint64_t;

/// Number of a primary's term, with the random id that tells forced histories apart. 0 = none yet.
struct Epoch {
  std::uint64_t number = 0;
  std::uint32_t tag = 0;

  friend auto operator<=>(const Epoch&, const Epoch&) = default;
};

/// Where in the history something stands.
struct Position {
  Epoch epoch;
  Sequence sequence = 0;

  friend auto operator<=>(const Position&, const Position&) = default;
};

/// Index of a disk within its volume: 0 .. disks_max-1.
using DiskIndex = std::uint16_t;

}  // namespace replicad
