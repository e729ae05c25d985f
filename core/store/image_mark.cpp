#include "core/store/image_mark.h"

#include <algorithm>

#include <fmt/format.h>

namespace replicad {

std::vector<std::uint64_t> choose_samples(std::uint64_t bytes,
                                          std::span<const std::uint64_t> recent) {
  std::vector<std::uint64_t> offsets;
  const auto add = [&](std::uint64_t offset) {
    const std::uint64_t block = offset / image_sample_bytes * image_sample_bytes;
    if (block >= bytes || std::ranges::find(offsets, block) != offsets.end()) return;
    offsets.push_back(block);
  };
  for (const std::uint64_t offset : recent) {
    if (offsets.size() == image_samples_recent) break;
    add(offset);
  }
  for (std::uint64_t i = 0; i < image_samples_spread; ++i)
    add(bytes / image_samples_spread * i);
  return offsets;
}

Range sample_range(DiskIndex disk, std::uint64_t offset_bytes, std::uint64_t bytes) {
  return {disk, offset_bytes, std::min(image_sample_bytes, bytes - offset_bytes)};
}

std::optional<std::string> why_another_image(const ImageMark& mark,
                                             const ImageLook& look,
                                             const std::vector<bool>& touched) {
  if (!mark.identity.empty() && mark.identity != look.identity) {
    return fmt::format(
        "it is another file or device ({}) than before ({})", look.identity, mark.identity);
  }
  if (mark.modified_ns && mark.modified_ns != look.modified_ns)
    return "somebody has written to it since the volume was at rest";
  for (std::size_t i = 0; i < look.sums.size() && i < mark.samples.size(); ++i) {
    const bool may_differ = i < touched.size() && touched[i];
    if (may_differ || look.sums[i] == mark.samples[i].sum) continue;
    return fmt::format("its content at offset {} is not what was written there last",
                       mark.samples[i].offset_bytes);
  }
  return std::nullopt;
}

}  // namespace replicad
