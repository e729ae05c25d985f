// Resyncs on the replica: a copy that brings only what changed behind its point (core/repl/replica.h).

#include <doctest/doctest.h>

#include "tests/unit/repl/replica_world.h"

namespace replicad {

TEST_CASE("replica: a resync applies the log, syncs, marks its base, and is known by that later") {
  Streaming streaming(2);
  ReplicaWorld& world = streaming.world;
  const HistoryPoint base = streaming.source.point();
  world.step(
      replica_event::StartArrived{1, {.copy = true, .after = 10, .keep = true, .in_place = true}});
  CHECK_FALSE(world.replica.takes_input());
  CHECK_FALSE(world.syncing_images);  // its image lacks what is logged
  if (world.syncing) world.finish_sync();
  world.apply(base);
  REQUIRE(world.syncing_images);
  CHECK(world.records.empty());

  SUBCASE("the session ends before the mark: nothing has changed") {
    world.step(replica_event::SessionClosed{1});
    world.attached.reset();
    world.attach(first_epoch);
    CHECK_FALSE(world.attached.has_value());
    world.finish_image_sync();
    REQUIRE(world.attached.has_value());
    CHECK(world.attached->consistent);
    CHECK(world.attached->logged == base);
  }
  SUBCASE("to its end, or interrupted") {
    world.finish_image_sync();
    REQUIRE(world.records.size() == 1);
    CHECK(world.records[0].kind == ReplicaRecord::Kind::resyncing);
    CHECK_FALSE(world.dropping);
    world.finish_record();
    world.finish_drop();
    FrameSource live(HistoryPoint{first_epoch, 10, {3, 4}});
    world.frame(live.next(first_epoch));
    CHECK(world.image_writes.size() == 1);
    FrameHeader sums;
    sums.type = FrameType::block_sums;
    sums.range = {0, 0, 8192};
    sums.payload_bytes = 32;
    world.frame(sums);
    CHECK(world.compares.size() == 1);
    SUBCASE("done") {
      world.step(replica_event::CopyEndArrived{1, live.point()});
      world.finish_image_sync();
      world.finish_record();
      CHECK(world.copy_done == live.point());
      CHECK_FALSE(world.recorded_resync.has_value());
    }
    SUBCASE("interrupted: a later term goes on from the same base, and is on record for it") {
      world.step(replica_event::SessionClosed{1});
      world.attached.reset();
      const SessionId id = world.attach({5, 5});
      world.finish_records();
      REQUIRE(world.attached.has_value());
      CHECK_FALSE(world.attached->consistent);
      CHECK(world.attached->resync == first_epoch);
      CHECK(world.attached->logged == base);
      world.step(replica_event::StartArrived{id, {.copy = true, .after = 20, .keep = true}});
      CHECK_FALSE(world.dropping);
      world.finish_record();
      CHECK(world.recorded_resync == Epoch{5, 5});
      CHECK(world.dropping);
    }
    SUBCASE("interrupted: a whole copy forgets the base first") {
      world.step(replica_event::SessionClosed{1});
      const SessionId id = world.attach(first_epoch);
      world.step(replica_event::StartArrived{id, {.copy = true, .after = 20}});
      CHECK_FALSE(world.dropping);
      world.finish_record();
      CHECK_FALSE(world.recorded_resync.has_value());
      CHECK(world.dropping);
    }
  }
}

TEST_CASE("replica: a rewind applies the log, syncs and marks before anything is replaced") {
  Streaming streaming(2);
  ReplicaWorld& world = streaming.world;
  const HistoryPoint left = streaming.source.point();
  world.step(replica_event::SessionClosed{1});
  const SessionId id = world.attach({5, 5});
  world.finish_records();
  world.step(replica_event::StartArrived{id, {.copy = true, .after = 1, .save = true}});
  CHECK_FALSE(world.syncing_images);  // what is only in the log would be lost with it
  if (world.syncing) world.finish_sync();
  world.apply(left);
  REQUIRE(world.syncing_images);
  CHECK(world.records.empty());
  world.finish_image_sync();
  REQUIRE(world.records.size() == 1);
  CHECK(world.records[0].kind == ReplicaRecord::Kind::rewinding);
  CHECK(world.records[0].point == left);
  CHECK_FALSE(world.dropping);
  SUBCASE("no room to keep it: nothing has changed") {
    world.finish_record(fail(Errc::no_space, "full"));
    check_refused(world, Errc::no_space);
    CHECK(world.replica.is_consistent());
    CHECK_FALSE(world.dropping);
    world.attached.reset();
    world.attach({5, 5});
    REQUIRE(world.attached.has_value());
    CHECK(world.attached->consistent);
    CHECK(world.attached->logged == left);
  }
  SUBCASE("to its end") {
    world.finish_record();
    CHECK(world.dropping);
    world.finish_drop();
    CHECK_FALSE(world.replica.is_consistent());
    FrameSource live(HistoryPoint{{5, 5}, 1, {3, 4}});
    world.frame(live.next({5, 5}));
    CHECK(world.image_writes.size() == 1);
    world.step(replica_event::CopyEndArrived{id, live.point()});
    world.finish_image_sync();
    world.finish_record();
    CHECK(world.copy_done == live.point());
    CHECK(world.replica.is_consistent());
  }
}

TEST_CASE("replica: an image of which nothing is known is not resynced") {
  ReplicaStanding standing{.promised = {1, 7}, .primary = "a", .logged = {}, .applied = {}};
  standing.consistent = standing.whole = false;
  ReplicaWorld world(standing);
  const SessionId id = world.attach({1, 7});
  world.step(
      replica_event::StartArrived{id, {.copy = true, .after = 10, .keep = true, .in_place = true}});
  check_refused(world, Errc::inconsistent);
}

TEST_CASE("replica: a staged copy leaves image and point alone until its commit") {
  Streaming streaming(2);
  ReplicaWorld& world = streaming.world;
  const HistoryPoint base = streaming.source.point();
  bool keep = false;
  SUBCASE("of what is lacking") {
    keep = true;
  }
  SUBCASE("of everything") {}
  CAPTURE(keep);
  world.step(replica_event::StartArrived{1, {.copy = true, .after = 10, .keep = keep}});
  if (world.syncing) world.finish_sync();
  world.apply(base);
  REQUIRE(world.syncing_images);
  CHECK(world.records.empty());
  world.finish_image_sync();
  REQUIRE(world.records.size() == 1);
  CHECK(world.records[0].kind == ReplicaRecord::Kind::staging);
  CHECK_FALSE(world.dropping);
  world.finish_record();
  world.finish_drop();
  REQUIRE(world.replica.takes_input());
  CHECK(world.replica.is_consistent());
  CHECK(world.replica.logged() == base);

  FrameHeader copied;
  copied.type = FrameType::copy_data;
  copied.range = {1, 0, 512};
  copied.payload_bytes = 512;
  world.frame(copied);
  FrameSource live(HistoryPoint{first_epoch, 10, {3, 4}});
  world.frame(live.next(first_epoch));
  CHECK(world.staged.size() == 2);
  CHECK(world.image_writes.empty());
  world.step(replica_event::CopyWritten{1, 11});
  world.frame(FrameType::heartbeat);
  CHECK(world.marks->received == 11);
  CHECK(world.marks->durable == 0);

  SUBCASE("to its end: committed, brought in, and only then applied") {
    world.step(replica_event::CopyEndArrived{1, live.point()});
    REQUIRE(world.stage_syncing);
    CHECK_FALSE(world.syncing_images);
    CHECK(world.records.empty());
    world.finish_stage_sync();
    REQUIRE(world.records.size() == 1);
    CHECK(world.records[0].kind == ReplicaRecord::Kind::committed);
    CHECK_FALSE(world.copy_done.has_value());
    CHECK_FALSE(world.unstaging);
    world.finish_record();
    CHECK(world.copy_done == live.point());
    REQUIRE(world.unstaging);
    CHECK(world.replica.applied() == HistoryPoint{});
    world.frame(live.next(first_epoch));
    world.log_all();
    CHECK(world.marks->logged == 12);
    CHECK(world.marks->applied == 0);
    world.finish_unstaging();
    CHECK(world.records.empty());
    world.finish_image_sync();
    REQUIRE(world.records.size() == 1);
    CHECK(world.stage_open);
    world.finish_record();
    CHECK_FALSE(world.stage_open);
    CHECK(world.replica.applied().sequence == 11);
  }
  SUBCASE("the session ends: it is where it was, and streams on from there") {
    world.step(replica_event::SessionClosed{1});
    CHECK_FALSE(world.stage_open);
    world.attached.reset();
    const SessionId id = world.attach(first_epoch);
    REQUIRE(world.attached.has_value());
    CHECK(world.attached->consistent);
    CHECK(world.attached->logged == base);
    world.step(replica_event::StartArrived{id, {.copy = false, .after = base.sequence}});
    world.frame(streaming.source.next(first_epoch));
    CHECK(world.appending.size() == 1);
  }
  SUBCASE("the session ends while the stage is synced: it counts") {
    world.step(replica_event::CopyEndArrived{1, live.point()});
    world.step(replica_event::SessionClosed{1});
    world.finish_stage_sync();
    world.attached.reset();
    world.attach(first_epoch);
    CHECK_FALSE(world.attached.has_value());
    world.finish_record();
    REQUIRE(world.attached.has_value());
    CHECK(world.attached->logged == live.point());
  }
  SUBCASE("no space for it: the session ends, the replica stays what it was") {
    const bool at_its_end = keep;
    if (at_its_end) world.step(replica_event::CopyEndArrived{1, live.point()});
    world.stage_syncing = false;
    world.step(replica_event::StageFailed{fail(Errc::no_space, "full").value()});
    check_refused(world, Errc::no_space);
    CHECK_FALSE(world.stage_open);
    CHECK(world.replica.is_consistent());
    CHECK_FALSE(world.replica.is_copying());
    CHECK_FALSE(world.replica.failure().has_value());
  }
  SUBCASE("the commit cannot be recorded: the same") {
    world.step(replica_event::CopyEndArrived{1, live.point()});
    world.finish_stage_sync();
    world.finish_record(fail(Errc::no_space, "disk full"));
    check_refused(world, Errc::no_space);
    CHECK_FALSE(world.stage_open);
    CHECK(world.replica.logged() == base);
  }
  SUBCASE("promoted in the middle: to its old point") {
    world.images_synced = false;
    world.step(replica_event::PromotionRequested{{2, 9}, {}});
    CHECK(world.closed.has_value());
    CHECK_FALSE(world.stage_open);
    world.finish_record();
    REQUIRE(world.syncing_images);
    world.finish_image_sync();
    REQUIRE(world.promotion.has_value());
    CHECK(world.promotion->has_value());
    CHECK(world.replica.applied() == base);
  }
  SUBCASE("promoted between commit and image: to the new point, once that is there") {
    world.step(replica_event::CopyEndArrived{1, live.point()});
    world.finish_stage_sync();
    world.finish_record();
    world.step(replica_event::PromotionRequested{{2, 9}, {}});
    world.finish_record();
    CHECK_FALSE(world.syncing_images);
    world.finish_unstaging();
    world.finish_image_sync();
    world.finish_record();
    REQUIRE(world.syncing_images);
    world.finish_image_sync();
    REQUIRE(world.promotion.has_value());
    CHECK(world.promotion->has_value());
    CHECK(world.replica.applied() == live.point());
  }
}

TEST_CASE("replica: a committed stage that is not in the images comes there after a restart") {
  const HistoryPoint point{{1, 7}, 10, {3, 4}};
  ReplicaStanding standing{.promised = {1, 7},
                           .primary = "a",
                           .logged = point,
                           .durable = 10,
                           .applied = point,
                           .unstaging = true,
                           .whole = false};
  ReplicaWorld world(standing);
  world.applied = {};
  world.recorded_stage_bytes = stage_bytes_of_test;
  world.unstaging = true;
  CHECK(world.replica.is_unstaging());
  const SessionId id = world.attach({1, 7});
  REQUIRE(world.attached.has_value());
  CHECK(world.attached->consistent);
  CHECK(world.attached->logged == point);
  CHECK(world.attached->applied == 0);
  // Another copy waits for it.
  world.step(replica_event::StartArrived{id, {.copy = true, .after = 20, .in_place = true}});
  CHECK(world.records.empty());
  world.finish_unstaging();
  world.finish_image_sync();
  world.finish_record();
  CHECK(world.replica.applied() == point);
  REQUIRE(world.syncing_images);
  world.finish_image_sync();
  REQUIRE(world.records.size() == 1);
  CHECK(world.records[0].kind == ReplicaRecord::Kind::inconsistent);
}

namespace {

/// Two frames logged and applied, then a staged copy whose session has ended.
struct Parked : Streaming {
  HistoryPoint base;

  Parked() : Streaming(2) {
    base = source.point();
    world.step(replica_event::StartArrived{1, {.copy = true, .after = 10, .keep = true}});
    if (world.syncing) world.finish_sync();
    world.apply(base);
    world.finish_image_sync();
    world.finish_record();
    world.finish_drop();
    REQUIRE(world.stage_open);
    world.step(replica_event::SessionClosed{1});
    CHECK(world.stage_parked);
    CHECK_FALSE(world.replica.is_copying());
    world.attached.reset();
  }
  SessionId attach(const Epoch& epoch, bool knows_go_on = true) {
    AttachMessage message = ReplicaWorld::attach_message(epoch);
    if (knows_go_on) message.features = {std::string(feature_go_on)};
    const SessionId id = world.attach_as(message);
    world.finish_records();
    REQUIRE(world.attached.has_value());
    return id;
  }
  void go_on(SessionId id) {
    world.step(
        replica_event::StartArrived{id, {.copy = true, .after = 12, .keep = true, .go_on = true}});
  }
};

}  // namespace

TEST_CASE("replica: a staged copy that was interrupted goes on, again and again, to its commit") {
  Parked parked;
  ReplicaWorld& world = parked.world;
  for (int round = 0; round < 3; ++round) {
    const SessionId id = parked.attach(first_epoch);
    CHECK(world.attached->stage == first_epoch);
    CHECK(world.attached->logged == parked.base);
    CHECK(has_feature(world.attached->features, feature_go_on));
    parked.go_on(id);
    CHECK(world.stage_open);
    CHECK(world.replica.is_consistent());
    CHECK(world.records.empty());
    CHECK_FALSE(world.dropping);
    REQUIRE(world.replica.takes_input());
    CHECK(world.marks->received == 12);
    FrameHeader sums;
    sums.type = FrameType::block_sums;
    sums.range = {0, 0, 4096};
    sums.payload_bytes = 16;
    world.frame(sums);
    CHECK(world.compares.size() == static_cast<std::size_t>(round) + 1);
    if (round < 2) {
      world.step(replica_event::SessionClosed{id});
      CHECK(world.stage_parked);
      CHECK(world.replica.logged() == parked.base);
      world.attached.reset();
      continue;
    }
    const HistoryPoint end{first_epoch, 12, {5, 6}};
    world.step(replica_event::CopyEndArrived{id, end});
    world.finish_stage_sync();
    world.finish_record();
    CHECK(world.copy_done == end);
  }
}

TEST_CASE("replica: a parked stage is for its own term, and goes when the replica moves on") {
  Parked parked;
  ReplicaWorld& world = parked.world;
  SUBCASE("another term: it is not offered, and gone with the next copy") {
    const SessionId id = parked.attach({2, 9});
    CHECK_FALSE(world.attached->stage.has_value());
    world.step(replica_event::StartArrived{id, {.copy = true, .after = 12, .keep = true}});
    CHECK(world.stage_dropped);
    CHECK_FALSE(world.stage_parked);
  }
  SUBCASE("another term that goes on with it is refused") {
    parked.go_on(parked.attach({2, 9}));
    check_refused(world, Errc::protocol);
    CHECK_FALSE(world.stage_open);
  }
  SUBCASE("a primary that does not know of it is not told") {
    parked.attach(first_epoch, false);
    CHECK_FALSE(world.attached->stage.has_value());
  }
  SUBCASE("between sessions it is offered to nobody") {
    const SessionId id = parked.attach(first_epoch);
    world.step(replica_event::SessionClosed{id});
    CHECK_FALSE(world.replica.standing().stage.has_value());
  }
  SUBCASE("a copy that does not go on with it begins a stage of its own") {
    const SessionId id = parked.attach(first_epoch);
    world.step(replica_event::StartArrived{id, {.copy = true, .after = 12, .keep = true}});
    CHECK(world.stage_dropped);
    world.finish_image_sync();
    world.finish_record();
    world.finish_drop();
    CHECK(world.stage_open);
  }
  SUBCASE("it streams") {
    const SessionId id = parked.attach(first_epoch);
    world.step(replica_event::StartArrived{id, {.copy = false, .after = parked.base.sequence}});
    CHECK(world.stage_dropped);
    world.frame(parked.source.next(first_epoch));
  }
  SUBCASE("it is promoted") {
    world.images_synced = false;
    world.step(replica_event::PromotionRequested{{2, 9}, {}});
    CHECK(world.stage_dropped);
    world.finish_records();
    world.finish_image_sync();
    REQUIRE(world.promotion.has_value());
    CHECK(world.promotion->has_value());
  }
}

TEST_CASE("replica: a stage that failed is not gone on with") {
  Parked parked;
  ReplicaWorld& world = parked.world;
  parked.go_on(parked.attach(first_epoch));
  world.step(replica_event::StageFailed{fail(Errc::io_error, "read").value()});
  check_refused(world, Errc::io_error);
  CHECK_FALSE(world.stage_parked);
  CHECK(world.stage_dropped);
  world.attached.reset();
  parked.attach(first_epoch);
  CHECK_FALSE(world.attached->stage.has_value());
}

TEST_CASE("replica: a parked stage is offered after a restart, too") {
  const HistoryPoint point{{1, 7}, 10, {3, 4}};
  ReplicaWorld world({.promised = {1, 7},
                      .primary = "a",
                      .logged = point,
                      .durable = 10,
                      .applied = point,
                      .whole = false,
                      .parked = Epoch{1, 7}});
  world.recorded_staging = world.stage_parked = true;
  AttachMessage message = ReplicaWorld::attach_message({1, 7});
  message.features = {std::string(feature_go_on)};
  const SessionId id = world.attach_as(message);
  REQUIRE(world.attached.has_value());
  CHECK(world.attached->stage == Epoch{1, 7});
  world.step(
      replica_event::StartArrived{id, {.copy = true, .after = 12, .keep = true, .go_on = true}});
  CHECK(world.stage_open);
}

}  // namespace replicad
