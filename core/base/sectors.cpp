#include "core/base/sectors.h"

#include <algorithm>
#include <cstring>

#include "core/base/check.h"

namespace replicad {

std::vector<SectorRun> differing_sectors(std::span<const std::byte> bytes,
                                         std::span<const std::byte> medium,
                                         std::uint64_t offset) {
  RD_CHECK(bytes.size() == medium.size());
  std::vector<SectorRun> runs;
  std::size_t length = 0;
  for (std::size_t at = 0; at < bytes.size(); at += length) {
    length = std::min<std::size_t>(bytes.size() - at, sector_bytes - (offset + at) % sector_bytes);
    if (std::memcmp(bytes.data() + at, medium.data() + at, length) == 0) continue;
    if (!runs.empty() && runs.back().begin + runs.back().length == at) {
      runs.back().length += length;
    } else {
      runs.push_back({at, length});
    }
  }
  return runs;
}

}  // namespace replicad
