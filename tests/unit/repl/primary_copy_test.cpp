// Full copies beside live writes (core/repl/primary_peers.cpp).

#include <string>

#include <doctest/doctest.h>

#include "tests/unit/repl/primary_scenario.h"

namespace replicad {
namespace {

using Setup = PrimaryScenario::Setup;
using std::chrono::seconds;

/// A peer b of another history that waits after a first copy that failed; frames 1..3 of 4 KiB exist.
void make_detached(PrimaryScenario& s) {
  for (RequestId id = 1; id <= 3; ++id)
    s.write(id, write_at(id * 4096));
  HistoryPoint other = s.point(3);
  other.digest.low ^= 1;
  s.attach("b", other, 0, 0);
  s.lose("b");
  s.attach("b", other, 0, 0);
  REQUIRE(s.view("b").phase == PeerPhase::detached);
}
std::string request_copy(PrimaryScenario& s) {
  return s.step(primary_event::CopyRequested{s.peer("b")});
}
std::string lock(PrimaryScenario& s, const Range& range) {
  return s.step(primary_event::CopyLock{s.peer("b"), range});
}
std::string unlock(PrimaryScenario& s) {
  return s.step(primary_event::CopyUnlock{s.peer("b")});
}

TEST_CASE("copy: only a detached member outside the set can be copied to") {
  PrimaryScenario s(pair_in_sync());
  CHECK(request_copy(s) == "");
  s.lose("b");
  CHECK(request_copy(s) == "");
  HistoryPoint other = s.point(0);
  other.digest.low ^= 1;
  s.attach("b", other, 0, 0);
  CHECK(request_copy(s) == "");  // still recorded
  CHECK(s.recorded() == "rewind b after 0, run copy b");
  CHECK(request_copy(s) == "");
}

TEST_CASE("copy: not to a member that a record under way still names") {
  PrimaryScenario s(pair_apart());
  s.attach("b", 0);  // record a+b under way
  s.lose("b");
  HistoryPoint other = s.point(0);
  other.digest.low ^= 1;
  s.attach("b", other, 0, 0);
  CHECK(request_copy(s) == "");
  CHECK(s.recorded() == "record a");
  CHECK(s.recorded() == "rewind b after 0, run copy b");
}

TEST_CASE("copy: from copy_end on the member streams, and joins when all is durable there") {
  PrimaryScenario s(pair_apart());
  make_detached(s);
  CHECK(request_copy(s) == "rewind b after 3, run copy b");
  CHECK(s.write(4, write_at(0)) == "admitted 4, placed 4 as 4, answer 4");
  CHECK(s.send("b") == 4096 + frame_header_bytes);
  CHECK(s.primary().taken_point(s.peer("b")) == s.point(4));
  CHECK(s.all("b", 4) == "");  // counts for nothing
  CHECK(s.view("b").phase == PeerPhase::copying);
  s.step(primary_event::CopyEnding{s.peer("b")});
  s.write(5, write_at(0));
  CHECK(s.step(primary_event::CopyDone{s.peer("b"), s.point(4)}) == "ping b");
  CHECK(s.view("b").phase == PeerPhase::streaming);
  CHECK_FALSE(s.view("b").error);
  CHECK(s.durable("b", 5) == "record a+b");
}

TEST_CASE("copy: the lock keeps overlapping writes out and waits for those in flight") {
  PrimaryScenario s(pair_apart());
  make_detached(s);
  request_copy(s);
  CHECK(s.arrive(10, write_at(0)) == "admitted 10");
  CHECK(lock(s, {0, 0, mib}) == "");
  CHECK(s.arrive(11, write_at(8192)) == "");            // in the range that is asked for
  CHECK(s.arrive(12, write_at(mib)) == "admitted 12");  // beside it
  CHECK(s.written(10) == "placed 10 as 4, answer 10, locked b");
  CHECK(s.step(primary_event::Abandoned{12}) == "");
  CHECK(unlock(s) == "admitted 11");
  CHECK(lock(s, {0, mib, mib}) == "locked b");
  CHECK(unlock(s) == "");
}

TEST_CASE("copy: ends behind every change that its content holds") {
  PrimaryScenario s(pair_apart());
  make_detached(s);
  request_copy(s);
  s.write(4, write_at(0));
  lock(s, {0, 0, mib});
  unlock(s);  // the piece holds change 4, which the stream has not brought yet
  s.step(primary_event::CopyEnding{s.peer("b")});
  CHECK_FALSE(s.primary().copy_end(s.peer("b")));
  s.send("b");
  s.write(5, write_at(0));
  s.step(primary_event::CopyEnding{s.peer("b")});
  CHECK(s.primary().copy_end(s.peer("b")) == s.point(4));
}

TEST_CASE("copy: ends behind every change that was under way when a block was compared") {
  PrimaryScenario s(pair_apart());
  make_detached(s);
  request_copy(s);
  const PeerIndex b = s.peer("b");
  // The image may have both already: what was compared is said to be equal with them.
  CHECK(s.arrive(10, write_at(0)) == "admitted 10");
  CHECK(s.arrive(11, write_at(8192)) == "admitted 11");
  s.step(primary_event::CopyEnding{b});
  CHECK_FALSE(s.primary().copy_end(b));
  s.written(10);
  s.send("b");
  s.step(primary_event::CopyEnding{b});
  CHECK_FALSE(s.primary().copy_end(b));  // 11 has no number yet
  SUBCASE("it is written") {
    s.written(11);
    s.step(primary_event::CopyEnding{b});
    CHECK_FALSE(s.primary().copy_end(b));
    CHECK(s.arrive(12, write_at(0)) == "admitted 12");  // came later: not waited for
    s.send("b");
    s.step(primary_event::CopyEnding{b});
    CHECK(s.primary().copy_end(b) == s.point(5));
  }
  SUBCASE("it fails") {
    s.step(primary_event::Abandoned{11});
    s.step(primary_event::CopyEnding{b});
    CHECK(s.primary().copy_end(b) == s.point(4));
  }
}

TEST_CASE("copy: a write that waits for the lock is not overtaken") {
  PrimaryScenario s(pair_apart());
  make_detached(s);
  request_copy(s);
  lock(s, {0, 0, 4096});
  CHECK(s.arrive(10, write_at(0, 8192)) == "");
  CHECK(s.arrive(11, write_at(4096, 4096)) == "");
  CHECK(unlock(s) == "admitted 10");
}

TEST_CASE("copy: an abandoned write grants the lock, too") {
  PrimaryScenario s(pair_apart());
  make_detached(s);
  request_copy(s);
  s.arrive(10, write_at(0));
  lock(s, {0, 0, mib});
  CHECK(s.step(primary_event::Abandoned{10}) == "locked b");
}

TEST_CASE("copy: a lost connection gives the lock back") {
  PrimaryScenario s(pair_apart());
  make_detached(s);
  request_copy(s);
  lock(s, {0, 0, mib});
  CHECK(s.arrive(10, write_at(0)) == "");
  CHECK(s.lose("b") == "admitted 10");
  CHECK(unlock(s) == "");
  CHECK(lock(s, {0, 0, mib}) == "");  // of a copy that has not noticed yet
  CHECK(s.arrive(11, write_at(4096)) == "admitted 11");
}

TEST_CASE("copy: goes on while the guest rests") {
  PrimaryScenario s(pair_apart());
  make_detached(s);
  request_copy(s);
  for (int i = 0; i < 5; ++i) {
    lock(s, {0, 0, mib});
    unlock(s);
    CHECK(s.pass(seconds(4)) == "");
  }
  for (int i = 0; i < 5; ++i) {  // the replica syncs its images: it reports, nothing moves
    s.report_again("b");
    CHECK(s.pass(seconds(4)) == "");
  }
  CHECK(s.pass(seconds(2)) == "close b timeout");
}

TEST_CASE("copy: frames that are to be sent are kept, sent ones are not") {
  PrimaryScenario s(pair_apart(Mode::async));
  make_detached(s);
  request_copy(s);
  for (RequestId id = 4; id <= 6; ++id)
    s.write(id, write_at(id * mib, mib));
  CHECK(s.arrive(7, write_at(0, mib)) == "");
  s.send("b", mib + frame_header_bytes);
  CHECK(s.written(7) == "placed 7 as 7, answer 7");
  CHECK(s.primary().ring().first() == PrimaryScenario::base_sequence + 5);
}

TEST_CASE("copy: a copy_done that fits no copy ends the session") {
  PrimaryScenario s(pair_in_sync());
  const PeerIndex b = s.peer("b");
  CHECK(s.step(primary_event::CopyDone{b, s.point(0)}) == "close b protocol, record a");
  PrimaryScenario t(pair_apart());
  make_detached(t);
  request_copy(t);
  t.write(4, write_at(0));
  CHECK(t.step(primary_event::CopyDone{b, t.point(4)}) == "close b protocol");  // not sent yet
  PrimaryScenario u(pair_apart());
  make_detached(u);
  request_copy(u);
  HistoryPoint other = u.point(3);
  other.digest.high ^= 1;
  u.step(primary_event::CopyEnding{b});
  CHECK(u.step(primary_event::CopyDone{b, other}) == "close b protocol");
  PrimaryScenario v(pair_apart());
  make_detached(v);
  request_copy(v);
  lock(v, {0, 0, mib});
  CHECK(v.step(primary_event::CopyDone{b, v.point(3)}) == "close b protocol");
}

TEST_CASE("copy: removing the member frees its copy lock and its part of the ring") {
  PrimaryScenario s(pair_apart(Mode::async));
  make_detached(s);
  request_copy(s);
  lock(s, {0, 0, mib});
  for (RequestId id = 4; id <= 6; ++id)
    s.write(id, write_at(id * mib, mib));
  CHECK(s.arrive(7, write_at(0, mib)) == "");
  CHECK(s.step(primary_event::PeerRemoved{s.peer("b")}) == "close b refused, admitted 7");
}

}  // namespace
}  // namespace replicad
