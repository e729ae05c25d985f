#include "core/base/checksum.h"

#include <array>
#include <limits>
#include <numeric>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

namespace replicad {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

TEST_CASE("checksum: crc32c gives the published vectors") {
  CHECK(crc32c({}) == 0);
  CHECK(crc32c(bytes_of("123456789")) == 0xe3069283);
  std::array<std::byte, 32> block{};
  CHECK(crc32c(block) == 0x8a9136aa);
  block.fill(std::byte{0xff});
  CHECK(crc32c(block) == 0x62a8ab43);
  for (std::size_t i = 0; i < block.size(); ++i)
    block[i] = static_cast<std::byte>(i);
  CHECK(crc32c(block) == 0x46dd794e);
  for (std::size_t i = 0; i < block.size(); ++i)
    block[i] = static_cast<std::byte>(31 - i);
  CHECK(crc32c(block) == 0x113fdb5c);
}

TEST_CASE("checksum: crc32c continues at every split point and any alignment") {
  std::vector<std::byte> data(300);
  for (std::size_t i = 0; i < data.size(); ++i)
    data[i] = static_cast<std::byte>(i * 7);
  for (std::size_t start = 0; start < 9; ++start) {
    const auto part = std::span<const std::byte>(data).subspan(start);
    const std::uint32_t whole = crc32c(part);
    for (std::size_t split = 0; split <= part.size(); ++split) {
      REQUIRE(crc32c(part.subspan(split), crc32c(part.first(split))) == whole);
    }
  }
}

TEST_CASE("checksum: every single bit counts in crc32c") {
  std::array<std::byte, 64> data{};
  const std::uint32_t clean = crc32c(data);
  for (std::size_t bit = 0; bit < data.size() * 8; ++bit) {
    data[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    REQUIRE(crc32c(data) != clean);
    data[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
  }
}

const DigestItem first_item{.epoch = {1, 0xdeadbeef},
                            .sequence = 1,
                            .offset_bytes = 4096,
                            .range_bytes = 8,
                            .disk = 2,
                            .kind = 16,
                            .payload_crc32c = 0};

// Golden values: xxhsum -H2 over the 64 bytes that docs/protocol.md, "Digest", describes.
TEST_CASE("digest: golden values of a write and the flush behind it") {
  DigestItem item = first_item;
  item.payload_crc32c = crc32c(bytes_of("replicad"));
  const Digest first = extend_digest({}, item);
  CHECK(to_hex(first) == "9f23c6d047986c1f0296cb9a2ad6c3a0");
  const Digest second = extend_digest(first, {.epoch = {1, 0xdeadbeef}, .sequence = 2, .kind = 19});
  CHECK(to_hex(second) == "ab45ebab1dad249765ce53a7e13c05ac");
}

TEST_CASE("digest: every field and the history before count") {
  const Digest reference = extend_digest({}, first_item);
  std::vector<DigestItem> changed(8, first_item);
  changed[0].epoch.number ^= std::uint64_t{1} << 63;
  changed[1].epoch.tag ^= 1;
  changed[2].sequence ^= std::uint64_t{1} << 40;
  changed[3].offset_bytes ^= 512;
  changed[4].range_bytes ^= 1;
  changed[5].disk ^= 1;
  changed[6].kind ^= 1;
  changed[7].payload_crc32c ^= 1;
  for (std::size_t i = 0; i < changed.size(); ++i) {
    CAPTURE(i);
    CHECK(extend_digest({}, changed[i]) != reference);
  }
  CHECK(extend_digest({1, 0}, first_item) != reference);
  CHECK(extend_digest({0, 1}, first_item) != reference);
  CHECK(extend_digest({}, first_item) == reference);
}

TEST_CASE("digest: hexadecimal form goes there and back") {
  const Digest digest{0x0809'0a0b'0c0d'0e0f, 0x0001'0203'0405'0607};
  CHECK(to_hex(digest) == "000102030405060708090a0b0c0d0e0f");
  CHECK(digest_from_hex("000102030405060708090a0b0c0d0e0f") == digest);
  constexpr auto all = std::numeric_limits<std::uint64_t>::max();
  CHECK(digest_from_hex(to_hex(Digest{all, all})) == Digest{all, all});
  CHECK(to_hex({}) == std::string(32, '0'));
}

TEST_CASE("digest: refuses what is not 32 lower-case hexadecimal digits") {
  CHECK_FALSE(digest_from_hex(""));
  CHECK_FALSE(digest_from_hex("000102030405060708090a0b0c0d0e0"));
  CHECK_FALSE(digest_from_hex("000102030405060708090a0b0c0d0e0f0"));
  CHECK_FALSE(digest_from_hex("000102030405060708090A0B0C0D0E0F"));
  CHECK_FALSE(digest_from_hex("0x0102030405060708090a0b0c0d0e0f"));
  CHECK_FALSE(digest_from_hex("00010203040506070809 a0b0c0d0e0f"));
}

}  // namespace
}  // namespace replicad
