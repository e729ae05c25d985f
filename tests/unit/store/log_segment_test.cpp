#include "core/store/log_segment.h"

#include <algorithm>
#include <random>

#include <doctest/doctest.h>

namespace replicad {
namespace {

SegmentHeader sample_header() {
  return {.volume_uuid = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9",
          .before = {{0x0102030405060708, 0x11121314}, 0x2122, {0x3132, 0x4142}},
          .segment_bytes = 64 * mib,
          .durable = 0x2120};
}

std::vector<std::byte> encoded(const SegmentHeader& header) {
  std::vector<std::byte> bytes(segment_header_bytes);
  encode_segment_header(
      header, std::span<std::byte, segment_header_bytes>(bytes.data(), segment_header_bytes));
  return bytes;
}

Result<SegmentHeader> decoded(const std::vector<std::byte>& bytes) {
  return decode_segment_header(
      std::span<const std::byte, segment_header_bytes>(bytes.data(), segment_header_bytes));
}

/// `bytes` with a checksum that fits them.
std::vector<std::byte> resealed(std::vector<std::byte> bytes) {
  const std::uint32_t checksum = crc32c(std::span(bytes).first(segment_header_bytes - 4));
  for (std::size_t i = 0; i < 4; ++i) {
    bytes[segment_header_bytes - 4 + i] = static_cast<std::byte>(checksum >> (8 * i));
  }
  return bytes;
}

/// A history that is built frame by frame.
struct History {
  HistoryPoint point;
  std::vector<std::byte> bytes;
  std::vector<std::size_t> ends;  ///< of the frames
  std::vector<HistoryPoint> points;

  void add(const Epoch& epoch, FrameType type, std::size_t payload_bytes) {
    FrameHeader header;
    header.type = type;
    header.epoch = epoch;
    header.sequence = point.sequence + 1;
    header.range = type == FrameType::flush ? Range{} : Range{0, 4096, 512};
    std::vector<std::byte> payload;
    if (type == FrameType::write) {
      for (std::size_t i = 0; i < payload_bytes; ++i) {
        payload.push_back(static_cast<std::byte>(header.sequence * 31 + i));
      }
      header.range.length_bytes = payload_bytes;
      header.payload_bytes = static_cast<std::uint32_t>(payload_bytes);
      header.payload_crc32c = crc32c(payload);
    }
    std::array<std::byte, frame_header_bytes> encoded_header{};
    encode_header(header, encoded_header);
    bytes.insert(bytes.end(), encoded_header.begin(), encoded_header.end());
    bytes.insert(bytes.end(), payload.begin(), payload.end());
    point = advance(point, header);
    ends.push_back(bytes.size());
    points.push_back(point);
  }
};

History sample_history(const HistoryPoint& before = {}) {
  History history;
  history.point = before;
  history.add({1, 7}, FrameType::write, 100);
  history.add({1, 7}, FrameType::zero, 0);
  history.add({1, 7}, FrameType::flush, 0);
  history.add({2, 9}, FrameType::write, 300);
  history.add({2, 9}, FrameType::trim, 0);
  history.add({2, 9}, FrameType::write, 50);
  return history;
}

/// Frames that lie wholly within the first `length` bytes.
std::size_t whole_frames(const History& history, std::size_t length) {
  return static_cast<std::size_t>(
      std::ranges::count_if(history.ends, [&](std::size_t end) { return end <= length; }));
}

void check_prefix(const ScanResult& found, const History& history, std::size_t frames) {
  REQUIRE(found.frames.size() == frames);
  CHECK(found.valid_bytes == (frames == 0 ? 0 : history.ends[frames - 1]));
  for (std::size_t i = 0; i < frames; ++i)
    CHECK(found.frames[i].after == history.points[i]);
}

}  // namespace

TEST_CASE("log segment: the header's bytes never change") {
  const auto bytes = encoded(sample_header());
  const std::vector<std::uint8_t> golden{
      'R',  'P',  'L',  'G',  1,    0,    0,    0,                         // magic, version
      '0',  'a',  '1',  'b',  '2',  'c',  '3',  'd',  '-', '4', 'e', '5',  // uuid
      'f',  '-',  '4',  '0',  '7',  '1',  '-',  '8',  '2', '9', '3', '-',  //
      'a',  '4',  'b',  '5',  'c',  '6',  'd',  '7',  'e', '8', 'f', '9',  //
      0,    0,    0,    0,                                                 //
      0x23, 0x21, 0,    0,    0,    0,    0,    0,                         // first sequence
      0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01,                      // epoch number
      0x14, 0x13, 0x12, 0x11, 0,    0,    0,    0,                         // epoch tag
      0x32, 0x31, 0,    0,    0,    0,    0,    0,                         // digest, low
      0x42, 0x41, 0,    0,    0,    0,    0,    0,                         // digest, high
      0,    0,    0,    4,    0,    0,    0,    0,                         // segment bytes
      0x20, 0x21, 0,    0,    0,    0,    0,    0};                        // durable
  REQUIRE(golden.size() == 104);
  for (std::size_t i = 0; i < segment_header_bytes - 4; ++i) {
    CAPTURE(i);
    CHECK(std::to_integer<unsigned>(bytes[i]) == (i < golden.size() ? golden[i] : 0U));
  }
  const std::array<unsigned, 4> checksum{0x41, 0x92, 0x12, 0xc5};
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(std::to_integer<unsigned>(bytes[segment_header_bytes - 4 + i]) == checksum[i]);
  }
}

TEST_CASE("log segment: a header is read back, and any changed byte is noticed") {
  const auto bytes = encoded(sample_header());
  REQUIRE(decoded(bytes).has_value());
  CHECK(*decoded(bytes) == sample_header());
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    auto bad = bytes;
    bad[at] ^= std::byte{0x10};
    CAPTURE(at);
    const auto header = decoded(bad);
    REQUIRE_FALSE(header.has_value());
    CHECK(header.error().code == Errc::corrupt);
  }
}

TEST_CASE("log segment: a sealed header with impossible fields is refused") {
  const auto bytes = encoded(sample_header());
  const auto with = [&](std::size_t at, std::uint8_t value) {
    auto changed = bytes;
    changed[at] = std::byte{value};
    return decoded(resealed(std::move(changed)));
  };
  REQUIRE(decoded(resealed(bytes)).has_value());
  CHECK(with(4, 2).error().code == Errc::version_mismatch);
  CHECK(with(8, '/').error().code == Errc::corrupt);
  CHECK(with(55, 0xff).error().code == Errc::corrupt);  // first sequence
  CHECK(with(91, 0).error().code == Errc::corrupt);     // segment bytes too few
  CHECK(with(95, 1).error().code == Errc::corrupt);     // and too many
  CHECK(with(97, 0x22).error().code == Errc::corrupt);  // durable beyond what is before it
  auto zero_first = bytes;
  for (std::size_t i = 48; i < 56; ++i)
    zero_first[i] = std::byte{0};
  CHECK(decoded(resealed(zero_first)).error().code == Errc::corrupt);
}

TEST_CASE("log segment: file names are fixed and nothing else is taken for one") {
  CHECK(segment_file_name(1) == "00000000000000000001.seg");
  CHECK(segment_file_name(1234567890123) == "00000001234567890123.seg");
  CHECK(segment_first_from_name("00000001234567890123.seg") == 1234567890123);
  for (const char* name : {"",
                           "1.seg",
                           "00000000000000000000.seg",
                           "00000000000000000001.tmp",
                           "0000000000000000000a.seg",
                           "99999999999999999999.seg",
                           "spare.1",
                           "000000000000000000001.seg",
                           "00000000000000000001.segx"}) {
    CAPTURE(name);
    CHECK_FALSE(segment_first_from_name(name).has_value());
  }
}

TEST_CASE("log segment: a scan takes every whole frame and says how it ended") {
  const History history = sample_history();
  const ScanResult all = scan_frames(history.bytes, {});
  check_prefix(all, history, 6);
  CHECK(all.end == ScanEnd::all_taken);
  for (std::size_t length = 0; length < history.bytes.size(); ++length) {
    CAPTURE(length);
    const ScanResult found = scan_frames(std::span(history.bytes).first(length), {});
    const std::size_t frames = whole_frames(history, length);
    check_prefix(found, history, frames);
    CHECK(found.end == (found.valid_bytes == length ? ScanEnd::all_taken : ScanEnd::incomplete));
  }
}

TEST_CASE("log segment: a tail that is torn or changed at any byte leaves a strict prefix") {
  const History history = sample_history();
  for (std::size_t at = 0; at < history.bytes.size(); ++at) {
    CAPTURE(at);
    const std::size_t frames = whole_frames(history, at);
    // Zeroes from there on, as in a preallocated file.
    auto torn = history.bytes;
    std::fill(torn.begin() + static_cast<std::ptrdiff_t>(at), torn.end(), std::byte{0});
    // A changed byte may have been zero already.
    const ScanResult cut = scan_frames(torn, {});
    CHECK(cut.frames.size() >= frames);
    CHECK(cut.frames.size() <= frames + 1);
    for (std::size_t i = 0; i < cut.frames.size(); ++i) {
      CHECK(cut.frames[i].after == history.points[i]);
    }
    auto flipped = history.bytes;
    flipped[at] ^= std::byte{0x40};
    const ScanResult found = scan_frames(flipped, {});
    check_prefix(found, history, frames);
    if (at + 512 < history.bytes.size()) CHECK(found.end != ScanEnd::all_taken);
  }
}

TEST_CASE("log segment: what an earlier use of the file left behind is never taken") {
  // The file held sequences 1..6; it was taken again for 101.. and two frames were written over them.
  const History old_use = sample_history();
  History new_use;
  new_use.point = {{2, 9}, 100, {5, 6}};
  new_use.add({2, 9}, FrameType::write, 100);
  new_use.add({2, 9}, FrameType::zero, 0);
  auto file = old_use.bytes;
  std::copy(new_use.bytes.begin(), new_use.bytes.end(), file.begin());
  // Both uses have frames of the same sizes, so an old frame begins right where the new ones end.
  REQUIRE(new_use.bytes.size() == old_use.ends[1]);
  const ScanResult found = scan_frames(file, {{2, 9}, 100, {5, 6}});
  check_prefix(found, new_use, 2);
  CHECK(found.end == ScanEnd::invalid);
  CHECK(found.reason.find("sequence") != std::string::npos);
}

TEST_CASE("log segment: a frame of a fallen epoch or another tag is no continuation") {
  const HistoryPoint before{{5, 50}, 9, {1, 1}};
  FrameHeader header;
  header.type = FrameType::flush;
  header.sequence = 10;
  header.epoch = {5, 50};
  CHECK(check_follows(before, header).has_value());
  header.epoch = {6, 1};
  CHECK(check_follows(before, header).has_value());
  header.epoch = {4, 50};
  CHECK_FALSE(check_follows(before, header).has_value());
  header.epoch = {5, 51};
  CHECK_FALSE(check_follows(before, header).has_value());
  header.epoch = {5, 50};
  header.sequence = 11;
  CHECK_FALSE(check_follows(before, header).has_value());
  header.sequence = 10;
  header.type = FrameType::heartbeat;
  CHECK_FALSE(check_follows(before, header).has_value());

  History history;
  history.point = before;
  history.add({5, 50}, FrameType::write, 10);
  history.add({4, 50}, FrameType::write, 10);
  check_prefix(scan_frames(history.bytes, before), history, 1);
}

TEST_CASE("log segment: the digest before the segment counts") {
  const History history = sample_history();
  const ScanResult right = scan_frames(history.bytes, {});
  const ScanResult other = scan_frames(history.bytes, {{}, 0, {1, 0}});
  REQUIRE(other.frames.size() == right.frames.size());
  CHECK(other.frames.back().after.digest != right.frames.back().after.digest);
}

}  // namespace replicad
