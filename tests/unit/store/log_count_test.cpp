#include "core/store/log_count.h"

#include <doctest/doctest.h>

#include "tests/unit/store/memory_log.h"

namespace replicad {

TEST_CASE("log count: changes of each disk behind a point, over segments") {
  MemoryLog log;
  HistoryPoint point;
  for (int segment = 0; segment < 3; ++segment)
    add_segment(log, point, 4);
  const auto changes = count_log(log, memory_uuid, 6, 12);
  REQUIRE_MESSAGE(changes, changes.error().message);
  REQUIRE(changes->size() == 1);
  CHECK(changes->front().disk == 0);
  CHECK(changes->front().writes == 6);
  CHECK(changes->front().bytes == 6 * 4096);
  // Only as far as was asked for.
  CHECK(count_log(log, memory_uuid, 2, 5)->front().writes == 3);
  CHECK(count_log(log, memory_uuid, 12, 12)->empty());
  CHECK(log.writes.empty());
}

TEST_CASE("log count: what the log does not have is not counted as nothing") {
  MemoryLog log;
  HistoryPoint point;
  for (int segment = 0; segment < 3; ++segment)
    add_segment(log, point, 4);
  CHECK(count_log(log, memory_uuid, 6, 13).error().code == Errc::too_far_behind);
  log.files.erase(log.files.begin());
  CHECK(count_log(log, memory_uuid, 3, 12).error().code == Errc::too_far_behind);
  CHECK(count_log(log, memory_uuid, 4, 12)->front().writes == 8);
  // A segment that is used again meanwhile.
  auto& second = log.files.begin()->second;
  std::fill(second.begin() + segment_header_bytes + 64, second.end(), std::byte{1});
  CHECK(count_log(log, memory_uuid, 4, 12).error().code == Errc::too_far_behind);
  CHECK(count_log(log, "another", 4, 12).error().code == Errc::too_far_behind);
}

}  // namespace replicad
