#include "replicad/trail_file.h"

#include <cstddef>
#include <span>

#include <doctest/doctest.h>

#include "core/store/activity_file.h"
#include "io/file.h"
#include "tests/replicad/replica_fixture.h"

namespace replicad {
namespace {

const std::string trail_uuid = "01234567-89ab-cdef-0123-456789abcdef";
const std::vector<std::uint64_t> trail_disks = {std::uint64_t{16} << 20};
const HistoryPoint began{{2, 7}, 100, {}};
const HistoryPoint stands{{3, 7}, 200, {}};

/// A replica's, from `began` to `stands`, with a change of the third region on the way.
void write_replica_trail(const std::string& directory, std::uint64_t generation) {
  Trail trail(trail_disks);
  trail.begin(began);
  FrameHeader frame;
  frame.type = FrameType::zero;
  frame.epoch = stands.epoch;
  frame.sequence = 150;
  frame.range = {0, std::uint64_t{8} << 20, 4096};
  trail.note(frame);
  const auto update =
      make_trail_update(trail, trail.take_changed(), trail_uuid, generation, stands);
  REQUIRE(write_trail(directory, update).has_value());
}

void write_activity(const std::string& directory) {
  const ActivityHeader header{.generation = 2,
                              .volume_uuid = trail_uuid,
                              .disk_bytes = trail_disks,
                              .members = {{"b", stands.sequence}},
                              .terms = {{stands.epoch, stands.sequence}, {{4, 9}, stands.sequence}},
                              .clean = stands};
  const auto bytes = encode_activity_header(header);
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  REQUIRE(write_file_durably(directory + "/activity", {text, bytes.size()}).has_value());
}

}  // namespace

TEST_CASE("trail file: what is written is found at its point, and nowhere else") {
  const TempDirectory directory;
  write_replica_trail(directory.path(), 2);
  const auto found = load_trail(directory.path(), trail_uuid, trail_disks, stands);
  REQUIRE(found.has_value());
  CHECK(found->generation == 2);
  CHECK(found->trail.base() == began.sequence);
  CHECK(found->trail.changed_since(began.sequence) ==
        std::vector<Range>{{0, std::uint64_t{8} << 20, std::uint64_t{4} << 20}});
  CHECK_FALSE(load_trail(directory.path(), trail_uuid, trail_disks, began).has_value());
}

TEST_CASE("trail file: a former primary's takes the place of the one it had as a replica") {
  // Nothing was written in its term, so both lead to the same point. Whatever the generations are.
  for (const std::uint64_t generation : {std::uint64_t{2}, std::uint64_t{3}}) {
    CAPTURE(generation);
    const TempDirectory directory;
    write_replica_trail(directory.path(), generation);
    write_activity(directory.path());
    REQUIRE(convert_activity(directory.path(), trail_uuid, trail_disks, stands).has_value());
    const auto found = load_trail(directory.path(), trail_uuid, trail_disks, stands);
    REQUIRE(found.has_value());
    // It knows nothing of how the images came there.
    CHECK(found->trail.base() == stands.sequence);
    CHECK(read_file(directory.path() + "/activity", 1 << 20).error().code == Errc::not_found);
  }
}

TEST_CASE("trail file: one that is begun anew at the same point says nothing of the way there") {
  const TempDirectory directory;
  write_replica_trail(directory.path(), 2);
  Trail trail(trail_disks);
  trail.begin(stands);
  const auto update = make_trail_update(trail, trail.take_changed(), trail_uuid, 1, stands);
  REQUIRE(write_trail(directory.path(), update).has_value());
  const auto found = load_trail(directory.path(), trail_uuid, trail_disks, stands);
  REQUIRE(found.has_value());
  CHECK(found->trail.base() == stands.sequence);
}

TEST_CASE("trail file: an activity file that cannot be read leaves no trail") {
  const TempDirectory directory;
  write_replica_trail(directory.path(), 2);
  REQUIRE(write_file_durably(directory.path() + "/activity", "damaged").has_value());
  REQUIRE(convert_activity(directory.path(), trail_uuid, trail_disks, stands).has_value());
  CHECK_FALSE(load_trail(directory.path(), trail_uuid, trail_disks, stands).has_value());
}

}  // namespace replicad
