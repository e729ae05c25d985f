#pragma once
// One segment of a replica's log as bytes: its header, and the scan that finds the frames a segment holds and
// where they end. Layout, crash orders and golden bytes: docs/disk-format.md. Pure functions, any thread.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/wire/messages.h"

namespace replicad {

/// What the first segment_header_bytes of a segment file say.
struct SegmentHeader {
  std::string volume_uuid;
  HistoryPoint before;  ///< the history up to the segment; its first frame has the next sequence
  std::uint64_t segment_bytes = 0;  ///< size of the file, header included
  Sequence durable = 0;  ///< the log was on stable storage up to here when the segment was begun

  [[nodiscard]] Sequence first() const { return before.sequence + 1; }
  friend bool operator==(const SegmentHeader&, const SegmentHeader&) = default;
};

/// `header`: uuid of 36 characters, segment_bytes within limits.h. `to`: exactly segment_header_bytes.
void encode_segment_header(const SegmentHeader& header,
                           std::span<std::byte, segment_header_bytes> to);
/// Errors: Errc::corrupt, Errc::version_mismatch (a later format). Any bytes are safe.
[[nodiscard]] Result<SegmentHeader> decode_segment_header(
    std::span<const std::byte, segment_header_bytes> from);

/// "%020llu.seg" of the segment's first sequence.
[[nodiscard]] std::string segment_file_name(Sequence first);
/// The first sequence of a segment named `name`; nullopt for any other name.
[[nodiscard]] std::optional<Sequence> segment_first_from_name(std::string_view name);

/// A frame found by scan_frames.
struct ScannedFrame {
  FrameHeader header;
  std::size_t offset_bytes = 0;  ///< of its header, from the start of the scanned bytes
  HistoryPoint after;            ///< the history up to and with the frame

  [[nodiscard]] std::size_t frame_bytes() const {
    return frame_header_bytes + header.payload_bytes;
  }
};

enum class ScanEnd {
  all_taken,   ///< every byte belongs to a frame
  incomplete,  ///< a valid frame header (or a part of one) is cut by the end of the bytes
  invalid,     ///< what follows is no next frame of this history
};

struct ScanResult {
  std::vector<ScannedFrame> frames;
  std::size_t valid_bytes = 0;  ///< length of the prefix that `frames` fill without a gap
  ScanEnd end = ScanEnd::all_taken;
  std::string reason;  ///< for `invalid`: what is wrong with the byte at valid_bytes
};

/// Whether a frame of `header` may follow `before`: numbered, the next sequence, an epoch that does not fall
/// (an equal number has the same tag). Errors: Errc::protocol.
[[nodiscard]] Status check_follows(const HistoryPoint& before, const FrameHeader& header);
/// The history point after a frame that may follow `before`.
[[nodiscard]] HistoryPoint advance(const HistoryPoint& before, const FrameHeader& header);

/// The longest strict prefix of `bytes` that continues the history `before`: every header and payload checksum
/// right, the sequence without a gap, the epoch never falling. Bytes that an earlier use of the file left
/// behind are never taken: their sequences are lower.
[[nodiscard]] ScanResult scan_frames(std::span<const std::byte> bytes, const HistoryPoint& before);

}  // namespace replicad
