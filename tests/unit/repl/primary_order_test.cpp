// Which of the primary's effects waits for which completion (core/repl/primary.h): each of these tests keeps one back,
// lets other things come meanwhile, and looks that nothing overtakes it. docs/testing.md lists the rules.

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "tests/unit/repl/primary_scenario.h"

namespace replicad::primary_order {

using std::chrono::milliseconds;
using std::chrono::seconds;

bool has(const std::string& effects, const std::string& effect) {
  return effects.find(effect) != std::string::npos;
}

// --- changes of the guest

TEST_CASE("order: a change is numbered, sent and answered when the image has it") {
  PrimaryScenario s(pair_in_sync());
  CHECK(s.arrive(1, write_at(0)) == "admitted 1");
  CHECK(s.arrive(2, write_at(mib)) == "admitted 2");
  CHECK(s.written(2) == "placed 2 as 1");
  CHECK(s.all("b", 1) == "answer 2");
  CHECK(s.pass(seconds(20)) == "");
  CHECK(s.hold("b") == "");
  CHECK(s.step(primary_event::Resume{}) == "");
  CHECK(s.report_again("b") == "");
  CHECK(s.send("b") == 0);
  CHECK(s.primary().history() == s.point(1));
  CHECK(s.written(1) == "placed 1 as 2");
  CHECK(s.logged("b", 2) == "answer 1");
}

TEST_CASE("order: a frame is sent and answered when its bytes are in the ring") {
  PrimaryScenario s(pair_in_sync(Mode::semi_sync));
  s.hold_frames = true;
  s.write(1, write_at(0));
  s.write(2, write_at(4096));
  CHECK(s.pass(seconds(20)) == "");
  CHECK(s.send("b") == 0);
  s.frame_ready();
  CHECK(s.send("b") == frame_header_bytes + 4096);
  CHECK(s.send("b") == 0);
  CHECK(s.primary().taken_point(s.peer("b")) == s.point(1));
  CHECK(s.received("b", 1) == "answer 1");
  CHECK(s.pass(seconds(4)) == "");
  s.frame_ready();
  CHECK(s.received("b", 2) == "answer 2");
}

TEST_CASE("order: a flush is answered when disk and members have it, whatever comes meanwhile") {
  for (const bool disk_is_last : {false, true}) {
    CAPTURE(disk_is_last);
    PrimaryScenario s({});
    CHECK(s.write(1, flush_all()) == "admitted 1, placed 1 as 1");
    const auto disturb = [&] {
      CHECK(s.write(2, write_at(0)) == "admitted 2, placed 2 as 2");
      CHECK(s.logged("b", 2) == "");
      CHECK(s.logged("c", 2) == "answer 2");
      CHECK(s.pass(seconds(2)) == "");
    };
    if (disk_is_last) {
      s.durable("b", 1);
      CHECK(s.durable("c", 1) == "");
      disturb();
      CHECK(s.synced(1) == "answer 1");
    } else {
      CHECK(s.synced(1) == "");
      disturb();
      CHECK(s.durable("b", 1) == "");
      CHECK(s.pass(seconds(1)) == "");
      CHECK(s.durable("c", 1) == "answer 1");
    }
  }
}

TEST_CASE("order: numbers are granted before a change is let in, whatever comes meanwhile") {
  PrimaryScenario::Setup setup = pair_in_sync();
  setup.reserved = 65;  // one, beside those kept for frames of our own
  PrimaryScenario s(setup);
  CHECK(has(s.write(1, write_at(0)), "admitted 1"));
  CHECK(s.arrive(2, write_at(4096)) == "");
  CHECK(s.all("b", 1) == "answer 1");
  CHECK(s.pass(seconds(20)) == "");
  CHECK(s.lose("b") == "record a");
  CHECK(s.recorded() == "");
  CHECK(s.arrive(3, flush_all()) == "");
  CHECK(s.step(primary_event::ReserveGranted{PrimaryScenario::base_sequence + 1000}) ==
        "reserve 16778216, admitted 2, admitted 3");
}

// --- the in-sync set

TEST_CASE("order: a departure is recorded before an answer without it, whatever comes meanwhile") {
  PrimaryScenario s({});
  s.write(1, write_at(0));
  CHECK(s.lose("b") == "record a+c");
  const PeerIndex b = s.peer("b");
  CHECK(s.all("c", 1) == "");
  CHECK(s.step(primary_event::SettingsChanged{
            Mode::semi_sync, Congestion::detach, PrimaryScenario::ack_timeout}) == "");
  CHECK(s.write(2, write_at(4096)) == "admitted 2, placed 2 as 2");
  CHECK(s.all("c", 2) == "");
  CHECK(s.flush(3) == "admitted 3, placed 3 as 3");
  CHECK(s.all("c", 3) == "");
  CHECK(s.step(primary_event::CopyRequested{b}) == "");
  CHECK(s.step(primary_event::PeerAdded{"d"}) == "");
  CHECK(s.step(primary_event::VotersChanged{{{"a", "c", "d"}, ""}}) == "");
  CHECK(s.step(primary_event::Seal{}) == "");
  CHECK(s.step(primary_event::Resume{}) == "");
  CHECK(s.step(primary_event::PeerLost{b, {Errc::unreachable, 0, "again", {}}}) == "");
  CHECK(s.pass(seconds(30)) == "");
  CHECK(s.in_sync() == "a+b+c");
  CHECK(s.recorded() == "answer 2, answer 1, answer 3");
}

TEST_CASE("order: one record is durable before the next is asked for") {
  PrimaryScenario s({.peers = {"b", "c", "d"}, .in_sync = {"a", "b", "c", "d"}});
  s.write(1, write_at(0));
  CHECK(s.lose("b") == "record a+c+d");
  CHECK(s.lose("c") == "");
  CHECK(s.attach("b", 0) == "start b after 0");
  CHECK(s.durable("b", 1) == "");
  CHECK(s.pass(milliseconds(200)) == "");
  CHECK(s.step(primary_event::PeerRemoved{s.peer("d")}) == "close d refused");
  CHECK(s.pass(seconds(20)) == "");
  CHECK(s.in_sync() == "a+b+c");
  CHECK(s.recorded() == "record a");
  CHECK(s.pass(seconds(20)) == "");
  CHECK(s.recorded() == "record a+b, answer 1");
}

TEST_CASE("order: what was answered is durable at a member before a record names it") {
  PrimaryScenario s(pair_apart());
  s.write(1, write_at(0));
  s.write(2, write_at(4096));
  CHECK(s.attach("b", 0) == "start b after 0");
  CHECK(s.logged("b", 2) == "sync b");
  CHECK(s.write(3, write_at(8192)) == "admitted 3, placed 3 as 3");
  CHECK(s.logged("b", 3) == "answer 3");
  CHECK(s.pass(seconds(4)) == "");
  CHECK(s.applied("b", 3) == "");
  CHECK(s.durable("b", 1) == "sync b");
  CHECK(s.in_sync() == "a");
  CHECK(s.durable("b", 2) == "record a+b");
  CHECK(s.pass(seconds(4)) == "");
  CHECK(s.in_sync() == "a");
  CHECK(s.recorded() == "");
  CHECK(s.in_sync() == "a+b");
}

TEST_CASE("order: a record that another member asks for names nobody before all is durable there") {
  PrimaryScenario s({.in_sync = {"a", "c"}, .attached = false});
  CHECK(s.attach("c") == "start c after 0");
  s.write(1, write_at(0));
  CHECK(s.all("c", 1) == "answer 1");
  CHECK(s.attach("b", 0) == "start b after 0");
  CHECK(s.logged("b", 1) == "sync b");
  CHECK(s.lose("c") == "record a");
  CHECK(s.recorded() == "");
  CHECK(s.durable("b", 1) == "record a+b");
}

TEST_CASE("order: a record without the member is durable before a copy changes it") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}, .attached = false});
  s.write(1, write_at(0));
  CHECK(s.attach("b", s.point(1), 1, 1, false) == "record a");
  const PeerIndex b = s.peer("b");
  CHECK(s.pass(seconds(30)) == "");
  CHECK(s.step(primary_event::CopyRequested{b}) == "");
  CHECK(s.step(primary_event::CopyLock{b, {0, 0, mib}}) == "");
  CHECK(s.write(2, write_at(0)) == "admitted 2, placed 2 as 2");
  CHECK(s.view("b").phase == PeerPhase::detached);
  CHECK(s.recorded() == "answer 1, answer 2, copy b after 2, run copy b");
}

// --- holds

TEST_CASE("order: a hold begins its flush when all that was let in is numbered and in the ring") {
  PrimaryScenario s({.peers = {}, .in_sync = {"a"}});
  s.arrive(1, write_at(0));
  s.arrive(2, write_at(4096));
  s.arrive(3, flush_all());
  s.hold_frames = true;
  CHECK(s.hold() == "");
  CHECK(s.pass(seconds(1)) == "");
  CHECK(s.step(primary_event::Abandoned{2}) == "");
  CHECK(s.written(3) == "placed 3 as 1");
  CHECK(s.frame_ready() == "");
  CHECK(s.written(1) == "placed 1 as 2, answer 1");
  CHECK(s.pass(seconds(1)) == "");
  CHECK(s.frame_ready() == "");
  CHECK(s.arrive(4, write_at(0)) == "");
  CHECK(s.pass(seconds(1)) == "");
  CHECK(s.synced(3) == "answer 3, placed own as 3, sync images");
}

TEST_CASE("order: a hold is reached when images and members have everything, whichever is last") {
  using Step = std::pair<const char*, std::function<std::string(PrimaryScenario&)>>;
  const std::vector<Step> steps = {
      {"images synced", [](PrimaryScenario& s) { return s.images_synced(); }},
      {"target durable", [](PrimaryScenario& s) { return s.durable("b", 2); }},
      {"target applied", [](PrimaryScenario& s) { return s.applied("b", 2); }},
      {"other durable", [](PrimaryScenario& s) { return s.durable("c", 2); }}};
  for (const Step& last : steps) {
    CAPTURE(last.first);
    PrimaryScenario s({});
    s.write(1, write_at(0));
    CHECK(s.hold("b") == "placed own as 2, sync images");
    for (const Step& step : steps) {
      if (step.first == last.first) continue;
      CHECK_FALSE(has(step.second(s), "hold"));
    }
    CHECK_FALSE(has(s.report_again("b"), "hold"));
    CHECK(s.arrive(2, write_at(8192)) == "");
    CHECK_FALSE(has(s.pass(seconds(3)), "hold"));
    CHECK(s.step(primary_event::Seal{}) == "");
    CHECK_FALSE(s.primary().is_sealed());
    CHECK(has(last.second(s), "hold reached 2"));
    CHECK(s.step(primary_event::Seal{}) == "");
    CHECK(s.primary().is_sealed());
    CHECK(s.pass(seconds(60)) == "");
  }
}

TEST_CASE("order: a hold is reached before it can be sealed, and ends at its deadline else") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}});
  const auto seals = [&] {
    CHECK(s.step(primary_event::Seal{}) == "");
    return s.primary().is_sealed();
  };
  CHECK_FALSE(seals());
  s.arrive(1, write_at(0));
  s.hold("b", seconds(2));
  CHECK_FALSE(seals());
  CHECK(s.written(1) == "placed 1 as 1, placed own as 2, sync images");
  CHECK_FALSE(seals());
  CHECK(s.all("b", 2) == "answer 1");
  CHECK_FALSE(seals());
  CHECK(s.pass(seconds(2)) == "hold failed timeout");
  CHECK_FALSE(seals());
  CHECK(s.write(2, write_at(0)) == "admitted 2, placed 2 as 3");
}

}  // namespace replicad::primary_order
