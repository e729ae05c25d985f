// Guest requests: numbering, order, ring space, answers (core/repl/primary.cpp).

#include "core/repl/primary.h"

#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tests/unit/repl/primary_scenario.h"

namespace replicad {
namespace {

using Setup = PrimaryScenario::Setup;

Setup alone() {
  return {.peers = {}, .in_sync = {"a"}};
}

// --- numbers and order ---

TEST_CASE("primary: numbers changes in the order in which the image got them") {
  PrimaryScenario s(alone());
  CHECK(s.arrive(1, write_at(0)) == "admitted 1");
  CHECK(s.arrive(2, write_at(1 * mib)) == "admitted 2");
  CHECK(s.written(2) == "placed 2 as 1, answer 2");
  CHECK(s.written(1) == "placed 1 as 2, answer 1");
  CHECK(s.primary().history() == s.point(2));
}

TEST_CASE("primary: a frame says what changed, in which epoch") {
  PrimaryScenario s(alone());
  s.write(1, {.kind = FrameType::write, .flags = frame_flag_fua, .range = {1, 8192, 512}});
  s.write(2, trim_at(mib, gib / 2));
  CHECK(s.frame(1).type == FrameType::write);
  CHECK(s.frame(1).flags == frame_flag_fua);
  CHECK(s.frame(1).payload_bytes == 512);
  CHECK(s.frame(1).range == Range{1, 8192, 512});
  CHECK(s.frame(1).epoch == Epoch{3, 77});
  CHECK(s.frame(1).sequence == PrimaryScenario::base_sequence + 1);
  CHECK(s.frame(2).type == FrameType::trim);
  CHECK(s.frame(2).payload_bytes == 0);
  CHECK(s.frame(2).range == Range{0, mib, gib / 2});
}

TEST_CASE("primary: an abandoned change gets no number and frees its range") {
  PrimaryScenario s(alone());
  CHECK(s.arrive(1, write_at(0)) == "admitted 1");
  CHECK(s.arrive(2, write_at(0)) == "");
  CHECK(s.step(primary_event::Abandoned{1}) == "admitted 2");
  CHECK(s.written(2) == "placed 2 as 1, answer 2");
  CHECK(s.primary().ring().used_bytes() == frame_header_bytes + 4096);
}

TEST_CASE("primary: overlapping changes go one after the other, others at once") {
  PrimaryScenario s(alone());
  CHECK(s.arrive(1, write_at(0, 8192)) == "admitted 1");
  CHECK(s.arrive(2, write_at(4096, 8192)) == "");
  CHECK(s.arrive(3, write_at(8192, 4096)) == "");  // overlaps only the one that waits
  CHECK(s.arrive(4, write_at(12288)) == "admitted 4");
  CHECK(s.written(1) == "placed 1 as 1, answer 1, admitted 2");
  CHECK(s.written(4) == "placed 4 as 2, answer 4");
  CHECK(s.written(2) == "placed 2 as 3, answer 2, admitted 3");
}

TEST_CASE("primary: the same offsets of two disks do not overlap") {
  PrimaryScenario s(alone());
  CHECK(s.arrive(1, write_at(0)) == "admitted 1");
  CHECK(s.arrive(2, {.kind = FrameType::write, .flags = 0, .range = {1, 0, 4096}}) == "admitted 2");
}

TEST_CASE("primary: a range is free once its change is numbered, before it is answered") {
  PrimaryScenario s({});
  CHECK(s.write(1, write_at(0)) == "admitted 1, placed 1 as 1");
  CHECK(s.write(2, write_at(0)) == "admitted 2, placed 2 as 2");
}

TEST_CASE("primary: cancelling a waiting change lets the one behind it go") {
  PrimaryScenario s(alone());
  s.arrive(1, write_at(0, 4096));
  CHECK(s.arrive(2, write_at(0, 8192)) == "");
  CHECK(s.arrive(3, write_at(4096, 4096)) == "");
  CHECK(s.step(primary_event::Cancelled{2}) == "admitted 3");
  CHECK(s.written(1) == "placed 1 as 1, answer 1");
}

TEST_CASE("primary: a cancelled request is not answered any more") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}});
  s.write(1, write_at(0));
  s.write(2, flush_all());
  s.write(3, flush_all());
  CHECK(s.step(primary_event::Cancelled{1}) == "");
  CHECK(s.step(primary_event::Cancelled{2}) == "");
  CHECK(s.synced(2) == "");
  CHECK(s.synced(3) == "");
  CHECK(s.durable("b", 3) == "answer 3");
}

// --- answers ---

/// What is still unanswered after b has `b_has` and c has `c_has` of frame 1, by mode and change.
struct AckRule {
  Mode mode;
  Change change;
  enum class Needs { nothing, received, logged, durable } needs;
};

TEST_CASE("primary: each mode waits for exactly its level, of every in-sync member") {
  using Needs = AckRule::Needs;
  const std::vector<AckRule> rules = {
      {Mode::async, write_at(0), Needs::nothing},
      {Mode::async, fua_at(0), Needs::nothing},
      {Mode::async, flush_all(), Needs::nothing},
      {Mode::async, trim_at(0, 4096), Needs::nothing},
      {Mode::semi_sync, write_at(0), Needs::received},
      {Mode::semi_sync, fua_at(0), Needs::logged},
      {Mode::semi_sync, flush_all(), Needs::logged},
      {Mode::semi_sync, trim_at(0, 4096), Needs::received},
      {Mode::sync, write_at(0), Needs::logged},
      {Mode::sync, fua_at(0), Needs::durable},
      {Mode::sync, flush_all(), Needs::durable},
      {Mode::sync, trim_at(0, 4096), Needs::logged},
  };
  const std::vector<std::vector<std::string>> sets = {{"a"}, {"a", "b"}, {"a", "b", "c"}};
  for (const AckRule& rule : rules) {
    for (const auto& in_sync : sets) {
      CAPTURE(mode_name(rule.mode));
      CAPTURE(static_cast<int>(rule.change.kind));
      CAPTURE(rule.change.flags);
      CAPTURE(in_sync.size());
      // Members outside the set are not attached: they count for nothing.
      PrimaryScenario s({.mode = rule.mode, .in_sync = in_sync, .attached = false});
      std::string text;
      for (const std::string& host : in_sync) {
        if (host != "a") s.attach(host);
      }
      text = s.write(1, rule.change);
      if (rule.change.kind == FrameType::flush) {
        CHECK(text == "admitted 1, placed 1 as 1");
        text = s.synced(1);
      }
      Needs has = Needs::nothing;
      const auto raise = [&](Needs level) {
        for (const std::string& host : in_sync) {
          if (host == "a") continue;
          CHECK((text.find("answer") == std::string::npos) == (has < rule.needs));
          if (level == Needs::received) text += s.received(host, 1);
          if (level == Needs::logged) text += s.logged(host, 1);
          if (level == Needs::durable) text += s.durable(host, 1);
        }
        has = level;
        if (in_sync.size() == 1) has = Needs::durable;
        CHECK((text.find("answer") == std::string::npos) == (has < rule.needs));
      };
      raise(Needs::received);
      raise(Needs::logged);
      raise(Needs::durable);
      CHECK(text.find("answer 1") == text.rfind("answer 1"));
    }
  }
}

TEST_CASE("primary: a flush waits for the local disk and for the members, whichever is later") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}});
  CHECK(s.write(1, flush_all()) == "admitted 1, placed 1 as 1");
  CHECK(s.synced(1) == "");
  CHECK(s.durable("b", 1) == "answer 1");
  CHECK(s.write(2, flush_all()) == "admitted 2, placed 2 as 2");
  CHECK(s.durable("b", 2) == "");
  CHECK(s.synced(2) == "answer 2");
}

TEST_CASE("primary: an async flush waits for the local disk alone") {
  PrimaryScenario s({.mode = Mode::async});
  CHECK(s.write(1, flush_all()) == "admitted 1, placed 1 as 1");
  CHECK(s.synced(1) == "answer 1");
}

TEST_CASE("primary: answers come in sequence order within a level, each once") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}});
  s.write(1, write_at(0));
  s.write(2, write_at(4096));
  s.write(3, write_at(8192));
  CHECK(s.logged("b", 2) == "answer 1, answer 2");
  CHECK(s.logged("b", 3) == "answer 3");
  CHECK(s.durable("b", 3) == "");
}

TEST_CASE("primary: only the last piece of a request is answered") {
  PrimaryScenario s(alone());
  CHECK(s.arrive(1, write_at(0, mib)) == "admitted 1");
  CHECK(s.written(1, false) == "placed 1 as 1");
  CHECK(s.arrive(1, write_at(mib, mib)) == "admitted 1");
  CHECK(s.written(1, true) == "placed 1 as 2, answer 1");
}

TEST_CASE("primary: a write that was already waited for keeps its level when the mode changes") {
  PrimaryScenario s({.mode = Mode::semi_sync, .peers = {"b"}, .in_sync = {"a", "b"}});
  s.write(1, write_at(0));
  CHECK(s.step(primary_event::SettingsChanged{
            Mode::sync, Congestion::throttle, PrimaryScenario::ack_timeout}) == "");
  s.write(2, write_at(4096));
  CHECK(s.received("b", 2) == "answer 1");
  CHECK(s.logged("b", 2) == "answer 2");
  s.step(primary_event::SettingsChanged{
      Mode::async, Congestion::throttle, PrimaryScenario::ack_timeout});
  CHECK(s.write(3, write_at(0)) == "admitted 3, placed 3 as 3, answer 3");
}

TEST_CASE("primary: a flush under way when the mode leaves async waits for the members") {
  const auto change = [](PrimaryScenario& s, Mode mode) {
    return s.step(
        primary_event::SettingsChanged{mode, Congestion::throttle, PrimaryScenario::ack_timeout});
  };
  const PrimaryScenario::Setup pair{.mode = Mode::async, .peers = {"b"}, .in_sync = {"a", "b"}};
  PrimaryScenario semi_sync(pair);
  semi_sync.write(1, flush_all());
  CHECK(change(semi_sync, Mode::semi_sync) == "");
  CHECK(semi_sync.synced(1) == "");
  CHECK(semi_sync.received("b", 1) == "");
  CHECK(semi_sync.logged("b", 1) == "answer 1");

  PrimaryScenario sync(pair);
  sync.write(1, flush_all());
  CHECK(change(sync, Mode::sync) == "");
  CHECK(sync.logged("b", 1) == "");
  CHECK(sync.durable("b", 1) == "");
  CHECK(sync.synced(1) == "answer 1");

  // The members have done that already.
  PrimaryScenario done(pair);
  done.write(1, flush_all());
  done.durable("b", 1);
  CHECK(change(done, Mode::sync) == "");
  CHECK(done.synced(1) == "answer 1");

  // Another change of the settings asks for nothing new.
  PrimaryScenario still_async(pair);
  still_async.write(1, flush_all());
  CHECK(change(still_async, Mode::async) == "");
  CHECK(still_async.synced(1) == "answer 1");
  PrimaryScenario raised({.mode = Mode::semi_sync, .peers = {"b"}, .in_sync = {"a", "b"}});
  raised.write(1, flush_all());
  raised.logged("b", 1);
  CHECK(change(raised, Mode::sync) == "");
  CHECK(raised.synced(1) == "answer 1");

  // Who has gone is not answered, and takes nobody along.
  PrimaryScenario given_up(pair);
  given_up.write(1, flush_all());
  given_up.write(2, flush_all());
  given_up.step(primary_event::Cancelled{1});
  change(given_up, Mode::semi_sync);
  CHECK(given_up.synced(1) == "");
  CHECK(given_up.synced(2) == "");
  CHECK(given_up.logged("b", 2) == "answer 2");

  // One that the members had in an earlier mode goes before what waits since.
  PrimaryScenario ordered({.mode = Mode::semi_sync, .peers = {"b"}, .in_sync = {"a", "b"}});
  ordered.write(1, flush_all());
  ordered.logged("b", 1);
  change(ordered, Mode::sync);
  ordered.write(2, fua_at(0));
  change(ordered, Mode::async);
  change(ordered, Mode::sync);
  CHECK(ordered.synced(1) == "");
  CHECK(ordered.durable("b", 1) == "answer 1");
  CHECK(ordered.durable("b", 2) == "answer 2");
}

TEST_CASE("primary: a changed ack-timeout counts at once") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}});
  s.pass(std::chrono::milliseconds(100));
  s.write(1, write_at(0));
  s.step(primary_event::SettingsChanged{
      Mode::sync, Congestion::throttle, std::chrono::milliseconds(200)});
  CHECK(s.pass(std::chrono::milliseconds(150)) == "");
  CHECK(s.pass(std::chrono::milliseconds(100)) == "close b timeout, record a");
}

// --- failure ---

TEST_CASE("primary: a failure answers everything that waits, once, with an error") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}});
  s.write(1, write_at(0));          // waits for b
  s.write(2, flush_all());          // waits for b and the disk
  s.flush(3);                       // waits for b
  s.arrive(4, write_at(4096));      // being written
  s.arrive(5, write_at(4096));      // behind it
  s.arrive(6, write_at(64 * kib));  // being written, will be abandoned
  const std::string text = s.step(primary_event::Fail{{Errc::io_error, EIO, "disk broke", {}}});
  CHECK(text == "fail 5, fail 1, fail 2, fail 3");
  CHECK(s.synced(2) == "");
  CHECK(s.step(primary_event::Fail{{Errc::io_error, EIO, "again", {}}}) == "");
  CHECK(s.primary().failure()->message == "disk broke");
  // What reached the image is numbered and sent nevertheless.
  CHECK(s.written(4) == "placed 4 as 4, fail 4");
  CHECK(s.step(primary_event::Abandoned{6}) == "");
  CHECK(s.arrive(7, write_at(0)) == "fail 7");
  CHECK(s.durable("b", 4) == "");
}

TEST_CASE("primary: a flush that the members have is failed, too, while the disk has not") {
  PrimaryScenario s({.mode = Mode::async});
  s.write(1, flush_all());
  CHECK(s.step(primary_event::Fail{{Errc::io_error, EIO, "disk broke", {}}}) == "fail 1");
  CHECK(s.synced(1) == "");
}

TEST_CASE("primary: with on-local-error=hold a failure answers nothing until that is changed") {
  PrimaryScenario s({.on_local_error = OnLocalError::hold, .peers = {"b"}, .in_sync = {"a", "b"}});
  s.write(1, write_at(0));      // waits for b
  s.write(2, flush_all());      // waits for b and the disk
  s.arrive(4, write_at(4096));  // being written
  s.arrive(5, write_at(4096));  // behind it
  CHECK(s.step(primary_event::Fail{{Errc::io_error, EIO, "disk broke", {}}}) == "");
  // Neither what the members acknowledge nor what the disk still does makes an answer true.
  CHECK(s.synced(2) == "");
  CHECK(s.written(4) == "placed 4 as 3");
  CHECK(s.arrive(6, write_at(64 * kib)) == "");
  CHECK(s.durable("b", 3) == "");
  CHECK(s.pass(std::chrono::seconds(1)) == "");
  const std::string text = s.step(primary_event::SettingsChanged{
      Mode::sync, Congestion::throttle, PrimaryScenario::ack_timeout, OnLocalError::fail});
  CHECK(text == "fail 5, fail 6, fail 1, fail 2, fail 4");
  CHECK(s.arrive(7, write_at(0)) == "fail 7");
  CHECK(s.durable("b", 3) == "");
}

TEST_CASE(
    "primary: a held failure also keeps what async would have answered, and lets go of who "
    "leaves") {
  PrimaryScenario s({.mode = Mode::async, .on_local_error = OnLocalError::hold});
  s.write(1, flush_all());   // the disk has not done it
  s.arrive(2, write_at(0));  // being written
  CHECK(s.step(primary_event::Fail{{Errc::io_error, EIO, "disk broke", {}}}) == "");
  CHECK(s.synced(1) == "");
  CHECK(s.written(2) == "placed 2 as 2");
  s.arrive(3, write_at(4096));
  CHECK(s.step(primary_event::Cancelled{3}) == "");
  CHECK(s.step(primary_event::Cancelled{2}) == "");
  CHECK(s.step(primary_event::SettingsChanged{
            Mode::async, Congestion::throttle, PrimaryScenario::ack_timeout, OnLocalError::fail}) ==
        "fail 1");
}

// --- sequences ---

TEST_CASE("primary: asks for more sequences early and never uses one it was not granted") {
  Setup setup = alone();
  setup.reserved = 66;  // two, beside those kept for frames of our own
  PrimaryScenario s(setup);
  CHECK(s.arrive(1, write_at(0)) == "reserve 16777282, admitted 1");
  CHECK(s.arrive(2, write_at(4096)) == "admitted 2");
  CHECK(s.arrive(3, write_at(8192)) == "");
  CHECK(s.written(1) == "placed 1 as 1, answer 1");
  CHECK(s.pass(std::chrono::seconds(1)) == "");  // asked for once
  CHECK(s.step(primary_event::Abandoned{2}) == "admitted 3");
  CHECK(s.arrive(4, write_at(0)) == "");
  CHECK(s.step(primary_event::ReserveGranted{PrimaryScenario::base_sequence + 16777282}) ==
        "admitted 4");
  CHECK(s.pass(std::chrono::seconds(1)) == "");
}

TEST_CASE("primary: a grant that falls short is asked for again") {
  Setup setup = alone();
  setup.reserved = 0;
  PrimaryScenario s(setup);
  CHECK(s.arrive(1, write_at(0)) == "reserve 16777216");
  CHECK(s.step(primary_event::ReserveGranted{PrimaryScenario::base_sequence + 10}) ==
        "reserve 16777226");
  CHECK(s.step(primary_event::ReserveGranted{PrimaryScenario::base_sequence + (1U << 24)}) ==
        "admitted 1");
}

TEST_CASE("primary: asks for sequences while the guest rests") {
  Setup setup = alone();
  setup.reserved = 1 << 20;
  PrimaryScenario s(setup);
  CHECK(s.pass(std::chrono::milliseconds(50)) == "reserve 17825792");
}

// --- ring ---

/// Writes of 1 MiB to different places, as many as are admitted; returns how many.
RequestId fill_ring(PrimaryScenario& s, RequestId first) {
  RequestId id = first;
  while (s.arrive(id, write_at(id * mib, mib)).find("admitted") != std::string::npos) {
    s.written(id++);
  }
  return id - first;
}

TEST_CASE("primary: throttle keeps the guest waiting until the slowest has it durable") {
  PrimaryScenario s({.mode = Mode::async});
  CHECK(fill_ring(s, 1) == 3);  // the fourth waits
  CHECK(s.all("b", 3) == "");
  CHECK(s.logged("c", 3) == "sync c");  // logged is not durable
  CHECK(s.view("b").phase == PeerPhase::streaming);
  CHECK(s.durable("c", 1) == "sync c, admitted 4");
  CHECK(s.primary().ring().first() == PrimaryScenario::base_sequence + 2);
  CHECK(s.written(4) == "placed 4 as 4, answer 4");
}

TEST_CASE("primary: asks for durability when much of the ring waits for it, once") {
  PrimaryScenario s({.mode = Mode::async, .peers = {"b"}, .in_sync = {"a", "b"}});
  s.write(1, write_at(0, mib));
  CHECK(s.logged("b", 1) == "");
  s.write(2, write_at(mib, mib));
  CHECK(s.logged("b", 2) == "");
  CHECK(s.write(3, write_at(2 * mib, mib)) == "sync b, admitted 3, placed 3 as 3, answer 3");
  CHECK(s.arrive(4, write_at(3 * mib, mib)) == "");
  CHECK(s.logged("b", 3) == "");
  CHECK(s.durable("b", 2) == "admitted 4");
}

TEST_CASE("primary: asks for durability when that alone keeps a write waiting") {
  PrimaryScenario s({.mode = Mode::async, .peers = {"b"}, .in_sync = {"a", "b"}});
  s.write(1, write_at(0, mib));
  s.logged("b", 1);
  s.arrive(2, write_at(1 * mib, mib));
  s.arrive(3, write_at(2 * mib, mib));  // two in flight take most of the ring
  CHECK(s.arrive(4, write_at(3 * mib, mib)) == "sync b");
  CHECK(s.durable("b", 1) == "admitted 4");
}

TEST_CASE("primary: does not ask for durability that nothing waits for") {
  PrimaryScenario s({.mode = Mode::async, .peers = {"b"}, .in_sync = {"a", "b"}});
  fill_ring(s, 1);
  s.all("b", 3);
  s.written(4);
  s.all("b", 4);
  // The ring is full of old frames, which is its normal state.
  CHECK(s.write(5, write_at(0)) == "admitted 5, placed 5 as 5, answer 5");
  s.logged("b", 5);
  CHECK(s.write(6, write_at(4096)) == "admitted 6, placed 6 as 6, answer 6");
}

TEST_CASE("primary: asks for durability when the ring runs out of entries, too") {
  PrimaryScenario s({.mode = Mode::async, .peers = {"b"}, .in_sync = {"a", "b"}});
  std::string text;
  RequestId id = 1;
  for (; id < 4000 && text.empty(); ++id) {
    const std::string effects = s.write(id, trim_at(id * 4096, 4096));
    if (effects.find("sync b") != std::string::npos) text = effects;
    s.logged("b", id);
  }
  CHECK_FALSE(text.empty());
}

TEST_CASE("primary: more tiny frames than the ring has entries wait for room") {
  PrimaryScenario s({.mode = Mode::async, .peers = {"b"}, .in_sync = {"a", "b"}});
  const RequestId entries = s.primary().ring().entries_max();
  for (RequestId id = 1; id <= entries; ++id) {
    REQUIRE(s.write(id, trim_at(0, 4096)).find("answer") != std::string::npos);
  }
  CHECK(s.arrive(entries + 1, trim_at(0, 4096)) == "");
  CHECK(s.durable("b", 10) == fmt::format("admitted {}", entries + 1));
}

TEST_CASE("primary: small changes do not pass a large one that waits for room") {
  PrimaryScenario s({.mode = Mode::async, .peers = {"b"}, .in_sync = {"a", "b"}});
  CHECK(fill_ring(s, 1) == 3);
  CHECK(s.arrive(5, write_at(0, 512)) == "");
  CHECK(s.durable("b", 1) == "admitted 4, admitted 5");
}

TEST_CASE("primary: memory that is still being sent is not reused") {
  PrimaryScenario s({.mode = Mode::async, .peers = {"b"}, .in_sync = {"a", "b"}});
  CHECK(fill_ring(s, 1) == 3);
  const auto window = s.primary().take(s.peer("b"), ~std::uint64_t{0});
  CHECK(window.end_bytes == 3 * (mib + frame_header_bytes));
  CHECK(s.marks("b",
                {.received = 3,
                 .logged = 3,
                 .durable = 3,
                 .applied = 0,
                 .logged_digest = {},
                 .applied_digest = {}}) == "");
  CHECK(s.lose("b").find("admitted 4") != std::string::npos);
}

TEST_CASE("primary: space taken by frames that are not ready comes back when they are") {
  PrimaryScenario s(alone());
  s.hold_frames = true;
  for (RequestId id = 1; id <= 3; ++id)
    s.write(id, write_at(id * mib, mib));
  CHECK(s.arrive(4, write_at(0, mib)) == "");
  CHECK(s.frame_ready() == "admitted 4");
}

TEST_CASE("primary: detach lets the slow replica go instead of slowing the guest") {
  PrimaryScenario s({.mode = Mode::async, .congestion = Congestion::detach});
  for (RequestId id = 1; id <= 3; ++id)
    s.write(id, write_at(id * mib, mib));
  s.all("c", 3);
  CHECK(s.arrive(4, write_at(0, mib)) == "close b too_far_behind, record a+c, admitted 4");
  CHECK(s.written(4) == "placed 4 as 4, answer 4");
  CHECK(s.recorded() == "");
  CHECK(s.in_sync() == "a+c");
  CHECK(s.lose("b") == "");
  CHECK(s.view("b").error->code == Errc::too_far_behind);
}

TEST_CASE("primary: detach answers nothing without the member before that is recorded") {
  PrimaryScenario s({.mode = Mode::sync, .congestion = Congestion::detach});
  for (RequestId id = 1; id <= 3; ++id)
    s.write(id, write_at(id * mib, mib));
  s.all("c", 3);
  CHECK(s.arrive(4, write_at(0, mib)) == "close b too_far_behind, record a+c, admitted 4");
  CHECK(s.written(4) == "placed 4 as 4");
  CHECK(s.all("c", 4) == "");
  CHECK(s.recorded() == "answer 1, answer 2, answer 3, answer 4");
}

TEST_CASE("primary: detach does not blame a replica that has logged everything") {
  PrimaryScenario s({.mode = Mode::async,
                     .congestion = Congestion::detach,
                     .peers = {"b"},
                     .in_sync = {"a", "b"}});
  for (RequestId id = 1; id <= 3; ++id)
    s.write(id, write_at(id * mib, mib));
  s.logged("b", 3);
  CHECK(s.arrive(4, write_at(0, mib)) == "sync b, admitted 4");
  CHECK(s.view("b").phase == PeerPhase::streaming);
}

TEST_CASE("primary: the ring keeps its frames for those who come back, until it needs room") {
  PrimaryScenario s({.mode = Mode::async, .peers = {"b"}, .in_sync = {"a"}, .attached = false});
  for (RequestId id = 1; id <= 3; ++id)
    s.write(id, write_at(id * mib, mib));
  CHECK(s.attach("b", 1) == "start b after 1");
  CHECK(s.send("b") == 2 * (mib + frame_header_bytes));
}

// --- take() ---

TEST_CASE("primary: take gives whole frames in order, at least one, at most what was asked") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}});
  for (RequestId id = 1; id <= 4; ++id)
    s.write(id, write_at(id * mib, 4096));
  constexpr std::uint64_t frame = 4096 + frame_header_bytes;
  const PeerIndex b = s.peer("b");
  auto window = s.primary().take(b, 1);
  CHECK(window.begin_bytes == 0);
  CHECK(window.end_bytes == frame);
  CHECK(s.primary().taken_point(b) == s.point(1));
  window = s.primary().take(b, 2 * frame + 5);
  CHECK(window.begin_bytes == frame);
  CHECK(window.end_bytes == 3 * frame);
  CHECK(s.primary().taken_point(b) == s.point(3));
  window = s.primary().take(b, mib);
  CHECK(window.end_bytes == 4 * frame);
  window = s.primary().take(b, mib);
  CHECK(window.begin_bytes == window.end_bytes);
}

TEST_CASE("primary: take gives nothing that is not ready, and says when it is") {
  PrimaryScenario s({.peers = {"b"}, .in_sync = {"a", "b"}});
  s.hold_frames = true;
  s.write(1, write_at(0));
  s.write(2, write_at(4096));
  const auto before = s.sendable().size();
  CHECK(s.send("b") == 0);
  s.frame_ready();
  CHECK(s.sendable().size() == before + 1);
  CHECK(s.send("b") == frame_header_bytes + 4096);
}

}  // namespace
}  // namespace replicad
