// Which of the replica's effects waits for which completion (core/repl/replica.h): each of these tests keeps one back,
// lets other things come meanwhile, and looks that nothing overtakes it. docs/testing.md lists the rules.

#include <functional>
#include <vector>

#include <doctest/doctest.h>

#include "tests/unit/repl/replica_world.h"

namespace replicad::replica_order {

using std::chrono_literals::operator""s;

/// What may come at any moment, and makes nothing true that is waited for.
void disturb(ReplicaWorld& world) {
  AttachMessage other = ReplicaWorld::attach_message(first_epoch);
  other.volume = "vm2";
  world.step(replica_event::AttachArrived{1000, other, false});
  check_refused(world, Errc::not_found);
  world.refused.reset();
  world.step(replica_event::PromiseRaised{{0, 1}});
  world.step(replica_event::SyncWanted{});
  world.pass(5s);
  world.step(replica_event::TimePassed{});
  if (!world.replica.takes_input()) return;
  world.frame(FrameType::heartbeat);
  world.frame(FrameType::sync_request);
}

void finish_syncs(ReplicaWorld& world) {
  while (world.syncing)
    world.finish_sync();
}

enum class Way { whole_in_place, kept_in_place, rewind, staged };
const std::vector<Way> every_way = {
    Way::whole_in_place, Way::kept_in_place, Way::rewind, Way::staged};

ReplicaRecord::Kind mark_of(Way way) {
  switch (way) {
    case Way::whole_in_place:
      return ReplicaRecord::Kind::inconsistent;
    case Way::kept_in_place:
      return ReplicaRecord::Kind::resyncing;
    case Way::rewind:
      return ReplicaRecord::Kind::rewinding;
    case Way::staged:
      return ReplicaRecord::Kind::staging;
  }
  return ReplicaRecord::Kind::promise;
}

/// A replica that streams, and the copy that it is told to begin.
struct Copied : Streaming {
  Way way;
  Sequence after;
  FrameSource live{after > 0 ? HistoryPoint{first_epoch, after, {3, 4}} : HistoryPoint{}};

  explicit Copied(Way way_of_copy, Sequence after_sequence = 10)
      : Streaming(2), way(way_of_copy), after(after_sequence) {}

  void start() {
    world.step(replica_event::StartArrived{*world.replica.session(),
                                           {.copy = true,
                                            .after = after,
                                            .keep = way == Way::kept_in_place,
                                            .save = way == Way::rewind,
                                            .in_place = way != Way::staged}});
  }
  void reach_mark() {
    start();
    if (way != Way::whole_in_place) {
      world.log_all();
      finish_syncs(world);
      world.apply(source.point());
      world.finish_image_sync();
    }
    REQUIRE(world.records.size() == 1);
    REQUIRE(world.records[0].kind == mark_of(way));
  }
  void reach_drop() {
    reach_mark();
    world.finish_record();
    world.log_all();
    finish_syncs(world);
    REQUIRE(world.dropping);
  }
  void reach_copying() {
    reach_drop();
    world.finish_drop();
    REQUIRE(world.replica.phase() == Replica::Phase::copying);
    if (after > 0) world.frame(live.next(first_epoch));
  }
  void end() { world.step(replica_event::CopyEndArrived{*world.replica.session(), live.point()}); }
  void sync_copy() {
    if (way == Way::staged) {
      world.finish_stage_sync();
    } else {
      world.finish_image_sync();
    }
  }
  /// The copy is on record as whole; a stage is on its way into the images.
  void reach_done() {
    reach_copying();
    end();
    sync_copy();
    world.finish_record();
    REQUIRE(world.copy_done == live.point());
  }
  [[nodiscard]] bool has_changed_anything() const {
    return world.dropping || world.stage_open || !world.image_writes.empty() ||
           world.replica.takes_input();
  }
};

// --- sessions

TEST_CASE("order: a promise is recorded before attached is sent") {
  Streaming streaming(2);
  ReplicaWorld& world = streaming.world;
  world.pass(1s);
  REQUIRE(world.syncing);
  world.attached.reset();
  world.attach({2, 8});
  REQUIRE(world.records.size() == 1);
  disturb(world);
  world.finish_sync();
  disturb(world);
  world.apply(streaming.source.point());
  disturb(world);
  CHECK_FALSE(world.attached);
  CHECK_FALSE(world.replica.takes_input());
  world.finish_record();
  CHECK(world.attached);
}

TEST_CASE("order: that a replica may come to lack something is recorded before attached is sent") {
  ReplicaWorld world({.promised = first_epoch, .primary = "a", .logged = {}, .applied = {}});
  world.attach(first_epoch);
  REQUIRE(world.records.size() == 1);
  disturb(world);
  CHECK_FALSE(world.attached);
  world.finish_record();
  CHECK(world.attached);
  CHECK_FALSE(world.recorded_whole);
}

TEST_CASE("order: what an old session has sent is in the log before attached is sent") {
  Streaming streaming(1);
  ReplicaWorld& world = streaming.world;
  streaming.write();
  streaming.write();
  world.attached.reset();
  world.attach(first_epoch);
  disturb(world);
  CHECK_FALSE(world.attached);
  world.log_some(1);
  finish_syncs(world);
  disturb(world);
  CHECK_FALSE(world.attached);
  world.log_some(1);
  REQUIRE(world.attached);
  CHECK(world.attached->logged == streaming.source.point());
}

TEST_CASE("order: a copy that was ending is synced and recorded before attached is sent") {
  for (const Way way : every_way) {
    CAPTURE(static_cast<int>(way));
    Copied copied(way);
    ReplicaWorld& world = copied.world;
    copied.reach_copying();
    copied.end();
    world.attached.reset();
    world.attach(first_epoch);
    disturb(world);
    CHECK_FALSE(world.attached);
    copied.sync_copy();
    disturb(world);
    CHECK_FALSE(world.attached);
    world.finish_record();
    REQUIRE(world.attached);
    CHECK(world.attached->logged == copied.live.point());
  }
}

TEST_CASE("order: a copy whose session ends while it is begun comes to rest before attached") {
  for (const Way way : every_way) {
    CAPTURE(static_cast<int>(way));
    Copied copied(way);
    ReplicaWorld& world = copied.world;
    copied.reach_mark();
    world.attached.reset();
    world.attach(first_epoch);
    disturb(world);
    CHECK_FALSE(world.attached);
    world.finish_record();
    finish_syncs(world);
    REQUIRE(world.dropping);
    disturb(world);
    CHECK_FALSE(world.attached);
    world.finish_drop();
    REQUIRE(world.attached);
    CHECK(world.attached->consistent == (way == Way::staged));
  }
}

// --- watermarks

TEST_CASE("order: a sequence is reported as logged when the log has it") {
  Streaming streaming;
  ReplicaWorld& world = streaming.world;
  for (int i = 0; i < 3; ++i)
    streaming.write();
  disturb(world);
  CHECK(world.marks->received == 3);
  CHECK(world.marks->logged == 0);
  world.log_some(2);
  disturb(world);
  CHECK(world.marks->logged == 2);
  CHECK(world.marks->logged_digest == streaming.source.at(2).digest);
}

TEST_CASE("order: a sequence is reported as durable when the sync that covers it has ended") {
  Streaming streaming;
  ReplicaWorld& world = streaming.world;
  streaming.write();
  streaming.write(frame_flag_fua);
  world.log_all();
  REQUIRE(world.syncing == 2);
  streaming.write();
  streaming.write(frame_flag_fua);
  world.log_all();
  disturb(world);
  CHECK(world.marks->logged == 4);
  CHECK(world.marks->durable == 0);
  world.finish_sync();
  REQUIRE(world.syncing == 4);
  disturb(world);
  CHECK(world.marks->durable == 2);
  world.finish_sync();
  CHECK(world.marks->durable == 4);
}

TEST_CASE("order: a sequence is reported as applied when the images have it") {
  Streaming streaming(3);
  ReplicaWorld& world = streaming.world;
  world.pass(1s);
  world.finish_sync();
  disturb(world);
  CHECK(world.marks->durable == 3);
  CHECK(world.marks->applied == 0);
  world.apply(streaming.source.at(2));
  disturb(world);
  CHECK(world.marks->applied == 2);
  CHECK(world.marks->applied_digest == streaming.source.at(2).digest);
}

TEST_CASE("order: what a copy has brought is reported when it is written, and never as durable") {
  for (const Way way : every_way) {
    CAPTURE(static_cast<int>(way));
    Copied copied(way);
    ReplicaWorld& world = copied.world;
    copied.reach_copying();
    world.frame(copied.live.next(first_epoch));
    disturb(world);
    CHECK(world.marks->applied == 10);
    world.step(replica_event::CopyWritten{1, 11});
    disturb(world);
    CHECK(world.marks->received == 11);
    CHECK(world.marks->applied == 11);
    CHECK(world.marks->durable == 0);
  }
}

// --- promotion

TEST_CASE("order: a promotion waits for promise, log and images, whichever comes last") {
  enum class Last { promise, append, apply };
  for (const Last last : {Last::promise, Last::append, Last::apply}) {
    CAPTURE(static_cast<int>(last));
    Streaming streaming(1);
    ReplicaWorld& world = streaming.world;
    world.step(replica_event::SyncWanted{});
    world.finish_sync();
    world.apply(streaming.source.at(1));
    streaming.write();
    world.step(replica_event::PromotionRequested{{2, 9}, std::nullopt});
    REQUIRE(world.records.size() == 1);
    disturb(world);
    CHECK_FALSE(world.syncing_images);
    if (last != Last::promise) world.finish_record();
    disturb(world);
    CHECK_FALSE(world.syncing_images);
    if (last != Last::append) {
      world.log_all();
      disturb(world);
      CHECK_FALSE(world.syncing_images);
      world.finish_sync();
    }
    if (last == Last::promise) world.apply(streaming.source.at(2));
    disturb(world);
    CHECK_FALSE(world.syncing_images);
    if (last == Last::promise) world.finish_record();
    if (last == Last::append) {
      world.log_all();
      world.finish_sync();
    }
    if (last != Last::promise) world.apply(streaming.source.at(2));
    REQUIRE(world.syncing_images);
    disturb(world);
    CHECK_FALSE(world.promotion);
    world.finish_image_sync();
    REQUIRE(world.promotion);
    CHECK(world.promotion->has_value());
  }
}

TEST_CASE("order: a promotion waits for the end of a copy, and for its stage in the images") {
  Sequence after = 10;
  SUBCASE("that brings something") {}
  SUBCASE("at the beginning of all histories, where the images seem to be already") {
    after = 0;
  }
  Copied copied(Way::staged, after);
  ReplicaWorld& world = copied.world;
  copied.reach_copying();
  copied.end();
  world.step(replica_event::PromotionRequested{{2, 9}, std::nullopt});
  const auto waits = [&] {
    disturb(world);
    return !world.promotion;
  };
  world.finish_record();
  CHECK(waits());
  CHECK_FALSE(world.syncing_images);
  world.finish_stage_sync();
  CHECK(waits());
  CHECK_FALSE(world.syncing_images);
  world.finish_record();
  CHECK(waits());
  CHECK_FALSE(world.syncing_images);
  world.finish_unstaging();
  CHECK(waits());
  world.finish_image_sync();
  CHECK(waits());
  CHECK_FALSE(world.syncing_images);
  world.finish_record();
  REQUIRE(world.syncing_images);  // its own
  CHECK(waits());
  world.finish_image_sync();
  REQUIRE(world.promotion);
  CHECK(world.promotion->has_value());
  CHECK(world.replica.applied() == copied.live.point());
}

// --- the beginning of a copy

TEST_CASE(
    "order: a copy that keeps the old point syncs the images when all of the log is in them") {
  for (const Way way : {Way::kept_in_place, Way::rewind, Way::staged}) {
    CAPTURE(static_cast<int>(way));
    Copied copied(way);
    ReplicaWorld& world = copied.world;
    copied.write();  // received, not logged
    copied.start();
    const auto waits = [&] {
      disturb(world);
      return !world.syncing_images && world.records.empty() && !copied.has_changed_anything();
    };
    CHECK(waits());
    finish_syncs(world);
    world.apply(copied.source.at(2));
    CHECK(waits());
    world.log_all();
    CHECK(waits());
    finish_syncs(world);
    CHECK(waits());
    world.apply(copied.source.at(3));
    REQUIRE(world.syncing_images);
  }
}

TEST_CASE("order: the images are synced before a mark names their point") {
  for (const Way way : {Way::kept_in_place, Way::rewind, Way::staged}) {
    CAPTURE(static_cast<int>(way));
    Copied copied(way);
    ReplicaWorld& world = copied.world;
    copied.start();
    finish_syncs(world);
    world.apply(copied.source.point());
    REQUIRE(world.syncing_images);
    disturb(world);
    CHECK(world.records.empty());
    CHECK_FALSE(copied.has_changed_anything());
    world.finish_image_sync();
    REQUIRE(world.records.size() == 1);
    CHECK(world.records[0].kind == mark_of(way));
    CHECK(world.records[0].point == copied.source.point());
  }
}

TEST_CASE(
    "order: a copy's mark is recorded before the log is dropped and the first byte is taken") {
  for (const Way way : every_way) {
    CAPTURE(static_cast<int>(way));
    Copied copied(way);
    ReplicaWorld& world = copied.world;
    copied.reach_mark();
    disturb(world);
    finish_syncs(world);
    disturb(world);
    CHECK_FALSE(copied.has_changed_anything());
    CHECK(world.replica.is_consistent());
    world.finish_record();
    CHECK(world.dropping);
  }
}

TEST_CASE("order: a log is at rest before it is dropped, and no sync of it begins any more") {
  Copied copied(Way::whole_in_place);
  ReplicaWorld& world = copied.world;
  world.step(replica_event::SyncWanted{});
  REQUIRE(world.syncing);
  copied.write(frame_flag_fua);
  copied.reach_mark();
  world.finish_record();
  disturb(world);
  CHECK_FALSE(copied.has_changed_anything());
  SUBCASE("the append comes last") {
    world.finish_sync();
    disturb(world);
    CHECK_FALSE(copied.has_changed_anything());
    world.log_all();
  }
  SUBCASE("the sync comes last") {
    world.log_all();
    disturb(world);
    CHECK_FALSE(copied.has_changed_anything());
    world.finish_sync();
  }
  CHECK(world.dropping);
  disturb(world);
  CHECK_FALSE(world.syncing);
}

TEST_CASE("order: a log is dropped before a stage is opened, and before the first byte is taken") {
  for (const Way way : every_way) {
    CAPTURE(static_cast<int>(way));
    Copied copied(way);
    ReplicaWorld& world = copied.world;
    copied.reach_drop();
    disturb(world);
    CHECK_FALSE(world.stage_open);
    CHECK_FALSE(world.replica.takes_input());
    world.finish_drop();
    CHECK(world.stage_open == (way == Way::staged));
    CHECK(world.replica.takes_input());
  }
}

// --- its end

TEST_CASE("order: what a copy has brought is synced before it is recorded") {
  for (const Way way : every_way) {
    CAPTURE(static_cast<int>(way));
    Copied copied(way);
    ReplicaWorld& world = copied.world;
    copied.reach_copying();
    copied.end();
    REQUIRE(world.syncing_images == (way != Way::staged));
    REQUIRE(world.stage_syncing == (way == Way::staged));
    disturb(world);
    CHECK(world.records.empty());
    CHECK_FALSE(world.copy_done);
    copied.sync_copy();
    REQUIRE(world.records.size() == 1);
    CHECK(world.records[0].point == copied.live.point());
  }
}

TEST_CASE("order: a copy is recorded before copy_done, a new log and its stage in the images") {
  for (const Way way : every_way) {
    CAPTURE(static_cast<int>(way));
    Copied copied(way);
    ReplicaWorld& world = copied.world;
    copied.reach_copying();
    copied.end();
    copied.sync_copy();
    const HistoryPoint before = world.replica.logged();
    disturb(world);
    CHECK_FALSE(world.copy_done);
    CHECK_FALSE(world.unstaging);
    CHECK_FALSE(world.replica.takes_input());
    CHECK(world.replica.logged() == before);
    CHECK(world.replica.is_consistent() == (way == Way::staged));
    world.finish_record();
    CHECK(world.copy_done == copied.live.point());
    CHECK(world.unstaging == (way == Way::staged));
    CHECK(world.replica.takes_input());
  }
}

TEST_CASE("order: a stage is in the images, synced and on record so before it is removed") {
  Copied copied(Way::staged);
  ReplicaWorld& world = copied.world;
  copied.reach_done();
  // The stream goes on meanwhile; its log is not applied.
  const auto nothing_is_applied = [&] {
    world.frame(copied.live.next(first_epoch, FrameType::write, frame_flag_fua));
    world.log_all();
    finish_syncs(world);
    disturb(world);
    return world.stage_open && world.replica.applied() == HistoryPoint{} &&
           world.marks->applied == 0 && world.marks->durable == copied.live.point().sequence;
  };
  CHECK(nothing_is_applied());
  CHECK_FALSE(world.syncing_images);
  world.finish_unstaging();
  REQUIRE(world.syncing_images);
  CHECK(nothing_is_applied());
  CHECK(world.records.empty());
  world.finish_image_sync();
  REQUIRE(world.records.size() == 1);
  REQUIRE(world.records[0].kind == ReplicaRecord::Kind::unstaged);
  CHECK(nothing_is_applied());
  world.finish_record();
  CHECK_FALSE(world.stage_open);
  CHECK(world.replica.applied().sequence == 11);
}

TEST_CASE("order: a stage is in the images before another copy begins") {
  Sequence after = 10;
  SUBCASE("a stage that brings something") {}
  SUBCASE("one at the beginning of all histories, where the images seem to be already") {
    after = 0;
  }
  for (const Way way : every_way) {
    CAPTURE(static_cast<int>(way));
    Copied copied(Way::staged, after);
    ReplicaWorld& world = copied.world;
    copied.reach_done();
    copied.way = way;
    copied.after = 20;
    copied.start();
    const auto waits = [&] {
      disturb(world);
      return !world.dropping && world.image_writes.empty() && !world.replica.takes_input();
    };
    CHECK(waits());
    CHECK_FALSE(world.syncing_images);
    world.finish_unstaging();
    CHECK(waits());
    CHECK(world.records.empty());
    world.finish_image_sync();
    CHECK(waits());
    REQUIRE(world.records.size() == 1);
    CHECK(world.records[0].kind == ReplicaRecord::Kind::unstaged);
    CHECK_FALSE(world.syncing_images);
    world.finish_record();
    REQUIRE(world.syncing_images);
    CHECK(waits());
    CHECK(world.records.empty());
    world.finish_image_sync();
    REQUIRE(world.records.size() == 1);
    CHECK(world.records[0].kind != ReplicaRecord::Kind::unstaged);
  }
}

}  // namespace replicad::replica_order
