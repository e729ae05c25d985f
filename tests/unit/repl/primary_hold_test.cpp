// Holding the guest's writes (core/repl/primary_hold.cpp).

#include <string>

#include <doctest/doctest.h>

#include "tests/unit/repl/primary_scenario.h"

namespace replicad {
namespace {

using HoldPhase = Primary::HoldPhase;

TEST_CASE("hold: drains, flushes, and is reached when every in-sync member has all of it durable") {
  PrimaryScenario s({});
  s.arrive(1, write_at(0));
  CHECK(s.hold() == "");
  CHECK(s.arrive(2, write_at(4096)) == "");
  CHECK(s.written(1) == "placed 1 as 1, placed own as 2, sync images");
  CHECK(s.frame(2).type == FrameType::flush);
  CHECK(s.durable("b", 2) == "");
  CHECK(s.durable("c", 2) == "answer 1");
  CHECK(s.primary().hold_phase() == HoldPhase::flushing);
  CHECK(s.images_synced() == "hold reached 2");
  CHECK(s.primary().hold_phase() == HoldPhase::reached);
  CHECK(s.pass(std::chrono::seconds(1)) == "");
  CHECK(s.step(primary_event::Resume{}) == "admitted 2");
  CHECK(s.written(2) == "placed 2 as 3");
}

TEST_CASE("hold: waits for a flush's local sync and for frames that are not ready") {
  PrimaryScenario s({.peers = {}, .in_sync = {"a"}});
  s.hold_frames = true;
  s.write(1, flush_all());
  CHECK(s.hold() == "");
  CHECK(s.synced(1) == "answer 1");
  CHECK(s.frame_ready() == "placed own as 2, sync images");
  CHECK(s.images_synced() == "");
  CHECK(s.frame_ready() == "hold reached 2");
}

TEST_CASE("hold: waits for abandoned changes, too") {
  PrimaryScenario s({.peers = {}, .in_sync = {"a"}});
  s.arrive(1, write_at(0));
  CHECK(s.hold() == "");
  CHECK(s.step(primary_event::Abandoned{1}) == "placed own as 1, sync images");
}

TEST_CASE("hold: a target must have applied everything, with an equal digest") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}});
  s.write(1, write_at(0));
  CHECK(s.hold("b") == "placed own as 2, sync images");
  CHECK(s.images_synced() == "");
  CHECK(s.durable("b", 2) == "answer 1, ping b");
  CHECK(s.applied("b", 1) == "ping b");
  CHECK(s.applied("b", 2) == "hold reached 2");
}

TEST_CASE("hold: a target that applied, but whose log is not durable, is waited for") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}});
  s.hold("b");
  s.images_synced();
  CHECK(s.applied("b", 1) == "");
  CHECK(s.durable("b", 1) == "hold reached 1");
}

TEST_CASE("hold: the other in-sync members are waited for as well") {
  PrimaryScenario s({});
  s.hold("b");
  s.images_synced();
  CHECK(s.all("b", 1) == "");
  CHECK(s.durable("c", 1) == "hold reached 1");
}

TEST_CASE("hold: a target with another applied digest fails the hold and leaves the set") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}});
  s.hold("b");
  s.images_synced();
  s.durable("b", 1);
  s.arrive(1, write_at(0));
  const std::string text = s.marks("b",
                                   {.received = 1,
                                    .logged = 1,
                                    .durable = 1,
                                    .applied = 1,
                                    .logged_digest = {},
                                    .applied_digest = {6, 6}});
  CHECK(text == "close b diverged, record a, hold failed refused, admitted 1");
  CHECK(s.last_error().message.find("b left the in-sync set: its digest") == 0);
}

TEST_CASE("hold: a deadline ends it, says who lacks what, and requests go on") {
  PrimaryScenario s({});
  s.write(1, write_at(0));
  CHECK(s.hold("b", std::chrono::milliseconds(400)) == "placed own as 2, sync images");
  s.arrive(2, write_at(4096));
  s.durable("b", 2);
  s.logged("c", 2);
  CHECK(s.pass(std::chrono::milliseconds(350)) == "");
  CHECK(s.pass(std::chrono::milliseconds(50)) == "hold failed timeout, admitted 2");
  CHECK(s.last_error().message.find("; c: durable 100, applied 100") != std::string::npos);
  CHECK(s.primary().hold_phase() == HoldPhase::none);
}

TEST_CASE("hold: the deadline counts after it was reached, but not after the seal") {
  PrimaryScenario s({.peers = {}, .in_sync = {"a"}});
  s.hold({}, std::chrono::milliseconds(200));
  CHECK(s.images_synced() == "hold reached 1");
  CHECK(s.pass(std::chrono::milliseconds(200)) == "hold failed timeout");
  s.hold({}, std::chrono::milliseconds(200));
  s.images_synced();
  s.step(primary_event::Seal{});
  CHECK(s.primary().is_sealed());
  CHECK(s.pass(std::chrono::seconds(1)) == "");
  CHECK(s.primary().hold_phase() == HoldPhase::reached);
  s.step(primary_event::Resume{});
  CHECK_FALSE(s.primary().is_sealed());
}

TEST_CASE("hold: a seal that comes too late is not taken") {
  PrimaryScenario s({.peers = {}, .in_sync = {"a"}});
  s.hold({}, std::chrono::milliseconds(100));
  s.images_synced();
  s.pass(std::chrono::milliseconds(100));
  CHECK(s.step(primary_event::Seal{}) == "");
  CHECK_FALSE(s.primary().is_sealed());
  CHECK(s.write(1, write_at(0)) == "admitted 1, placed 1 as 2, answer 1");
}

TEST_CASE("hold: a target that leaves fails the hold") {
  PrimaryScenario s({});
  s.arrive(1, write_at(0));
  s.hold("b");
  CHECK(s.lose("b") == "record a+c, hold failed refused");
  CHECK(s.last_error().message == "b left the in-sync set: link down");
}

TEST_CASE("hold: another member that leaves is waited for until that is recorded") {
  PrimaryScenario s({});
  s.hold("b");
  s.images_synced();
  s.all("b", 1);
  CHECK(s.lose("c") == "record a+b");
  CHECK(s.recorded() == "hold reached 1");
}

TEST_CASE("hold: only an in-sync member can be the target, and only one hold at a time") {
  PrimaryScenario s({.in_sync = {"a", "b"}, .attached = false});
  CHECK(s.hold("c") == "hold failed refused");
  CHECK(s.hold("b") == "placed own as 1, sync images");
  CHECK(s.hold("b") == "hold failed busy");
  CHECK(s.primary().hold_phase() == HoldPhase::flushing);
}

TEST_CASE("hold: a failure of the volume ends it, and there is none behind it") {
  PrimaryScenario s({.on_local_error = OnLocalError::hold, .peers = {"b"}, .in_sync = {"a", "b"}});
  s.arrive(1, write_at(0));
  CHECK(s.step(primary_event::Hold{std::nullopt, s.now() + std::chrono::seconds(9)}) == "");
  CHECK(s.step(primary_event::Fail{{Errc::io_error, EIO, "disk broke", {}}}) ==
        "hold failed io_error");
  CHECK(s.step(primary_event::Hold{std::nullopt, s.now() + std::chrono::seconds(9)}) ==
        "hold failed io_error");
  CHECK(s.written(1) == "placed 1 as 1");
}

TEST_CASE("hold: images that could not be synced fail it, and the volume") {
  PrimaryScenario s({.peers = {}, .in_sync = {"a"}});
  s.hold();
  s.arrive(1, write_at(0));
  CHECK(s.images_synced(false) == "fail 1, hold failed io_error");
}

TEST_CASE("hold: a sync of the images that belongs to an earlier hold does not count") {
  PrimaryScenario s({.peers = {}, .in_sync = {"a"}});
  CHECK(s.hold({}, std::chrono::milliseconds(100)) == "placed own as 1, sync images");
  CHECK(s.pass(std::chrono::milliseconds(100)) == "hold failed timeout");
  s.write(1, write_at(0));
  CHECK(s.hold() == "placed own as 3, sync images");
  CHECK(s.images_synced() == "");  // of the first
  CHECK(s.images_synced() == "hold reached 3");
}

TEST_CASE("hold: a failed sync of an earlier hold fails the later one") {
  PrimaryScenario s({.peers = {}, .in_sync = {"a"}});
  s.hold({}, std::chrono::milliseconds(100));
  s.pass(std::chrono::milliseconds(100));
  s.hold();
  CHECK(s.images_synced(false) == "hold failed io_error");
  CHECK(s.images_synced() == "");
  CHECK(s.primary().failure().has_value());
}

TEST_CASE("hold: the flush finds room in a full ring") {
  PrimaryScenario s({.mode = Mode::async, .peers = {"b"}, .in_sync = {"a", "b"}});
  for (RequestId id = 1; id <= 3; ++id)
    s.write(id, write_at(id * mib, mib));
  CHECK(s.arrive(4, write_at(0, mib)) == "");
  CHECK(s.hold("b") == "placed own as 4, sync images");
  s.images_synced();
  CHECK(s.all("b", 4) == "hold reached 4");
  CHECK(s.step(primary_event::Resume{}) == "admitted 4");
}

TEST_CASE("hold: is no way around the reserved sequences") {
  PrimaryScenario s({.peers = {}, .in_sync = {"a"}, .reserved = 1});
  CHECK(s.hold({}, std::chrono::milliseconds(100)) ==
        "reserve 16777217, placed own as 1, sync images");
  CHECK(s.images_synced() == "hold reached 1");
  CHECK(s.pass(std::chrono::milliseconds(100)) == "hold failed timeout");
  CHECK(s.hold() == "");
  CHECK(s.step(primary_event::ReserveGranted{PrimaryScenario::base_sequence + 16777217}) ==
        "placed own as 2, sync images");
}

// --- sealed ---

TEST_CASE("hold: no change of the in-sync set is proposed between seal and resume") {
  PrimaryScenario s({});
  s.hold("b");
  s.images_synced();
  s.all("b", 1);
  s.all("c", 1);
  s.step(primary_event::Seal{});
  CHECK(s.lose("b") == "");  // the target ends the session when it takes over
  CHECK(s.pass(std::chrono::seconds(20)) == "");
  CHECK(s.in_sync() == "a+b+c");
  s.arrive(1, write_at(0));
  CHECK(s.step(primary_event::Resume{}) == "record a+c, admitted 1");
  CHECK(s.written(1) == "placed 1 as 2");
  CHECK(s.all("c", 2) == "");
  CHECK(s.recorded() == "answer 1");
}

TEST_CASE("hold: only_untouched is refused for good once a write was let in, answered or not") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}});
  const auto untouched = [&] {
    return primary_event::Hold{
        s.primary().find_peer("b"), s.now() + std::chrono::seconds(30), true};
  };
  s.arrive(1, flush_all());
  s.written(1);
  s.synced(1);
  CHECK(s.durable("b", 1) == "answer 1");
  CHECK_FALSE(s.primary().is_touched());
  CHECK(s.step(untouched()) == "placed own as 2, sync images");
  // Behind the hold nothing is let in.
  CHECK(s.arrive(2, write_at(0)) == "");
  CHECK_FALSE(s.primary().is_touched());
  CHECK(s.step(primary_event::Resume{}) == "admitted 2");
  CHECK(s.primary().is_touched());
  CHECK(s.step(untouched()) == "hold failed refused");
  CHECK(s.primary().hold_phase() == HoldPhase::none);
  // Nor does a flush behind it.
  s.arrive(3, flush_all());
  CHECK(s.primary().is_touched());
  // Nor does a new term of the same export make it untouched.
  s.step(primary_event::Resume{Epoch{9, 9}});
  CHECK(s.step(untouched()) == "hold failed refused");
}

// --- resume in a new epoch ---

TEST_CASE("resume: a new epoch closes every session and waits for the members to come back") {
  PrimaryScenario s({});
  s.write(1, write_at(0));
  s.hold("b");
  s.images_synced();
  s.all("b", 2);
  s.all("c", 2);
  s.arrive(2, write_at(4096));
  s.step(primary_event::Seal{});
  CHECK(s.step(primary_event::Resume{Epoch{5, 8}}) ==
        "close b stale_epoch, close c stale_epoch, admitted 2");
  CHECK(s.primary().epoch() == Epoch{5, 8});
  CHECK(s.lose("b") == "");
  CHECK(s.lose("c") == "");
  CHECK(s.written(2) == "placed 2 as 3");
  CHECK(s.frame(3).epoch == Epoch{5, 8});
  CHECK(s.in_sync() == "a+b+c");
  CHECK(s.attach("b", 2) == "start b after 2");
  CHECK(s.attach("c", 2) == "start c after 2");
  CHECK(s.logged("b", 3) == "");
  CHECK(s.logged("c", 3) == "answer 2");
}

TEST_CASE("resume: a member that does not come back within ack-timeout leaves") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}});
  s.hold("b");
  s.images_synced();
  s.all("b", 1);
  s.step(primary_event::Seal{});
  s.step(primary_event::Resume{Epoch{5, 8}});
  s.lose("b");
  s.write(1, write_at(0));
  CHECK(s.pass(PrimaryScenario::ack_timeout - std::chrono::milliseconds(100)) == "");
  CHECK(s.pass(std::chrono::milliseconds(200)) == "record a");
  CHECK(s.recorded() == "answer 1");
}

TEST_CASE("resume: a peer that is just attaching under the old epoch is closed as well") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a"}, .attached = false});
  s.hold();
  s.images_synced();
  CHECK(s.step(primary_event::Resume{Epoch{5, 8}}) == "close b stale_epoch");
  CHECK(s.attach("b", 1) == "start b after 1, record a+b");
}

TEST_CASE("resume: an epoch that is not later changes nothing") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}});
  s.hold("b");
  s.images_synced();
  s.all("b", 1);
  s.arrive(1, write_at(0));
  CHECK(s.step(primary_event::Resume{Epoch{3, 77}}) == "admitted 1");
  CHECK(s.primary().epoch() == Epoch{3, 77});
}

}  // namespace
}  // namespace replicad
