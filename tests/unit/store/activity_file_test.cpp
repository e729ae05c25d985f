#include "core/store/activity_file.h"

#include <array>
#include <random>

#include <doctest/doctest.h>

namespace replicad {
namespace {

ActivityHeader sample_header() {
  ActivityHeader header;
  header.generation = 7;
  header.volume_uuid = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9";
  header.disk_bytes = {64 * mib, 512};
  header.members = {{"b", 41}, {"", 0}, {"d", counter_max}};
  header.terms = {{{3, 0xfffffffe}, 40}, {{5, 1}, 0}};
  header.clean = HistoryPoint{{3, 0xfffffffe}, 40, {1, 2}};
  return header;
}

}  // namespace

TEST_CASE("activity file: headers and pages are read back") {
  const ActivityHeader header = sample_header();
  const auto read = decode_activity_header(encode_activity_header(header));
  REQUIRE(read.has_value());
  CHECK(*read == header);
  std::vector<ActivityEntry> entries(activity_entries_per_page);
  entries[0] = activity_hot;
  entries[2039] = 5;
  std::array<std::byte, activity_page_bytes> page{};
  encode_activity_page(2, 9, entries, page);
  CHECK(decode_activity_page(2, 9, page).value() == entries);
  CHECK_FALSE(decode_activity_page(2, 8, page).has_value());
  CHECK_FALSE(decode_activity_page(1, 9, page).has_value());
}

TEST_CASE("activity file: a page that was never written knows of nothing") {
  const std::array<std::byte, activity_page_bytes> page{};
  CHECK(decode_activity_page(0, 0, page).value() ==
        std::vector<ActivityEntry>(activity_entries_per_page));
}

TEST_CASE("activity file: golden bytes of a page") {
  std::vector<ActivityEntry> entries(activity_entries_per_page);
  entries[0] = activity_hot | 1;
  entries[1] = 2;
  std::array<std::byte, activity_page_bytes> page{};
  encode_activity_page(1, 3, entries, page);
  std::string hex;
  for (std::size_t i = 0; i < 24; ++i)
    hex += fmt::format("{:02x}", std::to_integer<unsigned>(page[i]));
  CHECK(hex == "baadca5352504c4101000000030000000180020000000000");
}

TEST_CASE("activity file: no damage is taken for knowledge") {
  std::mt19937_64 random(11);
  const auto good = encode_activity_header(sample_header());
  std::vector<ActivityEntry> entries(activity_entries_per_page);
  entries[17] = activity_hot;
  std::array<std::byte, activity_page_bytes> page{};
  encode_activity_page(0, 0, entries, page);
  for (int i = 0; i < 2000; ++i) {
    auto bad = good;
    bad[4 + random() % 800] ^= static_cast<std::byte>(1 + random() % 255);
    const auto header = decode_activity_header(bad);
    CHECK_FALSE((header.has_value() && *header == sample_header()));
    auto bad_page = page;
    bad_page[random() % bad_page.size()] ^= static_cast<std::byte>(1 + random() % 255);
    CHECK_FALSE(decode_activity_page(0, 0, bad_page).has_value());
  }
  CHECK_FALSE(decode_activity_header(std::span(good).first(100)).has_value());
  auto later = good;
  later[4] = std::byte{2};
  CHECK(decode_activity_header(later).error().code == Errc::version_mismatch);
}

TEST_CASE("activity file: signed nonsense is refused, never crashes") {
  std::mt19937_64 random(12);
  for (int i = 0; i < 500; ++i) {
    auto bytes = encode_activity_header(sample_header());
    for (int flips = 0; flips < 3; ++flips)
      bytes[24 + random() % 600] = static_cast<std::byte>(random());
    const std::uint32_t sum = crc32c(std::span(bytes).subspan(12));
    for (std::size_t k = 0; k < 4; ++k)
      bytes[8 + k] = static_cast<std::byte>(sum >> (8 * k));
    const auto header = decode_activity_header(bytes);
    if (header) CHECK(header->members.size() <= activity_slots);
  }
}

TEST_CASE("activity file: it names the trail that it goes on from, where there is one") {
  ActivityHeader header;
  header.volume_uuid = "u";
  header.disk_bytes = {512};
  header.terms = {{{3, 7}, 0}};
  const auto without = encode_activity_header(header);
  CHECK(decode_activity_header(without) == header);
  header.trail = HistoryPoint{{2, 5}, 100, {1, 2}};
  const auto with = encode_activity_header(header);
  CHECK(decode_activity_header(with) == header);
  CHECK(with != without);
}

TEST_CASE("activity file: as a whole, a page that is damaged or cut stands for everything") {
  const std::vector<std::uint64_t> disks{3 * activity_region_bytes, 512};
  ActivityHeader header;
  header.volume_uuid = "u";
  header.disk_bytes = disks;
  header.generation = 2;
  std::vector<std::byte> file(activity_file_bytes(disks));
  CHECK(file.size() == 2 * activity_header_bytes + 2 * activity_page_bytes);
  CHECK_FALSE(read_activity(file, disks).has_value());
  std::ranges::copy(encode_activity_header(header), file.begin());
  std::vector<ActivityEntry> entries(activity_entries_per_page);
  entries[1] = activity_hot;
  const std::size_t page_at = 2 * activity_header_bytes;
  encode_activity_page(
      0, 0, entries, std::span(file).subspan(page_at).first<activity_page_bytes>());
  auto found = read_activity(file, disks);
  REQUIRE(found.has_value());
  CHECK(found->header == header);
  CHECK(found->entries == std::vector<std::vector<ActivityEntry>>{{0, activity_hot, 0}, {0}});
  CHECK_FALSE(read_activity(file, {512}).has_value());
  file[page_at + 100] ^= std::byte{1};
  file.resize(file.size() - 1);
  found = read_activity(file, disks);
  REQUIRE(found.has_value());
  CHECK(found->entries == std::vector<std::vector<ActivityEntry>>{
                              {activity_all, activity_all, activity_all}, {activity_all}});
  // What is behind the end was never written.
  file.resize(page_at);
  found = read_activity(file, disks);
  REQUIRE(found.has_value());
  CHECK(found->entries == std::vector<std::vector<ActivityEntry>>{{0, 0, 0}, {0}});
}

}  // namespace replicad
