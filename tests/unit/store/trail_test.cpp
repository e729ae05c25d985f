// The way that a replica's images have come (core/store/trail.h).

#include "core/store/trail.h"

#include <array>
#include <random>
#include <string>

#include <doctest/doctest.h>

#include "core/base/endian.h"

namespace replicad {
namespace {

constexpr std::string_view trail_uuid = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9";

HistoryPoint at(Sequence sequence, const Epoch& epoch = {3, 7}) {
  return {epoch, sequence, {sequence, 9}};
}
FrameHeader frame(Sequence sequence, const Range& range, const Epoch& epoch = {3, 7}) {
  FrameHeader header;
  header.type = FrameType::zero;
  header.epoch = epoch;
  header.sequence = sequence;
  header.range = range;
  return header;
}
TrailHeader a_header() {
  return {.generation = 5,
          .volume_uuid = std::string(trail_uuid),
          .disk_bytes = {8388608, 512},
          .base = 100,
          .terms = {{{2, 5}, 100}, {{3, 7}, 200}},
          .covers = {{3, 7}, 300, {0x08090a0b0c0d0e0f, 0x0001020304050607}}};
}

/// A file as replicad writes it.
std::vector<std::byte> file_of(Trail& trail, const HistoryPoint& point, std::uint64_t generation) {
  std::vector<std::byte> file(trail_page_offset(0));
  const Trail::Changes changes = trail.take_changed();
  for (const auto& [disk, page] : changes.pages) {
    const std::uint64_t offset = trail_page_offset(trail.file_page(disk, page));
    if (file.size() < offset + trail_page_bytes) file.resize(offset + trail_page_bytes);
    encode_trail_page(disk,
                      page,
                      trail.entries(disk, page),
                      std::span(file).subspan(offset).first<trail_page_bytes>());
  }
  TrailHeader header = trail.header(point);
  header.volume_uuid = trail_uuid;
  header.generation = generation;
  const auto bytes = encode_trail_header(header);
  std::ranges::copy(bytes,
                    file.begin() + static_cast<std::ptrdiff_t>(trail_header_offset(generation)));
  return file;
}

}  // namespace

TEST_CASE("trail: the header's bytes never change, and no damage is taken for knowledge") {
  const auto bytes = encode_trail_header(a_header());
  REQUIRE(bytes.size() == trail_header_bytes);
  CHECK(load_le<std::uint32_t>(bytes.data()) == 0x54485052);
  CHECK(load_le<std::uint32_t>(bytes.data() + 4) == 1);
  CHECK(load_le<std::uint32_t>(bytes.data() + 8) == crc32c(std::span(bytes).subspan(12)));
  CHECK(load_le<std::uint64_t>(bytes.data() + 16) == 5);
  const std::string body(reinterpret_cast<const char*>(bytes.data()) + 24,
                         load_le<std::uint32_t>(bytes.data() + 12));
  CHECK(
      body ==
      R"({"base":100,"covers":{"digest":"000102030405060708090a0b0c0d0e0f","epoch":{"number":3,"tag":7},)"
      R"("sequence":300},"disk_bytes":[8388608,512],"terms":[{"epoch":{"number":2,"tag":5},"first":100},)"
      R"({"epoch":{"number":3,"tag":7},"first":200}],"uuid":"0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9"})");
  CHECK(decode_trail_header(bytes) == a_header());
  for (std::size_t i = 0; i < bytes.size(); i += i < 600 ? 1 : 101) {
    auto bad = bytes;
    bad[i] ^= std::byte{0x10};
    CHECK_FALSE(decode_trail_header(bad).has_value());
  }
  CHECK_FALSE(decode_trail_header(std::span(bytes).first(100)).has_value());
}

TEST_CASE("trail: a page's bytes never change, and it is known for whose it is") {
  std::vector<Sequence> entries(trail_entries_per_page);
  entries[0] = 0x0102030405060708;
  entries[509] = 9;
  std::array<std::byte, trail_page_bytes> bytes{};
  encode_trail_page(1, 3, entries, bytes);
  CHECK(load_le<std::uint32_t>(bytes.data() + 4) == 0x54415052);
  CHECK(load_le<std::uint32_t>(bytes.data() + 8) == 1);
  CHECK(load_le<std::uint32_t>(bytes.data() + 12) == 3);
  CHECK(load_le<std::uint64_t>(bytes.data() + 16) == 0x0102030405060708);
  CHECK(load_le<std::uint32_t>(bytes.data()) == crc32c(std::span(bytes).subspan(4)));
  CHECK(decode_trail_page(1, 3, bytes) == entries);
  CHECK_FALSE(decode_trail_page(0, 3, bytes).has_value());
  CHECK_FALSE(decode_trail_page(1, 2, bytes).has_value());
  bytes[4000] ^= std::byte{1};
  CHECK_FALSE(decode_trail_page(1, 3, bytes).has_value());
}

TEST_CASE("trail: it tells for every point behind its base where the images have changed since") {
  const std::uint64_t region = trail_region_bytes;
  Trail trail({4 * region, 512});
  trail.begin(at(100));
  CHECK(trail.base() == 100);
  CHECK(trail.changed_since(100).empty());
  trail.note(frame(101, {0, region - 1, 2}));
  trail.note(frame(102, {1, 0, 512}));
  trail.note(frame(103, {0, 3 * region, 4096}));
  FrameHeader flush = frame(104, {});
  flush.type = FrameType::flush;
  trail.note(flush);
  CHECK(trail.changed_since(100) ==
        std::vector<Range>{{0, 0, 2 * region}, {0, 3 * region, region}, {1, 0, 512}});
  CHECK(trail.changed_since(101) == std::vector<Range>{{0, 3 * region, region}, {1, 0, 512}});
  CHECK(trail.changed_since(103).empty());
  // Told again after a restart: nothing is forgotten.
  trail.note(frame(101, {0, 3 * region, 4096}));
  CHECK(trail.changed_since(102) == std::vector<Range>{{0, 3 * region, region}});
  trail.begin(at(500));
  CHECK(trail.base() == 500);
  CHECK(trail.changed_since(500).empty());
}

TEST_CASE("trail: a save holds what those before it may have failed to write") {
  const std::uint64_t region = trail_region_bytes;
  const auto first_page = std::pair<DiskIndex, std::uint32_t>{0, 0};
  const auto second_page = std::pair<DiskIndex, std::uint32_t>{0, 1};
  Trail trail({2 * trail_entries_per_page * region});
  trail.begin(at(100));
  Trail::Changes changes = trail.take_changed();
  CHECK(changes.anew);
  CHECK(changes.pages.size() == 2);
  trail.end_save(true);
  trail.note(frame(101, {0, 0, 512}));
  CHECK(trail.take_changed().pages == std::set{first_page});
  trail.note(frame(102, {0, trail_entries_per_page * region, 512}));
  // The first one is under way still.
  changes = trail.take_changed();
  CHECK(changes.pages == std::set{first_page, second_page});
  CHECK_FALSE(changes.anew);
  trail.end_save(false);
  trail.end_save(true);
  // Once more than needed, but for the second page.
  CHECK(trail.take_changed().pages == std::set{first_page});
  trail.end_save(true);
  CHECK(trail.take_changed().pages.empty());
  trail.end_save(true);
  trail.begin(at(200));
  CHECK(trail.take_changed().anew);
  CHECK(trail.take_changed().anew);
  trail.end_save(false);
  trail.end_save(false);
  CHECK(trail.take_changed().anew);
}

TEST_CASE("trail: terms are told with their last sequences, up to where the file leads") {
  Trail trail({512});
  trail.begin(at(100, {2, 5}));
  trail.note(frame(110, {0, 0, 512}, {2, 5}));
  trail.note(frame(111, {0, 0, 512}, {3, 7}));
  trail.note(frame(130, {0, 0, 512}, {5, 1}));
  auto file = file_of(trail, at(140, {5, 1}), 1);
  auto found = read_trail(file, trail_uuid, {512}, at(140, {5, 1}));
  REQUIRE(found.has_value());
  auto past = found->trail.past();
  REQUIRE(past.size() == 3);
  CHECK(past[0].epoch == Epoch{2, 5});
  CHECK(past[0].end == 110);
  CHECK(past[1].end == 129);
  CHECK(past[2].epoch == Epoch{5, 1});
  CHECK(past[2].end == 140);
  // Frames beyond the point were on their way already.
  file = file_of(trail, at(120, {3, 7}), 2);
  file.resize(trail_page_offset(1));
  std::array<std::byte, trail_page_bytes> page{};
  encode_trail_page(0, 0, trail.entries(0, 0), page);
  std::ranges::copy(page, file.begin() + static_cast<std::ptrdiff_t>(trail_page_offset(0)));
  found = read_trail(file, trail_uuid, {512}, at(120, {3, 7}));
  REQUIRE(found.has_value());
  past = found->trail.past();
  REQUIRE(past.size() == 2);
  CHECK(past[1].end == 120);
}

TEST_CASE("trail: with more terms than it has room for it begins later") {
  Trail trail({512});
  trail.begin(at(10, {1, 1}));
  for (std::uint64_t term = 2; term <= trail_terms_max + 5; ++term)
    trail.note(frame(10 * term, {0, 0, 512}, {term, 1}));
  CHECK(trail.terms().size() == trail_terms_max);
  CHECK(trail.base() == trail.terms().front().first);
}

TEST_CASE("trail: a file counts for the point that it covers, and for its volume") {
  const std::vector<std::uint64_t> disks{600 * trail_region_bytes, 512};
  Trail trail(disks);
  trail.begin(at(100));
  trail.note(frame(101, {0, 599 * trail_region_bytes, 512}));
  auto file = file_of(trail, at(101), 3);
  const auto found = read_trail(file, trail_uuid, disks, at(101));
  REQUIRE(found.has_value());
  CHECK(found->generation == 3);
  CHECK(found->trail.base() == 100);
  CHECK(found->trail.covers() == at(101));
  CHECK(found->trail.changed_since(100) ==
        std::vector<Range>{{0, 599 * trail_region_bytes, trail_region_bytes}});
  CHECK_FALSE(read_trail(file, trail_uuid, disks, at(102)).has_value());
  CHECK_FALSE(read_trail(file, trail_uuid, disks, at(101, {3, 8})).has_value());
  CHECK_FALSE(read_trail(file, std::string(36, 'x'), disks, at(101)).has_value());
  CHECK_FALSE(read_trail(file, trail_uuid, {512}, at(101)).has_value());
  CHECK_FALSE(read_trail({}, trail_uuid, disks, at(101)).has_value());
  SUBCASE("the header before counts while the new one is not there") {
    trail.note(frame(102, {0, 0, 512}));
    auto later = file_of(trail, at(102), 4);
    file.resize(std::max(file.size(), later.size()));
    // Pages first.
    std::copy(later.begin() + 2 * trail_header_bytes,
              later.begin() + 2 * trail_header_bytes + trail_page_bytes,
              file.begin() + 2 * trail_header_bytes);
    const auto before = read_trail(file, trail_uuid, disks, at(101));
    REQUIRE(before.has_value());
    CHECK(before->trail.changed_since(101) == std::vector<Range>{{0, 0, trail_region_bytes}});
  }
  SUBCASE("a damaged page stands for everything in it") {
    file[trail_page_offset(0) + 100] ^= std::byte{1};
    const auto damaged = read_trail(file, trail_uuid, disks, at(101));
    REQUIRE(damaged.has_value());
    CHECK(damaged->trail.changed_since(101) ==
          std::vector<Range>{{0, 0, trail_entries_per_page * trail_region_bytes}});
  }
  SUBCASE("so does a missing one") {
    file.resize(trail_page_offset(1));
    const auto cut = read_trail(file, trail_uuid, disks, at(101));
    REQUIRE(cut.has_value());
    CHECK(cut->trail.changed_since(101) ==
          std::vector<Range>{{0,
                              trail_entries_per_page * trail_region_bytes,
                              (600 - trail_entries_per_page) * trail_region_bytes},
                             {1, 0, 512}});
  }
}

TEST_CASE("trail: histories part at the end of the newest term that both have") {
  Trail trail({512});
  trail.begin(at(100, {2, 5}));
  trail.note(frame(111, {0, 0, 512}, {3, 7}));
  trail.note(frame(130, {0, 0, 512}, {5, 1}));
  const auto parting = [&](const std::vector<HistoryTerm>& theirs) {
    const auto found = trail.parting(theirs, 140);
    return found ? fmt::format("{} at {}", found->epoch.number, found->sequence) : "";
  };
  CHECK(parting({{{2, 5}, 110}, {{3, 7}, 120}}) == "3 at 120");
  CHECK(parting({{{2, 5}, 110}, {{3, 7}, 500}}) == "3 at 129");
  CHECK(parting({{{2, 5}, 105}, {{4, 4}, 500}}) == "2 at 105");
  CHECK(parting({{{5, 1}, 500}}) == "5 at 140");
  // Another term of the same number.
  CHECK(parting({{{5, 2}, 500}}).empty());
  CHECK(parting({{{2, 5}, 99}}).empty());  // below the base
  CHECK(parting({}).empty());
}

TEST_CASE("trail: what a member tells is what it has changed behind the parting") {
  const std::uint64_t region = trail_region_bytes;
  Trail trail({4 * region});
  trail.begin(at(100, {2, 5}));
  trail.note(frame(101, {0, 0, 512}, {2, 5}));
  trail.note(frame(102, {0, 2 * region, 512}, {2, 5}));
  const HistoryPoint standing{{2, 5}, 102, {1, 1}};
  const auto told = tell_parting(trail, {{{2, 5}, 101}}, standing);
  REQUIRE(told.has_value());
  CHECK(told->epoch == Epoch{2, 5});
  CHECK(told->sequence == 101);
  CHECK(told->ranges == std::vector<Range>{{0, 2 * region, region}});
  // It stands on the primary's history.
  CHECK_FALSE(tell_parting(trail, {{{2, 5}, 102}}, standing).has_value());
  CHECK_FALSE(tell_parting(trail, {}, standing).has_value());
}

TEST_CASE(
    "trail: an activity file says where its host's images may differ from the members' points") {
  ActivityHeader activity;
  activity.disk_bytes = {4 * trail_region_bytes, 512};
  activity.members = {{"b", 150}, {"", 0}, {"c", 120}, {"d", counter_max}};
  activity.terms = {{{2, 5}, 100}, {{3, 7}, 200}, {{4, 1}, 0}};
  std::vector<std::vector<ActivityEntry>> entries{{0, activity_hot, 0, 4}, {1}};
  const HistoryPoint left{{4, 99}, 300, {5, 6}};
  const auto trail = trail_of_activity(activity, entries, left);
  REQUIRE(trail.has_value());
  CHECK(trail->base() == 150);
  CHECK(trail->changed_since(150) ==
        std::vector<Range>{{0, trail_region_bytes, trail_region_bytes},
                           {0, 3 * trail_region_bytes, trail_region_bytes},
                           {1, 0, 512}});
  CHECK(trail->changed_since(299) == trail->changed_since(150));
  const auto told = tell_parting(*trail, {{{2, 5}, 100}, {{3, 7}, 180}}, left);
  REQUIRE(told.has_value());
  CHECK(told->sequence == 180);
  CHECK_FALSE(tell_parting(*trail, {{{3, 7}, 140}}, left).has_value());
  // All of it comes into the file.
  Trail again = *trail;
  const auto file = file_of(again, left, 1);
  const auto found = read_trail(file, trail_uuid, activity.disk_bytes, left);
  REQUIRE(found.has_value());
  CHECK(found->trail.changed_since(150) == trail->changed_since(150));
  SUBCASE("nothing is known of anybody") {
    activity.members = {{"d", counter_max}, {"", 7}};
    CHECK_FALSE(trail_of_activity(activity, entries, left).has_value());
  }
  SUBCASE("it knows of more than there is") {
    activity.members[0].base = 301;
    CHECK_FALSE(trail_of_activity(activity, entries, left).has_value());
  }
}

}  // namespace replicad
