// The segment of a replica's log. Mode 0: any bytes. Else: the header and the frames are signed
// first, and with mode 2 numbered in sequence too, so that the input gets past the checksums and
// deep into the scan.
#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "core/base/check.h"
#include "core/base/endian.h"
#include "core/store/log_segment.h"
#include "tests/fuzz/fuzz.h"

namespace replicad {
namespace {

constexpr HistoryPoint before{{3, 7}, 16, {1, 2}};

void sign_header(std::span<std::byte, segment_header_bytes> header) {
  store_le(header.data(), std::uint32_t{0x474c5052});
  store_le(header.data() + header.size() - 4, crc32c(header.first(header.size() - 4)));
}

void sign_frames(std::span<std::byte> stream, bool numbered) {
  Sequence sequence = before.sequence;
  while (stream.size() >= frame_header_bytes) {
    std::byte* header = stream.data();
    store_le(header, std::uint32_t{0x444c5052});
    header[4] = std::byte{1};
    const std::size_t payload_bytes =
        std::min<std::size_t>(load_le<std::uint32_t>(header + 8), stream.size() - 64);
    store_le(header + 8, static_cast<std::uint32_t>(payload_bytes));
    store_le(header + 12, crc32c(stream.subspan(frame_header_bytes, payload_bytes)));
    if (numbered) store_le(header + 24, ++sequence);
    store_le(header + 60, crc32c(stream.first(60)));
    stream = stream.subspan(frame_header_bytes + payload_bytes);
  }
}

void check_header(std::span<const std::byte> bytes, bool sign) {
  std::array<std::byte, segment_header_bytes> raw{};
  std::ranges::copy(bytes.first(std::min(bytes.size(), raw.size())), raw.begin());
  if (sign) sign_header(raw);
  const auto header = decode_segment_header(raw);
  if (!header) {
    RD_CHECK(!header.error().message.empty());
    return;
  }
  std::array<std::byte, segment_header_bytes> again{};
  encode_segment_header(*header, again);
  const auto second = decode_segment_header(again);
  RD_CHECK(second.has_value());
  RD_CHECK(*second == *header);
  RD_CHECK(segment_first_from_name(segment_file_name(header->first())) == header->first());
}

// What a scan takes is a strict prefix: it is taken again from its bytes alone, and nothing of it
// depends on what comes behind.
void check_scan(std::span<const std::byte> bytes) {
  const ScanResult result = scan_frames(bytes, before);
  RD_CHECK(result.valid_bytes <= bytes.size());
  std::size_t at = 0;
  HistoryPoint point = before;
  for (const ScannedFrame& frame : result.frames) {
    RD_CHECK(frame.offset_bytes == at);
    RD_CHECK(check_follows(point, frame.header).has_value());
    point = advance(point, frame.header);
    RD_CHECK(point == frame.after);
    at += frame.frame_bytes();
  }
  RD_CHECK(at == result.valid_bytes);
  RD_CHECK((result.end == ScanEnd::all_taken) == (at == bytes.size()));
  const ScanResult prefix = scan_frames(bytes.first(at), before);
  RD_CHECK(prefix.frames.size() == result.frames.size());
  RD_CHECK(prefix.end == ScanEnd::all_taken);
}

void run(std::span<const std::byte> input) {
  if (input.empty()) return;
  const auto mode = std::to_integer<unsigned>(input[0]) % 3;
  std::vector<std::byte> bytes(input.begin() + 1, input.end());
  check_header(bytes, mode != 0);
  if (mode != 0) sign_frames(bytes, mode == 2);
  check_scan(bytes);
}

}  // namespace
}  // namespace replicad

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  replicad::run(std::as_bytes(std::span(data, size)));
  return 0;
}
