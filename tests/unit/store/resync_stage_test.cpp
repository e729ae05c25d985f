// The side file of a staged copy (core/store/resync_stage.h).

#include "core/store/resync_stage.h"

#include <array>
#include <cstring>
#include <random>

#include <doctest/doctest.h>

namespace replicad {
namespace {

constexpr std::string_view uuid = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9";

using Header = std::array<std::byte, stage_header_bytes>;

StageHeader header() {
  return {std::string(uuid),
          {{0x0102030405060708, 0x11121314}, 0x2123, {0x3132, 0x4142}},
          {0x5152535455565758, 0x61626364},
          "98765432-1234-4321-aaaa-bbbbbbbbbbbb"};
}

Header encoded(const StageHeader& from = header()) {
  Header bytes{};
  encode_stage_header(from, bytes);
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
  const std::string text = std::string("RLPS\x01\0\0\0", 8) + std::string(uuid) +
                           std::string(4, '\0') +
                           std::string("\x23\x21\0\0\0\0\0\0\x08\x07\x06\x05\x04\x03\x02\x01", 16) +
                           std::string("\x14\x13\x12\x11\x64\x63\x62\x61", 8) +
                           std::string("\x32\x31\0\0\0\0\0\0\x42\x41\0\0\0\0\0\0", 16) +
                           std::string("\x58\x57\x56\x55\x54\x53\x52\x51", 8) + header().boot_id;
  CHECK(std::memcmp(bytes.data(), text.data(), text.size()) == 0);
  for (std::size_t at = text.size(); at < stage_header_bytes - 4; ++at)
    CHECK(bytes[at] == std::byte{0});
  const std::array<unsigned, 4> checksum{0xed, 0xfd, 0x29, 0xc4};
  for (std::size_t i = 0; i < 4; ++i)
    CHECK(std::to_integer<unsigned>(bytes[stage_header_bytes - 4 + i]) == checksum[i]);
  CHECK(decode_stage_header(bytes) == header());
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    Header bad = bytes;
    bad[at] ^= std::byte{0x10};
    CHECK_FALSE(decode_stage_header(bad).has_value());
  }
}

TEST_CASE("resync stage: one that says nothing of its beginning is read, and never gone on with") {
  // What an earlier version has written.
  const StageHeader old{std::string(uuid), {}, {}, {}};
  const Header bytes = encoded(old);
  const std::array<unsigned, 4> checksum{0x50, 0x5e, 0x85, 0x2b};
  for (std::size_t i = 0; i < 4; ++i)
    CHECK(std::to_integer<unsigned>(bytes[stage_header_bytes - 4 + i]) == checksum[i]);
  CHECK(decode_stage_header(bytes) == old);
  CHECK_FALSE(may_go_on(old, uuid, {}, ""));
}

TEST_CASE("resync stage: it is gone on with by a replica that stands where it began, alone") {
  const StageHeader begun = header();
  CHECK(may_go_on(begun, uuid, begun.base, begun.boot_id));
  const std::string other_uuid(36, 'x');
  CHECK_FALSE(may_go_on(begun, other_uuid, begun.base, begun.boot_id));
  HistoryPoint later = begun.base;
  ++later.sequence;
  CHECK_FALSE(may_go_on(begun, uuid, later, begun.boot_id));
  HistoryPoint other = begun.base;
  other.digest.low = 1;
  CHECK_FALSE(may_go_on(begun, uuid, other, begun.boot_id));
  CHECK_FALSE(may_go_on(begun, uuid, begun.base, "another boot"));
}

TEST_CASE("stage index: is what the frames would change, whatever their ranges") {
  constexpr std::uint64_t disk_bytes = 4096;
  std::mt19937_64 random(17);
  for (int round = 0; round < 200; ++round) {
    StageIndex index({disk_bytes, 512});
    // Where each byte is in the file: 0 is zeroes, -1 unchanged.
    std::vector<std::int64_t> wanted(disk_bytes, -1);
    std::uint64_t file = 4096;
    for (int i = 0; i < 20; ++i) {
      FrameHeader frame;
      frame.range.offset_bytes = random() % disk_bytes;
      frame.range.length_bytes =
          1 + random() % std::min<std::uint64_t>(disk_bytes - frame.range.offset_bytes, 700);
      const bool is_data = random() % 3 != 0;
      frame.type = is_data ? FrameType::copy_data : FrameType::trim;
      if (is_data) frame.payload_bytes = static_cast<std::uint32_t>(frame.range.length_bytes);
      REQUIRE(index.add(frame, file + frame_header_bytes));
      for (std::uint64_t at = 0; at < frame.range.length_bytes; ++at) {
        wanted[frame.range.offset_bytes + at] =
            is_data ? static_cast<std::int64_t>(file + frame_header_bytes + at) : 0;
      }
      file += frame_header_bytes + frame.payload_bytes;
    }
    const std::uint64_t begin = random() % 2000;
    const std::uint64_t length = 1 + random() % 2000;
    std::vector<std::int64_t> found(disk_bytes, -1);
    std::uint64_t last = begin;
    for (const StageIndex::Piece& piece : index.pieces({0, begin, length})) {
      CHECK(piece.range.offset_bytes >= last);
      last = piece.range.end_bytes();
      CHECK(last <= begin + length);
      for (std::uint64_t at = 0; at < piece.range.length_bytes; ++at) {
        found[piece.range.offset_bytes + at] =
            piece.file_offset ? static_cast<std::int64_t>(*piece.file_offset + at) : 0;
      }
    }
    for (std::uint64_t at = begin; at < begin + length; ++at)
      REQUIRE(found[at] == wanted[at]);
    CHECK(index.pieces({1, 0, 512}).empty());
    CHECK(index.pieces({7, 0, 512}).empty());
  }
}

TEST_CASE("stage index: it is bounded, and takes nothing that lies beyond its disk") {
  StageIndex index({8192}, 3);
  FrameHeader frame;
  frame.type = FrameType::copy_zero;
  frame.range = {0, 0, 4096};
  CHECK(index.add(frame, 0));
  frame.range = {0, 512, 512};
  CHECK(index.add(frame, 0));
  CHECK(index.extents() == 3);
  CHECK_FALSE(index.add(frame, 0));
  CHECK(index.extents() == 3);
  StageIndex roomy({8192});
  for (const Range& range : {Range{0, 8192, 1}, Range{1, 0, 512}, Range{0, 1, ~std::uint64_t{0}}}) {
    frame.range = range;
    CHECK_FALSE(roomy.add(frame, 0));
  }
  frame.type = FrameType::flush;
  CHECK(roomy.add(frame, 0));
  CHECK(roomy.extents() == 0);
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
