// The side file of a staged copy (core/store/resync_stage.h).

#include "core/store/resync_stage.h"

#include <array>
#include <cstring>

#include <doctest/doctest.h>

namespace replicad {
namespace {

constexpr std::string_view uuid = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9";

using Header = std::array<std::byte, stage_header_bytes>;

Header encoded() {
  Header bytes{};
  encode_stage_header(uuid, bytes);
  return bytes;
}

void append(std::vector<std::byte>& bytes, FrameType type, Sequence sequence, std::size_t payload) {
  const std::vector<std::byte> data(payload, std::byte{7});
  FrameHeader header;
  header.type = type;
  header.payload_bytes = static_cast<std::uint32_t>(payload);
  header.payload_crc32c = crc32c(data);
  header.sequence = sequence;
  if (sequence > 0) header.epoch = {1, 2};
  if (type != FrameType::flush && type != FrameType::heartbeat)
    header.range = {0, 4096, payload > 0 ? payload : 4096};
  std::array<std::byte, frame_header_bytes> head{};
  encode_header(header, head);
  bytes.insert(bytes.end(), head.begin(), head.end());
  bytes.insert(bytes.end(), data.begin(), data.end());
}

std::vector<std::byte> stage() {
  std::vector<std::byte> bytes;
  append(bytes, FrameType::copy_data, 0, 512);
  append(bytes, FrameType::write, 9, 1024);
  append(bytes, FrameType::copy_zero, 0, 0);
  append(bytes, FrameType::flush, 10, 0);
  return bytes;
}

}  // namespace

TEST_CASE("resync stage: the header's bytes never change, and any changed byte is noticed") {
  const Header bytes = encoded();
  const std::string text = std::string("RLPS\x01\0\0\0", 8) + std::string(uuid);
  CHECK(std::memcmp(bytes.data(), text.data(), text.size()) == 0);
  const std::array<unsigned, 4> checksum{0x50, 0x5e, 0x85, 0x2b};
  for (std::size_t i = 0; i < 4; ++i)
    CHECK(std::to_integer<unsigned>(bytes[stage_header_bytes - 4 + i]) == checksum[i]);
  CHECK(decode_stage_header(bytes) == std::string(uuid));
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    Header bad = bytes;
    bad[at] ^= std::byte{0x10};
    CHECK_FALSE(decode_stage_header(bad).has_value());
  }
}

TEST_CASE("resync stage: frames of a copy are found up to the first that is cut or changed") {
  const std::vector<std::byte> bytes = stage();
  const StageScan whole = scan_stage(bytes);
  REQUIRE(whole.frames.size() == 4);
  CHECK(whole.end == ScanEnd::all_taken);
  CHECK(whole.valid_bytes == bytes.size());
  CHECK(whole.frames[1].header.sequence == 9);
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    const StageScan cut = scan_stage(std::span(bytes).first(length));
    std::size_t frames = 0;
    while (whole.frames[frames].offset_bytes + whole.frames[frames].frame_bytes() <= length)
      ++frames;
    CHECK(cut.frames.size() == frames);
    CHECK(cut.end == (cut.valid_bytes == length ? ScanEnd::all_taken : ScanEnd::incomplete));
  }
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    std::vector<std::byte> bad = bytes;
    bad[at] ^= std::byte{0x04};
    const StageScan found = scan_stage(bad);
    CHECK(found.frames.size() < 4);
    CHECK(found.valid_bytes <= at);
  }
}

TEST_CASE("resync stage: what has no place in a copy is refused") {
  std::vector<std::byte> bytes = stage();
  append(bytes, FrameType::heartbeat, 0, 0);
  const StageScan found = scan_stage(bytes);
  CHECK(found.frames.size() == 4);
  CHECK(found.end == ScanEnd::invalid);
  CHECK_FALSE(found.reason.empty());
}

}  // namespace replicad
