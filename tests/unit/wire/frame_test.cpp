#include "core/wire/frame.h"

#include <array>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/endian.h"
#include "tests/unit/wire/golden.h"

namespace replicad {
namespace {

struct Golden {
  FrameHeader header;
  std::string payload;
  std::string hex;
};

std::vector<Golden> golden_frames() {
  const std::string nothing;
  return {
      {golden_write_header(),
       "replicad",
       "52504c4401100100080000000515e1eb08070605040302011817161514131211003000000000000008000000"
       "00000000a4a3a2a10200000000000000ef82527b7265706c69636164"},
      {{.type = FrameType::zero,
        .flags = frame_flag_may_trim,
        .epoch = golden_epoch,
        .sequence = 18,
        .range = {15, mib, gib}},
       nothing,
       "52504c4401110200000000000000000008070605040302011200000000000000000010000000000000000040000"
       "00000"
       "a4a3a2a10f000000000000005ed75dde"},
      {{.type = FrameType::trim, .epoch = golden_epoch, .sequence = 19, .range = {0, 512, 65536}},
       nothing,
       "52504c4401120000000000000000000008070605040302011300000000000000000200000000000000000100000"
       "00000"
       "a4a3a2a10000000000000000854081f6"},
      {{.type = FrameType::flush, .epoch = golden_epoch, .sequence = 20},
       nothing,
       "52504c4401130000000000000000000008070605040302011400000000000000000000000000000000000000000"
       "00000"
       "a4a3a2a1000000000000000006c60104"},
      {{.type = FrameType::copy_data, .range = {1, 8192, 4}},
       std::string("\0\1\2\3", 4),
       "52504c440120000004000000a31a33d900000000000000000000000000000000002000000000000004000000000"
       "00000"
       "000000000100000000000000da380d4300010203"},
      {{.type = FrameType::copy_zero, .range = {1, 1024 * gib, 4096}},
       nothing,
       "52504c4401210000000000000000000000000000000000000000000000000000000000000001000000100000000"
       "00000"
       "000000000100000000000000"
       "9194970e"},
      {{.type = FrameType::heartbeat},
       nothing,
       "52504c4401310000000000000000000000000000000000000000000000000000000000000000000000000000000"
       "00000"
       "00000000000000000000000018dc9d12"},
      {{.type = FrameType::sync_request},
       nothing,
       "52504c4401330000000000000000000000000000000000000000000000000000000000000000000000000000000"
       "00000"
       "00000000000000000000000051ad96a2"},
  };
}

Result<FrameHeader> decode(const std::vector<std::byte>& frame) {
  return decode_header(std::span(frame).first<frame_header_bytes>());
}

TEST_CASE("frame: golden bytes of every binary type, both ways") {
  for (const Golden& golden : golden_frames()) {
    CAPTURE(static_cast<int>(golden.header.type));
    const auto frame = make_frame(golden.header, bytes_of(golden.payload));
    CHECK(hex_of(frame) == golden.hex);
    const auto decoded = decode(frame);
    REQUIRE(decoded);
    CHECK(decoded->type == golden.header.type);
    CHECK(decoded->flags == golden.header.flags);
    CHECK(decoded->epoch == golden.header.epoch);
    CHECK(decoded->sequence == golden.header.sequence);
    CHECK(decoded->range == golden.header.range);
    CHECK(check_payload(*decoded, bytes_of(golden.payload)));
  }
}

/// A write frame whose header had `value` stored at byte `at` and was then signed again.
template <typename T>
Result<FrameHeader> decode_changed(FrameHeader header, std::size_t at, T value) {
  std::vector<std::byte> frame = make_frame(header, bytes_of("replicad"));
  store_le(frame.data() + at, value);
  store_le(frame.data() + 60, crc32c(std::span(frame).template first<60>()));
  return decode(frame);
}

void check_protocol_error(const Result<FrameHeader>& result, std::string_view part) {
  REQUIRE_FALSE(result);
  CHECK(result.error().code == Errc::protocol);
  CHECK_MESSAGE(result.error().message.find(part) != std::string::npos, result.error().message);
}

TEST_CASE("frame: each rule of the header refuses with its own message") {
  const FrameHeader write = golden_write_header();
  check_protocol_error(decode_changed(write, 0, 0x4c5052U), "not a replicad frame");
  check_protocol_error(decode_changed(write, 5, std::uint8_t{0}), "unknown frame type 0");
  check_protocol_error(decode_changed(write, 5, std::uint8_t{20}), "unknown frame type 20");
  check_protocol_error(decode_changed(write, 5, std::uint8_t{255}), "unknown frame type 255");
  check_protocol_error(decode_changed(write, 6, std::uint16_t{4}), "unknown flags 0x4");
  check_protocol_error(decode_changed(write, 8, std::uint32_t{mib + 1}), "at most 1048576 allowed");
  check_protocol_error(decode_changed(write, 8, std::uint32_t{7}),
                       "range of 8 bytes, payload of 7");
  check_protocol_error(decode_changed(write, 40, std::uint64_t{9}),
                       "range of 9 bytes, payload of 8");
  check_protocol_error(decode_changed(write, 16, std::uint64_t{0}), "without epoch or sequence");
  check_protocol_error(decode_changed(write, 24, std::uint64_t{0}), "without epoch or sequence");
  check_protocol_error(decode_changed(write, 32, std::numeric_limits<std::uint64_t>::max()),
                       "out of bounds");
  check_protocol_error(decode_changed(write, 32, disk_bytes_max + 1), "out of bounds");
  check_protocol_error(decode_changed(write, 52, std::uint16_t{16}), "disk 16");
  check_protocol_error(decode_changed(write, 54, std::uint8_t{1}), "reserved");
  check_protocol_error(decode_changed(write, 59, std::uint8_t{1}), "reserved");
}

TEST_CASE("frame: another format version is a version mismatch that names both") {
  const auto result = decode_changed(golden_write_header(), 4, std::uint8_t{2});
  REQUIRE_FALSE(result);
  CHECK(result.error().code == Errc::version_mismatch);
  CHECK(result.error().message.find("version 2") != std::string::npos);
  CHECK(result.error().message.find("knows 1") != std::string::npos);
}

TEST_CASE("frame: an empty write and an empty or overlong range are refused") {
  check_protocol_error(decode_changed(golden_write_header(), 8, std::uint32_t{0}), "payload of 0");
  for (const FrameType type : {FrameType::zero, FrameType::trim, FrameType::copy_zero}) {
    const FrameHeader header{
        .type = type, .epoch = golden_epoch, .sequence = 1, .range = {0, 0, 1}};
    CHECK(decode(make_frame(header, {})));
    for (const std::uint64_t length : {std::uint64_t{0}, range_bytes_max + 1}) {
      FrameHeader bad = header;
      bad.range.length_bytes = length;
      check_protocol_error(decode(make_frame(bad, {})), "range of");
    }
  }
}

TEST_CASE("frame: types without range or payload refuse them") {
  for (const FrameType type :
       {FrameType::flush, FrameType::heartbeat, FrameType::sync_request, FrameType::attach}) {
    const FrameHeader header{
        .type = type, .epoch = golden_epoch, .sequence = 1, .range = {0, 0, 1}};
    check_protocol_error(decode(make_frame(header, {})), "carries a range");
  }
  for (const FrameType type :
       {FrameType::zero, FrameType::trim, FrameType::flush, FrameType::heartbeat}) {
    const FrameHeader header{.type = type, .epoch = golden_epoch, .sequence = 1};
    check_protocol_error(decode(make_frame(header, bytes_of("x"))), "at most 0 allowed");
  }
}

TEST_CASE("frame: control payloads end at 256 KiB, watermarks at 64 bytes, digests at 16") {
  struct Limit {
    FrameType type;
    std::uint32_t bytes;
  };
  for (const Limit& limit : {Limit{FrameType::attach, 256 * kib},
                             Limit{FrameType::agent_reply, 256 * kib},
                             Limit{FrameType::watermarks, 64},
                             Limit{FrameType::digest, 16}}) {
    FrameHeader header{.type = limit.type, .payload_bytes = limit.bytes};
    std::array<std::byte, frame_header_bytes> bytes{};
    encode_header(header, bytes);
    CHECK(decode_header(bytes));
    header.payload_bytes = limit.bytes + 1;
    encode_header(header, bytes);
    check_protocol_error(decode_header(bytes), "at most");
  }
}

TEST_CASE("frame: every single flipped bit of a header is noticed") {
  std::vector<std::byte> frame = make_frame(golden_write_header(), bytes_of("replicad"));
  for (std::size_t bit = 0; bit < frame_header_bytes * 8; ++bit) {
    CAPTURE(bit);
    frame[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    REQUIRE_FALSE(decode(frame));
    frame[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
  }
  CHECK(decode(frame));
}

TEST_CASE("frame: a payload with another checksum is refused") {
  const auto frame = make_frame(golden_write_header(), bytes_of("replicad"));
  const auto header = decode(frame);
  REQUIRE(header);
  CHECK(check_payload(*header, bytes_of("replicad")));
  const Status wrong = check_payload(*header, bytes_of("replicaD"));
  REQUIRE_FALSE(wrong);
  CHECK(wrong.error().code == Errc::protocol);
  CHECK(wrong.error().message.find("payload checksum") != std::string::npos);
}

TEST_CASE("frame: the digest item holds what identifies the change") {
  FrameHeader header = golden_write_header();
  header.payload_crc32c = 42;
  const DigestItem item = digest_item(header);
  CHECK(item.epoch == golden_epoch);
  CHECK(item.sequence == header.sequence);
  CHECK(item.offset_bytes == 3 * 4096);
  CHECK(item.range_bytes == 8);
  CHECK(item.disk == 2);
  CHECK(item.kind == 16);
  CHECK(item.payload_crc32c == 42);
}

TEST_CASE("frame: only write, zero, trim and flush are numbered") {
  for (int type = 0; type < 256; ++type) {
    CHECK(is_numbered(static_cast<FrameType>(type)) == (type >= 16 && type <= 19));
  }
}

}  // namespace
}  // namespace replicad
