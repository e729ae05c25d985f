#include "replicad/image_check.h"

#include <array>

#include "core/base/check.h"
#include "io/file.h"
#include "io/image_identity.h"

namespace replicad {

namespace {

Result<std::vector<Digest>> sample_sums(int fd,
                                        std::uint64_t bytes,
                                        std::span<const std::uint64_t> offsets) {
  std::array<std::byte, image_sample_bytes> block{};
  std::vector<Digest> sums;
  for (const std::uint64_t offset : offsets) {
    const auto content = std::span(block).first(sample_range(0, offset, bytes).length_bytes);
    RD_TRY(read_all_at(fd, content, offset));
    sums.push_back(block_sum(content));
  }
  return sums;
}

Result<ImageLook> look_at_image(int fd, const DiskState& disk, bool with_samples) {
  auto identity = image_identity(fd);
  if (!identity) return tl::unexpected(identity.error());
  const auto modified = modified_ns(fd);
  if (!modified) return tl::unexpected(modified.error());
  ImageLook look{std::move(*identity), *modified, {}};
  if (!with_samples) return look;
  std::vector<std::uint64_t> offsets;
  for (const ImageSample& sample : disk.mark.samples)
    offsets.push_back(sample.offset_bytes);
  auto sums = sample_sums(fd, disk.bytes, offsets);
  if (!sums) return tl::unexpected(sums.error());
  look.sums = std::move(*sums);
  return look;
}

Error replaced(const VolumeState& state,
               const std::string& host,
               const DiskState& disk,
               const std::string& why) {
  const bool is_primary = state.primary == host;
  return {
      Errc::inconsistent,
      0,
      fmt::format("image {} is not what this host wrote: {}", disk.path, why),
      fmt::format("put the right image back and give `replicactl readmit {0} --host {1}`, which "
                  "looks again; {2}",
                  state.name,
                  host,
                  is_primary ? "or let another member take over (`replicactl failover`). --force "
                               "takes this image as it is: what it lacks is lost"
                             : "if it cannot be put back, that lets the primary compare this "
                               "image in full")};
}

}  // namespace

bool samples_count(const VolumeState& state, const std::string& host) {
  if (!state.marked_at) return false;
  if (state.primary == host) return state.clean && *state.marked_at == state.history;
  return state.consistent && !state.stage_bytes && *state.marked_at == state.checkpoint;
}

std::vector<Range> sampled_ranges(const VolumeState& state, const std::string& host) {
  std::vector<Range> ranges;
  if (!samples_count(state, host)) return ranges;
  for (std::size_t i = 0; i < state.disks.size(); ++i) {
    const DiskState& disk = state.disks[i];
    for (const ImageSample& sample : disk.mark.samples)
      ranges.push_back(sample_range(static_cast<DiskIndex>(i), sample.offset_bytes, disk.bytes));
  }
  return ranges;
}

Status check_images(const VolumeState& state,
                    const std::string& host,
                    std::span<const int> fds,
                    const std::vector<bool>& touched) {
  RD_CHECK(fds.size() == state.disks.size());
  const bool with_samples = samples_count(state, host);
  std::size_t first = 0;
  for (std::size_t i = 0; i < fds.size(); ++i) {
    const DiskState& disk = state.disks[i];
    const auto look = look_at_image(fds[i], disk, with_samples);
    if (!look) return tl::unexpected(look.error());
    std::vector<bool> changed;
    for (std::size_t k = 0; k < disk.mark.samples.size() && first + k < touched.size(); ++k)
      changed.push_back(touched[first + k]);
    if (const auto why = why_another_image(disk.mark, *look, changed))
      return tl::unexpected(replaced(state, host, disk, *why));
    first += disk.mark.samples.size();
  }
  return {};
}

Result<ImageMark> mark_image(int fd,
                             std::uint64_t bytes,
                             std::span<const std::uint64_t> offsets,
                             bool at_rest) {
  ImageMark mark;
  auto identity = image_identity(fd);
  if (!identity) return tl::unexpected(identity.error());
  mark.identity = std::move(*identity);
  const auto sums = sample_sums(fd, bytes, offsets);
  if (!sums) return tl::unexpected(sums.error());
  for (std::size_t i = 0; i < offsets.size(); ++i)
    mark.samples.push_back({offsets[i], (*sums)[i]});
  if (!at_rest) return mark;
  const auto modified = modified_ns(fd);
  if (!modified) return tl::unexpected(modified.error());
  mark.modified_ns = *modified;
  return mark;
}

void set_marks(VolumeState& state, const std::vector<ImageMark>& marks, const HistoryPoint& point) {
  if (marks.size() != state.disks.size()) {
    state.marked_at.reset();
    return;
  }
  for (std::size_t i = 0; i < marks.size(); ++i)
    state.disks[i].mark = marks[i];
  state.marked_at = point;
}

}  // namespace replicad
