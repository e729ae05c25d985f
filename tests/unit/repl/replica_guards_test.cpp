// Guards of the replica against what happens only in rare moments: each of these tests fails when one condition of
// core/repl is left out (`make -f Makefile.ci sim-mutants`).

#include <functional>

#include <doctest/doctest.h>

#include "tests/unit/repl/replica_world.h"

namespace replicad {
namespace {

using std::chrono_literals::operator""ms;
using std::chrono_literals::operator""s;

TEST_CASE("guard: nothing that comes from a session that is over is looked at") {
  Streaming streaming(1);
  ReplicaWorld& world = streaming.world;
  world.frame(FrameType::copy_data);  // out of place
  check_refused(world, Errc::protocol);
  REQUIRE_FALSE(world.replica.session().has_value());
  world.step(replica_event::FrameArrived{1, streaming.source.next(first_epoch)});
  world.step(replica_event::DigestArrived{1, streaming.source.point()});
  world.step(replica_event::CopyEndArrived{1, streaming.source.point()});
  world.step(replica_event::StartArrived{1, {.copy = false, .after = 1}});
  world.step(replica_event::CopyWritten{1, 1});
  world.step(replica_event::SessionClosed{1});
  CHECK(world.appending.empty());
}

TEST_CASE("guard: an interrupted resync is known by its base after a restart") {
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
  CHECK(world.replica.logged() == HistoryPoint{});
  CHECK(world.replica.applied() == HistoryPoint{});
  world.attach(first_epoch);
  REQUIRE(world.attached.has_value());
  CHECK(world.attached->logged == from);
  CHECK(world.replica.standing().logged == from);

  ReplicaWorld nothing({.promised = first_epoch,
                        .primary = "a",
                        .consistent = false,
                        .logged = {},
                        .durable = 0,
                        .applied = from,
                        .whole = false});
  nothing.logged = nothing.applied = {};
  nothing.attach(first_epoch);
  REQUIRE(nothing.attached.has_value());
  CHECK(nothing.attached->logged == HistoryPoint{});
}

TEST_CASE("guard: while a staged copy is made durable the old position is no watermark") {
  Streaming streaming(2);
  ReplicaWorld& world = streaming.world;
  world.step(replica_event::StartArrived{1, {.copy = true, .after = 10, .keep = true}});
  if (world.syncing) world.finish_sync();
  world.apply(streaming.source.point());
  world.finish_image_sync();
  world.finish_record();
  world.finish_drop();
  FrameSource live(HistoryPoint{first_epoch, 10, {3, 4}});
  world.frame(live.next(first_epoch));
  world.step(replica_event::CopyWritten{1, 11});
  world.step(replica_event::CopyEndArrived{1, live.point()});
  CHECK(world.replica.marks().received == 11);
  CHECK(world.replica.marks().durable == 0);
  world.finish_stage_sync();
  CHECK(world.replica.marks().received == 11);
  CHECK(world.replica.marks().durable == 0);
}

TEST_CASE("guard: the replica is woken for what comes first, a report or a sync") {
  Streaming streaming(2);
  ReplicaWorld& world = streaming.world;
  const Instant start = world.now;
  REQUIRE(world.replica.wake_at() == start + 1s);
  world.apply(streaming.source.at(1));
  CHECK(world.replica.wake_at() == start + 50ms);
  world.pass(50ms);
  CHECK(world.replica.wake_at() == start + 1s);
  world.pass(930ms);
  world.apply(streaming.source.at(2));
  CHECK(world.replica.wake_at() == start + 1s);
}

TEST_CASE("guard: a report comes when its time has come, and once") {
  Streaming streaming(1);
  ReplicaWorld& world = streaming.world;
  world.apply(streaming.source.at(1));
  const std::size_t before = world.marks_sent;
  world.step(replica_event::TimePassed{});
  CHECK(world.marks_sent == before);
  world.pass(50ms);
  CHECK(world.marks_sent == before + 1);
  world.step(replica_event::TimePassed{});
  CHECK(world.marks_sent == before + 1);
}

TEST_CASE("guard: a later term is another primary's, though an earlier one was of this one") {
  ReplicaWorld world;
  world.attach_as(ReplicaWorld::attach_message({2, 9}, "c"));
  world.finish_records();
  CHECK_FALSE(world.refused.has_value());
  CHECK(world.attached.has_value());
}

TEST_CASE("guard: a replica that has failed syncs nothing that is asked for") {
  Streaming streaming(1);
  REQUIRE_FALSE(streaming.world.syncing.has_value());
  streaming.world.step(replica_event::Failed{{Errc::io_error, 5, "disk", {}}});
  streaming.world.step(replica_event::SyncWanted{});
  CHECK_FALSE(streaming.world.syncing.has_value());
}

TEST_CASE("guard: of frames that are logged together, one that wants a sync is enough") {
  Streaming streaming;
  streaming.write(frame_flag_fua);
  streaming.write();
  streaming.world.log_all();
  CHECK(streaming.world.syncing.has_value());
}

TEST_CASE("guard: a heartbeat is answered at once, and again when all of it is applied") {
  Streaming streaming(2);
  ReplicaWorld& world = streaming.world;
  std::size_t before = world.marks_sent;
  world.frame(FrameType::heartbeat);
  CHECK(world.marks_sent == ++before);
  world.apply(streaming.source.at(1));
  CHECK(world.marks_sent == before);
  world.apply(streaming.source.at(2));
  CHECK(world.marks_sent == ++before);
  streaming.write();
  world.log_all();
  before = world.marks_sent;
  world.apply(streaming.source.at(3));
  CHECK(world.marks_sent == before);
}

TEST_CASE("guard: a trickle of frames does not put off the sync of the first") {
  Streaming streaming(1);
  ReplicaWorld& world = streaming.world;
  world.pass(600ms);
  streaming.write();
  world.log_all();
  CHECK_FALSE(world.syncing.has_value());
  world.pass(400ms);
  CHECK(world.syncing.has_value());
}

TEST_CASE("guard: without a session nothing is to be reported, and none is closed") {
  ReplicaWorld fresh;
  fresh.attach(first_epoch);
  CHECK_FALSE(fresh.closed.has_value());

  Streaming streaming(1);
  ReplicaWorld& world = streaming.world;
  world.step(replica_event::SessionClosed{1});
  world.pass(1s);
  world.finish_sync();
  world.apply(streaming.source.point());
  CHECK_FALSE(world.replica.wake_at().has_value());
  world.step(replica_event::PromotionRequested{{5, 5}, std::nullopt});
  CHECK_FALSE(world.closed.has_value());
}

TEST_CASE("guard: a session that has not begun its stream is told nothing for asking") {
  ReplicaWorld world;
  world.attach(first_epoch);
  world.frame(FrameType::sync_request);
  CHECK(world.marks_sent == 0);
}

TEST_CASE("guard: frames that are out of place are refused for that") {
  const auto refusal = [](const std::function<void(Streaming&)>& act) {
    Streaming streaming(1);
    act(streaming);
    REQUIRE(streaming.world.refused.has_value());
    return streaming.world.refused->message;
  };
  const auto with_type = [](FrameType type) {
    FrameHeader header;
    header.type = type;
    header.range = {0, 0, 4096};
    return header;
  };
  CHECK(refusal([&](Streaming& s) {
          s.world.frame(with_type(FrameType::copy_data));
        }).find("out of place") != std::string::npos);
  CHECK(refusal([&](Streaming& s) {
          s.world.frame(with_type(FrameType::block_sums));
        }).find("out of place") != std::string::npos);
  CHECK(refusal([&](Streaming& s) {
          FrameHeader header = s.source.next(first_epoch);
          header.range.disk = 2;
          s.world.frame(header);
        }).find("names disk 2 of 2") != std::string::npos);
  CHECK(refusal([&](Streaming& s) {
          HistoryPoint point = s.source.point();
          point.epoch.tag += 1;
          s.world.step(replica_event::DigestArrived{1, point});
        }).find("digest of sequence") != std::string::npos);
}

/// In place, at the first copy frame.
void begin_copy_in_place(Streaming& streaming) {
  ReplicaWorld& world = streaming.world;
  world.step(replica_event::StartArrived{1, {.copy = true, .after = 10, .in_place = true}});
  if (world.syncing) world.finish_sync();
  world.finish_records();
  if (world.syncing) world.finish_sync();
  world.finish_drop();
  REQUIRE(world.replica.phase() == Replica::Phase::copying);
}

TEST_CASE("guard: during a copy only what belongs to one is taken") {
  Streaming streaming(2);
  ReplicaWorld& world = streaming.world;
  const HistoryPoint before = streaming.source.at(1);
  begin_copy_in_place(streaming);
  world.step(replica_event::Applied{before});  // of an applier that has not heard of it
  CHECK(world.replica.applied() == HistoryPoint{});
  world.frame(FrameType::watermarks);
  check_refused(world, Errc::protocol);
  CHECK(world.compares.empty());
  CHECK_FALSE(world.stage_dropped);
}

TEST_CASE("guard: a change of another term of the same number is no part of a copy") {
  Streaming streaming(2);
  begin_copy_in_place(streaming);
  FrameSource live(HistoryPoint{first_epoch, 10, {3, 4}});
  streaming.world.frame(live.next({first_epoch.number, first_epoch.tag + 1}));
  check_refused(streaming.world, Errc::protocol);
  CHECK(streaming.world.image_writes.empty());
}

TEST_CASE("guard: a copy waits for what was received before it syncs what it keeps") {
  Streaming streaming(2);
  ReplicaWorld& world = streaming.world;
  world.pass(1s);
  world.finish_sync();
  world.apply(streaming.source.at(2));
  streaming.write();  // received, not logged
  world.step(replica_event::StartArrived{1, {.copy = true, .after = 10, .keep = true}});
  CHECK_FALSE(world.syncing_images);

  SUBCASE("a session that ends meanwhile leaves nothing to wait for") {
    world.log_all();
    world.step(replica_event::SessionClosed{1});
    world.attached.reset();
    world.attach(first_epoch);
    CHECK(world.attached.has_value());
  }
}

// --- promises ---

TEST_CASE("guard: a promise that is not higher changes nothing") {
  ReplicaWorld world;
  world.stream({5, 5});
  world.step(replica_event::PromiseRaised{{3, 3}});
  world.step(replica_event::PromiseRaised{{5, 5}});
  CHECK(world.replica.promised() == Epoch{5, 5});
  CHECK_FALSE(world.refused.has_value());
  world.attached.reset();
  world.attach({5, 5});
  CHECK(world.records.empty());
  CHECK(world.attached.has_value());
}

TEST_CASE("guard: a promise made elsewhere does not lower one that is being recorded") {
  ReplicaWorld world;
  world.attach({9, 9});
  world.step(replica_event::PromiseRaised{{5, 5}});
  CHECK(world.replica.promised() == Epoch{9, 9});
  CHECK_FALSE(world.refused.has_value());
  world.step(replica_event::PromiseRaised{{9, 9}});
  CHECK_FALSE(world.refused.has_value());
  CHECK(world.replica.session().has_value());
}

TEST_CASE("guard: a term that nobody was named for is recorded with its primary") {
  ReplicaWorld world;
  world.step(replica_event::PromiseRaised{{5, 5}});
  world.attach({5, 5});
  CHECK_FALSE(world.attached.has_value());
  REQUIRE(world.records.size() == 1);
  CHECK(world.records[0].primary == "a");
  // Another one comes first, of the same term: it is answered when its own record is written.
  world.attach_as(ReplicaWorld::attach_message({5, 5}, "c"));
  REQUIRE(world.records.size() == 2);
  world.finish_record();
  CHECK_FALSE(world.attached.has_value());
  world.finish_record();
  CHECK(world.attached.has_value());
}

TEST_CASE("guard: a promotion waits for its own promise, and a later attach for its own") {
  ReplicaWorld world({.promised = {1, 7},
                      .primary = "a",
                      .consistent = true,
                      .logged = {},
                      .durable = 0,
                      .applied = {}});
  world.attach({2, 8});
  world.step(replica_event::PromotionRequested{{3, 3}, HistoryPoint{{1, 7}, 9, {}}});
  REQUIRE(world.records.size() == 2);
  world.finish_record();
  CHECK_FALSE(world.syncing_images);
  CHECK_FALSE(world.promotion.has_value());
  world.finish_record();
  REQUIRE(world.promotion.has_value());
  CHECK(world.promotion->error().code == Errc::too_far_behind);
  CHECK_FALSE(world.closed == std::nullopt);

  // A later attach records the same term again, with its primary.
  ReplicaWorld unnamed({.promised = {1, 7},
                        .primary = "",
                        .consistent = true,
                        .logged = {},
                        .durable = 0,
                        .applied = {}});
  unnamed.step(replica_event::PromotionRequested{{5, 5}, HistoryPoint{{1, 7}, 9, {}}});
  unnamed.finish_record();
  REQUIRE(unnamed.promotion.has_value());
  unnamed.attach({5, 5});
  unnamed.finish_records();
  CHECK(unnamed.attached.has_value());
}

TEST_CASE("guard: a replica that was ready for a promotion can be asked again") {
  ReplicaWorld world;
  for (const Epoch& epoch : {Epoch{5, 5}, Epoch{6, 6}}) {
    world.promotion.reset();
    world.step(replica_event::PromotionRequested{epoch, std::nullopt});
    world.finish_records();
    world.finish_image_sync();
    REQUIRE(world.promotion.has_value());
    CHECK(world.promotion->has_value());
  }
}

// --- failure ---

TEST_CASE("guard: the first failure is the reason, and ends no promotion that was not asked for") {
  Streaming streaming(1);
  ReplicaWorld& world = streaming.world;
  world.step(replica_event::Failed{Error{Errc::io_error, 5, "first", {}}});
  world.step(replica_event::Failed{Error{Errc::io_error, 5, "second", {}}});
  CHECK(world.replica.failure()->message == "first");
  CHECK_FALSE(world.promotion.has_value());

  ReplicaWorld promoted;
  promoted.step(replica_event::PromotionRequested{{5, 5}, std::nullopt});
  promoted.finish_records();
  promoted.finish_image_sync();
  promoted.promotion.reset();
  promoted.step(replica_event::Failed{Error{Errc::io_error, 5, "disk", {}}});
  CHECK_FALSE(promoted.promotion.has_value());
}

TEST_CASE("guard: what was under way when a replica failed changes nothing any more") {
  Streaming streaming(1);
  ReplicaWorld& world = streaming.world;
  world.pass(1s);
  REQUIRE(world.syncing.has_value());
  streaming.write();
  const std::size_t before = world.marks_sent;
  world.step(replica_event::Failed{Error{Errc::io_error, 5, "disk", {}}});
  world.finish_sync();
  world.log_all();
  world.step(replica_event::Applied{streaming.source.at(1)});
  CHECK(world.replica.logged() == streaming.source.at(1));
  CHECK(world.replica.marks().durable == 0);
  CHECK(world.replica.applied() == HistoryPoint{});
  CHECK(world.marks_sent == before);
  world.now += 10s;
  world.step(replica_event::TimePassed{});
  CHECK_FALSE(world.syncing.has_value());

  Streaming marking(1);
  marking.world.step(replica_event::StartArrived{1, {.copy = true, .after = 10, .in_place = true}});
  if (marking.world.syncing) marking.world.finish_sync();
  REQUIRE(marking.world.records.size() == 1);
  marking.world.step(replica_event::Failed{Error{Errc::io_error, 5, "disk", {}}});
  marking.world.finish_record();
  CHECK_FALSE(marking.world.dropping);
}

TEST_CASE("guard: a replica that failed syncs nothing when its time comes") {
  Streaming streaming(1);
  streaming.world.step(replica_event::Failed{Error{Errc::io_error, 5, "disk", {}}});
  streaming.world.now += 10s;
  streaming.world.step(replica_event::TimePassed{});
  CHECK_FALSE(streaming.world.syncing.has_value());
}

TEST_CASE("guard: a replica with another digest at the history's sequence is not promoted") {
  ReplicaWorld world;
  world.step(replica_event::PromotionRequested{{5, 5}, HistoryPoint{{1, 7}, 0, {1, 1}}});
  world.finish_records();
  REQUIRE(world.promotion.has_value());
  CHECK(world.promotion->error().code == Errc::diverged);
}

}  // namespace
}  // namespace replicad
