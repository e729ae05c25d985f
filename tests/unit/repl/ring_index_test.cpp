#include "core/repl/ring_index.h"

#include <doctest/doctest.h>

namespace replicad {
namespace {

const HistoryPoint ring_base{{2, 9}, 40, {11, 22}};

DigestItem item(Epoch epoch = {3, 1}) {
  DigestItem item;
  item.epoch = epoch;
  item.kind = static_cast<std::uint8_t>(FrameType::write);
  item.range_bytes = 4096;
  return item;
}

/// Reserves, places and seals one frame; returns its ring offset.
std::uint64_t append(RingIndex& ring, std::uint64_t frame_bytes, std::uint32_t crc = 5) {
  ring.reserve(frame_bytes);
  const std::uint64_t offset = ring.place(item(), frame_bytes, Instant{});
  ring.seal(ring.next() - 1, crc);
  return offset;
}

TEST_CASE("ring index: begins empty right behind its ring_base") {
  const RingIndex ring(ring_bytes_min, ring_base);
  CHECK(ring.empty());
  CHECK(ring.first() == 41);
  CHECK(ring.next() == 41);
  CHECK(ring.all_sealed());
  CHECK(ring.used_bytes() == 0);
  CHECK(ring.sealed_point() == ring_base);
  CHECK(ring.point(40) == ring_base);
  CHECK_FALSE(ring.point(39));
  CHECK_FALSE(ring.point(41));
  CHECK(ring.end_of(40) == 0);
}

TEST_CASE("ring index: numbers frames and stores them one behind the other") {
  RingIndex ring(ring_bytes_min, ring_base);
  CHECK(append(ring, 1000) == 0);
  CHECK(append(ring, 64) == 1000);
  CHECK(ring.at(41).item.sequence == 41);
  CHECK(ring.at(42).begin_bytes == 1000);
  CHECK(ring.end_of(41) == 1000);
  CHECK(ring.end_of(42) == 1064);
  CHECK(ring.used_bytes() == 1064);
}

TEST_CASE("ring index: the digest chains over what was sealed, in order") {
  RingIndex ring(ring_bytes_min, ring_base);
  append(ring, 100, 7);
  append(ring, 100, 8);
  DigestItem first = item();
  first.sequence = 41;
  first.payload_crc32c = 7;
  DigestItem second = item();
  second.sequence = 42;
  second.payload_crc32c = 8;
  const Digest after_first = extend_digest(ring_base.digest, first);
  CHECK(ring.point(41) == HistoryPoint{{3, 1}, 41, after_first});
  CHECK(ring.sealed_point() == HistoryPoint{{3, 1}, 42, extend_digest(after_first, second)});
  CHECK(ring.point(42) == ring.sealed_point());
}

TEST_CASE("ring index: a placed frame has no history point before it is sealed") {
  RingIndex ring(ring_bytes_min, ring_base);
  ring.reserve(100);
  ring.reserve(100);
  (void)ring.place(item(), 100, Instant{});
  (void)ring.place(item(), 100, Instant{});
  CHECK_FALSE(ring.all_sealed());
  CHECK(ring.next_unsealed() == 41);
  CHECK(ring.sealed_point() == ring_base);
  CHECK_FALSE(ring.point(41));
  ring.seal(41, 1);
  CHECK(ring.point(41).has_value());
  CHECK_FALSE(ring.point(42));
  CHECK(ring.next_unsealed() == 42);
  ring.seal(42, 1);
  CHECK(ring.all_sealed());
}

TEST_CASE("ring index: dropping the oldest keeps the point before the first") {
  RingIndex ring(ring_bytes_min, ring_base);
  append(ring, 100);
  append(ring, 200);
  append(ring, 300);
  const auto first = ring.point(41);
  const auto second = ring.point(42);
  ring.drop_oldest();
  CHECK(ring.first() == 42);
  CHECK(ring.used_bytes() == 500);
  CHECK(ring.point(41) == first);
  CHECK_FALSE(ring.point(40));
  CHECK(ring.end_of(41) == 100);
  ring.drop_oldest();
  CHECK(ring.point(42) == second);
  CHECK_FALSE(ring.point(41));
  const HistoryPoint last = ring.sealed_point();
  ring.drop_oldest();
  CHECK(ring.empty());
  CHECK(ring.used_bytes() == 0);
  CHECK(ring.point(43) == last);
  CHECK(ring.sealed_point() == last);
  CHECK(ring.end_of(43) == 600);
  CHECK(append(ring, 100) == 600);
}

TEST_CASE("ring index: reserved space counts as used until it is placed or given back") {
  RingIndex ring(ring_bytes_min, ring_base);
  ring.reserve(3 * mib);
  CHECK(ring.used_bytes() == 3 * mib);
  CHECK(ring.can_reserve(1 * mib));
  CHECK_FALSE(ring.can_reserve(1 * mib + 1));
  ring.cancel(3 * mib);
  CHECK(ring.used_bytes() == 0);
  CHECK(ring.can_reserve(4 * mib));
  ring.reserve(4 * mib);
  (void)ring.place(item(), 4 * mib, Instant{});
  CHECK(ring.used_bytes() == 4 * mib);
  CHECK_FALSE(ring.can_reserve(1));
}

TEST_CASE("ring index: the number of frames is bounded, reserved ones included") {
  RingIndex ring(ring_bytes_min, ring_base);
  const std::size_t entries = ring.entries_max();
  for (std::size_t i = 0; i + 1 < entries; ++i)
    append(ring, frame_header_bytes);
  CHECK(ring.can_reserve(frame_header_bytes));
  ring.reserve(frame_header_bytes);
  CHECK_FALSE(ring.can_reserve(frame_header_bytes));
  (void)ring.place(item(), frame_header_bytes, Instant{});
  ring.seal(ring.next() - 1, 0);
  CHECK_FALSE(ring.can_reserve(frame_header_bytes));
  const auto second = ring.point(42);
  ring.drop_oldest();
  CHECK(ring.can_reserve(frame_header_bytes));
  append(ring, frame_header_bytes);  // reuses the slot of the frame that was dropped
  CHECK(ring.point(42) == second);
  CHECK(ring.at(ring.next() - 1).item.sequence == 40 + entries + 1);
}

TEST_CASE("ring index: a large ring can be filled with 4 KiB writes") {
  constexpr std::uint64_t frame_bytes = frame_header_bytes + 4 * kib;
  RingIndex ring(gib, ring_base);
  std::uint64_t count = 0;
  for (; ring.can_reserve(frame_bytes); ++count)
    append(ring, frame_bytes);
  CHECK(count == gib / frame_bytes);
}

TEST_CASE("ring index: a history of several epochs keeps each frame's epoch") {
  RingIndex ring(ring_bytes_min, ring_base);
  append(ring, 100);
  ring.reserve(100);
  (void)ring.place(item({8, 2}), 100, Instant{});
  ring.seal(42, 0);
  CHECK(ring.point(40)->epoch == Epoch{2, 9});
  CHECK(ring.point(41)->epoch == Epoch{3, 1});
  CHECK(ring.point(42)->epoch == Epoch{8, 2});
}

}  // namespace
}  // namespace replicad
