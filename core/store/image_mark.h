#pragma once
// How an image is recognised (docs/disk-format.md, "Marks of images"): it is plain and raw, so what tells it from
// another file or device of the same size, or from an older copy of itself, is kept in the state file. Pure functions.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/base/checksum.h"
#include "core/base/range.h"

namespace replicad {

constexpr std::uint64_t image_sample_bytes = 4096;
constexpr std::size_t image_samples_max = 64;
/// Blocks over the whole disk, and as many that were written last: what an older copy lacks.
constexpr std::size_t image_samples_spread = 16;
constexpr std::size_t image_samples_recent = 16;
constexpr std::size_t image_identity_bytes_max = 1024;

struct ImageSample {
  std::uint64_t offset_bytes =
      0;  ///< of a block of image_sample_bytes, or of the disk's short last one
  Digest sum;

  friend bool operator==(const ImageSample&, const ImageSample&) = default;
};

struct ImageMark {
  std::string identity;  ///< of the file or device (io/image_identity.h); empty: not looked at yet
  /// Time of the last change at an orderly end. Nobody of ours has written since.
  std::optional<std::uint64_t> modified_ns;
  /// Content at VolumeState::marked_at.
  std::vector<ImageSample> samples;

  friend bool operator==(const ImageMark&, const ImageMark&) = default;
};

/// What an image shows.
struct ImageLook {
  std::string identity;
  std::optional<std::uint64_t> modified_ns;
  std::vector<Digest> sums;  ///< of the mark's samples, in their order; empty: they do not count
};

/// Offsets of the blocks to sample on a disk of `bytes`, each once: those of `recent` (any offsets, the last ones
/// first) and some over the whole disk.
[[nodiscard]] std::vector<std::uint64_t> choose_samples(std::uint64_t bytes,
                                                        std::span<const std::uint64_t> recent);
/// The block at `offset_bytes`, of a disk of `bytes`.
[[nodiscard]] Range sample_range(DiskIndex disk, std::uint64_t offset_bytes, std::uint64_t bytes);

/// Why the image is not what was marked; nullopt: nothing says so. `touched` (as long as the samples, or empty): those
/// that may have been changed by right since.
[[nodiscard]] std::optional<std::string> why_another_image(const ImageMark& mark,
                                                           const ImageLook& look,
                                                           const std::vector<bool>& touched);

}  // namespace replicad
