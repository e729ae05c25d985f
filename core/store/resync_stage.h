#pragma once
// The side file of a staged copy as bytes: a header, then copy frames and numbered frames in the very bytes that
// arrived. Layout: docs/disk-format.md, "Stage". Pure functions, any thread.

#include <cstddef>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/store/log_segment.h"

namespace replicad {

constexpr std::size_t stage_header_bytes = 4096;
constexpr std::string_view stage_file_name = "resync.stage";

struct StageHeader {
  std::string volume_uuid;  ///< 36 characters
  HistoryPoint base;        ///< where the replica stood when the stage was begun
  Epoch epoch;              ///< of the primary that began it; 0: nothing may go on with it
  std::string boot_id;      ///< of the host then; at most 36 characters

  friend bool operator==(const StageHeader&, const StageHeader&) = default;
};

void encode_stage_header(const StageHeader& header, std::span<std::byte, stage_header_bytes> to);
/// Errors: Errc::corrupt, Errc::version_mismatch (a later format). Any bytes are safe.
[[nodiscard]] Result<StageHeader> decode_stage_header(
    std::span<const std::byte, stage_header_bytes> from);

/// Whether a session of `header.epoch` may go on with a stage that was not committed: the file is of this volume, the
/// replica stands where it began, and the host has not gone down since, so that the file is what was written to it.
[[nodiscard]] bool may_go_on(const StageHeader& header,
                             std::string_view volume_uuid,
                             const HistoryPoint& standing,
                             std::string_view boot_id);

struct StagedFrame {
  FrameHeader header;
  std::size_t offset_bytes = 0;  ///< of its header, from the start of the scanned bytes

  [[nodiscard]] std::size_t frame_bytes() const {
    return frame_header_bytes + header.payload_bytes;
  }
};

struct StageScan {
  std::vector<StagedFrame> frames;
  std::size_t valid_bytes = 0;  ///< length of the prefix that `frames` fill without a gap
  ScanEnd end = ScanEnd::all_taken;
  std::string reason;  ///< for `invalid`
};

/// The longest prefix of `bytes` that is frames of a copy: checksums right, of a kind that has a place there.
[[nodiscard]] StageScan scan_stage(std::span<const std::byte> bytes);

/// What a stage holds of the disks: which bytes its frames, one behind the other, would change, and where the new ones
/// are in the file. Bounded: see add().
class StageIndex {
 public:
  /// Bounds the memory at about 100 MiB.
  static constexpr std::size_t extents_max_default = std::size_t{1} << 20;

  explicit StageIndex(std::vector<std::uint64_t> disk_bytes = {},
                      std::size_t extents_max = extents_max_default);

  /// The next frame, whose payload is at byte `payload_offset` of the file. Result: false if it does not lie within its
  /// disk, or there is no room for it any more; then it is not taken, and no later one must be.
  [[nodiscard]] bool add(const FrameHeader& header, std::uint64_t payload_offset);

  struct Piece {
    Range range;
    std::optional<std::uint64_t> file_offset;  ///< nullopt: zeroes

    friend bool operator==(const Piece&, const Piece&) = default;
  };
  /// What is changed within `range`, in its order.
  [[nodiscard]] std::vector<Piece> pieces(const Range& range) const;
  [[nodiscard]] std::size_t extents() const { return extents_; }

 private:
  struct Extent {
    std::uint64_t end = 0;
    std::optional<std::uint64_t> file_offset;
  };
  using Disk = std::map<std::uint64_t, Extent>;  ///< by first byte; they do not overlap

  void cut(Disk& disk, std::uint64_t begin, std::uint64_t end);

  std::vector<std::uint64_t> disk_bytes_;
  std::size_t extents_max_;
  std::vector<Disk> disks_;
  std::size_t extents_ = 0;
};

}  // namespace replicad
