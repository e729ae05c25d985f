// FrameReader and every decoder behind it. Mode bit 0: sign headers and payloads first, so that the
// input gets past the checksums; the other bits choose how the stream is cut into receives.
#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <vector>

#include "core/base/check.h"
#include "core/base/endian.h"
#include "core/wire/frame_reader.h"
#include "core/wire/messages.h"
#include "tests/fuzz/fuzz.h"

namespace replicad {
namespace {

void sign_stream(std::vector<std::byte>& stream) {
  std::size_t at = 0;
  while (stream.size() - at >= frame_header_bytes) {
    std::byte* header = stream.data() + at;
    store_le(header, std::uint32_t{0x444c5052});
    header[4] = std::byte{1};
    const std::size_t rest = stream.size() - at - frame_header_bytes;
    const std::size_t payload_bytes =
        std::min<std::size_t>(load_le<std::uint32_t>(header + 8), rest);
    store_le(header + 8, static_cast<std::uint32_t>(payload_bytes));
    store_le(header + 12,
             crc32c(std::span(stream).subspan(at + frame_header_bytes, payload_bytes)));
    store_le(header + 60, crc32c(std::span(stream).subspan(at, 60)));
    at += frame_header_bytes + payload_bytes;
  }
}

void check_frame(const FrameView& frame) {
  std::array<std::byte, frame_header_bytes> again{};
  encode_header(frame.header, again);
  RD_CHECK(std::ranges::equal(again, frame.bytes.first(frame_header_bytes)));
  RD_CHECK(crc32c(frame.payload) == frame.header.payload_crc32c);
  RD_CHECK(frame.header.payload_bytes <= data_payload_bytes_max);
  RD_CHECK(frame.header.range.length_bytes <= range_bytes_max);
  RD_CHECK(frame.header.range.disk < disks_max);
  (void)extend_digest({}, digest_item(frame.header));
  if (frame.header.type == FrameType::digest) (void)decode_digest(frame.header, frame.payload);
  if (frame.header.type == FrameType::watermarks) (void)decode_watermarks(frame.payload);
}

void run(std::span<const std::byte> input) {
  if (input.empty()) return;
  const auto mode = std::to_integer<unsigned>(input[0]);
  std::vector<std::byte> stream(input.begin() + 1, input.end());
  if ((mode & 1U) != 0) sign_stream(stream);
  static FrameReader reader(frame_header_bytes + data_payload_bytes_max);
  reader.clear();
  std::span<const std::byte> rest(stream);
  while (!rest.empty()) {
    const auto chunk = rest.first(std::min(rest.size(), reader.writable().size()));
    const auto part = chunk.first(std::min<std::size_t>(chunk.size(), 1 + (mode >> 1U) * 7));
    if (part.empty()) return;
    std::memcpy(reader.writable().data(), part.data(), part.size());
    reader.commit(part.size());
    rest = rest.subspan(part.size());
    while (true) {
      const auto next = reader.next();
      if (!next) return;
      if (!*next) break;
      check_frame(**next);
    }
    reader.compact();
  }
}

}  // namespace
}  // namespace replicad

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  replicad::run(std::as_bytes(std::span(data, size)));
  return 0;
}
