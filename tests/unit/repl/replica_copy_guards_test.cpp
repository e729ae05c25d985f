// Guards of a replica's copies against what happens only in rare moments, and what its records make of the state file:
// each of these tests fails when one condition of core/repl is left out (`make -f Makefile.ci sim-mutants`).

#include <doctest/doctest.h>

#include "core/repl/replica_state.h"
#include "tests/unit/repl/replica_world.h"

namespace replicad {
namespace {

using std::chrono_literals::operator""s;

const Error disk_error{Errc::io_error, 5, "disk", {}};

void start(ReplicaWorld& world, const StartMessage& message) {
  world.step(replica_event::StartArrived{*world.replica.session(), message});
}
/// Two frames logged; copying in place.
struct InPlace : Streaming {
  FrameSource live{HistoryPoint{first_epoch, 10, {3, 4}}};

  explicit InPlace(bool keep = false) : Streaming(2) {
    start(world, {.copy = true, .after = 10, .keep = keep, .in_place = true});
    if (world.syncing) world.finish_sync();
    if (keep) {
      world.apply(source.point());
      world.finish_image_sync();
    }
    world.finish_records();
    if (world.syncing) world.finish_sync();
    world.finish_drop();
    REQUIRE(world.replica.phase() == Replica::Phase::copying);
  }
};
/// Two frames logged and applied; copying into a stage.
struct Staged : Streaming {
  FrameSource live{HistoryPoint{first_epoch, 10, {3, 4}}};

  Staged() : Streaming(2) {
    start(world, {.copy = true, .after = 10, .keep = true});
    if (world.syncing) world.finish_sync();
    world.apply(source.point());
    world.finish_image_sync();
    world.finish_record();
    world.finish_drop();
    REQUIRE(world.stage_open);
    world.frame(live.next(first_epoch));
  }
  void end() { world.step(replica_event::CopyEndArrived{1, live.point()}); }
  void commit() {
    end();
    world.finish_stage_sync();
    world.finish_record();
    REQUIRE(world.unstaging);
  }
};

TEST_CASE("copy guard: frames that come behind a running sync are synced as well, at once") {
  Streaming streaming(1);
  ReplicaWorld& world = streaming.world;
  streaming.write();
  start(world, {.copy = true, .after = 10, .keep = true});
  REQUIRE(world.syncing.has_value());
  world.log_all();
  world.finish_sync();
  CHECK(world.syncing.has_value());
}

TEST_CASE("copy guard: an interrupted resync that is rewound leaves where it began") {
  const HistoryPoint from{first_epoch, 40, {1, 2}};
  ReplicaWorld world({.promised = first_epoch,
                      .primary = "a",
                      .consistent = false,
                      .logged = {},
                      .durable = 0,
                      .applied = from,
                      .resync = first_epoch,
                      .whole = false});
  world.recorded_resync = first_epoch;
  world.recorded_base = from;
  world.logged = world.applied = {};
  world.attach(first_epoch);
  start(world, {.copy = true, .after = 50, .save = true});
  REQUIRE(world.records.size() == 1);
  CHECK(world.records[0].kind == ReplicaRecord::Kind::rewinding);
  CHECK(world.records[0].point == from);
}

TEST_CASE("copy guard: a copy behind every number is refused") {
  Streaming streaming(1);
  start(streaming.world, {.copy = true, .after = counter_max + 1});
  check_refused(streaming.world, Errc::protocol);
}

TEST_CASE("copy guard: a resync of the same term needs no second mark, a rewind needs its own") {
  InPlace copying(true);
  ReplicaWorld& world = copying.world;
  world.step(replica_event::SessionClosed{1});
  world.attach(first_epoch);
  REQUIRE(world.attached->resync == first_epoch);
  SUBCASE("the same term") {
    start(world, {.copy = true, .after = 20, .keep = true, .in_place = true});
    CHECK(world.records.empty());
    CHECK(world.dropping);
  }
  SUBCASE("a rewind") {
    start(world, {.copy = true, .after = 20, .save = true});
    REQUIRE(world.records.size() == 1);
    CHECK(world.records[0].kind == ReplicaRecord::Kind::rewinding);
  }
}

TEST_CASE("copy guard: a rewind whose session ended before its mark changes nothing") {
  Streaming streaming(1);
  ReplicaWorld& world = streaming.world;
  start(world, {.copy = true, .after = 10, .save = true});
  if (world.syncing) world.finish_sync();
  world.apply(streaming.source.point());
  REQUIRE(world.syncing_images);
  world.step(replica_event::SessionClosed{1});
  world.finish_image_sync();
  CHECK(world.records.empty());
}

TEST_CASE("copy guard: an image of which nothing is known is marked already") {
  InPlace copying;
  ReplicaWorld& world = copying.world;
  world.step(replica_event::SessionClosed{1});
  world.attach(first_epoch);
  start(world, {.copy = true, .after = 20, .save = true});
  CHECK(world.records.empty());
  CHECK(world.dropping);
}

TEST_CASE("copy guard: a copy in place has no stage to drop") {
  InPlace copying;
  ReplicaWorld& world = copying.world;
  SUBCASE("when another begins") {
    start(world, {.copy = true, .after = 20, .in_place = true});
  }
  SUBCASE("when its record fails") {
    world.frame(copying.live.next(first_epoch));
    world.step(replica_event::CopyEndArrived{1, copying.live.point()});
    world.finish_image_sync();
    world.finish_record(fail(Errc::no_space, "state file"));
    check_refused(world, Errc::no_space);
  }
  SUBCASE("when something is said of one") {
    world.step(replica_event::StageFailed{disk_error});
    CHECK(world.replica.session().has_value());
  }
  CHECK_FALSE(world.stage_dropped);
}

TEST_CASE("copy guard: a copy ends in the term of its frames, or not behind its session's") {
  InPlace copying;
  HistoryPoint later = copying.live.point();
  SUBCASE("of its frames") {
    copying.world.frame(copying.live.next(first_epoch));
    later = copying.live.point();
    later.epoch = {first_epoch.number, first_epoch.tag + 1};
  }
  SUBCASE("of its session") {
    later.epoch.number = first_epoch.number + 1;
  }
  copying.world.step(replica_event::CopyEndArrived{1, later});
  check_refused(copying.world, Errc::protocol);
}

TEST_CASE("copy guard: what an earlier copy has written counts for none that follows") {
  InPlace copying;
  ReplicaWorld& world = copying.world;
  world.frame(copying.live.next(first_epoch));
  world.step(replica_event::CopyEndArrived{1, copying.live.point()});
  world.step(replica_event::CopyWritten{1, 99});  // it is ending
  world.step(replica_event::SessionClosed{1});
  world.finish_image_sync();
  world.finish_record();
  const SessionId id = world.attach(first_epoch);
  world.finish_records();
  start(world, {.copy = true, .after = 30, .in_place = true});
  world.finish_records();
  world.finish_drop();
  REQUIRE(world.replica.phase() == Replica::Phase::copying);
  world.step(replica_event::CopyWritten{1, 99});
  CHECK(world.replica.session() == id);
}

TEST_CASE("copy guard: a replica that failed goes on with no copy") {
  SUBCASE("its log dropped") {
    Streaming streaming(1);
    ReplicaWorld& world = streaming.world;
    start(world, {.copy = true, .after = 10, .in_place = true});
    if (world.syncing) world.finish_sync();
    world.finish_records();
    if (world.syncing) world.finish_sync();
    REQUIRE(world.dropping);
    world.step(replica_event::Failed{disk_error});
    world.finish_drop();
    CHECK(world.replica.is_consistent());
  }
  SUBCASE("its stage synced, or failed") {
    Staged staged;
    ReplicaWorld& world = staged.world;
    staged.end();
    world.step(replica_event::Failed{disk_error});
    world.step(replica_event::StageFailed{disk_error});
    CHECK_FALSE(world.stage_dropped);
    world.finish_stage_sync();
    CHECK(world.records.empty());
  }
  SUBCASE("its images synced before it") {
    Streaming streaming(1);
    ReplicaWorld& world = streaming.world;
    start(world, {.copy = true, .after = 10, .keep = true});
    if (world.syncing) world.finish_sync();
    world.apply(streaming.source.point());
    REQUIRE(world.syncing_images);
    world.step(replica_event::Failed{disk_error});
    world.finish_image_sync();
    CHECK(world.records.empty());
  }
  SUBCASE("its stage on record") {
    Staged staged;
    ReplicaWorld& world = staged.world;
    staged.end();
    world.finish_stage_sync();
    world.step(replica_event::Failed{disk_error});
    world.finish_record();
    CHECK_FALSE(world.unstaging);
  }
  SUBCASE("its stage brought in") {
    Staged staged;
    ReplicaWorld& world = staged.world;
    staged.commit();
    world.step(replica_event::Failed{disk_error});
    world.finish_unstaging();
    CHECK_FALSE(world.syncing_images);
  }
  SUBCASE("the images with it synced") {
    Staged staged;
    ReplicaWorld& world = staged.world;
    staged.commit();
    world.finish_unstaging();
    world.step(replica_event::Failed{disk_error});
    world.finish_image_sync();
    CHECK(world.records.empty());
  }
}

TEST_CASE("copy guard: a stage that is committed cannot fail any more") {
  Staged staged;
  staged.commit();
  staged.world.step(replica_event::StageFailed{disk_error});
  CHECK(staged.world.replica.phase() == Replica::Phase::streaming);
}

TEST_CASE("copy guard: a stage counts until the state file says otherwise") {
  Staged staged;
  ReplicaWorld& world = staged.world;
  staged.commit();
  world.finish_unstaging();
  bool has_session = true;
  SUBCASE("with a session") {}
  SUBCASE("without one") {
    has_session = false;
    world.step(replica_event::SessionClosed{1});
  }
  world.finish_image_sync();
  world.finish_record(fail(Errc::no_space, "state file"));
  CHECK(world.replica.failure()->code == Errc::no_space);
  CHECK(world.refused.has_value() == has_session);
  CHECK(world.stage_open);
}

// --- the state file ---

TEST_CASE("records: a promise names its primary, if there is one, and is never taken back") {
  VolumeState state;
  state.epoch = {5, 5};
  state.primary = "a";
  apply_record({ReplicaRecord::Kind::promise, {6, 6}, "", {}}, 0, state);
  CHECK(state.epoch == Epoch{6, 6});
  CHECK(state.primary == "a");
  CHECK(state.whole);
  apply_record({ReplicaRecord::Kind::promise, {7, 7}, "c", {}}, 0, state);
  CHECK(state.primary == "c");
  CHECK_FALSE(state.whole);
  apply_record({ReplicaRecord::Kind::promise, {6, 1}, "d", {}}, 0, state);
  CHECK(state.epoch == Epoch{7, 7});
  CHECK(state.primary == "c");
}

TEST_CASE("records: a checkpoint that a resync has overtaken changes nothing") {
  VolumeState state;
  const HistoryPoint early{{5, 5}, 10, {1, 1}};
  const HistoryPoint late{{5, 5}, 12, {2, 2}};
  apply_checkpoint(early, state);
  CHECK(state.checkpoint == early);
  // The log behind it is dropped once this is on record; the checkpoint was on its way before.
  apply_record({ReplicaRecord::Kind::staging, {}, {}, late}, 0, state);
  apply_checkpoint({{5, 5}, 11, {3, 3}}, state);
  CHECK(state.checkpoint == late);
  apply_record({ReplicaRecord::Kind::inconsistent, {}, {}, {}}, 0, state);
  apply_checkpoint({{5, 5}, 20, {4, 4}}, state);
  CHECK(state.checkpoint == late);
}

TEST_CASE("records: a rewind that goes on keeps to its first file") {
  VolumeState state;
  apply_record({ReplicaRecord::Kind::rewinding, {6, 6}, "a", {}}, 3, state);
  CHECK(state.rewind == 3U);
  apply_record({ReplicaRecord::Kind::rewinding, {7, 7}, "a", {}}, 8, state);
  CHECK(state.rewind == 3U);
  CHECK_FALSE(state.consistent);
}

}  // namespace
}  // namespace replicad
