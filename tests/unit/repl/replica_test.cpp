#include "core/repl/replica.h"

#include <cstdlib>
#include <functional>
#include <iostream>
#include <random>

#include "tests/unit/repl/replica_world.h"

namespace replicad {
namespace {

using std::chrono_literals::operator""ms;
using std::chrono_literals::operator""s;

}  // namespace

TEST_CASE("replica: answers an attach of the recorded epoch at once") {
  ReplicaWorld world;
  world.attach(first_epoch);
  CHECK(world.records.empty());
  REQUIRE(world.attached.has_value());
  CHECK(world.attached->boot_id == "boot");
  CHECK(world.attached->protocol == 1);
  CHECK(world.attached->logged == HistoryPoint{});
}

TEST_CASE("replica: promises a higher epoch durably before it answers") {
  ReplicaWorld world;
  world.attach({2, 8});
  CHECK_FALSE(world.attached.has_value());
  CHECK_FALSE(world.replica.takes_input());
  REQUIRE(world.records.size() == 1);
  CHECK(world.records[0].epoch == Epoch{2, 8});
  world.finish_record();
  CHECK(world.attached.has_value());
  CHECK(world.recorded_epoch == Epoch{2, 8});
  // From now on the lower one is refused.
  world.attach(first_epoch);
  check_refused(world, Errc::stale_epoch);
  CHECK(world.replica.session() == 1);
}

TEST_CASE("replica: a promise that cannot be recorded refuses the session and is tried again") {
  ReplicaWorld world;
  world.attach({2, 8});
  world.finish_record(fail(Errc::no_space, "disk full"));
  check_refused(world, Errc::no_space);
  CHECK_FALSE(world.attached.has_value());
  // The same epoch needs a record again: the first one is not in the file.
  world.attach({2, 8});
  CHECK(world.records.size() == 1);
  world.finish_record();
  CHECK(world.attached.has_value());
}

TEST_CASE("replica: refuses every attach that is not for it") {
  ReplicaWorld world;
  const auto refusal = [&](const std::function<void(AttachMessage&)>& change, bool is_primary) {
    AttachMessage message = ReplicaWorld::attach_message({2, 8});
    change(message);
    world.refused.reset();
    world.attach_as(message, is_primary);
    REQUIRE(world.refused.has_value());
    CHECK_FALSE(world.attached.has_value());
    CHECK(world.records.empty());
    return world.refused->code;
  };
  CHECK(refusal([](AttachMessage& m) { m.protocol_min = 2, m.protocol_max = 3; }, false) ==
        Errc::version_mismatch);
  CHECK(refusal([](AttachMessage& m) { m.protocol_min = 0, m.protocol_max = 0; }, false) ==
        Errc::version_mismatch);
  CHECK(refusal([](AttachMessage& m) { m.volume = "vm2"; }, false) == Errc::not_found);
  CHECK(refusal([](AttachMessage& m) { m.volume_uuid = "other"; }, false) == Errc::refused);
  CHECK(refusal([](AttachMessage& m) { m.replica = "c"; }, false) == Errc::refused);
  CHECK(refusal([](AttachMessage& m) { m.primary = "b"; }, false) == Errc::refused);
  CHECK(refusal([](AttachMessage& m) { m.primary = "../a"; }, false) == Errc::protocol);
  CHECK(refusal([](AttachMessage& m) { m.disk_bytes = {world_disk_bytes}; }, false) ==
        Errc::refused);
  CHECK(refusal([](AttachMessage& m) { m.disk_bytes[1] += 512; }, false) == Errc::refused);
  CHECK(refusal([](AttachMessage& m) { m.epoch = {0, 0}; }, false) == Errc::protocol);
  CHECK(refusal([](AttachMessage& m) { m.epoch = {counter_max + 1, 0}; }, false) == Errc::protocol);
  CHECK(refusal([](AttachMessage& m) { m.epoch = {1, 8}; }, false) == Errc::diverged);
  CHECK(refusal([](AttachMessage& m) { m.epoch = first_epoch, m.primary = "c"; }, false) ==
        Errc::refused);
  CHECK(refusal([](AttachMessage&) {}, true) == Errc::refused);
}

TEST_CASE("replica: a new connection replaces the old one and waits for its log writes") {
  Streaming streaming;
  ReplicaWorld& world = streaming.world;
  streaming.write();
  streaming.write();
  world.attached.reset();
  world.attach(first_epoch);
  CHECK(world.closed.has_value());
  CHECK_FALSE(world.attached.has_value());
  world.log_some(1);
  CHECK_FALSE(world.attached.has_value());
  world.log_some(1);
  REQUIRE(world.attached.has_value());
  CHECK(world.attached->logged == streaming.source.point());
  // The old connection's frames and end mean nothing any more.
  world.step(replica_event::FrameArrived{1, streaming.source.next(first_epoch)});
  world.step(replica_event::SessionClosed{1});
  CHECK(world.replica.session() == 2);
  CHECK(world.appending.empty());
}

TEST_CASE("replica: a start must fit what is logged") {
  ReplicaWorld world;
  const SessionId id = world.attach(first_epoch);
  world.step(replica_event::StartArrived{id, {.copy = false, .after = 3}});
  check_refused(world, Errc::protocol);
  CHECK_FALSE(world.replica.session().has_value());
}

TEST_CASE("replica: frames before a start, twice-started streams and strange frames are refused") {
  SUBCASE("before the start") {
    ReplicaWorld world;
    FrameSource source;
    world.attach(first_epoch);
    world.frame(source.next(first_epoch));
    check_refused(world, Errc::protocol);
  }
  SUBCASE("started twice") {
    Streaming streaming;
    streaming.world.step(replica_event::StartArrived{1, {.copy = false, .after = 0}});
    check_refused(streaming.world, Errc::protocol);
  }
  SUBCASE("copy frames in the stream") {
    Streaming streaming;
    FrameHeader header;
    header.type = FrameType::copy_zero;
    header.range = {0, 0, 512};
    streaming.world.frame(header);
    check_refused(streaming.world, Errc::protocol);
  }
  SUBCASE("copy_end without a copy") {
    Streaming streaming;
    streaming.world.step(replica_event::CopyEndArrived{1, {}});
    check_refused(streaming.world, Errc::protocol);
  }
  SUBCASE("a replica's own frame") {
    Streaming streaming;
    streaming.world.frame(FrameType::watermarks);
    check_refused(streaming.world, Errc::protocol);
  }
}

TEST_CASE("replica: numbered frames come without a gap, in their term, within their disk") {
  Streaming streaming(1);
  ReplicaWorld& world = streaming.world;
  FrameHeader header = streaming.source.next(first_epoch);
  SUBCASE("repeated") {
    header.sequence = 1;
  }
  SUBCASE("gap") {
    header.sequence = 3;
  }
  SUBCASE("epoch above the session's") {
    header.epoch = {2, 8};
  }
  SUBCASE("other tag") {
    header.epoch = {1, 8};
  }
  SUBCASE("fallen epoch") {
    header.epoch = {0, 0};
  }
  SUBCASE("no such disk") {
    header.range.disk = 2;
  }
  SUBCASE("beyond the disk") {
    header.range = {1, 512, 512};
  }
  SUBCASE("beyond the disk by one byte") {
    header.range = {0, world_disk_bytes - 511, 512};
  }
  world.frame(header);
  check_refused(world, Errc::protocol);
  CHECK(world.appending.empty());
  CHECK(world.replica.logged() == world.logged);
}

TEST_CASE("replica: catch-up takes lower epochs that do not fall") {
  ReplicaWorld world({.promised = {5, 1},
                      .primary = "a",
                      .consistent = true,
                      .logged = {},
                      .durable = 0,
                      .applied = {}});
  FrameSource source;
  world.stream({5, 1});
  world.frame(source.next({2, 4}));
  world.frame(source.next({2, 4}));
  world.frame(source.next({4, 9}));
  world.frame(source.next({5, 1}));
  CHECK(world.appending.size() == 4);
  CHECK_FALSE(world.refused.has_value());
  world.frame(source.next({4, 9}));
  check_refused(world, Errc::protocol);
}

TEST_CASE("replica: reports what is logged as soon as it is, with both digests") {
  Streaming streaming;
  ReplicaWorld& world = streaming.world;
  streaming.write();
  streaming.write();
  streaming.write();
  CHECK(world.marks_sent == 0);
  world.log_some(2);
  REQUIRE(world.marks_sent == 1);
  CHECK(world.marks->received == 3);
  CHECK(world.marks->logged == 2);
  CHECK(world.marks->durable == 0);
  CHECK(world.marks->logged_digest == streaming.source.at(2).digest);
  CHECK(world.marks->applied == 0);
  world.apply(streaming.source.at(1));
  world.frame(FrameType::heartbeat);
  CHECK(world.marks->applied == 1);
  CHECK(world.marks->applied_digest == streaming.source.at(1).digest);
}

TEST_CASE("replica: flush and FUA make the log durable at once") {
  Streaming streaming;
  ReplicaWorld& world = streaming.world;
  streaming.write();
  SUBCASE("flush") {
    world.frame(streaming.source.next(first_epoch, FrameType::flush));
  }
  SUBCASE("FUA") {
    streaming.write(frame_flag_fua);
  }
  streaming.write();
  CHECK_FALSE(world.syncing.has_value());
  world.log_some(1);
  CHECK_FALSE(world.syncing.has_value());
  world.log_some(1);
  REQUIRE(world.syncing.has_value());
  world.log_some(1);
  const std::size_t sent = world.marks_sent;
  world.finish_sync();
  CHECK(world.marks_sent == sent + 1);
  CHECK(world.marks->durable == 2);
  CHECK(world.marks->logged == 3);
  CHECK_FALSE(world.syncing.has_value());
}

TEST_CASE("replica: a flush during a sync gets one of its own afterwards") {
  Streaming streaming;
  ReplicaWorld& world = streaming.world;
  streaming.write(frame_flag_fua);
  world.log_all();
  REQUIRE(world.syncing.has_value());
  streaming.write(frame_flag_fua);
  world.log_all();
  world.finish_sync();
  CHECK(world.marks->durable == 1);
  REQUIRE(world.syncing.has_value());
  world.finish_sync();
  CHECK(world.marks->durable == 2);
}

TEST_CASE("replica: what somebody waits for is made durable, with a session or without") {
  Streaming streaming;
  ReplicaWorld& world = streaming.world;
  streaming.write();
  world.log_all();
  CHECK_FALSE(world.syncing.has_value());
  SUBCASE("streaming") {}
  SUBCASE("alone") {
    world.step(replica_event::SessionClosed{1});
  }
  world.step(replica_event::SyncWanted{});
  REQUIRE(world.syncing.has_value());
  world.finish_sync();
  world.step(replica_event::SyncWanted{});
  CHECK_FALSE(world.syncing.has_value());
}

TEST_CASE("replica: sync_request makes everything received durable, then reports") {
  Streaming streaming;
  ReplicaWorld& world = streaming.world;
  SUBCASE("while frames are on their way to the log") {
    streaming.write();
    world.frame(FrameType::sync_request);
    CHECK_FALSE(world.syncing.has_value());
    world.log_all();
  }
  SUBCASE("when all is logged") {
    streaming.write();
    world.log_all();
    CHECK_FALSE(world.syncing.has_value());
    world.frame(FrameType::sync_request);
  }
  REQUIRE(world.syncing.has_value());
  world.finish_sync();
  CHECK(world.marks->durable == 1);
  // Nothing to do: it is only reported.
  const std::size_t sent = world.marks_sent;
  world.frame(FrameType::sync_request);
  CHECK(world.marks_sent == sent + 1);
  CHECK_FALSE(world.syncing.has_value());
}

TEST_CASE("replica: what nobody flushes becomes durable after a second or so many bytes") {
  Streaming streaming;
  ReplicaWorld& world = streaming.world;
  SUBCASE("time") {
    streaming.write();
    world.log_all();
    REQUIRE(world.replica.wake_at().has_value());
    world.pass(999ms);
    CHECK_FALSE(world.syncing.has_value());
    world.pass(1ms);
  }
  SUBCASE("bytes") {
    while (!world.syncing && streaming.source.point().sequence < 1000) {
      streaming.write();
      world.log_all();
    }
    CHECK(streaming.source.point().sequence * (512 + frame_header_bytes) >= 100'000);
    CHECK((streaming.source.point().sequence - 1) * (512 + frame_header_bytes) < 100'000);
  }
  REQUIRE(world.syncing.has_value());
  world.finish_sync();
  CHECK(world.marks->durable == streaming.source.point().sequence);
  CHECK_FALSE(world.replica.wake_at().has_value());
}

TEST_CASE("replica: reports of `applied` alone are spared, unless somebody waits") {
  Streaming streaming(3);
  ReplicaWorld& world = streaming.world;
  world.pass(2s);
  world.finish_sync();
  const std::size_t sent = world.marks_sent;
  world.apply(streaming.source.at(1));
  world.pass(49ms);
  world.apply(streaming.source.at(2));
  CHECK(world.marks_sent == sent);
  world.pass(1ms);
  CHECK(world.marks_sent == sent + 1);
  CHECK(world.marks->applied == 2);
  // A heartbeat is answered now, and once more when what it saw is applied.
  world.frame(FrameType::heartbeat);
  CHECK(world.marks_sent == sent + 2);
  world.apply(streaming.source.at(3));
  CHECK(world.marks_sent == sent + 3);
  CHECK(world.marks->applied == 3);
}

TEST_CASE("replica: a digest is compared behind its frame") {
  Streaming streaming;
  ReplicaWorld& world = streaming.world;
  streaming.write();
  world.step(replica_event::DigestArrived{1, streaming.source.point()});
  CHECK_FALSE(world.refused.has_value());
  SUBCASE("other digest") {
    HistoryPoint wrong = streaming.source.point();
    wrong.digest.low ^= 1;
    world.step(replica_event::DigestArrived{1, wrong});
    check_refused(world, Errc::diverged);
  }
  SUBCASE("out of place") {
    HistoryPoint wrong = streaming.source.point();
    wrong.sequence = 2;
    world.step(replica_event::DigestArrived{1, wrong});
    check_refused(world, Errc::protocol);
  }
}

TEST_CASE("replica: a promise made elsewhere ends the lower session") {
  Streaming streaming;
  ReplicaWorld& world = streaming.world;
  streaming.write();
  world.recorded_epoch = {2, 3};
  world.step(replica_event::PromiseRaised{{2, 3}});
  check_refused(world, Errc::stale_epoch);
  world.refused.reset();
  world.attach(first_epoch);
  check_refused(world, Errc::stale_epoch);
  world.log_all();
  world.attached.reset();
  world.attach({2, 3});
  world.finish_records();
  REQUIRE(world.attached.has_value());
  CHECK(world.attached->logged == streaming.source.point());
}

TEST_CASE("replica: an epoch promised by a vote belongs to whichever primary attaches in it") {
  Streaming streaming;
  ReplicaWorld& world = streaming.world;
  world.recorded_epoch = {2, 3};
  world.step(replica_event::PromiseRaised{{2, 3}});
  world.log_all();
  world.refused.reset();
  world.attached.reset();
  AttachMessage message = ReplicaWorld::attach_message({2, 3});
  message.primary = "c";
  world.attach_as(message, false);
  world.finish_records();
  CHECK_FALSE(world.refused.has_value());
  CHECK(world.attached.has_value());
  // A record of the same number with another tag, accepted later, replaces the promise.
  world.recorded_epoch = {2, 4};
  world.step(replica_event::PromiseRaised{{2, 4}});
  check_refused(world, Errc::stale_epoch);
  CHECK(world.replica.promised() == Epoch{2, 4});
}

TEST_CASE("replica: a copy marks, drops, takes, syncs and records in this order") {
  Streaming streaming(2);
  ReplicaWorld& world = streaming.world;
  streaming.write();
  world.step(replica_event::StartArrived{1, {.copy = true, .after = 10, .in_place = true}});
  CHECK_FALSE(world.replica.takes_input());
  REQUIRE(world.records.size() == 1);
  CHECK(world.records[0].kind == ReplicaRecord::Kind::inconsistent);
  CHECK_FALSE(world.dropping);
  world.finish_record();
  CHECK_FALSE(world.dropping);  // a frame is still on its way to the log
  world.log_all();
  REQUIRE(world.dropping);
  world.finish_drop();
  REQUIRE(world.replica.takes_input());
  CHECK_FALSE(world.replica.is_consistent());

  FrameHeader copied;
  copied.type = FrameType::copy_data;
  copied.range = {1, 0, 512};
  copied.payload_bytes = 512;
  world.frame(copied);
  FrameSource live(HistoryPoint{first_epoch, 10, {3, 4}});
  world.frame(live.next(first_epoch));
  world.frame(live.next(first_epoch, FrameType::flush));
  CHECK(world.image_writes.size() == 3);
  CHECK(world.appending.empty());
  world.step(replica_event::CopyWritten{1, 12});
  world.frame(FrameType::heartbeat);
  CHECK(world.marks->received == 12);
  CHECK(world.marks->applied == 12);
  CHECK(world.marks->durable == 0);
  world.step(replica_event::DigestArrived{1, live.point()});  // cannot be compared yet
  CHECK_FALSE(world.refused.has_value());

  SUBCASE("to its end") {
    world.step(replica_event::CopyEndArrived{1, live.point()});
    CHECK_FALSE(world.replica.takes_input());
    REQUIRE(world.syncing_images);
    CHECK(world.records.empty());
    // Still heard of, however long the disk takes.
    const std::size_t sent = world.marks_sent;
    world.pass(1s);
    world.pass(1s);
    CHECK(world.marks_sent == sent + 2);
    world.finish_image_sync();
    REQUIRE(world.records.size() == 1);
    CHECK_FALSE(world.copy_done.has_value());
    world.finish_record();
    CHECK(world.copy_done == live.point());
    CHECK(world.replica.is_consistent());
    world.frame(live.next(first_epoch));
    CHECK(world.appending.size() == 1);
    world.log_all();
    CHECK(world.marks->logged_digest == live.point().digest);
  }
  SUBCASE("the end does not fit") {
    HistoryPoint wrong = live.point();
    wrong.sequence -= 1;
    world.step(replica_event::CopyEndArrived{1, wrong});
    check_refused(world, Errc::protocol);
    CHECK_FALSE(world.syncing_images);
  }
  SUBCASE("a gap") {
    FrameHeader header = live.next(first_epoch);
    header.sequence += 1;
    world.frame(header);
    check_refused(world, Errc::protocol);
  }
  SUBCASE("a range beyond the disk") {
    copied.range.offset_bytes = 512;
    world.frame(copied);
    check_refused(world, Errc::protocol);
  }
  SUBCASE("interrupted: it stays inconsistent") {
    world.step(replica_event::SessionClosed{1});
    CHECK_FALSE(world.replica.is_copying());
    world.attached.reset();
    const SessionId id = world.attach(first_epoch);
    REQUIRE(world.attached.has_value());
    CHECK_FALSE(world.attached->consistent);
    world.step(replica_event::StartArrived{id, {.copy = false, .after = 0}});
    check_refused(world, Errc::inconsistent);
  }
  SUBCASE("interrupted while it is being recorded: it counts") {
    world.step(replica_event::CopyEndArrived{1, live.point()});
    world.finish_image_sync();
    world.step(replica_event::SessionClosed{1});
    world.attached.reset();
    world.attach(first_epoch);
    CHECK_FALSE(world.attached.has_value());
    world.finish_record();
    CHECK_FALSE(world.copy_done.has_value());
    REQUIRE(world.attached.has_value());
    CHECK(world.attached->consistent);
    CHECK(world.attached->logged == live.point());
  }
  SUBCASE("what cannot be recorded stays inconsistent") {
    world.step(replica_event::CopyEndArrived{1, live.point()});
    world.finish_image_sync();
    world.finish_record(fail(Errc::no_space, "disk full"));
    check_refused(world, Errc::no_space);
    CHECK_FALSE(world.replica.is_consistent());
  }
  SUBCASE("begun again in the same session") {
    world.step(replica_event::StartArrived{1, {.copy = true, .after = 20, .in_place = true}});
    CHECK(world.records.empty());
    REQUIRE(world.dropping);
    world.finish_drop();
    FrameSource again(HistoryPoint{first_epoch, 20, {}});
    world.frame(again.next(first_epoch));
    CHECK_FALSE(world.refused.has_value());
  }
}

TEST_CASE("replica: a copy that cannot be marked leaves everything as it was") {
  Streaming streaming(2);
  ReplicaWorld& world = streaming.world;
  world.step(replica_event::StartArrived{1, {.copy = true, .after = 10, .in_place = true}});
  world.finish_record(fail(Errc::io_error, "state file"));
  check_refused(world, Errc::io_error);
  CHECK_FALSE(world.dropping);
  CHECK(world.replica.is_consistent());
  world.attached.reset();
  world.attach(first_epoch);
  REQUIRE(world.attached.has_value());
  CHECK(world.attached->logged == streaming.source.point());
}

TEST_CASE("replica: a promotion promises, waits for the image, compares and syncs") {
  Streaming streaming(3);
  ReplicaWorld& world = streaming.world;
  streaming.write();
  HistoryPoint point = streaming.source.point();

  SUBCASE("equal") {
    world.step(replica_event::PromotionRequested{{2, 9}, point});
    CHECK(world.closed.has_value());
    REQUIRE(world.records.size() == 1);
    world.log_all();
    world.apply(streaming.source.at(4));
    CHECK_FALSE(world.syncing_images);  // not before the promise is durable
    world.finish_record();
    REQUIRE(world.syncing_images);
    CHECK_FALSE(world.promotion.has_value());
    world.finish_image_sync();
    REQUIRE(world.promotion.has_value());
    CHECK(world.promotion->has_value());
    // No stream comes in any more but that of a still higher term.
    world.attach({2, 9});
    check_refused(world, Errc::busy);
    world.refused.reset();
    world.attached.reset();
    world.attach({3, 1});
    world.finish_records();
    CHECK(world.attached.has_value());
    return;
  }
  Errc expected = Errc::diverged;
  SUBCASE("other digest") {
    point.digest.high ^= 1;
  }
  SUBCASE("other epoch") {
    point.epoch.tag ^= 1;
  }
  SUBCASE("this side has more") {
    point = streaming.source.at(3);
  }
  SUBCASE("this side lacks some") {
    point.sequence += 1;
    expected = Errc::too_far_behind;
  }
  world.step(replica_event::PromotionRequested{{2, 9}, point});
  world.finish_records();
  world.log_all();
  CHECK_FALSE(world.promotion.has_value());
  world.apply(streaming.source.at(4));
  REQUIRE(world.promotion.has_value());
  REQUIRE_FALSE(world.promotion->has_value());
  CHECK(world.promotion->error().code == expected);
  world.attached.reset();
  world.attach({3, 1});
  world.finish_records();
  CHECK(world.attached.has_value());
}

TEST_CASE("replica: a promotion asks for the log's sync at once, because only that is applied") {
  Streaming streaming(3);
  ReplicaWorld& world = streaming.world;
  SUBCASE("everything is logged") {
    streaming.write();
    world.log_all();
    CHECK_FALSE(world.syncing);
    world.step(replica_event::PromotionRequested{{2, 9}, streaming.source.point()});
  }
  SUBCASE("some is on its way to the log") {
    streaming.write();
    world.step(replica_event::PromotionRequested{{2, 9}, streaming.source.point()});
    world.finish_sync();
    world.log_all();
  }
  CHECK(world.syncing == 4);
}

TEST_CASE("replica: promotions against the rules are refused and change nothing") {
  Streaming streaming(1);
  ReplicaWorld& world = streaming.world;
  const HistoryPoint point = streaming.source.point();
  const auto refusal = [&](const Epoch& epoch) {
    world.promotion.reset();
    world.step(replica_event::PromotionRequested{epoch, point});
    REQUIRE(world.promotion.has_value());
    REQUIRE_FALSE(world.promotion->has_value());
    return world.promotion->error().code;
  };
  CHECK(refusal({0, 0}) == Errc::stale_epoch);
  CHECK(refusal({1, 8}) == Errc::stale_epoch);
  CHECK(world.replica.session() == 1);
  world.step(replica_event::PromotionRequested{{2, 2}, point});
  CHECK(refusal({2, 2}) == Errc::busy);
  world.promotion.reset();
  world.finish_record(fail(Errc::no_space, "disk full"));
  REQUIRE(world.promotion.has_value());
  CHECK(world.promotion->error().code == Errc::no_space);

  ReplicaWorld incomplete({.promised = first_epoch,
                           .primary = "a",
                           .consistent = false,
                           .logged = {},
                           .durable = 0,
                           .applied = {}});
  incomplete.step(replica_event::PromotionRequested{{2, 2}, {}});
  REQUIRE(incomplete.promotion.has_value());
  CHECK(incomplete.promotion->error().code == Errc::inconsistent);
}

TEST_CASE("replica: a failed disk refuses the session, promotions and every attach") {
  Streaming streaming(1);
  ReplicaWorld& world = streaming.world;
  SUBCASE("streaming") {
    world.step(replica_event::Failed{{Errc::no_space, 28, "log", {}}});
    check_refused(world, Errc::no_space);
  }
  SUBCASE("promoting") {
    world.step(replica_event::PromotionRequested{{2, 2}, streaming.source.point()});
    world.step(replica_event::Failed{{Errc::no_space, 28, "image", {}}});
    REQUIRE(world.promotion.has_value());
    CHECK(world.promotion->error().code == Errc::no_space);
    world.finish_records();
  }
  world.refused.reset();
  world.attach({5, 5});
  check_refused(world, Errc::no_space);
  world.promotion.reset();
  world.step(replica_event::PromotionRequested{{6, 6}, {}});
  CHECK(world.promotion->error().code == Errc::no_space);
  CHECK_FALSE(world.replica.wake_at().has_value());
}

namespace {

/// How often a random run came to what is rare.
struct Reached {
  int streams = 0;
  int copies_done = 0;
  int copies_interrupted = 0;
  int promoted = 0;
  int promotions_refused = 0;
  int stale = 0;
  int diverged = 0;
  int committed = 0;
  int stages_failed = 0;
};

/// Random events in any order that the runtime's contract allows; the world checks every effect.
class RandomRun {
 public:
  explicit RandomRun(std::uint64_t seed) : random_(seed) {}

  void run(int steps) {
    for (int i = 0; i < steps; ++i) {
      act();
      count();
    }
    settle();
  }

  Reached reached;

 private:
  void count() {
    const Replica::Phase phase = world_.replica.phase();
    reached.streams += phase == Replica::Phase::streaming && phase != last_phase_ ? 1 : 0;
    if (last_phase_ == Replica::Phase::copying && phase != Replica::Phase::copying &&
        phase != Replica::Phase::waiting) {
      ++reached.copies_interrupted;
    }
    last_phase_ = phase;
    if (std::exchange(world_.copy_done, std::nullopt)) ++reached.copies_done;
    if (world_.promotion) {
      ++(world_.promotion->has_value() ? reached.promoted : reached.promotions_refused);
      world_.promotion.reset();
    }
    if (!world_.refused) return;
    reached.stale += world_.refused->code == Errc::stale_epoch ? 1 : 0;
    reached.diverged += world_.refused->code == Errc::diverged ? 1 : 0;
    world_.refused.reset();
  }
  [[nodiscard]] bool chance(unsigned one_in) { return random_() % one_in == 0; }

  [[nodiscard]] SessionId session() { return world_.replica.session().value_or(0); }

  void act() {
    switch (random_() % 12) {
      case 0:
        if (chance(world_.replica.session() ? 12 : 2)) attach();
        break;
      case 1:
        if (chance(20)) world_.step(replica_event::SessionClosed{session()});
        break;
      case 2:
        start();
        break;
      case 3:
      case 4:
      case 5:
        send();
        break;
      case 6:
        world_.log_some(random_() % (world_.appending.size() + 1));
        break;
      case 7:
        if (world_.syncing) world_.finish_sync();
        break;
      case 8:
        apply();
        break;
      case 9:
        finish_something();
        break;
      case 10:
        world_.pass(Duration(static_cast<Duration::rep>(random_() % 400'000'000)));
        break;
      default:
        disturb();
    }
  }

  void attach() {
    if (chance(3)) ++epoch_.number, epoch_.tag = static_cast<std::uint32_t>(random_());
    Epoch epoch = epoch_;
    if (chance(6)) epoch.number -= 1;
    world_.attached.reset();
    const auto before = world_.replica.session();
    const Epoch before_epoch = world_.session_epoch;
    world_.attach(epoch);
    if (world_.replica.session() == before) world_.session_epoch = before_epoch;
    if (epoch.number < world_.recorded_epoch.number) CHECK(world_.replica.session() == before);
  }

  [[nodiscard]] bool listening() { return world_.replica.takes_input(); }

  void start() {
    if (!listening()) return;
    if (chance(2)) rest();
    const bool at_rest = world_.applied == world_.logged && world_.appending.empty();
    if (world_.replica.phase() == Replica::Phase::idle && world_.replica.is_consistent() &&
        !chance(at_rest ? 3 : 20)) {
      // A primary whose history this is not would want a copy.
      if (!source_.has(world_.logged.sequence) ||
          source_.at(world_.logged.sequence) != world_.logged) {
        source_ = FrameSource(world_.logged);
      }
      trim_source();
      world_.step(
          replica_event::StartArrived{session(), {.copy = false, .after = world_.logged.sequence}});
      copying_ = false;
    } else if (chance(world_.replica.is_consistent() ? (at_rest ? 3 : 10) : 2)) {
      source_ = FrameSource(HistoryPoint{{}, random_() % 100, {}});
      copying_ = true;
      sent_in_copy_ = written_in_copy_ = source_.point().sequence;
      // The image holds the whole log: what follows is another history.
      const bool known = world_.recorded_consistent ? at_rest : world_.recorded_resync.has_value();
      world_.step(replica_event::StartArrived{
          session(),
          {.copy = true,
           .after = source_.point().sequence,
           .keep = known && chance(2),
           .in_place = !(world_.recorded_consistent && known && chance(2))}});
    }
  }
  /// All that was received is in the log, and in the image.
  void rest() {
    if (!world_.records.empty() || world_.dropping) return;
    world_.log_all();
    if (world_.syncing) world_.finish_sync();
    const bool can_apply = world_.recorded_consistent && !copying_ &&
                           !world_.replica.is_unstaging() &&
                           world_.applied.sequence < world_.logged.sequence;
    if (can_apply && source_.has(world_.logged.sequence)) world_.apply(world_.logged);
  }
  /// The primary goes on from what the replica has.
  void trim_source() {
    if (source_.point() != world_.logged) source_ = FrameSource(world_.logged);
  }

  void send() {
    if (!listening()) return;
    const Replica::Phase phase = world_.replica.phase();
    if (phase == Replica::Phase::idle) return;
    if (chance(8)) {
      world_.frame(chance(2) ? FrameType::heartbeat : FrameType::sync_request);
      return;
    }
    if (phase == Replica::Phase::copying && chance(10)) {
      const HistoryPoint end = source_.point();
      world_.step(replica_event::CopyEndArrived{session(), end});
      return;
    }
    const bool flush = chance(10);
    const FrameHeader header =
        source_.next(world_.session_epoch,
                     flush ? FrameType::flush : FrameType::write,
                     chance(10) && !flush ? frame_flag_fua : std::uint16_t{0});
    world_.frame(header);
    if (copying_) sent_in_copy_ = header.sequence;
    if (!chance(8) || !listening()) return;
    HistoryPoint point = source_.point();
    const bool wrong = chance(20);
    if (wrong) point.digest.low ^= 1;
    world_.refused.reset();
    world_.step(replica_event::DigestArrived{session(), point});
    const bool must_refuse = wrong && phase == Replica::Phase::streaming;
    CHECK(world_.refused.has_value() == must_refuse);
  }

  void apply() {
    if (copying_ && world_.replica.phase() == Replica::Phase::copying &&
        written_in_copy_ < sent_in_copy_) {
      written_in_copy_ += 1 + random_() % (sent_in_copy_ - written_in_copy_);
      world_.step(replica_event::CopyWritten{session(), written_in_copy_});
      return;
    }
    if (!world_.recorded_consistent || world_.dropping || copying_) return;
    if (world_.replica.is_unstaging()) return;
    if (world_.applied.sequence >= world_.logged.sequence) return;
    const Sequence gap = world_.logged.sequence - world_.applied.sequence;
    const Sequence to = world_.applied.sequence + 1 + random_() % gap;
    if (source_.has(to)) world_.apply(source_.at(to));
  }

  void finish_something() {
    if (!world_.records.empty()) {
      const auto kind = world_.records.front().kind;
      const bool committed = kind == ReplicaRecord::Kind::committed;
      const bool copy_done = committed || kind == ReplicaRecord::Kind::copy_done;
      const bool fails = kind != ReplicaRecord::Kind::unstaged && chance(8);
      if (committed && !fails) ++reached.committed;
      world_.finish_record(fails ? Status(fail(Errc::no_space, "full")) : Status());
      if (copy_done && !fails) copying_ = false;
    } else if (world_.dropping) {
      world_.finish_drop();
    } else if (world_.syncing_images) {
      world_.finish_image_sync();
    } else if (world_.stage_syncing) {
      world_.finish_stage_sync();
    } else if (world_.unstaging) {
      world_.finish_unstaging();
    }
  }

  void disturb() {
    if (chance(40)) {
      const Epoch fence{epoch_.number + 1, static_cast<std::uint32_t>(random_())};
      if (fence.number > world_.recorded_epoch.number && world_.records.empty()) {
        epoch_ = world_.recorded_epoch = fence;
        world_.step(replica_event::PromiseRaised{fence});
      }
    } else if (chance(40)) {
      HistoryPoint point = world_.logged;
      if (chance(2) && !world_.appending.empty()) point = world_.appending.back();
      const Epoch epoch{epoch_.number + 1, 4};
      const bool synced = std::exchange(world_.images_synced, false);
      world_.promotion.reset();
      world_.step(replica_event::PromotionRequested{epoch, point});
      if (!world_.promotion) epoch_ = epoch;
      if (world_.promotion) world_.images_synced = synced;
    } else if (chance(6) && world_.stage_open && world_.records.empty() &&
               !world_.replica.is_unstaging()) {
      world_.stage_syncing = false;
      world_.refused.reset();
      const bool attached = world_.replica.phase() == Replica::Phase::copying;
      world_.step(replica_event::StageFailed{fail(Errc::no_space, "full").value()});
      if (attached) CHECK(world_.refused.has_value());
      if (attached) ++reached.stages_failed;
      CHECK_FALSE(world_.stage_open);
    }
  }

  /// Without faults everything comes to rest.
  void settle() {
    for (int i = 0; i < 100; ++i) {
      while (!world_.records.empty() || world_.dropping || world_.syncing_images ||
             world_.stage_syncing || world_.unstaging)
        finish_something();
      world_.log_all();
      if (world_.syncing) world_.finish_sync();
      world_.pass(2s);
    }
    CHECK(world_.appending.empty());
    if (world_.replica.is_consistent()) CHECK(world_.durable == world_.logged.sequence);
    CHECK(world_.replica.marks().received == world_.replica.marks().logged);
  }

  std::mt19937_64 random_;
  ReplicaWorld world_;
  FrameSource source_;
  Epoch epoch_ = first_epoch;
  bool copying_ = false;
  Replica::Phase last_phase_ = Replica::Phase::none;
  Sequence sent_in_copy_ = 0;
  Sequence written_in_copy_ = 0;
};

}  // namespace

TEST_CASE("replica: random events never break a rule") {
  const char* given = std::getenv("RD_SEED");
  const char* asked = std::getenv("RD_SEEDS");  // so many, always the same
  const std::uint64_t first = given != nullptr   ? std::strtoull(given, nullptr, 10)
                              : asked != nullptr ? 1
                                                 : std::random_device{}();
  Reached all;
  const int runs = given != nullptr ? 1 : asked != nullptr ? std::atoi(asked) : 300;
  for (int i = 0; i < runs; ++i) {
    const std::uint64_t seed = first + static_cast<std::uint64_t>(i);
    CAPTURE(seed);
    RandomRun random_run(seed);
    random_run.run(600);
    const Reached& reached = random_run.reached;
    all.streams += reached.streams;
    all.copies_done += reached.copies_done;
    all.copies_interrupted += reached.copies_interrupted;
    all.promoted += reached.promoted;
    all.promotions_refused += reached.promotions_refused;
    all.stale += reached.stale;
    all.diverged += reached.diverged;
    all.committed += reached.committed;
    all.stages_failed += reached.stages_failed;
  }
  INFO("streams ",
       all.streams,
       " copies done ",
       all.copies_done,
       " interrupted ",
       all.copies_interrupted,
       " promoted ",
       all.promoted,
       " refused ",
       all.promotions_refused,
       " stale ",
       all.stale,
       " diverged ",
       all.diverged,
       " committed ",
       all.committed,
       " stages failed ",
       all.stages_failed);
  if (given == nullptr && asked == nullptr) {
    CHECK(all.streams > 300);
    CHECK(all.copies_done > 30);
    CHECK(all.copies_interrupted > 30);
    CHECK(all.promoted > 30);
    CHECK(all.promotions_refused > 30);
    CHECK(all.stale > 30);
    CHECK(all.diverged > 30);
    CHECK(all.committed > 10);
    CHECK(all.stages_failed > 5);
  }
  std::cout << "RD_SEED=" << first << " (first of " << runs << ")" << std::endl;
}

}  // namespace replicad
