#include "core/store/log_recovery.h"

#include <algorithm>

#include <doctest/doctest.h>

#include "tests/unit/store/memory_log.h"

namespace replicad {
TEST_CASE("log recovery: what an interrupted removal leaves is no damage") {
  for (int removed = 0; removed <= 3; ++removed) {
    CAPTURE(removed);
    MemoryLog log;
    HistoryPoint point;
    for (int segment = 0; segment < 3; ++segment)
      add_segment(log, point, 4);
    log.removes_left = removed;
    CHECK(remove_log_files(log).has_value() == (removed == 3));
    log.removes_left = 1000;
    // The images hold everything, as whenever a log is dropped.
    const auto found =
        find_log(log, {.directory = "log", .volume_uuid = memory_uuid, .checkpoint = point});
    REQUIRE_MESSAGE(found, found.error().message);
    CHECK(found->logged == point);
    CHECK(found->backlog_bytes == 0);
    CHECK(found->segments.size() == static_cast<std::size_t>(removed == 3 ? 0 : 1));
  }
}

TEST_CASE(
    "log recovery: segments before the checkpoint go, and no crash in between makes damage of it") {
  for (int removed = 0; removed <= 4; ++removed) {
    CAPTURE(removed);
    MemoryLog log;
    HistoryPoint point;
    for (int segment = 0; segment < 3; ++segment)
      add_segment(log, point, 4);
    log.files[spare_file_name(6)] = std::vector<std::byte>(memory_segment_bytes);
    // Begun right behind the checkpoint, and torn.
    log.files[segment_file_name(point.sequence + 1)] = std::vector<std::byte>(memory_segment_bytes);
    const LogRecoveryOptions options{
        .directory = "log", .volume_uuid = memory_uuid, .checkpoint = point};
    log.removes_left = removed;
    CHECK(find_log(log, options).has_value() == (removed == 4));
    log.removes_left = 1000;
    for (int again = 0; again < 2; ++again) {
      const auto found = find_log(log, options);
      REQUIRE_MESSAGE(found, found.error().message);
      CHECK(found->logged == point);
      CHECK(found->spares == std::vector<std::string>{spare_file_name(6)});
      CHECK(found->next_spare == 7);
    }
    CHECK(log.files.size() == 1);
  }
}

TEST_CASE("log recovery: a segment that is missing at the end is damage") {
  MemoryLog log;
  HistoryPoint point;
  for (int segment = 0; segment < 3; ++segment)
    add_segment(log, point, 4);
  log.files.erase(std::prev(log.files.end()));
  const auto found =
      find_log(log, {.directory = "log", .volume_uuid = memory_uuid, .checkpoint = point});
  REQUIRE(!found);
  CHECK(found.error().code == Errc::corrupt);
  CHECK(found.error().message.find("damaged") != std::string::npos);
}

TEST_CASE("log recovery: what only the page cache holds is written again, nothing else") {
  using Writes = std::vector<std::pair<std::uint64_t, std::uint64_t>>;
  MemoryLog log;
  HistoryPoint checkpoint;
  add_segment(log, checkpoint, 4);
  HistoryPoint point = checkpoint;
  add_segment(log, point, 20);
  const std::string first = segment_file_name(1);
  const std::string second = segment_file_name(5);
  const LogRecoveryOptions options{
      .directory = "log", .volume_uuid = memory_uuid, .checkpoint = checkpoint};
  const auto writes_of = [&](const LogRecoveryOptions& asked) {
    log.writes.clear();
    const auto found = find_log(log, asked);
    REQUIRE_MESSAGE(found, found.error().message);
    CHECK(found->logged == point);
    return log.writes;
  };
  CHECK(writes_of(options).empty());
  // The disk never got the head of the second segment, nor the frames from its 9th on: 64 bytes each.
  log.medium[first] = std::vector<std::byte>(memory_segment_bytes);
  log.medium[second] = log.files[second];
  std::fill_n(log.medium[second].begin(), 512, std::byte{0});
  std::fill(log.medium[second].begin() + segment_header_bytes + 512,
            log.medium[second].end(),
            std::byte{0});
  const Writes lacking{{0, 512}, {segment_header_bytes + 512, segment_header_bytes + 1280}};
  CHECK(writes_of(options) == lacking);
  // Nor one frame in the middle of a sector: what lies before it there was durable and is left alone.
  log.medium[first] = log.files[first];
  log.medium[second] = log.files[second];
  std::fill_n(log.medium[second].begin() + segment_header_bytes + 192, 64, std::byte{0});
  const Writes middle = writes_of(options);
  REQUIRE(middle.size() == 1);
  CHECK(middle.front().first == segment_header_bytes + 192);
  log.medium[first] = std::vector<std::byte>(memory_segment_bytes);
  log.medium[second] = std::vector<std::byte>(memory_segment_bytes);
  // Whoever had it open last has synced it; or nothing is to be changed.
  LogRecoveryOptions synced = options;
  synced.is_synced = true;
  CHECK(writes_of(synced).empty());
  LogRecoveryOptions look = options;
  look.look_only = true;
  CHECK(writes_of(look).empty());
  // Where nobody can tell, all of it is written.
  log.has_medium = false;
  CHECK(writes_of(options) ==
        Writes{{0, segment_header_bytes}, {segment_header_bytes, segment_header_bytes + 1280}});
}

TEST_CASE("log recovery: a disk that fails to tell what it has is not written to on a guess") {
  MemoryLog log;
  HistoryPoint point;
  add_segment(log, point, 20);
  log.medium_fails = true;
  const auto found =
      find_log(log, {.directory = "log", .volume_uuid = memory_uuid, .checkpoint = {}});
  REQUIRE_FALSE(found);
  CHECK(found.error().code == Errc::io_error);
  CHECK(log.writes.empty());
}

TEST_CASE("log recovery: what the images hold for certain is not looked for on the disk") {
  MemoryLog log;
  HistoryPoint point;
  add_segment(log, point, 20);
  const std::string name = segment_file_name(1);
  HistoryPoint checkpoint;
  {
    const auto frames =
        scan_frames(std::span(log.files[name]).subspan(segment_header_bytes), {}).frames;
    checkpoint = frames.at(11).after;
  }
  log.medium[name] = std::vector<std::byte>(memory_segment_bytes);
  const auto found =
      find_log(log, {.directory = "log", .volume_uuid = memory_uuid, .checkpoint = checkpoint});
  REQUIRE_MESSAGE(found, found.error().message);
  REQUIRE(log.writes.size() == 1);
  CHECK(log.writes.front() == std::pair(std::uint64_t{segment_header_bytes + 768},
                                        std::uint64_t{segment_header_bytes + 1280}));
}

}  // namespace replicad
