// Sessions with the replicas, the in-sync set and copies (core/repl/primary_peers.cpp).

#include <string>

#include <doctest/doctest.h>

#include "tests/unit/repl/primary_scenario.h"

namespace replicad {
namespace {

using Setup = PrimaryScenario::Setup;
using std::chrono::milliseconds;
using std::chrono::seconds;

// --- attaching ---

TEST_CASE("attach: a member that stands where the primary stands streams at once") {
  PrimaryScenario s(pair_apart());
  CHECK(s.attach("b", 0) == "start b after 0, record a+b");
  CHECK(s.view("b").phase == PeerPhase::streaming);
}

TEST_CASE("attach: a member whose point is still in the ring catches up from there") {
  PrimaryScenario s(pair_apart());
  for (RequestId id = 1; id <= 4; ++id)
    s.write(id, write_at(id * 4096));
  CHECK(s.attach("b", 2) == "start b after 2");
  CHECK(s.primary().taken_point(s.peer("b")) == s.point(2));
  CHECK(s.send("b") == 2 * (4096 + frame_header_bytes));
}

TEST_CASE("attach: a member whose point has left the ring is brought back by what it lacks") {
  PrimaryScenario s(pair_apart(Mode::async));
  for (RequestId id = 1; id <= 5; ++id)
    s.write(id, write_at(id * mib, mib));
  CHECK(s.primary().ring().first() == PrimaryScenario::base_sequence + 3);
  CHECK(s.attach("b", 1) == "resync b after 5, run copy b");
  CHECK(s.view("b").phase == PeerPhase::copying);
  CHECK(s.view("b").error->code == Errc::too_far_behind);
  CHECK(s.plan().send.next(0, 0, gib) == Range{0, mib, 5 * mib});
  CHECK(s.plan().compare.empty());
  s.lose("b");
  CHECK(s.attach("b", 2) == "start b after 2");  // the point right before the oldest frame
}

TEST_CASE("attach: a position that is not on this history is diverged") {
  PrimaryScenario s(pair_apart());
  s.write(1, write_at(0));
  s.write(2, write_at(0));
  HistoryPoint beyond = s.point(2);
  beyond.sequence += 1;
  HistoryPoint other_digest = s.point(1);
  other_digest.digest.low ^= 1;
  HistoryPoint other_epoch = s.point(1);
  other_epoch.epoch.tag ^= 1;
  HistoryPoint other_inherited = s.point(0);
  other_inherited.digest.high ^= 1;
  for (const HistoryPoint& point : {beyond, other_digest, other_epoch, other_inherited}) {
    s.pass(seconds(70));  // the copy before is no reason to wait any more
    CHECK(s.attach("b", point, 0, 0) == "rewind b after 2, run copy b");
    CHECK(s.view("b").phase == PeerPhase::copying);
    CHECK(s.view("b").error->code == Errc::diverged);
    CHECK(s.view("b").marks == Watermarks{});
    s.lose("b");
  }
}

TEST_CASE("attach: a recorded member that has diverged is not counted for anything it claims") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}, .attached = false});
  s.write(1, write_at(0));
  HistoryPoint other = s.point(1);
  other.digest.low ^= 1;
  CHECK(s.attach("b", other, 1, 1) == "record a");
  CHECK(s.pass(seconds(1)) == "");
  CHECK(s.recorded() == "answer 1, rewind b after 1, run copy b");
}

TEST_CASE("attach: an inconsistent member is copied to at once") {
  PrimaryScenario s(pair_in_sync());
  s.lose("b");
  s.recorded();
  s.write(1, write_at(0));
  CHECK(s.attach("b", s.point(0), 0, 0, false) == "copy b after 1, run copy b");
  CHECK(s.view("b").phase == PeerPhase::copying);
}

TEST_CASE("attach: an inconsistent member that was recorded leaves the set first") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}, .attached = false});
  s.write(1, write_at(0));
  CHECK(s.attach("b", s.point(1), 1, 1, false) == "record a");
  CHECK(s.recorded() == "answer 1, copy b after 1, run copy b");
}

TEST_CASE("attach: watermarks out of order end the session, and the membership") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}, .attached = false});
  s.write(1, write_at(0));
  CHECK(s.attach("b", s.point(1), 2, 1) == "close b protocol, record a");
  s.lose("b");
  CHECK(s.attach("b", s.point(1), 1, 2) == "close b protocol");
  // Coming back again and again does not make the guest wait.
  CHECK(s.recorded() == "answer 1");
}

TEST_CASE("attach: a session that begins anew starts from what the replica has now") {
  PrimaryScenario s(pair_in_sync(Mode::semi_sync));
  s.write(1, write_at(0));
  s.write(2, write_at(4096));
  s.received("b", 2);
  CHECK(s.lose("b") == "record a");
  CHECK(s.recorded() == "");
  CHECK(s.attach("b", 1) == "start b after 1");  // frame 2 was in its memory alone
  CHECK(s.view("b").marks.received == PrimaryScenario::base_sequence + 1);
  CHECK(s.send("b") == 4096 + frame_header_bytes);
}

TEST_CASE("attach: a removed member is ignored") {
  PrimaryScenario s(pair_apart());
  const PeerIndex b = s.peer("b");
  s.step(primary_event::PeerRemoved{b});
  AttachedMessage message;
  message.logged = s.point(0);
  CHECK(s.step(primary_event::PeerAttached{b, message}) == "");
}

// --- start: recorded members that are not there yet ---

TEST_CASE("start: a recorded member is waited for, with its ring memory, for ack-timeout") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}, .attached = false});
  s.write(1, write_at(0));
  CHECK(s.lose("b") == "");  // a failed attempt to connect
  CHECK(s.pass(PrimaryScenario::ack_timeout - milliseconds(50)) == "");
  CHECK(s.pass(milliseconds(100)) == "record a");
  CHECK(s.record_reason() == "b: link down");
  CHECK(s.recorded() == "answer 1");
  CHECK(s.in_sync() == "a");
}

TEST_CASE("start: a recorded member that comes in time stays in the set") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}, .attached = false});
  s.write(1, write_at(0));
  s.pass(seconds(4));
  CHECK(s.attach("b", 0) == "start b after 0");
  CHECK(s.logged("b", 1) == "answer 1");
  CHECK(s.pass(seconds(20)) == "");
  CHECK(s.in_sync() == "a+b");
}

TEST_CASE("start: a full ring waits for a recorded member only as long as ack-timeout") {
  for (const Congestion congestion : {Congestion::throttle, Congestion::detach}) {
    PrimaryScenario s({.mode = Mode::async,
                       .congestion = congestion,
                       .peers = {"b"},
                       .in_sync = {"a", "b"},
                       .attached = false});
    for (RequestId id = 1; id <= 3; ++id)
      s.write(id, write_at(id * mib, mib));
    const std::string text = s.arrive(4, write_at(0, mib));
    if (congestion == Congestion::detach) {
      CHECK(text == "close b too_far_behind, record a, admitted 4");
      continue;
    }
    CHECK(text == "");
    CHECK(s.pass(seconds(6)) == "record a, admitted 4");
  }
}

TEST_CASE("start: members outside the recorded set are not waited for") {
  PrimaryScenario s(pair_apart());
  CHECK(s.write(1, write_at(0)) == "admitted 1, placed 1 as 1, answer 1");
}

// --- leaving ---

TEST_CASE("leave: nothing is answered without a lost member before that is recorded") {
  PrimaryScenario s({});
  s.write(1, write_at(0));
  s.logged("c", 1);
  CHECK(s.lose("b") == "record a+c");
  CHECK(s.record_reason() == "b: link down");
  s.write(2, write_at(4096));
  CHECK(s.logged("c", 2) == "");
  CHECK(s.pass(seconds(30)) == "");  // not asked twice, and never answered
  CHECK(s.in_sync() == "a+b+c");
  CHECK(s.recorded() == "answer 1, answer 2");
  CHECK(s.in_sync() == "a+c");
}

TEST_CASE("leave: async records a lost member, too, but its writes do not wait") {
  PrimaryScenario s(pair_in_sync(Mode::async));
  CHECK(s.lose("b") == "record a");
  CHECK(s.write(1, write_at(0)) == "admitted 1, placed 1 as 1, answer 1");
  CHECK(s.recorded() == "");
  CHECK(s.in_sync() == "a");
}

TEST_CASE("leave: a second loss during a record is recorded next, and waited for") {
  PrimaryScenario s({});
  s.write(1, write_at(0));
  CHECK(s.lose("b") == "record a+c");
  CHECK(s.lose("c") == "");
  CHECK(s.recorded() == "record a");
  CHECK(s.recorded() == "answer 1");
}

TEST_CASE("leave: a member that is back before its departure is recorded joins again after it") {
  PrimaryScenario s(pair_in_sync());
  s.write(1, write_at(0));
  CHECK(s.lose("b") == "record a");
  CHECK(s.attach("b", 0) == "start b after 0");
  CHECK(s.all("b", 1) == "answer 1");
  CHECK(s.recorded() == "record a+b");
  CHECK(s.recorded() == "");
  CHECK(s.in_sync() == "a+b");
}

TEST_CASE("leave: a lost peer that was in no set needs no record") {
  PrimaryScenario s(pair_apart());
  s.write(1, write_at(0));
  s.attach("b", 0);
  CHECK(s.lose("b") == "");
}

TEST_CASE("leave: without a reason of our own the connection's error is shown, else ours") {
  PrimaryScenario s(pair_in_sync());
  s.lose("b");
  CHECK(s.view("b").error->message == "link down");
  PrimaryScenario t(pair_in_sync());
  t.write(1, write_at(0));
  t.pass(seconds(6));
  t.lose("b");
  CHECK(t.view("b").error->code == Errc::timeout);
}

// --- ack timeout ---

TEST_CASE("timeout: a member that makes no progress leaves the set") {
  PrimaryScenario s({});
  s.pass(seconds(60));
  s.write(1, write_at(0));
  s.logged("b", 1);
  CHECK(s.pass(PrimaryScenario::ack_timeout - milliseconds(50)) == "");
  CHECK(s.pass(milliseconds(100)) == "close c timeout, record a+b");
  CHECK(s.record_reason().find("c: no progress for 50") == 0);
  CHECK(s.recorded() == "answer 1");
}

TEST_CASE("timeout: reports without progress do not count, progress does") {
  PrimaryScenario s(pair_in_sync());
  for (RequestId id = 1; id <= 10; ++id)
    s.write(id, write_at(id * 4096));
  for (Sequence at = 1; at <= 9; ++at) {
    CHECK(s.pass(seconds(4)) == "");
    CHECK(s.logged("b", at) == fmt::format("answer {}", at));
  }
  for (int i = 0; i < 4; ++i) {
    CHECK(s.pass(seconds(1)) == "");
    s.report_again("b");
  }
  CHECK(s.pass(milliseconds(1100)) == "close b timeout, record a");
}

TEST_CASE("timeout: a member that has everything may rest for ever") {
  PrimaryScenario s(pair_in_sync());
  s.write(1, write_at(0));
  s.logged("b", 1);
  CHECK(s.pass(seconds(100)) == "");
}

TEST_CASE("timeout: a flush that never becomes durable there does not hang the guest") {
  PrimaryScenario s(pair_in_sync());
  s.flush(1);
  CHECK(s.logged("b", 1) == "");
  CHECK(s.pass(seconds(6)) == "close b timeout, record a");
  CHECK(s.recorded() == "answer 1");
}

TEST_CASE("timeout: writes that go on do not hide a sync that hangs") {
  PrimaryScenario s(pair_in_sync());
  s.flush(1);
  std::string text;
  for (RequestId id = 2; id < 10; ++id) {
    s.write(id, write_at(0));
    s.logged("b", id);
    text += s.pass(seconds(1));
  }
  CHECK(text == "close b timeout, record a");
}

TEST_CASE("timeout: a flush that is still being sent gets its time") {
  PrimaryScenario s(pair_in_sync());
  s.write(1, write_at(0));
  s.flush(2);
  s.pass(seconds(4));
  s.logged("b", 1);
  CHECK(s.pass(seconds(4)) == "");
  s.logged("b", 2);
  CHECK(s.pass(seconds(4)) == "");
  CHECK(s.durable("b", 2) == "answer 2");
}

TEST_CASE("timeout: async waits for no durability, so a slow sync is no reason to leave") {
  PrimaryScenario s(pair_in_sync(Mode::async));
  s.flush(1);
  s.logged("b", 1);
  CHECK(s.pass(seconds(30)) == "");
}

TEST_CASE("timeout: a sync request that is not followed counts as no progress") {
  PrimaryScenario s(pair_in_sync(Mode::async));
  for (RequestId id = 1; id <= 3; ++id)
    s.write(id, write_at(id * mib, mib));
  CHECK(s.logged("b", 3) == "");
  CHECK(s.arrive(4, write_at(0, mib)) == "sync b");
  CHECK(s.pass(seconds(6)) == "close b timeout, record a, admitted 4");
}

// --- what a peer reports ---

TEST_CASE("watermarks: beyond what was sent, or going back, end the session") {
  const Watermarks good{.received = 2,
                        .logged = 2,
                        .durable = 1,
                        .applied = 1,
                        .logged_digest = {},
                        .applied_digest = {}};
  for (int i = 0; i < 5; ++i) {
    CAPTURE(i);
    PrimaryScenario s(pair_in_sync());
    s.write(1, write_at(0));
    s.write(2, write_at(4096));
    s.send("b");
    s.write(3, write_at(8192));
    CHECK(s.marks("b", good) == "answer 1, answer 2");
    Watermarks bad = good;
    if (i == 0) bad.received = 3;
    if (i == 1) bad.received = bad.logged = 1;
    if (i == 2) bad.logged = 1;
    if (i == 3) bad.durable = 0;
    if (i == 4) bad.applied = 0;
    CHECK(s.marks("b", bad) == "close b protocol, record a");
    CHECK(s.marks("b", good) == "");  // of the closed session
    CHECK(s.lose("b") == "");
    CHECK(s.recorded() == "answer 3");
  }
}

TEST_CASE("watermarks: that contradict each other answer nothing") {
  for (int i = 0; i < 3; ++i) {
    PrimaryScenario s(pair_in_sync());
    s.write(1, write_at(0));
    s.flush(2);
    s.send("b");
    Watermarks bad{.received = 1,
                   .logged = 1,
                   .durable = 1,
                   .applied = 1,
                   .logged_digest = {},
                   .applied_digest = {}};
    if (i == 0) bad.logged = 1000;
    if (i == 1) bad.durable = 1000;
    if (i == 2) bad.applied = 1000;
    CHECK(s.marks("b", bad) == "close b protocol, record a");
  }
}

TEST_CASE("watermarks: another digest is a divergence, and ends the membership") {
  for (const bool applied : {false, true}) {
    PrimaryScenario s(pair_in_sync());
    s.write(1, write_at(0));
    s.send("b");
    Watermarks bad{.received = 1,
                   .logged = 1,
                   .durable = 1,
                   .applied = 1,
                   .logged_digest = {},
                   .applied_digest = {}};
    (applied ? bad.applied_digest : bad.logged_digest) = {1, 2};
    CHECK(s.marks("b", bad) == "close b diverged, record a");
    CHECK(s.record_reason().find("b: its digest at sequence 101") == 0);
    s.lose("b");
    CHECK(s.recorded() == "answer 1");
    // Its log may match, but its image is known not to: only a copy helps.
    CHECK(s.attach("b", 1) == "rewind b after 1, run copy b");
    CHECK(s.view("b").error->code == Errc::diverged);
    CHECK(s.end_copy("b") == "ping b, record a+b");
  }
}

TEST_CASE("watermarks: of a detached member change nothing") {
  PrimaryScenario s(pair_apart());
  s.write(1, write_at(0));
  HistoryPoint other = s.point(1);
  other.digest.low ^= 1;
  s.attach("b", other, 1, 1);
  s.lose("b");
  s.attach("b", other, 1, 1);  // a copy to it has just failed
  CHECK(s.report_again("b") == "");
  CHECK(s.view("b").phase == PeerPhase::detached);
}

// --- joining ---

TEST_CASE("join: acknowledgements are waited for before the record is proposed") {
  PrimaryScenario s(pair_apart());
  s.write(1, write_at(0));
  CHECK(s.attach("b", 0) == "start b after 0");
  CHECK(s.write(2, write_at(4096)) == "admitted 2, placed 2 as 2");  // waits already
  CHECK(s.logged("b", 2) == "sync b, answer 2");
  CHECK(s.in_sync() == "a");
  CHECK(s.write(3, write_at(8192)) == "admitted 3, placed 3 as 3");
  CHECK(s.durable("b", 1) == "record a+b");  // 1 was answered before it joined
  CHECK(s.record_reason() == "b: in sync");
  CHECK(s.view("b").caught_up);
  CHECK_FALSE(s.view("b").in_sync);
  CHECK(s.recorded() == "");
  CHECK(s.in_sync() == "a+b");
  CHECK(s.logged("b", 3) == "answer 3");
}

TEST_CASE("join: what this primary inherited must be durable there, not only what it answered") {
  PrimaryScenario s(pair_apart());
  CHECK(s.attach("b", s.point(0), 0, 0) == "start b after 0, record a+b");
  PrimaryScenario t(pair_apart());
  AttachedMessage message;
  message.logged = t.point(0);
  message.durable = PrimaryScenario::base_sequence - 10;
  message.applied = PrimaryScenario::base_sequence - 10;
  CHECK(t.step(primary_event::PeerAttached{t.peer("b"), message}) == "start b after 0, sync b");
  CHECK(t.write(1, write_at(0)) == "admitted 1, placed 1 as 1");
  CHECK(t.in_sync() == "a");
}

TEST_CASE("join: begins when little is lacking") {
  PrimaryScenario s({.mode = Mode::sync,
                     .peers = {"b"},
                     .in_sync = {"a"},
                     .ring_bytes = 64 * mib,
                     .attached = false});
  for (RequestId id = 1; id <= 20; ++id)
    s.write(id, write_at(id * mib, mib));
  s.attach("b", 0);
  CHECK_FALSE(s.view("b").caught_up);
  CHECK(s.write(21, write_at(0)) == "admitted 21, placed 21 as 21, answer 21");
  s.logged("b", 10);
  CHECK_FALSE(s.view("b").caught_up);
  CHECK(s.logged("b", 19) == "sync b");
  CHECK(s.view("b").caught_up);
  CHECK(s.write(22, write_at(0)) == "admitted 22, placed 22 as 22");
}

TEST_CASE("join: a replica that slows the guest down by the full ring joins for that") {
  PrimaryScenario s({.mode = Mode::sync,
                     .peers = {"b"},
                     .in_sync = {"a"},
                     .ring_bytes = 64 * mib,
                     .attached = false});
  s.attach("b", 0);
  s.recorded();
  s.lose("b");
  s.recorded();
  for (RequestId id = 1; id <= 40; ++id)
    s.write(id, write_at(id * mib, mib));
  s.attach("b", 0);
  CHECK_FALSE(s.view("b").caught_up);
  RequestId id = 41;
  while (s.arrive(id, write_at(id * mib, mib)).find("admitted") != std::string::npos) {
    s.written(id++);
  }
  CHECK(s.view("b").caught_up);
  s.logged("b", 5);
  CHECK(s.durable("b", 5).find("admitted") != std::string::npos);
}

TEST_CASE("join: a member lost while its joining is recorded is waited for until it is out again") {
  PrimaryScenario s(pair_apart());
  CHECK(s.attach("b", 0) == "start b after 0, record a+b");
  s.write(1, write_at(0));
  CHECK(s.lose("b") == "");
  // The record that names b may be durable already: nothing is answered without b.
  CHECK(s.pass(seconds(20)) == "");
  CHECK(s.recorded() == "record a");
  CHECK(s.recorded() == "answer 1");
  CHECK(s.in_sync() == "a");
}

TEST_CASE("join: a joining member that is lost before the record stops counting at once") {
  PrimaryScenario s(pair_apart());
  s.write(1, write_at(0));
  s.attach("b", 0);
  s.write(2, write_at(4096));
  CHECK(s.lose("b") == "answer 2");
}

TEST_CASE("join: two members at once, the second during the record of the first") {
  PrimaryScenario s({.in_sync = {"a"}, .attached = false});
  CHECK(s.attach("b", 0) == "start b after 0, record a+b");
  CHECK(s.attach("c", 0) == "start c after 0");
  s.write(1, write_at(0));
  CHECK(s.all("b", 1) == "");
  CHECK(s.recorded() == "record a+b+c");
  CHECK(s.all("c", 1) == "answer 1");
  CHECK(s.recorded() == "");
  CHECK(s.in_sync() == "a+b+c");
}

TEST_CASE("join: one joins and one leaves in one record") {
  PrimaryScenario s({.in_sync = {"a", "b"}, .attached = false});
  s.attach("b", 0);
  s.lose("b");
  CHECK(s.attach("c", 0) == "start c after 0");
  CHECK(s.recorded() == "record a+c");
}

TEST_CASE("join: a hanging sync while joining is a timeout, and the guest goes on") {
  PrimaryScenario s(pair_apart());
  s.write(1, write_at(0));
  s.attach("b", 0);
  CHECK(s.logged("b", 1) == "sync b");
  s.flush(2);
  CHECK(s.pass(seconds(6)) == "close b timeout, answer 2");
}

// --- members added and removed ---

TEST_CASE("members: an added one can attach and join") {
  PrimaryScenario s({.peers = {}, .in_sync = {"a"}});
  CHECK(s.step(primary_event::PeerAdded{"d"}) == "");
  CHECK(s.step(primary_event::PeerAdded{"d"}) == "");
  CHECK(s.primary().peer_count() == 1);
  CHECK(s.attach("d", 0) == "start d after 0, record a+d");
}

TEST_CASE("members: a removed one is recorded away before anything is answered without it") {
  PrimaryScenario s({});
  s.write(1, write_at(0));
  s.logged("c", 1);
  const PeerIndex b = s.peer("b");
  CHECK(s.step(primary_event::PeerRemoved{b}) == "close b refused, record a+c");
  CHECK(s.primary().is_removed(b));
  CHECK_FALSE(s.primary().find_peer("b"));
  CHECK(s.step(primary_event::PeerLost{b, {}}) == "");
  CHECK(s.write(2, write_at(4096)) == "admitted 2, placed 2 as 2");
  CHECK(s.logged("c", 2) == "");
  CHECK(s.recorded() == "answer 1, answer 2");
  CHECK(s.pass(seconds(20)) == "");
}

TEST_CASE("members: one removed while its joining is recorded gets out again") {
  PrimaryScenario s(pair_apart());
  s.attach("b", 0);
  s.write(1, write_at(0));
  CHECK(s.step(primary_event::PeerRemoved{s.peer("b")}) == "close b refused");
  CHECK(s.recorded() == "record a");
  CHECK(s.recorded() == "answer 1");
}

TEST_CASE("members: a host that was removed can be added again") {
  PrimaryScenario s(pair_in_sync());
  const PeerIndex old = s.peer("b");
  s.step(primary_event::PeerRemoved{old});
  s.step(primary_event::PeerLost{old, {}});
  s.step(primary_event::PeerAdded{"b"});
  CHECK(s.peer("b") != old);
  s.recorded();
  CHECK(s.attach("b", 0) == "start b after 0, record a+b");
}

// --- what status shows ---

TEST_CASE("view: lag counts bytes and time since the first change that is lacking") {
  PrimaryScenario s(pair_in_sync(Mode::async));
  CHECK(s.view("b").lag_bytes == 0);
  s.write(1, write_at(0));
  s.pass(seconds(1));
  s.write(2, write_at(4096));
  s.pass(seconds(1));
  CHECK(s.view("b").lag_bytes == 2 * (4096 + frame_header_bytes));
  CHECK(s.view("b").lag == seconds(2));
  s.logged("b", 1);
  CHECK(s.view("b").lag == seconds(1));
  s.logged("b", 2);
  CHECK(s.view("b").lag_bytes == 0);
  CHECK(s.view("b").lag == Duration{});
}

TEST_CASE("view: lag of a lost peer goes on when its changes have left the ring") {
  PrimaryScenario s(pair_in_sync(Mode::async));
  s.lose("b");
  s.recorded();
  for (RequestId id = 1; id <= 5; ++id)
    s.write(id, write_at(id * mib, mib));
  s.pass(seconds(3));
  CHECK(s.primary().ring().first() > PrimaryScenario::base_sequence + 1);
  CHECK(s.view("b").lag == seconds(3));
  CHECK(s.view("b").lag_bytes == 5 * (mib + frame_header_bytes));
}

TEST_CASE("view: what a peer lacks is told disk by disk, also of what has left the ring") {
  PrimaryScenario s(pair_in_sync(Mode::async));
  CHECK(s.view("b").disks.empty());
  s.write(1, write_at(0));
  s.pass(seconds(1));
  s.write(2, write_at(4096));
  s.flush(3);
  s.pass(seconds(1));
  REQUIRE(s.view("b").disks.size() == 1);
  CHECK(s.view("b").disks[0].writes == 2);
  CHECK(s.view("b").disks[0].bytes == 2 * 4096);
  CHECK(s.view("b").disks[0].lag == seconds(2));
  s.logged("b", 1);
  CHECK(s.view("b").disks[0].writes == 1);
  CHECK(s.view("b").disks[0].lag == seconds(1));
  s.logged("b", 3);
  CHECK(s.view("b").disks.empty());
  s.lose("b");
  s.recorded();
  for (RequestId id = 11; id <= 15; ++id)
    s.write(id, write_at((id - 10) * mib, mib));
  s.pass(seconds(3));
  REQUIRE(s.primary().ring().first() > PrimaryScenario::base_sequence + 4);
  REQUIRE(s.view("b").disks.size() == 1);
  CHECK(s.view("b").disks[0].writes == 5);
  CHECK(s.view("b").disks[0].bytes == 5 * mib);
  CHECK(s.view("b").disks[0].lag == seconds(3));
}

TEST_CASE("view: the names of the states are those of the control API") {
  CHECK(peer_state_name(PeerPhase::disconnected, false, false) == "disconnected");
  CHECK(peer_state_name(PeerPhase::disconnected, false, true) == "refused");
  CHECK(peer_state_name(PeerPhase::detached, false, false) == "detached");
  CHECK(peer_state_name(PeerPhase::streaming, false, false) == "catching-up");
  CHECK(peer_state_name(PeerPhase::streaming, true, false) == "streaming");
  CHECK(peer_state_name(PeerPhase::copying, false, false) == "copying");
}

}  // namespace
}  // namespace replicad
