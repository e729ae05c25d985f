#pragma once
// Frames as bytes for tests. The hexadecimal texts were made by a separate program from the tables
// of docs/protocol.md; a change of one is a change of the protocol.

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/wire/messages.h"

namespace replicad {

inline std::string hex_of(std::span<const std::byte> bytes) {
  std::string hex;
  for (const std::byte byte : bytes)
    hex += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  return hex;
}

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

/// A whole frame: `header` with size and checksum of `payload` filled in, then the payload.
inline std::vector<std::byte> make_frame(FrameHeader header, std::span<const std::byte> payload) {
  header.payload_bytes = static_cast<std::uint32_t>(payload.size());
  header.payload_crc32c = crc32c(payload);
  std::vector<std::byte> frame(frame_header_bytes + payload.size());
  encode_header(header, std::span(frame).first<frame_header_bytes>());
  std::copy(payload.begin(), payload.end(), frame.begin() + frame_header_bytes);
  return frame;
}

inline constexpr Epoch golden_epoch{0x0102030405060708, 0xa1a2a3a4};

inline FrameHeader golden_write_header() {
  return {.type = FrameType::write,
          .flags = frame_flag_fua,
          .epoch = golden_epoch,
          .sequence = 0x1112131415161718,
          .range = {2, std::uint64_t{3} * 4096, 8}};
}

}  // namespace replicad
