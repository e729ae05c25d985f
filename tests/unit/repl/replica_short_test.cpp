// A replica that may have lost what it told a primary.

#include "core/repl/replica_state.h"
#include "tests/unit/repl/primary_scenario.h"
#include "tests/unit/repl/replica_world.h"

namespace replicad {
namespace {

constexpr Epoch term_epoch{1, 7};

/// As a crash leaves it: the log ends at `source`.
ReplicaStanding crashed_at(const FrameSource& source) {
  return {.promised = term_epoch,
          .primary = "a",
          .consistent = true,
          .logged = source.point(),
          .durable = source.point().sequence,
          .applied = source.point(),
          .whole = false};
}

FrameSource three_writes() {
  FrameSource source;
  for (int i = 0; i < 3; ++i)
    source.next(term_epoch);
  return source;
}

}  // namespace

TEST_CASE(
    "short: that a crash may take something is on record before the first attach is answered") {
  ReplicaWorld world({.promised = term_epoch, .primary = "a", .logged = {}, .applied = {}});
  CHECK_FALSE(world.replica.is_short());
  world.attach(term_epoch);
  CHECK_FALSE(world.attached.has_value());
  REQUIRE(world.records.size() == 1);
  VolumeState state;
  state.epoch = {5, 1};  // a fence that came in between does not matter
  apply_record(world.records[0], 0, state);
  CHECK_FALSE(state.whole);
  world.finish_record(fail(Errc::no_space, "disk full"));
  CHECK(world.refused.has_value());
  world.attach(term_epoch);
  REQUIRE(world.records.size() == 1);
  world.finish_record();
  CHECK(world.attached.has_value());
  CHECK_FALSE(world.replica.is_short());
  // Once is enough.
  world.attach(term_epoch);
  CHECK(world.records.empty());
}

TEST_CASE(
    "short: a replica that crashed is not whole until a primary has found that it lacks nothing") {
  FrameSource source = three_writes();
  ReplicaWorld world(crashed_at(source));
  CHECK(world.replica.is_short());
  world.attach(term_epoch);
  REQUIRE(world.attached.has_value());
  CHECK(world.replica.is_short());
  world.step(replica_event::StartArrived{1, {.copy = false, .after = 3, .answered = 5}});
  CHECK(world.replica.is_short());

  SUBCASE("in this session, and durably") {
    world.frame(source.next(term_epoch));
    world.frame(source.next(term_epoch));
    world.log_all();
    CHECK(world.replica.is_short());
    world.frame(FrameType::sync_request);
    world.finish_sync();
    CHECK(world.durable == 5);
    CHECK_FALSE(world.replica.is_short());
  }
  SUBCASE("not when the session ends before") {
    world.frame(source.next(term_epoch));
    world.frame(source.next(term_epoch));
    world.log_all();
    world.frame(FrameType::sync_request);
    world.step(replica_event::SessionClosed{1});
    world.finish_sync();
    CHECK(world.replica.is_short());
  }
  SUBCASE("not by a part of it") {
    world.frame(source.next(term_epoch));
    world.log_all();
    world.frame(FrameType::sync_request);
    world.finish_sync();
    CHECK(world.replica.is_short());
  }
}

TEST_CASE("short: a replica that lacks nothing is whole as soon as the stream begins") {
  ReplicaWorld world(crashed_at(three_writes()));
  world.attach(term_epoch);
  world.step(replica_event::StartArrived{1, {.copy = false, .after = 3, .answered = 3}});
  CHECK_FALSE(world.replica.is_short());
}

TEST_CASE("short: a copy that is complete ends it") {
  ReplicaWorld world(crashed_at(three_writes()));
  world.attach(term_epoch);
  SUBCASE("in place") {
    world.step(replica_event::StartArrived{
        1, {.copy = true, .after = 10, .in_place = true, .answered = 10}});
    world.finish_record();
    world.finish_drop();
    CHECK(world.replica.is_short());
    world.step(replica_event::CopyEndArrived{1, {term_epoch, 10, {3, 4}}});
    world.finish_image_sync();
  }
  SUBCASE("staged") {
    world.step(replica_event::StartArrived{1, {.copy = true, .after = 10, .answered = 10}});
    world.finish_image_sync();
    world.finish_record();
    world.finish_drop();
    CHECK(world.replica.is_short());
    world.step(replica_event::CopyEndArrived{1, {term_epoch, 10, {3, 4}}});
    world.finish_stage_sync();
  }
  CHECK(world.replica.is_short());
  world.finish_record();
  CHECK(world.copy_done.has_value());
  CHECK_FALSE(world.replica.is_short());
}

TEST_CASE("short: a member that comes back hears of the last write that may have been answered") {
  PrimaryScenario scenario({});
  CHECK(scenario.last_answered() == 0);
  scenario.write(1, write_at(0));
  scenario.write(2, write_at(8192));
  scenario.durable("b", 2);
  scenario.lose("b");
  CHECK(scenario.attach("b", 1) == "start b after 1");
  CHECK(scenario.last_answered() == 2);
}

}  // namespace replicad
