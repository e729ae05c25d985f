// The side file of a staged copy. Mode 0: any bytes. Else: header and frames are signed first, so that the input gets
// past the checksums and deep into the scan.
#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "core/base/check.h"
#include "core/base/endian.h"
#include "core/store/resync_stage.h"
#include "tests/fuzz/fuzz.h"

namespace replicad {
namespace {

void check_header(std::span<const std::byte> bytes, bool sign) {
  std::array<std::byte, stage_header_bytes> raw{};
  std::ranges::copy(bytes.first(std::min(bytes.size(), raw.size())), raw.begin());
  if (sign) {
    store_le(raw.data(), std::uint32_t{0x53504c52});
    store_le(raw.data() + raw.size() - 4, crc32c(std::span(raw).first(raw.size() - 4)));
  }
  const auto header = decode_stage_header(raw);
  if (!header) {
    RD_CHECK(!header.error().message.empty());
    return;
  }
  RD_CHECK(header->volume_uuid.size() == 36);
  std::array<std::byte, stage_header_bytes> again{};
  encode_stage_header(*header, again);
  RD_CHECK(decode_stage_header(again) == *header);
}

void sign_frames(std::span<std::byte> stream) {
  while (stream.size() >= frame_header_bytes) {
    std::byte* header = stream.data();
    store_le(header, std::uint32_t{0x444c5052});
    header[4] = std::byte{1};
    const std::size_t payload_bytes = std::min<std::size_t>(load_le<std::uint32_t>(header + 8),
                                                            stream.size() - frame_header_bytes);
    store_le(header + 8, static_cast<std::uint32_t>(payload_bytes));
    store_le(header + 12, crc32c(stream.subspan(frame_header_bytes, payload_bytes)));
    store_le(header + 60, crc32c(stream.first(60)));
    stream = stream.subspan(frame_header_bytes + payload_bytes);
  }
}

void check_scan(std::span<const std::byte> bytes) {
  const StageScan result = scan_stage(bytes);
  std::size_t at = 0;
  for (const StagedFrame& frame : result.frames) {
    RD_CHECK(frame.offset_bytes == at);
    at += frame.frame_bytes();
  }
  RD_CHECK(at == result.valid_bytes && at <= bytes.size());
  RD_CHECK((result.end == ScanEnd::all_taken) == (at == bytes.size()));
  // What is taken is taken again from its bytes alone.
  const StageScan prefix = scan_stage(bytes.first(at));
  RD_CHECK(prefix.frames.size() == result.frames.size());
  RD_CHECK(prefix.end == ScanEnd::all_taken);
  // Bounded, whatever the frames are, and within what was asked.
  StageIndex index({std::uint64_t{1} << 40, 4096}, 64);
  for (const StagedFrame& frame : result.frames) {
    if (!index.add(frame.header, frame.offset_bytes + frame_header_bytes)) break;
  }
  RD_CHECK(index.extents() <= 64);
  std::uint64_t last = 0;
  for (const StageIndex::Piece& piece : index.pieces({0, 0, std::uint64_t{1} << 40})) {
    RD_CHECK(piece.range.offset_bytes >= last);
    last = piece.range.end_bytes();
  }
}

void run(std::span<const std::byte> input) {
  if (input.empty()) return;
  const bool sign = input[0] != std::byte{0};
  std::vector<std::byte> bytes(input.begin() + 1, input.end());
  check_header(bytes, sign);
  if (sign) sign_frames(bytes);
  check_scan(bytes);
}

}  // namespace
}  // namespace replicad

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  replicad::run(std::as_bytes(std::span(data, size)));
  return 0;
}
