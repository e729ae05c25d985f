#pragma once
// Marks of images, made and compared (core/store/image_mark.h; docs/disk-format.md, "Marks of images"). Blocking calls,
// any thread.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/store/volume_state.h"

namespace replicad {

/// Whether the samples of the state's marks say what the images must hold now, but for what the log changes.
[[nodiscard]] bool samples_count(const VolumeState& state, const std::string& host);
/// The ranges of all disks' samples, in order; empty if they do not count.
[[nodiscard]] std::vector<Range> sampled_ranges(const VolumeState& state, const std::string& host);

/// Whether `fds` (one per disk) are the images that the state's marks are of. `touched`: for sampled_ranges(), whether
/// the log changes them. Errors: Errc::inconsistent with image, reason and what to do; errno's.
[[nodiscard]] Status check_images(const VolumeState& state,
                                  const std::string& host,
                                  std::span<const int> fds,
                                  const std::vector<bool>& touched);

/// The mark of an image. `offsets`: what to sample. `at_rest`: nobody will write to it any more.
[[nodiscard]] Result<ImageMark> mark_image(int fd,
                                           std::uint64_t bytes,
                                           std::span<const std::uint64_t> offsets,
                                           bool at_rest);

/// Puts marks of the images as they are at `point` into the state; of another number of disks: none.
void set_marks(VolumeState& state, const std::vector<ImageMark>& marks, const HistoryPoint& point);

}  // namespace replicad
