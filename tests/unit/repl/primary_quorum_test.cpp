// An `async` primary that may have been replaced (core/repl/primary_quorum.cpp).

#include <doctest/doctest.h>

#include "core/repl/primary.h"

namespace replicad {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

/// A primary "a" alone with its voters; no member is connected.
class Lonely {
 public:
  explicit Lonely(VoterSet voters,
                  Mode mode = Mode::async,
                  std::vector<std::string> in_sync = {"a"},
                  std::optional<Duration> asked_ago = std::nullopt)
      : primary_(
            PrimaryConfig{.epoch = {5, 55},
                          .history = {{5, 55}, 10, {}},
                          .reserved = 1000,
                          .disk_bytes = {64 * mib},
                          .peers = {"b", "c"},
                          .in_sync = std::move(in_sync),
                          .host = "a",
                          .mode = mode,
                          .congestion = Congestion::detach,
                          .ack_timeout = seconds(1),
                          .voters = std::move(voters),
                          .asked_at = asked_ago ? std::optional(now_ - *asked_ago) : std::nullopt,
                          .terms = {},
                          .lacks = {}},
            now_) {}

  void step(const PrimaryEvent& event) {
    effects_.clear();
    primary_.step(event, now_, effects_);
    primary_.check_invariants();
    for (const PrimaryEffect& effect : effects_) {
      if (const auto* answer = std::get_if<primary_effect::Answer>(&effect))
        (answer->failed ? failed_ : answered_).push_back(answer->id);
      if (const auto* admitted = std::get_if<primary_effect::Admitted>(&effect))
        admitted_.push_back(admitted->id);
    }
  }
  void arrive(RequestId id) {
    step(primary_event::WriteArrived{id, {FrameType::write, 0, {0, id * 4096, 4096}}});
  }
  void written(RequestId id) { step(primary_event::LocalWritten{id, true}); }
  /// Whether a write of its own is admitted and answered now.
  bool serves() {
    const RequestId id = ++last_;
    arrive(id);
    if (admitted_.empty() || admitted_.back() != id) {
      step(primary_event::Cancelled{id});
      return false;
    }
    written(id);
    return !answered_.empty() && answered_.back() == id;
  }
  void hear(const std::string& host, Epoch fence = {5, 55}) {
    step(primary_event::VoterHeard{host, now_, fence});
  }
  void pass(Duration time) { now_ += time; }

  Instant now_ = Instant(seconds(100));
  Primary primary_;
  std::vector<PrimaryEffect> effects_;
  std::vector<RequestId> admitted_;
  std::vector<RequestId> answered_;
  std::vector<RequestId> failed_;
  RequestId last_ = 100;
};

TEST_CASE(
    "quorum: an async primary that hears no majority for ack-timeout admits and answers nothing") {
  Lonely world({{"a", "b", "c"}, ""});
  CHECK(world.serves());
  world.arrive(1);
  world.pass(milliseconds(1001));
  // Under way when the silence began: written, not answered, also if no tick has come before it.
  world.written(1);
  CHECK(world.answered_.back() != 1);
  CHECK_FALSE(world.serves());
  CHECK(world.primary_.cut_off_since() == world.now_);
  const Instant since = world.now_;
  world.pass(milliseconds(100));
  world.step(primary_event::Tick{});
  CHECK(world.primary_.cut_off_since() == since);
  world.hear("c");
  CHECK(world.answered_.back() == 1);
  CHECK_FALSE(world.primary_.cut_off_since());
  CHECK(world.serves());
}

TEST_CASE("quorum: a voter counts from when it was asked, and so many as make a majority") {
  Lonely world({{"a", "b", "c", "d", "e"}, ""});
  world.pass(milliseconds(900));
  world.hear("b");
  // An answer that comes late says nothing new.
  world.step(primary_event::VoterHeard{"b", world.now_ - milliseconds(850), {5, 55}});
  world.pass(milliseconds(200));
  CHECK_FALSE(world.serves());  // a and b of five
  world.step(primary_event::VoterHeard{"c", world.now_ - milliseconds(1500), {5, 55}});
  CHECK_FALSE(world.serves());
  world.hear("c");
  CHECK(world.serves());
  world.pass(milliseconds(801));
  CHECK_FALSE(world.serves());  // b is silent for too long
  // A stranger is no voter.
  world.hear("x");
  CHECK_FALSE(world.serves());
}

TEST_CASE("quorum: the tie-break's holder needs nobody, another mode neither") {
  Lonely two({{"a", "b"}, "a"});
  two.pass(seconds(60));
  CHECK(two.serves());
  Lonely other({{"a", "b"}, "b"});
  other.pass(seconds(60));
  CHECK_FALSE(other.serves());
  Lonely sync({{"a", "b", "c"}, ""}, Mode::sync);
  sync.pass(seconds(60));
  CHECK(sync.serves());
  // With `async` it begins to count, also what was heard before.
  sync.step(primary_event::SettingsChanged{Mode::async, Congestion::detach, seconds(1), {}});
  CHECK_FALSE(sync.serves());
  sync.step(primary_event::SettingsChanged{Mode::sync, Congestion::detach, seconds(1), {}});
  CHECK(sync.serves());
  sync.hear("b");
  sync.step(primary_event::SettingsChanged{Mode::async, Congestion::detach, seconds(1), {}});
  CHECK(sync.serves());
  sync.pass(milliseconds(1001));
  CHECK_FALSE(sync.serves());
}

TEST_CASE("quorum: a term that may be over answers nothing because its mode becomes async") {
  // b has not come, and may be the primary by now.
  Lonely world({{"a", "b", "c"}, ""}, Mode::sync, {"a", "b"});
  world.arrive(1);
  world.pass(seconds(2));
  world.step(primary_event::SettingsChanged{Mode::async, Congestion::detach, seconds(1), {}});
  world.written(1);
  CHECK(world.answered_.empty());
  world.hear("c");
  CHECK(world.answered_ == std::vector<RequestId>{1});
}

TEST_CASE("quorum: a later epoch that was heard of holds everything until there is a new term") {
  for (const bool by_vote : {true, false}) {
    CAPTURE(by_vote);
    Lonely world({{"a", "b", "c"}, ""});
    world.arrive(1);
    if (by_vote) world.hear("b", {6, 66});
    if (!by_vote) world.step(primary_event::LaterEpoch{{5, 55}});
    CHECK(world.primary_.is_overtaken());
    world.written(1);
    CHECK(world.answered_.empty());
    CHECK_FALSE(world.serves());
    world.hear("c");
    CHECK_FALSE(world.serves());
    // A move that was given up is no new term.
    world.step(primary_event::Resume{});
    CHECK_FALSE(world.serves());
    world.step(primary_event::Resume{Epoch{7, 77}});
    CHECK(world.answered_ == std::vector<RequestId>{1});
    CHECK(world.serves());
    // What an old session was refused for says nothing any more.
    world.step(primary_event::LaterEpoch{{5, 55}});
    CHECK(world.serves());
  }
}

TEST_CASE(
    "quorum: held answers survive a change of the mode, are given up one by one, and fail with the "
    "volume") {
  Lonely world({{"a", "b", "c"}, ""});
  for (RequestId id = 1; id <= 3; ++id)
    world.arrive(id);
  world.pass(seconds(2));
  for (RequestId id = 1; id <= 3; ++id)
    world.written(id);
  for (const Mode mode : {Mode::async, Mode::sync, Mode::semi_sync}) {
    world.step(
        primary_event::SettingsChanged{mode, Congestion::detach, seconds(1), OnLocalError::fail});
    CHECK(world.answered_.empty());
  }
  world.step(primary_event::Cancelled{2});
  world.step(primary_event::Fail{Error{Errc::io_error, 0, "broken", {}}});
  CHECK(world.failed_ == std::vector<RequestId>{1, 3});
  CHECK(world.answered_.empty());
}

TEST_CASE("quorum: a change of the mode lets no flush of async be answered unheard") {
  Lonely world({{"a", "b", "c"}, ""}, Mode::async, {"a", "b"});
  world.step(primary_event::WriteArrived{1, {FrameType::flush, 0, {}}});
  world.written(1);
  world.step(primary_event::SettingsChanged{Mode::semi_sync, Congestion::detach, seconds(1), {}});
  // Its term may be over by now: b, which has not come, may be the primary.
  world.pass(seconds(2));
  world.step(primary_event::LocalSynced{1});
  CHECK(world.answered_.empty());
  // Without b it is answered when a majority has recorded that b has left.
  world.step(primary_event::Tick{});
  CHECK(world.answered_.empty());
  world.step(primary_event::Recorded{});
  CHECK(world.answered_ == std::vector<RequestId>{1});
}

TEST_CASE("quorum: a term counts from when it was asked for, however late its primary begins") {
  Lonely late({{"a", "b", "c"}, ""}, Mode::async, {"a"}, milliseconds(1001));
  CHECK_FALSE(late.serves());
  late.hear("b");
  CHECK(late.serves());
  Lonely soon({{"a", "b", "c"}, ""}, Mode::async, {"a"}, milliseconds(600));
  soon.pass(milliseconds(399));
  CHECK(soon.serves());
  soon.pass(milliseconds(2));
  CHECK_FALSE(soon.serves());
  // Nothing is heard in the future.
  Lonely early({{"a", "b", "c"}, ""}, Mode::async, {"a"}, milliseconds(-600));
  early.pass(milliseconds(1001));
  CHECK_FALSE(early.serves());
}

TEST_CASE("quorum: neither a new term nor other voters count as heard when one is told of them") {
  Lonely world({{"a", "b", "c"}, ""});
  world.hear("b");
  world.pass(seconds(2));
  world.step(primary_event::Resume{Epoch{6, 66}});
  CHECK_FALSE(world.serves());
  world.hear("c");
  CHECK(world.serves());
  // b stays as it is, d was never heard, c is none any more.
  world.step(primary_event::VotersChanged{{{"a", "b", "d"}, ""}});
  CHECK_FALSE(world.serves());
  world.hear("c");
  CHECK_FALSE(world.serves());
  world.hear("d");
  CHECK(world.serves());
  world.pass(milliseconds(600));
  world.step(primary_event::VotersChanged{{{"a", "d", "e"}, ""}});
  CHECK(world.serves());
  world.pass(milliseconds(600));
  CHECK_FALSE(world.serves());
}

TEST_CASE("quorum: new voters are heard anew") {
  Lonely world({{"a", "b", "c"}, ""});
  world.pass(seconds(2));
  CHECK_FALSE(world.serves());
  world.step(primary_event::VotersChanged{{{"a", "w"}, "a"}});
  CHECK(world.serves());
  world.pass(seconds(2));
  CHECK(world.serves());  // with the tie-break it is a majority by itself
  world.step(primary_event::VotersChanged{{{"a", "b", "w"}, ""}});
  world.pass(milliseconds(600));
  world.hear("w");
  world.pass(milliseconds(600));
  CHECK(world.serves());
  world.pass(milliseconds(500));
  CHECK_FALSE(world.serves());  // and is none any more
}

}  // namespace
}  // namespace replicad
