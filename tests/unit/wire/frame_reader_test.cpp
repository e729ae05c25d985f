#include "core/wire/frame_reader.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/endian.h"
#include "tests/unit/wire/golden.h"

namespace replicad {
namespace {

constexpr std::size_t capacity_min = frame_header_bytes + data_payload_bytes_max;

std::vector<std::byte> joined(const std::vector<std::vector<std::byte>>& frames) {
  std::vector<std::byte> all;
  for (const auto& frame : frames)
    all.insert(all.end(), frame.begin(), frame.end());
  return all;
}

std::vector<std::vector<std::byte>> sample_frames() {
  return {encode_empty(FrameType::heartbeat),
          make_frame(golden_write_header(), bytes_of("replicad")),
          encode_start({true, 5}),
          encode_watermarks({4, 3, 2, 1, {}, {}}),
          make_frame({.type = FrameType::flush, .epoch = golden_epoch, .sequence = 20}, {})};
}

void feed(FrameReader& reader, std::span<const std::byte> bytes) {
  const auto room = reader.writable();
  REQUIRE(room.size() >= bytes.size());
  if (!bytes.empty()) std::memcpy(room.data(), bytes.data(), bytes.size());
  reader.commit(bytes.size());
}

/// Everything the reader gives now, as the frames' own bytes.
std::vector<std::vector<std::byte>> drain(FrameReader& reader) {
  std::vector<std::vector<std::byte>> frames;
  while (true) {
    const auto next = reader.next();
    REQUIRE(next);
    if (!*next) return frames;
    CHECK((*next)->payload.size() == (*next)->header.payload_bytes);
    CHECK((*next)->bytes.size() == frame_header_bytes + (*next)->payload.size());
    frames.emplace_back((*next)->bytes.begin(), (*next)->bytes.end());
  }
}

TEST_CASE("frame_reader: the same frames come out at every split point") {
  const auto frames = sample_frames();
  const auto stream = joined(frames);
  FrameReader reader(capacity_min);
  for (std::size_t split = 0; split <= stream.size(); ++split) {
    CAPTURE(split);
    reader.clear();
    feed(reader, std::span(stream).first(split));
    auto got = drain(reader);
    reader.compact();
    feed(reader, std::span(stream).subspan(split));
    for (auto& frame : drain(reader))
      got.push_back(std::move(frame));
    REQUIRE((got == frames));
    REQUIRE(reader.unread_bytes() == 0);
  }
}

TEST_CASE("frame_reader: byte by byte, a frame comes with its last byte and not before") {
  const auto frames = sample_frames();
  FrameReader reader(capacity_min);
  for (const auto& frame : frames) {
    for (std::size_t i = 0; i < frame.size(); ++i) {
      REQUIRE(drain(reader).empty());
      feed(reader, std::span(frame).subspan(i, 1));
    }
    const auto got = drain(reader);
    REQUIRE(got.size() == 1);
    REQUIRE((got.front() == frame));
  }
}

TEST_CASE(
    "frame_reader: the largest frame fits the smallest buffer, and full() asks for compact()") {
  const std::vector<std::byte> payload(data_payload_bytes_max, std::byte{0x5a});
  FrameHeader header = golden_write_header();
  header.range.length_bytes = payload.size();
  const auto frame = make_frame(header, payload);
  FrameReader reader(capacity_min);
  for (int round = 0; round < 3; ++round) {
    feed(reader, frame);
    CHECK(reader.full());
    CHECK(reader.writable().empty());
    REQUIRE(drain(reader).size() == 1);
    CHECK(reader.full());
    reader.compact();
    CHECK_FALSE(reader.full());
    CHECK(reader.writable().size() == capacity_min);
  }
}

TEST_CASE("frame_reader: a bad header is refused before its payload arrives") {
  auto frame = make_frame(golden_write_header(), bytes_of("replicad"));
  store_le(frame.data() + 8, std::uint32_t{0xffffffff});
  store_le(frame.data() + 60, crc32c(std::span(frame).first<60>()));
  FrameReader reader(capacity_min);
  feed(reader, std::span(frame).first(frame_header_bytes));
  const auto next = reader.next();
  REQUIRE_FALSE(next);
  CHECK(next.error().code == Errc::protocol);
  CHECK_FALSE(reader.next());
}

TEST_CASE("frame_reader: a wrong payload is refused and stays refused") {
  auto frame = make_frame(golden_write_header(), bytes_of("replicad"));
  frame.back() ^= std::byte{1};
  FrameReader reader(capacity_min);
  feed(reader, frame);
  REQUIRE_FALSE(reader.next());
  REQUIRE_FALSE(reader.next());
}

class RandomStream {
 public:
  RandomStream() {
    const char* fixed = std::getenv("RD_SEED");
    seed_ = fixed != nullptr ? std::strtoull(fixed, nullptr, 10) : std::random_device{}();
    random_.seed(seed_);
  }
  [[nodiscard]] std::uint64_t seed() const { return seed_; }
  std::uint64_t below(std::uint64_t bound) { return random_() % bound; }
  std::uint64_t any() { return random_(); }

 private:
  std::uint64_t seed_ = 0;
  std::mt19937_64 random_;
};

std::vector<std::byte> random_frame(RandomStream& random) {
  FrameHeader header = golden_write_header();
  header.sequence = random.any() | 1;
  std::vector<std::byte> payload(1 + random.below(300));
  for (std::byte& byte : payload)
    byte = static_cast<std::byte>(random.any());
  header.range.length_bytes = payload.size();
  const auto samples = sample_frames();
  return random.below(2) == 0 ? make_frame(header, payload) : samples[random.below(samples.size())];
}

void corrupt(RandomStream& random, std::vector<std::byte>& stream) {
  for (std::uint64_t n = 1 + random.below(3); n > 0 && !stream.empty(); --n) {
    const std::size_t at = random.below(stream.size());
    const auto from = stream.begin() + static_cast<std::ptrdiff_t>(at);
    switch (random.below(3)) {
      case 0:
        stream[at] ^= static_cast<std::byte>(1U << random.below(8));
        break;
      case 1:
        stream.erase(
            from, from + static_cast<std::ptrdiff_t>(std::min<std::size_t>(5, stream.size() - at)));
        break;
      default:
        stream.insert(from, static_cast<std::byte>(random.any()));
        break;
    }
  }
}

TEST_CASE("frame_reader: damaged streams never crash and never give a frame that was not sent") {
  RandomStream random;
  INFO("RD_SEED=", random.seed());
  FrameReader reader(capacity_min);
  std::size_t refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::vector<std::byte>> sent;
    for (std::uint64_t n = 1 + random.below(4); n > 0; --n)
      sent.push_back(random_frame(random));
    auto stream = joined(sent);
    corrupt(random, stream);
    reader.clear();
    std::span<const std::byte> rest(stream);
    bool open = true;
    while (open && !rest.empty()) {
      const auto chunk = rest.first(1 + random.below(rest.size()));
      rest = rest.subspan(chunk.size());
      feed(reader, chunk);
      for (auto next = reader.next();; next = reader.next()) {
        open = next.has_value();
        if (!open) ++refused;
        if (!open || !*next) break;
        const std::vector<std::byte> frame((*next)->bytes.begin(), (*next)->bytes.end());
        REQUIRE(crc32c((*next)->payload) == (*next)->header.payload_crc32c);
        REQUIRE(std::ranges::find(sent, frame) != sent.end());
      }
      reader.compact();
    }
  }
  CHECK(refused > 1000);
}

// A peer that signs what it likes: any header field may hold anything, the checksums are right.
TEST_CASE("frame_reader: signed nonsense gives a frame within all limits, or an error") {
  RandomStream random;
  INFO("RD_SEED=", random.seed());
  FrameReader reader(capacity_min);
  std::size_t accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    auto frame = random_frame(random);
    for (std::uint64_t n = 1 + random.below(3); n > 0; --n) {
      const std::size_t at = random.below(60);
      frame[at] =
          random.below(2) == 0 ? static_cast<std::byte>(random.any()) : frame[at] ^ std::byte{1};
    }
    store_le(frame.data() + 60, crc32c(std::span(frame).first<60>()));
    reader.clear();
    feed(reader, frame);
    const auto next = reader.next();
    if (!next || !*next) continue;
    ++accepted;
    const FrameHeader& header = (*next)->header;
    REQUIRE(header.payload_bytes <= data_payload_bytes_max);
    REQUIRE(header.range.length_bytes <= range_bytes_max);
    REQUIRE(header.range.disk < disks_max);
    REQUIRE(header.range.end_bytes() >= header.range.offset_bytes);
    REQUIRE((header.flags & ~frame_flags_known) == 0);
    if (is_numbered(header.type)) REQUIRE((header.sequence != 0 && header.epoch.number != 0));
  }
  CHECK(accepted > 100);
}

}  // namespace
}  // namespace replicad
