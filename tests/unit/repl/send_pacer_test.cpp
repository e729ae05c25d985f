#include "core/repl/send_pacer.h"

#include <doctest/doctest.h>

namespace replicad {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr std::uint64_t frame_bytes = 4160;

Instant at(Duration since) {
  return Instant(std::chrono::seconds(1)) + since;
}

SendPacer::Backlog waiting(std::uint64_t frames, bool in_flight) {
  return {.frames = frames, .bytes = frames * frame_bytes, .in_flight = in_flight};
}

TEST_CASE("send pacer: the only write of a guest leaves at once, whatever is in flight") {
  SendPacer pacer;
  CHECK(pacer.is_due(waiting(1, false), Mode::sync, 1, at({})));
  pacer.sent(Mode::sync, at({}));
  CHECK(pacer.is_due(waiting(1, true), Mode::sync, 1, at({})));
  CHECK_FALSE(pacer.is_due(waiting(0, true), Mode::sync, 1, at({})));
}

TEST_CASE("send pacer: half of a crowd gathers while the other half is in flight") {
  SendPacer pacer;
  pacer.sent(Mode::sync, at({}));
  pacer.look(waiting(0, true), at({}));
  CHECK_FALSE(pacer.is_due(waiting(7, true), Mode::sync, 16, at(milliseconds(50))));
  CHECK(pacer.is_due(waiting(8, true), Mode::sync, 16, at(milliseconds(50))));
}

TEST_CASE(
    "send pacer: behind the last acknowledgement the rest of a crowd is not waited for long") {
  SendPacer pacer;
  pacer.sent(Mode::semi_sync, at({}));
  CHECK(pacer.until() == Instant::max());
  pacer.look(waiting(1, false), at(milliseconds(5)));
  const Instant until = at(milliseconds(5)) + SendPacer::gather_time;
  CHECK(pacer.until() == until);
  // Looking again does not put it off.
  pacer.look(waiting(2, false), at(milliseconds(5)) + microseconds(50));
  CHECK(pacer.until() == until);
  CHECK_FALSE(pacer.is_due(waiting(2, false), Mode::semi_sync, 16, until - microseconds(1)));
  CHECK(pacer.is_due(waiting(2, false), Mode::semi_sync, 16, until));
}

TEST_CASE("send pacer: in async frames gather for a moment or until they are many") {
  SendPacer pacer;
  CHECK(pacer.is_due(waiting(1, false), Mode::async, 1, at({})));
  pacer.sent(Mode::async, at({}));
  pacer.look(waiting(1, false), at({}));
  CHECK_FALSE(pacer.is_due(waiting(1, false), Mode::async, 1, at(microseconds(900))));
  CHECK(pacer.is_due(waiting(1, false), Mode::async, 1, at(SendPacer::async_gather_time)));
  CHECK(pacer.is_due(waiting(16, true), Mode::async, 1, at({})));
}

TEST_CASE("send pacer: nothing is never due") {
  SendPacer pacer;
  for (const Mode mode : {Mode::async, Mode::sync}) {
    pacer.sent(mode, at({}));
    pacer.look(waiting(0, false), at({}));
    REQUIRE(pacer.until() <= at(milliseconds(1)));
    CHECK_FALSE(pacer.is_due(waiting(0, false), mode, 1, at(milliseconds(1))));
  }
}

TEST_CASE("send pacer: a change to another mode leaves nothing behind") {
  SendPacer pacer;
  pacer.sent(Mode::sync, at({}));
  pacer.look(waiting(1, false), at({}));
  CHECK(pacer.is_due(waiting(1, false), Mode::async, 1, at(SendPacer::gather_time)));
}

}  // namespace
}  // namespace replicad
