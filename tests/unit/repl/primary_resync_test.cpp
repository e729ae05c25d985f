// What members lack, and copies that start by themselves (core/repl/primary_resync.cpp).

#include <optional>
#include <string>

#include <doctest/doctest.h>

#include "tests/unit/repl/primary_scenario.h"

namespace replicad {
namespace {

using Setup = PrimaryScenario::Setup;
using std::chrono::milliseconds;
using std::chrono::seconds;

AttachedMessage attached_at(const HistoryPoint& logged) {
  AttachedMessage message;
  message.logged = logged;
  message.durable = logged.sequence;
  return message;
}
std::string attach_interrupted(PrimaryScenario& s, Sequence base, const Epoch& resync) {
  AttachedMessage message;
  message.consistent = false;
  message.resync = resync;
  message.logged = s.point(base);
  return s.step(primary_event::PeerAttached{s.peer("b"), message});
}

TEST_CASE("resync: brings exactly the blocks that changed behind the member's point") {
  PrimaryScenario s(pair_apart(Mode::async));
  s.attach("b", 0);
  s.recorded();
  s.write(1, write_at(0));
  s.durable("b", 1);
  s.lose("b");
  s.recorded();
  s.write(2, write_at(64 * mib, 512));
  s.write(3, trim_at(128 * mib, 8 * mib));
  write_mib(s, 4, 5);
  s.write(9, flush_all());
  CHECK(s.primary().ring().first() > PrimaryScenario::base_sequence + 4);
  CHECK(s.attach("b", 1) == "resync b after 9, run copy b");
  const BlockMap& send = s.plan().send;
  CHECK(send.blocks() == 1 + 2 * blocks_per_region + 5 * mib / block_bytes);
  CHECK(send.next(0, 0, gib) == Range{0, 4 * mib, 5 * mib});
  CHECK(send.next(0, 9 * mib, gib) == Range{0, 64 * mib, 4096});
  CHECK(send.next(0, 65 * mib, gib) == Range{0, 128 * mib, 8 * mib});
  CHECK(s.end_copy("b") == "ping b, record a+b");
}

TEST_CASE("resync: what was logged and not durable counts as lacking") {
  PrimaryScenario s({.mode = Mode::async,
                     .congestion = Congestion::detach,
                     .peers = {"b"},
                     .in_sync = {"a", "b"}});
  s.write(1, write_at(0));
  s.logged("b", 1);
  s.lose("b");
  s.recorded();
  write_mib(s, 2, 6);
  // Its host lost power: it stands at the base again.
  CHECK(s.attach("b", 0) == "resync b after 7, run copy b");
  CHECK(s.plan().send.overlaps_any({0, 0, 1}));
}

TEST_CASE("resync: without space for a stage it goes in place, if another member can take over") {
  PrimaryScenario s(
      {.mode = Mode::async, .peers = {"b", "c"}, .in_sync = {"a", "c"}, .attached = false});
  const Error full{Errc::no_space, 0, "bytes more are needed", {}};
  const auto lose_for_space = [&] { s.step(primary_event::PeerLost{s.peer("b"), full}); };
  s.attach("c");
  for (RequestId id = 1; id <= 6; ++id) {
    write_mib(s, id, 1);
    s.send("c");
    s.all("c", id);
  }
  CHECK(s.attach("b", 0) == "resync b after 6, run copy b");
  SUBCASE("one can") {
    lose_for_space();
    s.pass(seconds(1));
    CHECK(s.attach("b", 0) == "resync b after 6 in place, run copy b");
  }
  SUBCASE("none can") {
    s.lose("c");
    lose_for_space();
    s.pass(seconds(1));
    CHECK(s.attach("b", 0) == "resync b after 6, run copy b");
  }
  SUBCASE("it ended for another reason") {
    s.lose("b");
    s.pass(seconds(1));
    CHECK(s.attach("b", 0) == "resync b after 6, run copy b");
  }
}

TEST_CASE("resync: in place beside another copy that is as new, though not in sync") {
  PrimaryScenario s(
      {.mode = Mode::async, .peers = {"b", "c"}, .in_sync = {"a"}, .attached = false});
  const Error full{Errc::no_space, 0, "bytes more are needed", {}};
  write_mib(s, 1, 6);
  const auto no_space_at = [&](const char* host, Sequence at) {
    CHECK(s.attach(host, at) == fmt::format("resync {0} after 6, run copy {0}", host));
    s.step(primary_event::PeerLost{s.peer(host), full});
  };
  no_space_at("b", 0);
  no_space_at("c", 0);
  s.pass(seconds(1));
  SUBCASE("one of two") {
    CHECK(s.attach("c", 0) == "resync c after 6, run copy c");
    CHECK(s.attach("b", 0) == "resync b after 6 in place, run copy b");
    SUBCASE("then the other one waits for space, or for that one") {
      s.step(primary_event::PeerLost{s.peer("c"), full});
      s.pass(seconds(2));
      CHECK(s.attach("c", 0) == "resync c after 6, run copy c");
    }
  }
  SUBCASE("not beside one that is gone") {
    CHECK(s.attach("c", 0) == "resync c after 6, run copy c");
    s.lose("c");
    CHECK(s.attach("b", 0) == "resync b after 6, run copy b");
  }
  SUBCASE("nor beside one whose image is not complete") {
    s.attach("c", s.point(0), 0, 0, false);
    CHECK(s.attach("b", 0) == "resync b after 6, run copy b");
  }
}

TEST_CASE("resync: an interrupted one goes on from its base and brings what came since") {
  PrimaryScenario s(pair_apart(Mode::async));
  write_mib(s, 1, 6);
  CHECK(s.attach("b", 0) == "resync b after 6, run copy b");
  s.lose("b");
  write_mib(s, 7, 6);
  CHECK(attach_interrupted(s, 0, s.primary().epoch()) == "");  // not at once again
  CHECK(s.view("b").phase == PeerPhase::detached);
  CHECK(s.pass(seconds(1)) == "resync b after 12, run copy b");
  CHECK(s.plan().send.next(0, 0, gib) == Range{0, mib, 12 * mib});
  CHECK(s.plan().send.blocks() == 12 * mib / block_bytes);
}

namespace {

std::string attach_parked(PrimaryScenario& s,
                          const HistoryPoint& logged,
                          const std::optional<Epoch>& stage,
                          bool knows_go_on = true) {
  AttachedMessage message = attached_at(logged);
  message.stage = stage;
  if (knows_go_on) message.features = {std::string(feature_go_on)};
  const std::string text = s.step(primary_event::PeerAttached{s.peer("b"), message});
  return text.empty() ? s.pass(seconds(1)) : text;
}
void hand(PrimaryScenario& s, const Range& range) {
  s.step(primary_event::CopyLock{s.peer("b"), range});
  s.step(primary_event::CopyUnlock{s.peer("b")});
}

}  // namespace

TEST_CASE("resync: what may be in a stage that is gone on with is compared, the rest sent") {
  PrimaryScenario s(pair_apart(Mode::async));
  write_mib(s, 1, 6);
  CHECK(s.attach("b", 0) == "resync b after 6, run copy b");
  hand(s, {0, 2 * mib, mib});
  s.write(7, write_at(40 * mib));
  s.send("b");
  s.write(8, write_at(50 * mib));
  s.lose("b");
  const Epoch own = s.primary().epoch();
  SUBCASE("of this term") {
    CHECK(attach_parked(s, s.point(0), own) == "resync b after 8 going on, run copy b");
    CHECK(s.plan().compare.next(0, 0, gib) == Range{0, 2 * mib, mib});
    CHECK(s.plan().compare.next(0, 3 * mib, gib) == Range{0, 40 * mib, 4096});
    CHECK(s.plan().compare.blocks() == mib / block_bytes + 1);
    CHECK(s.plan().send.blocks() == 5 * mib / block_bytes + 1);
    CHECK_FALSE(s.plan().send.overlaps_any({0, 2 * mib, mib}));
    // Once more: what the second one has handed is compared, too.
    hand(s, {0, 5 * mib, mib});
    s.lose("b");
    s.pass(seconds(1));
    CHECK(attach_parked(s, s.point(0), own) == "resync b after 8 going on, run copy b");
    CHECK(s.plan().compare.blocks() == 2 * mib / block_bytes + 1);
    CHECK(s.plan().send.blocks() == 4 * mib / block_bytes + 1);
    CHECK(s.end_copy("b") == "ping b, record a+b");
  }
  SUBCASE("also if its frames have left the ring meanwhile") {
    write_mib(s, 9, 6);
    CHECK(attach_parked(s, s.point(0), own) == "resync b after 14 going on, run copy b");
    CHECK(s.plan().compare.blocks() == mib / block_bytes + 1);
    CHECK(s.plan().compare.overlaps_any({0, 40 * mib, 1}));
    CHECK_FALSE(s.plan().compare.overlaps_any({0, 50 * mib, 1}));
  }
  SUBCASE("of another one") {
    CHECK(attach_parked(s, s.point(0), Epoch{2, 55}) == "resync b after 8, run copy b");
    CHECK(s.plan().compare.empty());
  }
  SUBCASE("none") {
    CHECK(attach_parked(s, s.point(0), {}) == "resync b after 8, run copy b");
    CHECK(s.plan().compare.empty());
  }
  SUBCASE("of a member that does not know how") {
    CHECK(attach_parked(s, s.point(0), own, false) == "resync b after 8, run copy b");
  }
  SUBCASE("for want of space: in place, or anew") {
    CHECK(attach_parked(s, s.point(0), own) == "resync b after 8 going on, run copy b");
    s.step(primary_event::PeerLost{s.peer("b"), {Errc::no_space, 0, "full", {}}});
    s.pass(seconds(1));
    CHECK(attach_parked(s, s.point(0), {}) == "resync b after 8, run copy b");
  }
}

TEST_CASE("resync: what came behind a copy's start is compared, whenever it leaves the ring") {
  PrimaryScenario s(pair_apart());
  write_mib(s, 1, 6);
  CHECK(s.attach("b", 0) == "resync b after 6, run copy b");
  s.write(7, write_at(40 * mib));
  s.send("b");
  AttachedMessage message = attached_at(s.point(0));
  message.stage = s.primary().epoch();
  message.features = {std::string(feature_go_on)};
  SUBCASE("while the copy runs") {
    for (RequestId id = 8; id <= 13; ++id) {
      write_mib(s, id, 1);
      s.send("b");
    }
    s.lose("b");
    CHECK(s.step(primary_event::PeerAttached{s.peer("b"), message}).empty());
  }
  SUBCASE("while the next one waits") {
    s.lose("b");
    CHECK(s.step(primary_event::PeerAttached{s.peer("b"), message}).empty());
    write_mib(s, 8, 6);
  }
  REQUIRE(s.primary().ring().first() > PrimaryScenario::base_sequence + 7);
  CHECK(s.pass(seconds(1)) == "resync b after 13 going on, run copy b");
  CHECK(s.plan().compare.overlaps_any({0, 40 * mib, 1}));
  CHECK_FALSE(s.plan().send.overlaps_any({0, 40 * mib, 1}));
}

TEST_CASE("resync: a stage is not gone on with by a copy that may not bring all that is in it") {
  PrimaryScenario s(pair_apart(Mode::async));
  const HistoryPoint older{{2, 55}, PrimaryScenario::base_sequence - 3, {9, 9}};
  const Epoch own = s.primary().epoch();
  write_mib(s, 1, 6);
  SUBCASE("everything was compared before: only everything again") {
    CHECK(attach_parked(s, older, {}) == "copy b after 6, run copy b");
    s.lose("b");
    SUBCASE("as much") {
      CHECK(attach_parked(s, older, own) == "copy b after 6 going on, run copy b");
    }
    SUBCASE("less") {
      CHECK(attach_parked(s, s.point(0), own) == "resync b after 6, run copy b");
    }
  }
  SUBCASE("what it lacked was brought before: not by a copy that keeps something aside") {
    CHECK(attach_parked(s, s.point(0), {}) == "resync b after 6, run copy b");
    s.lose("b");
    HistoryPoint other = s.point(5);
    other.digest.low ^= 1;
    CHECK(attach_parked(s, other, own) == "rewind b after 6, run copy b");
  }
  SUBCASE("it has streamed since") {
    CHECK(s.attach("b", 6) == "start b after 6, record a+b");
    s.recorded();
    s.lose("b");
    s.recorded();
    write_mib(s, 7, 6);
    CHECK(attach_parked(s, s.point(6), own) == "resync b after 12, run copy b");
  }
}

TEST_CASE("resync: in place, what was handed before is compared, too") {
  PrimaryScenario s(pair_apart(Mode::async));
  write_mib(s, 1, 6);
  CHECK(s.attach("b", 0) == "resync b after 6, run copy b");
  hand(s, {0, 2 * mib, mib});
  s.lose("b");
  attach_interrupted(s, 0, s.primary().epoch());
  CHECK(s.pass(seconds(1)) == "resync b after 6, run copy b");
  CHECK(s.plan().compare.blocks() == mib / block_bytes);
  CHECK(s.plan().send.blocks() == 5 * mib / block_bytes);
}

TEST_CASE("resync: one that another primary had begun is not gone on with") {
  PrimaryScenario s(pair_apart(Mode::async));
  write_mib(s, 1, 6);
  CHECK(attach_interrupted(s, 0, {2, 55}) == "copy b after 6, run copy b");
  CHECK(s.plan().compare.blocks() == (gib + 64 * mib) / block_bytes);
}

TEST_CASE("resync: changes behind copy_end that leave the ring before copy_done stay marked") {
  PrimaryScenario s({.mode = Mode::async,
                     .congestion = Congestion::detach,
                     .peers = {"b"},
                     .in_sync = {"a"},
                     .attached = false});
  write_mib(s, 1, 6);
  s.attach("b", 0);
  s.send("b");
  s.step(primary_event::CopyEnding{s.peer("b")});
  const HistoryPoint end = s.primary().taken_point(s.peer("b"));
  for (RequestId id = 7; id <= 12; ++id) {
    s.write(id, write_at(id * mib, mib));
    s.send("b");
  }
  CHECK(s.step(primary_event::CopyDone{s.peer("b"), end}) == "ping b");
  s.lose("b");
  CHECK(s.attach("b", 6) == "");
  CHECK(s.pass(seconds(2)) == "resync b after 12, run copy b");
  CHECK(s.plan().send.next(0, 0, gib) == Range{0, 7 * mib, 6 * mib});
}

TEST_CASE("resync: a member that falls out again and again waits longer each time") {
  PrimaryScenario s(pair_apart(Mode::async));
  RequestId id = 1;
  Duration waited{};
  Sequence at = 0;
  for (int round = 0; round < 9; ++round) {
    write_mib(s, id, 6);
    id += 6;
    std::string text = s.attach("b", at);
    Duration now{};
    while (text.empty()) {
      now += milliseconds(500);
      text = s.pass(milliseconds(500));
    }
    CHECK(text.starts_with("resync b"));
    CHECK(now >= waited);
    CHECK(now <= seconds(64));
    waited = now;
    at = id - 1;
    s.end_copy("b");
    s.recorded();
    s.lose("b");
    s.recorded();
  }
  CHECK(waited == seconds(64));
  // One that stayed for long enough is brought back at once again.
  s.attach("b", at);
  s.recorded();
  for (int minute = 0; minute < 12; ++minute)
    s.pass(seconds(60));
  s.lose("b");
  s.recorded();
  write_mib(s, id, 6);
  CHECK(s.attach("b", at).starts_with("resync b"));
}

TEST_CASE("resync: a member below what is known of it is compared as a whole") {
  PrimaryScenario s(pair_apart(Mode::async));
  HistoryPoint older{{2, 55}, PrimaryScenario::base_sequence - 3, {9, 9}};
  CHECK(s.step(primary_event::PeerAttached{s.peer("b"), attached_at(older)}) ==
        "copy b after 0, run copy b");
  CHECK(s.plan().compare.blocks() == (gib + 64 * mib) / block_bytes);
  CHECK(s.plan().send.empty());
}

namespace {

const HistoryPoint left_at{{1, 1}, term_base + 40, {9, 9}};

/// This host followed the history from 20 before to the beginning of its term.
Setup with_trail() {
  Trail trail({gib, 64 * mib});
  trail.begin({{1, 9}, term_base - 20, {7, 7}});
  const auto note = [&](Sequence sequence, const Range& range) {
    FrameHeader frame;
    frame.type = FrameType::zero;
    frame.epoch = {2, 55};
    frame.sequence = sequence;
    frame.range = range;
    trail.note(frame);
  };
  note(term_base - 12, {0, 8 * mib, 512});
  note(term_base - 5, {1, 0, 512});
  trail.adopt(trail.header({{2, 55}, term_base, {0x1234, 0x5678}}));
  Setup setup = pair_apart(Mode::async);
  setup.trail = std::make_shared<const Trail>(std::move(trail));
  return setup;
}
AttachedMessage attached_parted(const AttachedMessage::Parted& parted) {
  AttachedMessage message = attached_at(left_at);
  message.features = {std::string(feature_trail)};
  message.parted = parted;
  return message;
}

}  // namespace

TEST_CASE(
    "trail: of a member that stands behind the term's beginning, what changed since is compared") {
  PrimaryScenario s(with_trail());
  const auto attach = [&](const HistoryPoint& point) {
    return s.step(primary_event::PeerAttached{s.peer("b"), attached_at(point)});
  };
  SUBCASE("a little") {
    s.write(1, write_at(40 * mib));
    CHECK(attach({{2, 55}, term_base - 7, {8, 8}}) == "resync b after 1, run copy b");
    CHECK(s.plan().compare.blocks() == blocks_per_region);
    CHECK(s.plan().compare.overlaps_any({1, 0, 1}));
    CHECK(s.plan().send.blocks() == 1);
    CHECK(s.end_copy("b") == "ping b, record a+b");
  }
  SUBCASE("all of it, in an earlier term") {
    CHECK(attach({{1, 9}, term_base - 15, {8, 8}}) == "resync b after 0, run copy b");
    CHECK(s.plan().compare.blocks() == 2 * blocks_per_region);
  }
  SUBCASE("from where it begins on") {
    CHECK(attach({{1, 9}, term_base - 20, {8, 8}}) == "resync b after 0, run copy b");
  }
  SUBCASE("not from before that") {
    CHECK(attach({{1, 9}, term_base - 21, {8, 8}}) == "copy b after 0, run copy b");
    CHECK(s.plan().compare.blocks() == (gib + 64 * mib) / block_bytes);
  }
  SUBCASE("not behind the end of a term there") {
    CHECK(attach({{1, 9}, term_base - 12, {8, 8}}).starts_with("rewind b"));
  }
  SUBCASE("not one whose resync another primary had begun") {
    AttachedMessage message = attached_at({{2, 55}, term_base - 7, {8, 8}});
    message.consistent = false;
    message.resync = Epoch{2, 55};
    CHECK(s.step(primary_event::PeerAttached{s.peer("b"), message}) ==
          "copy b after 0, run copy b");
  }
  SUBCASE("nor when more has been asked for") {
    CHECK(attach({{2, 55}, term_base, {0x1234, 0x5678}}).starts_with("start b"));
  }
  SUBCASE("not of one that has had more of this term: that is not in it") {
    CHECK(attach({{2, 55}, term_base, {0x1234, 0x5678}}).starts_with("start b"));
    s.recorded();
    s.write(1, write_at(0));
    s.durable("b", 1);
    s.lose("b");
    s.recorded();
    CHECK(attach({{2, 55}, term_base - 7, {8, 8}}) == "copy b after 1, run copy b");
  }
}

TEST_CASE(
    "rewind: of a member that says where the histories part, only what either changed since") {
  PrimaryScenario s(with_trail());
  s.write(1, write_at(100 * mib));
  const auto attach = [&](const AttachedMessage& message) {
    return s.step(primary_event::PeerAttached{s.peer("b"), message});
  };
  const Range own{0, 40 * mib, 4 * mib};
  SUBCASE("at the beginning of this term") {
    CHECK(attach(attached_parted({{2, 55}, term_base, {own}})) ==
          "rewind b after 1 of its own, run copy b");
    CHECK(s.plan().compare.blocks() == blocks_per_region);
    CHECK(s.plan().compare.overlaps_any(own));
    CHECK(s.plan().send.blocks() == 1);
    CHECK(s.end_copy("b") == "ping b, record a+b");
  }
  SUBCASE("before it: with what came to here since") {
    CHECK(attach(attached_parted({{2, 55}, term_base - 7, {own}})) ==
          "rewind b after 1 of its own, run copy b");
    CHECK(s.plan().compare.blocks() == 2 * blocks_per_region);
    CHECK(s.plan().compare.overlaps_any({1, 0, 1}));
  }
  SUBCASE("everything is compared otherwise") {
    AttachedMessage message = attached_parted({{2, 55}, term_base, {own}});
    SUBCASE("it is no point of this history") {
      message.parted->epoch = {2, 56};
    }
    SUBCASE("it is behind that term's end") {
      message.parted->sequence = term_base + 1;
    }
    SUBCASE("it is before all that is known") {
      message.parted = {{1, 9}, term_base - 21, {own}};
    }
    SUBCASE("its ranges are none of these disks'") {
      message.parted->ranges = {{2, 0, 512}};
    }
    SUBCASE("they are beyond a disk's end") {
      message.parted->ranges = {{0, gib, 512}};
    }
    SUBCASE("it has not agreed to tell it") {
      message.features.clear();
    }
    SUBCASE("it does not tell it") {
      message.parted.reset();
    }
    SUBCASE("its image is not complete") {
      message.consistent = false;
      message.resync = Epoch{1, 1};
    }
    CHECK(attach(message) == "rewind b after 1, run copy b");
    CHECK(s.plan().compare.blocks() == (gib + 64 * mib) / block_bytes);
  }
  SUBCASE("everything is compared when somebody asks for it") {
    s.step(primary_event::PeerLost{s.peer("b"), {Errc::unreachable, 0, "x", {}}});
    attach(attached_parted({{2, 55}, term_base, {own}}));
    s.step(primary_event::PeerLost{s.peer("b"), {Errc::unreachable, 0, "x", {}}});
    CHECK(attach(attached_parted({{2, 55}, term_base, {own}})) == "");
    CHECK(s.step(primary_event::CopyRequested{s.peer("b")}) == "rewind b after 1, run copy b");
    CHECK(s.plan().compare.blocks() == (gib + 64 * mib) / block_bytes);
  }
}

TEST_CASE("rewind: what is known of a member's lack does without a trail") {
  PrimaryScenario s(pair_apart());
  const AttachedMessage message = attached_parted({{2, 55}, term_base, {{0, 40 * mib, 4 * mib}}});
  SUBCASE("unless its image has been found to differ") {
    s.attach("b");
    s.recorded();
    Watermarks marks{};
    marks.logged_digest = {1, 1};
    CHECK(s.marks("b", marks) == "close b diverged, record a");
    s.lose("b");
    s.recorded();
    CHECK(s.step(primary_event::PeerAttached{s.peer("b"), message}) ==
          "rewind b after 0, run copy b");
  }
  SUBCASE("else") {
    CHECK(s.step(primary_event::PeerAttached{s.peer("b"), message}) ==
          "rewind b after 0 of its own, run copy b");
  }
}

TEST_CASE("resync: what a member of this history says of another one counts for nothing") {
  PrimaryScenario s(pair_apart());
  write_mib(s, 1, 6);
  AttachedMessage message = attached_at(s.point(1));
  message.features = {std::string(feature_trail)};
  message.parted = {{2, 55}, term_base, {{0, 40 * mib, 4 * mib}}};
  CHECK(s.step(primary_event::PeerAttached{s.peer("b"), message}) ==
        "resync b after 6, run copy b");
  CHECK_FALSE(s.plan().compare.overlaps_any({0, 40 * mib, 1}));
}

TEST_CASE("rewind: a consistent member of another history comes back and keeps what it has") {
  PrimaryScenario s(pair_apart(Mode::async));
  write_mib(s, 1, 6);
  HistoryPoint other{{1, 1}, PrimaryScenario::base_sequence - 3, {9, 9}};
  CHECK(s.step(primary_event::PeerAttached{s.peer("b"), attached_at(other)}) ==
        "rewind b after 6, run copy b");
  CHECK(s.view("b").error->code == Errc::diverged);
  CHECK(s.plan().compare.blocks() == (gib + 64 * mib) / block_bytes);
  CHECK(s.plan().send.empty());
  CHECK(s.end_copy("b") == "ping b, record a+b");
}

TEST_CASE("rewind: one that fails is told with its reason, and tried again later") {
  PrimaryScenario s(pair_apart(Mode::async));
  write_mib(s, 1, 6);
  HistoryPoint other{{1, 1}, PrimaryScenario::base_sequence - 3, {9, 9}};
  s.step(primary_event::PeerAttached{s.peer("b"), attached_at(other)});
  s.step(primary_event::PeerLost{s.peer("b"), {Errc::no_space, 0, "no space there", "make room"}});
  CHECK(s.step(primary_event::PeerAttached{s.peer("b"), attached_at(other)}) == "");
  CHECK(s.view("b").phase == PeerPhase::detached);
  CHECK(s.view("b").error->message.find("no space there") != std::string::npos);
  CHECK(s.view("b").error->hint == "make room");
  SUBCASE("by itself") {
    CHECK(s.pass(seconds(1)) == "rewind b after 6, run copy b");
  }
  SUBCASE("at once when it is asked for: it keeps what it has all the same") {
    CHECK(s.step(primary_event::CopyRequested{s.peer("b")}) == "rewind b after 6, run copy b");
  }
}

TEST_CASE("rewind: an interrupted resync of another history keeps what it has, too") {
  PrimaryScenario s(pair_apart(Mode::async));
  write_mib(s, 1, 6);
  AttachedMessage message;
  message.consistent = false;
  message.resync = Epoch{1, 1};
  message.logged = {{1, 1}, PrimaryScenario::base_sequence - 3, {9, 9}};
  CHECK(s.step(primary_event::PeerAttached{s.peer("b"), message}) ==
        "rewind b after 6, run copy b");
}

TEST_CASE("resync: a member is not made inconsistent while a record names it") {
  PrimaryScenario s({.mode = Mode::async, .peers = {"b"}, .in_sync = {"a", "b"}});
  s.pass(seconds(1));
  s.lose("b");
  write_mib(s, 1, 6);
  CHECK(s.attach("b", 0) == "");
  CHECK(s.pass(seconds(3)) == "");
  CHECK(s.recorded() == "resync b after 6, run copy b");
}

TEST_CASE("resync: knowledge of earlier terms brings a member back by what it lacks") {
  PrimaryConfig config;
  config.epoch = {9, 9};
  config.history = {{9, 9}, 5000, {1, 1}};  // behind every number of the term that ended uncleanly
  config.reserved = 10'000;
  config.disk_bytes = {gib};
  config.peers = {"b"};
  config.in_sync = {"a"};
  config.host = "a";
  config.ack_timeout = seconds(5);
  config.terms = {{{8, 8}, 5000, true}};
  KnownLack lack{"b", 1000, BlockMap({gib}), BlockMap({gib})};
  lack.dirty.mark({0, 0, 4096});
  lack.suspect.mark({0, 8 * mib, region_bytes});
  config.lacks = {lack};
  Primary primary(config, Instant{});
  const auto attach = [&](const HistoryPoint& logged) {
    std::vector<PrimaryEffect> effects;
    primary.step(primary_event::PeerAttached{0, attached_at(logged)}, Instant{}, effects);
    std::shared_ptr<const ResyncPlan> plan;
    for (const PrimaryEffect& effect : effects) {
      if (const auto* run = std::get_if<primary_effect::RunCopy>(&effect)) plan = run->plan;
    }
    return plan;
  };
  SUBCASE("at or behind the base") {
    const auto plan = attach({{8, 8}, 1000, {7, 7}});
    REQUIRE(plan);
    CHECK(plan->send.blocks() == 1);
    CHECK(plan->compare.blocks() == blocks_per_region);
  }
  SUBCASE("before it: everything is compared") {
    const auto plan = attach({{8, 8}, 999, {7, 7}});
    REQUIRE(plan);
    CHECK(plan->compare.blocks() == gib / block_bytes);
  }
  SUBCASE("of a term that is not known: everything is compared") {
    const auto plan = attach({{7, 7}, 1000, {7, 7}});
    REQUIRE(plan);
    CHECK(plan->compare.blocks() == gib / block_bytes);
  }
}

}  // namespace
}  // namespace replicad
