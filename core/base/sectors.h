#pragma once
// Where what a file reads as and what the disk has of it differ, in what a disk writes as a whole. Any thread.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace replicad {

constexpr std::uint64_t sector_bytes = 512;

struct SectorRun {
  std::size_t begin = 0;  ///< within the bytes given
  std::size_t length = 0;
};

/// The runs of sectors in which `bytes`, which lie at `offset` of a file, differ from `medium`; a first and last one
/// may be parts. Requires equal lengths.
[[nodiscard]] std::vector<SectorRun> differing_sectors(std::span<const std::byte> bytes,
                                                       std::span<const std::byte> medium,
                                                       std::uint64_t offset);

}  // namespace replicad
