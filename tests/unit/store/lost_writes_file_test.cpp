#include "core/store/lost_writes_file.h"

#include <array>
#include <random>

#include <doctest/doctest.h>

namespace replicad {
namespace {

LostHeader sample() {
  return {"vm1",
          "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9",
          "a",
          {{"vda", 64 * mib}, {"vdb", 512}},
          {{4, 0x11121314}, 1042, {1, 2}},
          {4, 0x11121314},
          "b",
          {5, 7},
          1'700'000'000};
}

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes)
    text += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  return text;
}

}  // namespace

TEST_CASE("lost writes file: a header and records are read back") {
  const auto bytes = encode_lost_header(sample());
  CHECK(bytes.size() == lost_header_bytes);
  REQUIRE(decode_lost_header(bytes).has_value());
  CHECK(*decode_lost_header(bytes) == sample());
  const std::vector<std::byte> content(4096, std::byte{7});
  const FrameHeader record = lost_record({0, 8192, 4096}, content);
  CHECK(record.type == FrameType::copy_data);
  std::array<std::byte, frame_header_bytes> encoded{};
  encode_header(record, encoded);
  REQUIRE(decode_lost_record(sample(), encoded).has_value());
  CHECK(*decode_lost_record(sample(), encoded) == record);
  const FrameHeader zero = lost_record({1, 0, 512}, std::vector<std::byte>(512));
  CHECK(zero.type == FrameType::copy_zero);
  CHECK(zero.payload_bytes == 0);
}

TEST_CASE("lost writes file: golden bytes") {
  const auto bytes = encode_lost_header(sample());
  CHECK(hex(std::span(bytes).first(48)) ==
        "52504c570100000037deb29a5a010000"
        "7b22626567756e223a31373030303030"
        "3030302c226469736b73223a5b7b2262");
  const std::vector<std::byte> content(512, std::byte{7});
  std::array<std::byte, frame_header_bytes> record{};
  encode_header(lost_record({0, 4096, 512}, content), record);
  CHECK(hex(record) ==
        "52504c4401200000000200006995705400000000000000000000000000000000"
        "00100000000000000002000000000000000000000000000000000000c5f5068a");
}

TEST_CASE("lost writes file: records of no disk, beyond one, or of another kind are refused") {
  const std::vector<std::byte> content(512, std::byte{7});
  std::array<std::byte, frame_header_bytes> bytes{};
  for (const Range& range : {Range{2, 0, 512}, Range{1, 512, 512}, Range{1, counter_max, 512}}) {
    encode_header(lost_record(range, content), bytes);
    CHECK(decode_lost_record(sample(), bytes).error().code == Errc::corrupt);
  }
  FrameHeader other;
  other.type = FrameType::heartbeat;
  encode_header(other, bytes);
  CHECK(decode_lost_record(sample(), bytes).error().code == Errc::corrupt);
}

TEST_CASE("lost writes file: damage is recognised, nonsense that is signed never crashes") {
  std::mt19937_64 random(5);
  const auto good = encode_lost_header(sample());
  for (int i = 0; i < 1000; ++i) {
    auto bad = good;
    bad[4 + random() % 500] ^= static_cast<std::byte>(1 + random() % 255);
    CHECK_FALSE(decode_lost_header(bad).has_value());
    auto nonsense = good;
    for (int k = 0; k < 3; ++k)
      nonsense[16 + random() % 340] = static_cast<std::byte>(random());
    const std::uint32_t sum = crc32c(std::span(nonsense).subspan(12));
    for (unsigned k = 0; k < 4; ++k)
      nonsense[8 + k] = static_cast<std::byte>(sum >> (8 * k));
    const auto header = decode_lost_header(nonsense);
    if (header) CHECK(header->disks.size() <= disks_max);
  }
  CHECK_FALSE(decode_lost_header(std::span(good).first(100)).has_value());
  auto later = good;
  later[4] = std::byte{2};
  CHECK(decode_lost_header(later).error().code == Errc::version_mismatch);
}

TEST_CASE("lost writes file: names are numbers") {
  CHECK(lost_file_name(17) == "00000017.lost");
  CHECK(lost_number_from_name("00000017.lost") == 17);
  for (const char* name : {"17.lost", "00000000.lost", "0000001x.lost", "00000017.lst", ""})
    CHECK_FALSE(lost_number_from_name(name).has_value());
}

}  // namespace replicad
