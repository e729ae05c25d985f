// Guards of the primary against what its members and its runtime do only in rare moments: each of these tests fails
// when one condition of core/repl is left out (`make -f Makefile.ci sim-mutants`).

#include <string>

#include <doctest/doctest.h>

#include "tests/unit/repl/primary_scenario.h"

namespace replicad {
namespace {

using Setup = PrimaryScenario::Setup;
using std::chrono::milliseconds;
using std::chrono::seconds;

Watermarks marks_of(Sequence received, Sequence logged, Sequence durable, Sequence applied) {
  Watermarks marks;
  marks.received = received;
  marks.logged = logged;
  marks.durable = durable;
  marks.applied = applied;
  return marks;
}
/// Beyond what was sent: the session ends.
Watermarks nonsense() {
  return marks_of(90, 90, 0, 0);
}
std::string lose_with(PrimaryScenario& s, const std::string& host, Errc code) {
  return s.step(primary_event::PeerLost{s.peer(host), {code, 0, "why", {}}});
}
/// As many changes of 1 MiB as the ring takes.
std::string fill_ring(PrimaryScenario& s, RequestId first) {
  std::string text;
  for (RequestId id = first; id < first + 5; ++id) {
    text += s.arrive(id, write_at(id * mib, mib));
    if (!text.ends_with(fmt::format("admitted {}", id))) break;
    text += " " + s.written(id) + " ";
  }
  return text;
}

TEST_CASE("guard: a member that lags by frames that have left the ring is late since the first") {
  PrimaryScenario s({.mode = Mode::async, .peers = {"b"}, .in_sync = {"a"}});
  s.recorded();
  s.lose("b");
  s.recorded();
  s.write(1, write_at(0, mib));
  for (RequestId id = 2; id <= 7; ++id) {
    s.pass(seconds(1));
    s.write(id, write_at(id * mib, mib));
  }
  CHECK(s.view("b").lag == seconds(6));
}

TEST_CASE("guard: a flush that has left the ring is no write that a member lacks") {
  PrimaryScenario s(pair_apart());
  s.write(1, flush_all());
  for (RequestId id = 2; id <= 7; ++id)
    s.write(id, write_at(id * mib, mib));
  REQUIRE(s.primary().ring().first() > PrimaryScenario::base_sequence + 1);
  REQUIRE(s.view("b").disks.size() == 1);
  CHECK(s.view("b").disks[0].writes == 6);
}

TEST_CASE("guard: nobody is told of a frame but those who take frames") {
  PrimaryScenario s(pair_apart(Mode::async));
  s.write(1, write_at(0));
  CHECK(s.sendable().empty());
  s.attach("b");
  s.write(2, write_at(0));
  CHECK(!s.sendable().empty());
}

TEST_CASE("guard: what waits for a member's connection, and what it has not acknowledged") {
  PrimaryScenario s(pair_apart());
  const auto check = [&](PrimaryScenario& of, std::uint64_t frames, bool in_flight) {
    const auto waiting = of.primary().backlog(0);
    REQUIRE(waiting.has_value());
    CHECK(waiting->frames == frames);
    CHECK(waiting->bytes == frames * (frame_header_bytes + 4096));
    CHECK(waiting->in_flight == in_flight);
  };
  CHECK_FALSE(s.primary().backlog(0).has_value());
  s.attach("b");
  check(s, 0, false);
  s.write(1, write_at(0));
  check(s, 1, false);
  s.send("b");
  check(s, 0, true);
  s.logged("b", 1);
  check(s, 0, false);

  PrimaryScenario copying(pair_apart());
  copying.attach("b", copying.point(0), 0, 0, false);
  REQUIRE(copying.view("b").phase == PeerPhase::copying);
  copying.write(1, write_at(0));
  check(copying, 1, false);
  copying.send("b");
  check(copying, 0, false);  // a copy acknowledges nothing
}

TEST_CASE("guard: a member without a stream is given nothing to send") {
  PrimaryScenario s(pair_in_sync());
  s.write(1, write_at(0));
  s.lose("b");
  CHECK(s.send("b") == 0);
}

TEST_CASE("guard: a piece that wants no answer gets none from a volume that has failed") {
  PrimaryScenario s(pair_in_sync());
  s.arrive(1, write_at(0));
  s.step(primary_event::Fail{{Errc::io_error, 5, "disk", {}}});
  CHECK(s.written(1, false) == "placed 1 as 1");
}

TEST_CASE("guard: other settings answer nothing of a failed volume that goes on to hold") {
  PrimaryScenario s({.on_local_error = OnLocalError::hold});
  s.arrive(1, write_at(0));
  s.step(primary_event::Fail{{Errc::io_error, 5, "disk", {}}});
  s.arrive(2, write_at(4096));
  CHECK(s.step(primary_event::SettingsChanged{
            Mode::async, Congestion::throttle, seconds(5), OnLocalError::hold}) == "");
  CHECK(s.step(primary_event::SettingsChanged{
            Mode::async, Congestion::throttle, seconds(5), OnLocalError::fail}) == "fail 2");
}

// --- hold and resume ---

TEST_CASE("guard: a hold that ran out names those alone who are waited for") {
  PrimaryScenario s({.peers = {"b", "c"}, .in_sync = {"a", "b"}, .attached = false});
  s.attach("b");
  s.hold({}, seconds(1));
  s.images_synced();
  CHECK(s.pass(seconds(1)).ends_with("hold failed timeout"));
  CHECK(s.last_error().message.find("; b: ") != std::string::npos);
  CHECK(s.last_error().message.find("; c: ") == std::string::npos);
  CHECK(s.last_error().message.find("up to sequence 101 was proven") != std::string::npos);
}

TEST_CASE("guard: a target is asked once how far it has applied, whatever others report") {
  PrimaryScenario s({});
  s.hold("b");
  s.images_synced();
  s.durable("c", 1);
  CHECK(s.durable("b", 1) == "ping b");
  CHECK(s.step(primary_event::Tick{}) == "");
  CHECK(s.report_again("c") == "");
  CHECK(s.report_again("b") == "ping b");
}

TEST_CASE("guard: a hold says that its target is not in sync") {
  PrimaryScenario s(pair_apart(Mode::async));
  CHECK(s.hold("b") == "hold failed refused");
  CHECK(s.last_error().message == "b is not in the in-sync set");
}

TEST_CASE("guard: holds that are given up again and again do not overfill the ring") {
  PrimaryScenario s(pair_in_sync());
  RequestId id = 1;
  for (const std::uint64_t bytes : {std::uint64_t{mib}, 64 * kib, 4 * kib, std::uint64_t{512}}) {
    while (s.arrive(id, write_at(0, bytes)) == fmt::format("admitted {}", id)) {
      s.written(id);
      ++id;
    }
    s.step(primary_event::Cancelled{id++});
  }
  for (int i = 0; i < 60; ++i) {
    s.hold({}, milliseconds(50));
    s.images_synced_if_asked();
    s.pass(milliseconds(100));
    s.report_again("b");
  }
  CHECK(s.primary().ring().used_bytes() <= s.primary().ring().capacity_bytes());
}

TEST_CASE(
    "guard: a recorded member that is away when a new term begins is not waited for for ever") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}, .attached = false});
  CHECK(s.step(primary_event::Resume{Epoch{4, 9}}) == "close b stale_epoch");
  CHECK(s.pass(seconds(6)) == "record a");
}

TEST_CASE("guard: a new term does not close members that were removed, nor any twice") {
  PrimaryScenario s({});
  const PeerIndex removed = s.peer("c");
  s.step(primary_event::PeerRemoved{removed});
  s.step(primary_event::PeerLost{removed, {Errc::unreachable, 0, "closed", {}}});
  CHECK(s.marks("b", nonsense()) == "close b protocol");
  CHECK(s.step(primary_event::Resume{Epoch{4, 9}}) == "");
  CHECK(s.view("b").error->code == Errc::protocol);
}

// --- watermarks ---

TEST_CASE("guard: what was received does not go back either") {
  PrimaryScenario s(pair_in_sync());
  s.write(1, write_at(0));
  s.write(2, write_at(0));
  s.received("b", 2);
  CHECK(s.marks("b", marks_of(1, 0, 0, 0)) == "close b protocol, record a");
}

TEST_CASE("guard: a member may have applied less than the ring holds") {
  PrimaryScenario s(pair_in_sync());
  for (RequestId id = 1; id <= 6; ++id) {
    s.write(id, write_at(id * mib, mib));
    s.durable("b", id);
  }
  REQUIRE(s.primary().ring().first() > PrimaryScenario::base_sequence + 2);
  Watermarks marks = marks_of(6, 6, 6, 1);
  marks.applied_digest = s.point(1).digest;
  CHECK(s.marks("b", marks) == "");
}

TEST_CASE("guard: a member whose session is to end answers nothing any more") {
  PrimaryScenario s({});
  s.write(1, write_at(0));
  s.all("c", 1);
  s.send("b");
  CHECK(s.marks("b", nonsense()) == "close b protocol, record a+c");
  CHECK(s.marks("b", marks_of(1, 1, 1, 1)) == "");
  CHECK(s.recorded() == "answer 1");
}

TEST_CASE("guard: nonsense is no divergence: the member streams again") {
  PrimaryScenario s(pair_in_sync());
  s.marks("b", nonsense());
  s.lose("b");
  s.recorded();
  CHECK(s.attach("b") == "start b after 0, record a+b");
}

TEST_CASE("guard: what is received and what is logged are progress, each by itself") {
  PrimaryScenario s(pair_in_sync());
  for (RequestId id = 1; id <= 4; ++id)
    s.write(id, write_at(id * 4096));
  for (Sequence at = 1; at <= 4; ++at) {
    CHECK(s.pass(seconds(3)) == "");
    CHECK(s.received("b", at) == "");
  }
  for (Sequence at = 1; at <= 4; ++at) {
    CHECK(s.pass(seconds(3)) == "");
    CHECK(s.logged("b", at) == fmt::format("answer {}", at));
  }
}

TEST_CASE("guard: bytes that leave are progress of a copy, not of a stream") {
  PrimaryScenario s(pair_in_sync());
  for (RequestId id = 1; id <= 4; ++id)
    s.write(id, write_at(id * 4096));
  std::string text;
  for (int i = 0; i < 3; ++i) {
    s.send("b", 1);
    text += s.pass(seconds(2));
  }
  CHECK(text == "close b timeout, record a");

  PrimaryScenario copying(pair_apart(Mode::async));
  copying.attach("b", copying.point(0), 0, 0, false);
  REQUIRE(copying.view("b").phase == PeerPhase::copying);
  for (RequestId id = 1; id <= 4; ++id) {
    copying.write(id, write_at(id * 4096));
    CHECK(copying.pass(seconds(4)) == "");
    copying.send("b");
  }
}

// --- members ---

TEST_CASE("guard: a removed member is in sync no more, before that is on record") {
  PrimaryScenario s({});
  s.step(primary_event::PeerRemoved{s.peer("c")});
  CHECK(s.in_sync() == "a+b");
}

TEST_CASE(
    "guard: a member that left before it was in sync does not leave again behind its joining") {
  PrimaryScenario s(pair_apart(Mode::async));
  HistoryPoint point = s.point(0);
  AttachedMessage message;
  message.logged = point;
  message.durable = point.sequence - 1;
  CHECK(s.step(primary_event::PeerAttached{s.peer("b"), message}) == "start b after 0, sync b");
  CHECK(s.lose("b") == "");
  CHECK(s.attach("b") == "start b after 0, record a+b");
  CHECK(s.recorded() == "");
  CHECK(s.in_sync() == "a+b");
}

TEST_CASE("guard: the reason of a record is that of the member it is about") {
  PrimaryScenario s({.peers = {"b", "c"}, .in_sync = {"a", "b"}, .attached = false});
  s.attach("b");
  CHECK(s.lose("b") == "record a");
  CHECK(s.record_reason() == "b: link down");
}

TEST_CASE("guard: a member whose session is to end, or that is away, is asked for nothing") {
  PrimaryScenario s(pair_in_sync(Mode::async));
  s.write(1, write_at(0, mib));
  s.logged("b", 1);
  s.marks("b", nonsense());
  CHECK(fill_ring(s, 2).find("sync b") == std::string::npos);

  PrimaryScenario resumed(pair_in_sync(Mode::async));
  resumed.write(1, write_at(0, mib));
  resumed.logged("b", 1);
  resumed.step(primary_event::Resume{Epoch{4, 9}});
  resumed.lose("b");
  CHECK(fill_ring(resumed, 2).find("sync b") == std::string::npos);
}

TEST_CASE("guard: a member whose session is to end does not join because it slows the guest") {
  PrimaryScenario s({.mode = Mode::async, .peers = {"b"}, .in_sync = {"a"}, .attached = false});
  for (RequestId id = 1; id <= 3; ++id)
    s.write(id, write_at(id * mib, mib));
  s.attach("b", 0);
  REQUIRE_FALSE(s.view("b").caught_up);
  (void)s.primary().take(s.peer("b"), ~std::uint64_t{0});  // being sent: pins the ring
  s.marks("b", nonsense());
  fill_ring(s, 4);
  CHECK_FALSE(s.view("b").caught_up);
}

TEST_CASE("guard: a copy's error without a hint leaves the hint of what the member needs") {
  PrimaryScenario s(pair_apart(Mode::async));
  HistoryPoint other = s.point(0);
  other.digest.low ^= 1;
  s.attach("b", other, 0, 0);
  const std::string hint = s.view("b").error->hint;
  REQUIRE_FALSE(hint.empty());
  s.lose("b");
  s.attach("b", other, 0, 0);
  CHECK(s.view("b").error->message.find("the last copy to it ended: link down") !=
        std::string::npos);
  CHECK(s.view("b").error->hint == hint);
}

TEST_CASE("guard: only a copy that found no space for its stage goes in place the next time") {
  PrimaryScenario s(
      {.mode = Mode::async, .peers = {"b", "c"}, .in_sync = {"a", "c"}, .attached = false});
  s.attach("c");
  for (RequestId id = 1; id <= 6; ++id) {
    s.write(id, write_at(id * mib, mib));
    s.all("c", id);
  }
  s.attach("b", 6);
  s.recorded();
  lose_with(s, "b", Errc::no_space);  // of its log
  s.recorded();
  CHECK(s.attach("b", 1) == "resync b after 6, run copy b");
  lose_with(s, "b", Errc::no_space);
  lose_with(s, "b", Errc::unreachable);
  s.pass(seconds(3));
  CHECK(s.attach("b", 1) == "resync b after 6 in place, run copy b");
}

TEST_CASE("guard: a member that is older is nothing to fall back on") {
  PrimaryScenario s(
      {.mode = Mode::async, .peers = {"b", "c"}, .in_sync = {"a"}, .attached = false});
  for (RequestId id = 1; id <= 6; ++id)
    s.write(id, write_at(id * mib, mib));
  const auto wait_for_space = [&](Sequence other) {
    CHECK(s.attach("c", other).starts_with("resync c after 6"));
    REQUIRE(s.in_sync() == "a");
    s.attach("b", 1);
    lose_with(s, "b", Errc::no_space);
    s.pass(seconds(3));
    return s.attach("b", 1);
  };
  SUBCASE("by one") {
    CHECK(wait_for_space(0) == "resync b after 6, run copy b");
  }
  SUBCASE("but not if it is as new") {
    CHECK(wait_for_space(1) == "resync b after 6 in place, run copy b");
  }
}

TEST_CASE("guard: a member in sync has caught up") {
  PrimaryScenario s(pair_in_sync());
  CHECK(s.view("b").caught_up);
}

TEST_CASE("guard: why a member is away is not forgotten when it is waited for no more") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}, .attached = false});
  s.lose("b");
  CHECK(s.pass(seconds(6)) == "record a");
  CHECK(s.view("b").error->message == "link down");
}

TEST_CASE("guard: a member that has a flush durable is not blamed for one that has not") {
  PrimaryScenario s({});
  s.flush(1);
  s.all("b", 1);
  s.logged("c", 1);
  CHECK(s.pass(seconds(6)) == "close c timeout, record a+b");
}

TEST_CASE("guard: of a member that was never here no lag is known in time") {
  PrimaryScenario s(pair_apart(Mode::async));
  for (RequestId id = 1; id <= 6; ++id)
    s.write(id, write_at(id * mib, mib));
  CHECK(s.view("b").lag == Duration{});
}

TEST_CASE("guard: nothing is copied to a member that was removed") {
  PrimaryScenario s(pair_apart(Mode::async));
  for (RequestId id = 1; id <= 6; ++id)
    s.write(id, write_at(id * mib, mib));
  s.attach("b", 1);
  s.lose("b");
  s.attach("b", 1);
  REQUIRE(s.view("b").phase == PeerPhase::detached);  // the next copy waits
  const PeerIndex peer = s.peer("b");
  SUBCASE("asked for before that, everything is compared, nothing is kept aside") {
    CHECK(s.step(primary_event::CopyRequested{peer}) == "copy b after 6, run copy b");
  }
  SUBCASE("removed") {
    s.step(primary_event::PeerRemoved{peer});
    CHECK(s.step(primary_event::CopyRequested{peer}) == "");
    CHECK(s.pass(seconds(3)) == "");
  }
}

TEST_CASE(
    "guard: the end of a copy that was found wrong is not taken from a session that is to end") {
  PrimaryScenario s(pair_apart(Mode::async));
  for (RequestId id = 1; id <= 6; ++id)
    s.write(id, write_at(id * mib, mib));
  s.attach("b", 1);
  s.step(primary_event::CopyEnding{0});
  CHECK(s.step(primary_event::CopyDone{0, s.point(5)}) == "close b protocol");
  CHECK(s.step(primary_event::CopyDone{0, s.point(6)}) == "");
  CHECK(s.view("b").phase == PeerPhase::copying);
}

TEST_CASE("guard: a member that never came is said to have made no progress") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}, .attached = false});
  CHECK(s.pass(seconds(6)) == "record a");
  REQUIRE(s.view("b").error.has_value());
  CHECK(s.view("b").error->code == Errc::timeout);
}

TEST_CASE("guard: a failure of the volume does not take back a hold that is sealed") {
  PrimaryScenario s({});
  s.hold();
  s.images_synced();
  s.all("b", 1);
  CHECK(s.all("c", 1) == "hold reached 1");
  s.step(primary_event::Seal{});
  CHECK(s.step(primary_event::Fail{{Errc::io_error, 5, "disk", {}}}) == "");
  CHECK(s.primary().is_sealed());
}

TEST_CASE("guard: a hold for a member that is leaving fails, though it has come back") {
  PrimaryScenario s({});
  s.lose("b");  // and has to leave by record
  REQUIRE(s.attach("b") == "start b after 0");
  CHECK(s.hold("b") == "hold failed refused");
  CHECK(s.last_error().message == "b left the in-sync set: it came back since");
}

TEST_CASE("guard: memory that one member's connection reads stays, whoever else lets it go") {
  PrimaryScenario s({.mode = Mode::async, .congestion = Congestion::detach});
  s.write(1, write_at(0, mib));
  (void)s.primary().take(s.peer("b"), ~std::uint64_t{0});
  fill_ring(s, 2);
  REQUIRE_FALSE(s.primary().is_streaming(s.peer("b")));
  REQUIRE_FALSE(s.primary().is_streaming(s.peer("c")));
  CHECK(s.primary().ring().first() == PrimaryScenario::base_sequence + 1);
}

TEST_CASE("guard: who is on another history, or behind, is nothing to fall back on") {
  PrimaryScenario s(
      {.mode = Mode::async, .peers = {"b", "c"}, .in_sync = {"a"}, .attached = false});
  for (RequestId id = 1; id <= 6; ++id)
    s.write(id, write_at(id * mib, mib));
  // Waits for its third copy longer than the other one for its second.
  const auto wait_with = [&](const HistoryPoint& at) {
    CHECK(s.attach("c", at, 5, 5) == "rewind c after 6, run copy c");
    s.lose("c");
    s.pass(seconds(1));
    CHECK(s.attach("c", at, 5, 5) == "rewind c after 6, run copy c");
    s.lose("c");
    CHECK(s.attach("c", at, 5, 5).empty());
  };
  SUBCASE("another history") {
    HistoryPoint other = s.point(5);
    other.digest.low ^= 1;
    wait_with(other);
  }
  SUBCASE("an image that was found to differ") {
    CHECK(s.attach("c", 5) == "start c after 5");
    Watermarks marks = marks_of(5, 5, 5, 5);
    marks.logged_digest = {1, 1};
    CHECK(s.marks("c", marks) == "close c diverged");
    s.lose("c");
    wait_with(s.point(5));
  }
  SUBCASE("a stream that has only begun") {
    CHECK(s.attach("c", s.point(5), 0, 0) == "start c after 5");
  }
  CHECK(s.attach("b", 1) == "resync b after 6, run copy b");
  lose_with(s, "b", Errc::no_space);
  s.pass(seconds(1));
  CHECK(s.attach("b", 1) == "resync b after 6, run copy b");
}

TEST_CASE("guard: a copy in place does not go on with a stage") {
  PrimaryScenario s(
      {.mode = Mode::async, .peers = {"b", "c"}, .in_sync = {"a", "c"}, .attached = false});
  s.attach("c");
  for (RequestId id = 1; id <= 6; ++id) {
    s.write(id, write_at(id * mib, mib));
    s.all("c", id);
  }
  CHECK(s.attach("b", 0) == "resync b after 6, run copy b");
  lose_with(s, "b", Errc::no_space);
  s.pass(seconds(1));
  AttachedMessage message;
  message.logged = s.point(0);
  message.durable = message.applied = message.logged.sequence;
  message.stage = s.primary().epoch();
  message.features = {std::string(feature_go_on)};
  CHECK(s.step(primary_event::PeerAttached{s.peer("b"), message}) ==
        "resync b after 6 in place, run copy b");
  CHECK_FALSE(s.last_start().go_on);
}

TEST_CASE("guard: of an image that is not complete no stage is gone on with") {
  PrimaryScenario s(pair_apart());
  for (RequestId id = 1; id <= 6; ++id)
    s.write(id, write_at(id * mib, mib));
  CHECK(s.attach("b", 0) == "resync b after 6, run copy b");
  s.lose("b");
  s.pass(seconds(1));
  AttachedMessage message;
  message.consistent = false;
  message.logged = s.point(0);
  message.resync = message.stage = s.primary().epoch();
  message.features = {std::string(feature_go_on)};
  CHECK(s.step(primary_event::PeerAttached{s.peer("b"), message}) ==
        "resync b after 6, run copy b");
}

TEST_CASE("guard: what a copy was not let at is not compared by the next one") {
  PrimaryScenario s(pair_apart());
  for (RequestId id = 1; id <= 6; ++id)
    s.write(id, write_at(id * mib, mib));
  CHECK(s.attach("b", 0) == "resync b after 6, run copy b");
  s.arrive(7, write_at(2 * mib));
  CHECK(s.step(primary_event::CopyLock{s.peer("b"), {0, 2 * mib, mib}}).empty());
  s.step(primary_event::CopyUnlock{s.peer("b")});
  s.lose("b");
  s.pass(seconds(1));
  AttachedMessage message;
  message.consistent = false;
  message.logged = s.point(0);
  message.resync = s.primary().epoch();
  CHECK(s.step(primary_event::PeerAttached{s.peer("b"), message}) ==
        "resync b after 6, run copy b");
  CHECK(s.plan().compare.empty());
}

TEST_CASE("guard: a copy goes on when what it waits for has come to nothing, not behind its end") {
  PrimaryScenario s(pair_apart());
  for (RequestId id = 1; id <= 6; ++id)
    s.write(id, write_at(id * mib, mib));
  s.attach("b", 1);
  REQUIRE(s.view("b").phase == PeerPhase::copying);
  REQUIRE(s.arrive(7, write_at(0)) == "admitted 7");
  s.step(primary_event::CopyEnding{0});
  REQUIRE_FALSE(s.primary().copy_end(0).has_value());
  SUBCASE("the copy runs") {
    const std::size_t before = s.sendable().size();
    s.step(primary_event::Abandoned{7});
    CHECK(s.sendable().size() == before + 1);
  }
  SUBCASE("its connection is gone") {
    s.lose("b");
    const std::size_t before = s.sendable().size();
    s.step(primary_event::Abandoned{7});
    CHECK(s.sendable().size() == before);
  }
}

}  // namespace
}  // namespace replicad
