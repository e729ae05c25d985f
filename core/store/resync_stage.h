#pragma once
// The side file of a staged copy as bytes: a header, then copy frames and numbered frames in the very bytes that
// arrived. Layout: docs/disk-format.md, "Stage". Pure functions, any thread.

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/store/log_segment.h"

namespace replicad {

constexpr std::size_t stage_header_bytes = 4096;
constexpr std::string_view stage_file_name = "resync.stage";

/// `volume_uuid`: 36 characters.
void encode_stage_header(std::string_view volume_uuid, std::span<std::byte, stage_header_bytes> to);
/// The volume's uuid. Errors: Errc::corrupt, Errc::version_mismatch (a later format). Any bytes are safe.
[[nodiscard]] Result<std::string> decode_stage_header(
    std::span<const std::byte, stage_header_bytes> from);

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

}  // namespace replicad
