// What the primary knows of its members' lacks (core/repl/primary_resync.cpp), which the activity map and the choice of
// a copy rest on.

#include <string>

#include <doctest/doctest.h>

#include "tests/unit/repl/primary_scenario.h"

namespace replicad {
namespace {

using Setup = PrimaryScenario::Setup;
using std::chrono::milliseconds;
using std::chrono::seconds;

const Range first_mib{0, 0, mib};
const Range second_mib{0, mib, mib};

AttachedMessage standing(const HistoryPoint& logged) {
  AttachedMessage message;
  message.logged = logged;
  message.durable = message.applied = logged.sequence;
  return message;
}
AttachedMessage interrupted(const HistoryPoint& from, const std::optional<Epoch>& resync) {
  AttachedMessage message = standing(from);
  message.consistent = false;
  message.resync = resync;
  return message;
}
bool knows(PrimaryScenario& s, const AttachedMessage& message) {
  return s.primary().knows_lack(0, message);
}

/// A member known to lack `second_mib` as dirty and the third one as suspect, below 1000 of term 8.
PrimaryConfig later_term() {
  PrimaryConfig config;
  config.epoch = {9, 9};
  config.history = {{9, 9}, 5000, {1, 1}};
  config.reserved = 10'000;
  config.disk_bytes = {gib};
  config.peers = {"b"};
  config.in_sync = {"a"};
  config.host = "a";
  config.ack_timeout = seconds(5);
  config.terms = {{{8, 8}, 5000, true}, {{7, 7}, 900, false}};
  KnownLack lack{"b", 1000, BlockMap({gib}), BlockMap({gib})};
  lack.dirty.mark(second_mib);
  lack.suspect.mark({0, 2 * mib, mib});
  config.lacks = {lack};
  return config;
}

TEST_CASE("lack: a member has everything when it streams and reports the last change durable") {
  PrimaryScenario s(pair_apart(Mode::async));
  write_mib(s, 0, 6);
  CHECK_FALSE(s.primary().has_everything(0));
  CHECK_FALSE(s.primary().has_durably(0, first_mib, term_base + 1));
  s.attach("b", s.point(5), 0, 5);
  // It stands behind what has left the ring, which it has not reported durable.
  CHECK_FALSE(s.primary().has_everything(0));
  CHECK_FALSE(s.primary().has_durably(0, first_mib, term_base));
  CHECK(s.primary().known_lack(0).dirty.overlaps_any(first_mib));
  s.logged("b", 6);
  CHECK_FALSE(s.primary().has_everything(0));
  s.durable("b", 6);
  CHECK(s.primary().has_everything(0));
  CHECK(s.primary().has_durably(0, first_mib, term_base + 6));
  CHECK_FALSE(s.primary().has_durably(0, first_mib, term_base + 7));
  CHECK(s.primary().known_lack(0).dirty.empty());
  s.lose("b");
  CHECK_FALSE(s.primary().has_everything(0));
  CHECK_FALSE(s.primary().has_durably(0, first_mib, term_base + 6));
}

TEST_CASE("lack: marks of a member go only with the last of the changes they are of") {
  PrimaryScenario s({.mode = Mode::async,
                     .congestion = Congestion::detach,
                     .peers = {"b"},
                     .in_sync = {"a"},
                     .attached = false});
  write_mib(s, 0, 6);
  s.attach("b", s.point(4), 0, 4);
  s.logged("b", 6);
  write_mib(s, 6, 3);  // pushes what is logged and not durable out
  s.durable("b", 6);
  REQUIRE(s.primary().is_streaming(0));
  s.logged("b", 9);
  write_mib(s, 9, 1);
  CHECK(s.primary().known_lack(0).dirty.overlaps_any({0, 6 * mib, mib}));
  s.durable("b", 10);
  CHECK(s.primary().known_lack(0).dirty.empty());
}

TEST_CASE("lack: a copy that was broken off is lacking until it is made up for") {
  PrimaryScenario s(pair_apart(Mode::async));
  write_mib(s, 0, 6);
  REQUIRE(s.attach("b", 1) == "resync b after 6, run copy b");
  s.lose("b");
  s.attach("b", s.point(5), 5, 5);  // it had more than the primary knew of
  REQUIRE(s.primary().is_streaming(0));
  CHECK_FALSE(s.primary().has_everything(0));
  CHECK_FALSE(s.primary().has_durably(0, second_mib, term_base));
  CHECK(s.primary().has_durably(0, {0, 100 * mib, mib}, term_base));
  s.durable("b", 6);
  CHECK(s.primary().has_everything(0));
}

TEST_CASE("lack: what an earlier term knew counts, dirty and suspect, until all of it is durable") {
  Primary primary(later_term(), Instant{});
  std::vector<PrimaryEffect> effects;
  primary.step(
      primary_event::PeerAttached{0, standing({{9, 9}, 5000, {1, 1}})}, Instant{}, effects);
  REQUIRE(primary.is_streaming(0));
  CHECK_FALSE(primary.has_everything(0));
  CHECK_FALSE(primary.has_durably(0, second_mib, 5000));
  CHECK_FALSE(primary.has_durably(0, {0, 2 * mib, mib}, 5000));
  CHECK(primary.has_durably(0, {0, 3 * mib, mib}, 5000));
  Watermarks marks;
  marks.received = marks.logged = marks.durable = marks.applied = 5000;
  marks.logged_digest = marks.applied_digest = {1, 1};
  primary.step(primary_event::PeerMarks{0, marks}, Instant{}, effects);
  CHECK(primary.has_everything(0));
  CHECK(primary.known_lack(0).suspect.empty());
}

TEST_CASE("lack: what is only to be compared is lacking, too, in a plan and out of one") {
  PrimaryConfig config = later_term();
  config.lacks[0].dirty.clear_all();
  std::vector<PrimaryEffect> effects;
  const auto attach = [&](Primary& primary, const HistoryPoint& logged) {
    primary.step(primary_event::PeerAttached{0, standing(logged)}, Instant{}, effects);
  };
  Primary known(config, Instant{});
  attach(known, {{9, 9}, 5000, {1, 1}});
  REQUIRE(known.is_streaming(0));
  CHECK_FALSE(known.has_everything(0));
  Primary planned(config, Instant{});
  attach(planned, {{8, 8}, 1000, {7, 7}});
  REQUIRE(planned.view(0, Instant{}).phase == PeerPhase::copying);
  planned.step(primary_event::PeerLost{0, {}}, Instant{}, effects);
  attach(planned, {{9, 9}, 5000, {1, 1}});
  REQUIRE(planned.is_streaming(0));
  CHECK_FALSE(planned.has_everything(0));
  CHECK_FALSE(planned.has_durably(0, {0, 2 * mib, mib}, 5000));
  CHECK(planned.has_durably(0, second_mib, 5000));
}

TEST_CASE("lack: a member whose session is to end does not stream") {
  PrimaryScenario s(pair_apart(Mode::async));
  s.attach("b");
  REQUIRE(s.primary().is_streaming(0));
  s.step(primary_event::PeerMarks{0, Watermarks{}});
  CHECK_FALSE(s.primary().is_streaming(0));
}

TEST_CASE("lack: members that were removed are no members") {
  PrimaryScenario s({});
  s.step(primary_event::PeerRemoved{s.peer("b")});
  CHECK(s.primary().member_hosts() == std::vector<std::string>{"c"});
}

TEST_CASE("lack: is known of who stands on this history, at what is known of it or later") {
  PrimaryScenario s(pair_apart(Mode::async));
  CHECK(knows(s, standing(s.point(0))));
  write_mib(s, 0, 6);
  CHECK(knows(s, standing(s.point(5))));  // in the ring
  CHECK(knows(s, interrupted(s.point(5), s.primary().epoch())));
  CHECK(knows(s, standing(s.point(1))));  // no more
  HistoryPoint other = s.point(5);
  other.digest.low ^= 1;
  CHECK_FALSE(knows(s, standing(other)));
  // Numbers that its term has not given out.
  CHECK_FALSE(knows(s, standing({s.primary().epoch(), term_base - 10, {1, 2}})));
  CHECK_FALSE(knows(s, standing({s.point(0).epoch, term_base + 1, {1, 2}})));
  CHECK(s.step(primary_event::PeerAttached{0,
                                           standing({s.primary().epoch(), term_base - 10, {1, 2}})})
            .starts_with("rewind b"));
  s.lose("b");
  s.pass(seconds(3));
  // Before all, where every history begins: not below what is known, but of this history.
  CHECK_FALSE(knows(s, standing({})));
  CHECK(s.step(primary_event::PeerAttached{0, standing({})}) == "copy b after 6, run copy b");
}

TEST_CASE("lack: an interrupted resync is known if a term of this primary's own had begun it") {
  const Primary primary(later_term(), Instant{});
  const HistoryPoint from{{8, 8}, 1000, {7, 7}};
  CHECK(primary.knows_lack(0, interrupted(from, Epoch{8, 8})));
  CHECK(primary.knows_lack(0, interrupted(from, Epoch{9, 9})));
  CHECK_FALSE(primary.knows_lack(0, interrupted(from, Epoch{7, 7})));
  CHECK_FALSE(primary.knows_lack(0, interrupted(from, std::nullopt)));
  CHECK_FALSE(primary.knows_lack(0, standing({{7, 7}, 1000, {7, 7}})));  // beyond its end
}

TEST_CASE("lack: the trail tells of a member what happened before that is known, and no more") {
  const auto suspect = [](const Primary& primary, Sequence from) {
    return primary.known_lack(0, from).suspect;
  };
  const Range changed{0, 100 * mib, 512};
  PrimaryConfig config = later_term();
  SUBCASE("there is none") {
    const Primary primary(config, Instant{});
    CHECK(suspect(primary, 950).blocks() == mib / block_bytes);
  }
  SUBCASE("there is one") {
    Trail trail({gib});
    trail.begin({{8, 8}, 900, {7, 7}});
    FrameHeader frame;
    frame.type = FrameType::zero;
    frame.epoch = {8, 8};
    frame.sequence = 2000;
    frame.range = changed;
    trail.note(frame);
    trail.adopt(trail.header(config.history));
    config.trail = std::make_shared<const Trail>(std::move(trail));
    const Primary primary(config, Instant{});
    CHECK(suspect(primary, 950).overlaps_any(changed));
    CHECK_FALSE(suspect(primary, 1000).overlaps_any(changed));
  }
}

TEST_CASE("lack: of earlier terms the newest are told, and no more than a message may have") {
  PrimaryConfig config = later_term();
  config.terms.clear();
  for (std::uint64_t number = 1; number <= history_terms_max + 2; ++number)
    config.terms.push_back({{number, 1}, number, false});
  config.epoch = config.history.epoch = {1000, 9};
  const Primary primary(config, Instant{});
  const std::vector<HistoryTerm> told = primary.past_terms();
  REQUIRE(told.size() == history_terms_max);
  CHECK(told.front().epoch.number == 3);
  CHECK(told.back().epoch.number == history_terms_max + 2);
}

TEST_CASE("resync: an incomplete image that says nothing of where it came from keeps nothing") {
  PrimaryScenario s(pair_apart(Mode::async));
  HistoryPoint other = s.point(0);
  other.digest.low ^= 1;
  CHECK(s.step(primary_event::PeerAttached{0, interrupted(other, std::nullopt)}) ==
        "copy b after 0, run copy b");
}

TEST_CASE("resync: after a long calm the next copies come as soon as the first") {
  PrimaryScenario s(pair_apart(Mode::async));
  write_mib(s, 0, 6);
  for (int round = 0; round < 3; ++round) {
    s.attach("b", 1);
    s.pass(seconds(5));
    s.lose("b");
  }
  s.pass(seconds(300));
  CHECK(s.attach("b", 1) == "resync b after 6, run copy b");
  s.lose("b");
  CHECK(s.attach("b", 1) == "");
  CHECK(s.pass(milliseconds(1100)) == "resync b after 6, run copy b");
}

TEST_CASE("resync: only a copy that runs comes to an end, and once") {
  PrimaryScenario s(pair_apart(Mode::async));
  s.attach("b");
  s.step(primary_event::CopyEnding{0});
  CHECK_FALSE(s.primary().copy_end(0).has_value());
  s.lose("b");
  s.recorded();
  s.recorded();
  write_mib(s, 0, 6);
  s.attach("b", 1);
  REQUIRE(s.view("b").phase == PeerPhase::copying);
  s.step(primary_event::CopyEnding{0});
  CHECK(s.primary().copy_end(0) == s.point(6));
  write_mib(s, 6, 1);
  s.send("b");
  s.step(primary_event::CopyEnding{0});
  CHECK(s.primary().copy_end(0) == s.point(6));

  PrimaryScenario closing(pair_apart(Mode::async));
  write_mib(closing, 0, 6);
  closing.attach("b", 1);
  closing.step(primary_event::CopyDone{0, closing.point(6)});  // of a copy that has not ended
  closing.step(primary_event::CopyEnding{0});
  CHECK_FALSE(closing.primary().copy_end(0).has_value());
}

}  // namespace
}  // namespace replicad
