#pragma once
// The frame header: the only binary layout between hosts. Layout, rules and golden bytes:
// docs/protocol.md. Pure functions, any thread.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/base/checksum.h"
#include "core/base/ids.h"
#include "core/base/limits.h"
#include "core/base/range.h"
#include "core/base/result.h"

namespace replicad {

/// Values are fixed for ever; a type unknown to the other side is never sent to it (feature
/// negotiation).
enum class FrameType : std::uint8_t {
  // Control, JSON payload (messages.h).
  attach = 1,
  attached = 2,
  refuse = 3,
  start = 4,
  // Numbered: each has the next sequence, is logged and enters the digest.
  write = 16,
  zero = 17,
  trim = 18,
  flush = 19,
  // Copy of an image, unnumbered, between numbered frames.
  copy_data = 32,
  copy_zero = 33,
  copy_end = 34,     ///< JSON
  copy_done = 35,    ///< JSON, replica to primary
  block_sums = 36,   ///< checksums of the primary's blocks, to be compared
  block_diffs = 37,  ///< replica to primary: which of them differ
  // Housekeeping, unnumbered.
  watermarks = 48,
  heartbeat = 49,
  digest = 50,
  sync_request = 51,
  // Between the plugin and its local replicad, JSON.
  agent_request = 64,
  agent_reply = 65,
  agent_event = 66,
};

[[nodiscard]] constexpr bool is_numbered(FrameType type) {
  return type == FrameType::write || type == FrameType::zero || type == FrameType::trim ||
         type == FrameType::flush;
}
[[nodiscard]] bool is_json(FrameType type);

/// write: make it durable before acknowledging it (FUA). zero: the range may be deallocated.
constexpr std::uint16_t frame_flag_fua = 1U << 0;
constexpr std::uint16_t frame_flag_may_trim = 1U << 1;
constexpr std::uint16_t frame_flags_known = frame_flag_fua | frame_flag_may_trim;

/// A decoded header. For numbered and copy frames `range` is what is changed; else it is all zero.
struct FrameHeader {
  FrameType type = FrameType::heartbeat;
  std::uint16_t flags = 0;
  std::uint32_t payload_bytes = 0;
  std::uint32_t payload_crc32c = 0;
  Epoch epoch{};
  Sequence sequence = 0;
  Range range{};

  friend bool operator==(const FrameHeader&, const FrameHeader&) = default;
};

/// Writes the 64 bytes of `header`, checksum included. `to`: exactly frame_header_bytes.
void encode_header(const FrameHeader& header, std::span<std::byte, frame_header_bytes> to);

/// Checks magic, version, checksum, known type, flags, length limits and that range and payload
/// agree.
/// Errors: Errc::protocol, Errc::version_mismatch. The payload is not looked at.
[[nodiscard]] Result<FrameHeader> decode_header(
    std::span<const std::byte, frame_header_bytes> from);

/// Errc::protocol if the payload's CRC32C is not the header's.
[[nodiscard]] Status check_payload(const FrameHeader& header, std::span<const std::byte> payload);

/// What of a numbered frame enters the digest.
[[nodiscard]] DigestItem digest_item(const FrameHeader& header);

}  // namespace replicad
