// Comparing with a replica that streams (`verify`): the lock, and what is to be applied before.

#include <string>

#include <doctest/doctest.h>

#include "tests/unit/repl/primary_scenario.h"

namespace replicad {
namespace {

using Setup = PrimaryScenario::Setup;

Setup one_replica(Mode mode = Mode::async) {
  return {.mode = mode, .peers = {"b"}, .in_sync = {"a", "b"}};
}
std::string lock(PrimaryScenario& s, const Range& range) {
  return s.step(primary_event::CopyLock{s.peer("b"), range});
}
std::string unlock(PrimaryScenario& s) {
  return s.step(primary_event::CopyUnlock{s.peer("b")});
}
/// Counted from the scenario's base.
Sequence changed_through(PrimaryScenario& s, const Range& range) {
  return s.primary().changed_through(s.peer("b"), range) - PrimaryScenario::base_sequence;
}

}  // namespace

TEST_CASE("verify: a range is locked at a streaming peer behind the writes in it, others go on") {
  PrimaryScenario s(one_replica());
  CHECK(s.arrive(1, write_at(0)) == "admitted 1");
  CHECK(lock(s, {0, 0, 4096}) == "");
  CHECK(s.arrive(2, write_at(2048)) == "");
  CHECK(s.arrive(3, write_at(8192)) == "admitted 3");
  CHECK(s.written(1) == "placed 1 as 1, answer 1, locked b");
  CHECK(s.written(3) == "placed 3 as 2, answer 3");
  CHECK(unlock(s) == "admitted 2");
  CHECK(s.written(2) == "placed 2 as 3, answer 2");
}

TEST_CASE("verify: a peer that goes takes its lock with it, granted or not") {
  PrimaryScenario s(one_replica());
  CHECK(lock(s, {0, 0, 4096}) == "locked b");
  CHECK(s.arrive(1, write_at(0)) == "");
  CHECK(s.lose("b") == "record a, admitted 1");
  CHECK(s.written(1) == "placed 1 as 1, answer 1");
  // One that is not there is not locked for.
  CHECK(lock(s, {0, 0, 4096}) == "");
  CHECK(s.arrive(2, write_at(0)) == "admitted 2");
}

TEST_CASE("verify: a lock is no progress of the stream") {
  PrimaryScenario s(one_replica(Mode::sync));
  s.write(1, write_at(0));
  s.send("b");
  s.pass(std::chrono::seconds(3));
  CHECK(lock(s, {0, 8192, 4096}) == "locked b");
  CHECK(unlock(s) == "");
  CHECK(s.pass(std::chrono::seconds(3)).find("close b") != std::string::npos);
}

TEST_CASE("verify: a range waits for its last change alone, or for what left the ring") {
  PrimaryScenario s(one_replica());
  CHECK(changed_through(s, {0, 0, 4096}) == 0);
  for (RequestId id = 1; id <= 5; ++id)
    s.write(id, write_at(id * 4096));
  s.send("b");
  CHECK(changed_through(s, {0, 3 * 4096, 4096}) == 3);
  CHECK(changed_through(s, {0, 3 * 4096, 8192}) == 4);
  CHECK(changed_through(s, {0, 0, mib}) == 5);
  CHECK(changed_through(s, {1, 0, mib}) == 0);
  s.applied("b", 4);
  CHECK(changed_through(s, {0, 3 * 4096, 4096}) == 4);  // is there, and that costs nothing
  CHECK(changed_through(s, {0, 5 * 4096, 4096}) == 5);
  // The ring takes 4 MiB: the first frames leave it, unapplied.
  s.all("b", 5);
  for (RequestId id = 6; id <= 12; ++id) {
    s.write(id, write_at(mib * id, mib));
    s.send("b");
    s.durable("b", id);
  }
  const Sequence first = s.primary().ring().first() - PrimaryScenario::base_sequence;
  REQUIRE(first > 6);
  CHECK(changed_through(s, {0, 0, 4096}) == first - 1);
}

TEST_CASE("verify: no more than a few thousand changes are looked at") {
  Setup setup = one_replica();
  setup.ring_bytes = 64 * mib;
  PrimaryScenario s(setup);
  for (RequestId id = 1; id <= 5000; ++id)
    s.write(id, write_at(id * 4096, 512));
  CHECK(changed_through(s, {0, 5000 * 4096, 512}) == 5000);
  CHECK(changed_through(s, {0, 4096, 512}) == 5000 - 4096);
}

}  // namespace replicad
