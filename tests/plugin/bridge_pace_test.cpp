// When the reactor is woken for the guest's frames, and what it then gets to send.

#include "tests/plugin/served_disk.h"

namespace replicad {
namespace {

constexpr PeerIndex replica = 0;

/// What the reactor would send now, in frames of 4 KiB writes.
std::size_t frames_to_send(Bridge& bridge) {
  std::vector<PrimaryEffect> effects;
  bool sendable = false;
  while (bridge.drain(effects)) {
    for (const PrimaryEffect& effect : effects)
      sendable = sendable || std::holds_alternative<primary_effect::Sendable>(effect);
  }
  if (!sendable) return 0;
  const auto window = bridge.take(replica, 4 * mib);
  const std::uint64_t bytes = window.end_bytes - window.begin_bytes;
  if (bytes > 0) bridge.step(primary_event::PeerSent{replica, bytes});
  return bytes / (frame_header_bytes + 4096);
}

void acknowledge(Bridge& bridge, Sequence logged) {
  const auto history = bridge.look([](const Primary& primary) { return primary.history(); });
  REQUIRE(history.sequence == logged);
  Watermarks marks;
  marks.received = marks.logged = logged;
  marks.logged_digest = history.digest;
  bridge.step(primary_event::PeerMarks{replica, marks});
}

TEST_CASE("bridge: a guest's only write wakes the reactor and leaves at once") {
  ServedDisk disk(OnLocalError::hold, Mode::sync, {"b"});
  disk.bridge().step(primary_event::PeerAttached{replica, {}});
  for (Sequence sequence = 1; sequence <= 5; ++sequence) {
    CAPTURE(sequence);
    CHECK(frames_to_send(disk.bridge()) == 0);
    const int before = disk.wakes;
    auto answer = disk.write(4096 * sequence, 'x');
    REQUIRE(eventually([&] { return disk.wakes > before; }));
    REQUIRE(eventually([&] { return frames_to_send(disk.bridge()) == 1; }));
    acknowledge(disk.bridge(), sequence);
    CHECK(answer.get() == 0);
  }
}

/// In async nobody waits for the reactor: the test's own thread may write.
void write_here(Bridge& bridge, std::uint64_t offset) {
  const std::vector<std::byte> data(4096, std::byte{'z'});
  REQUIRE(bridge.write(0, data, offset, false) == 0);
}

TEST_CASE("bridge: in async the reactor is not woken for frames that gather") {
  ServedDisk disk(OnLocalError::hold, Mode::async, {"b"});
  disk.bridge().step(primary_event::PeerAttached{replica, {}});
  write_here(disk.bridge(), 0);
  REQUIRE(disk.wakes > 0);
  REQUIRE(frames_to_send(disk.bridge()) == 1);
  // The moment must not be over before the next write is done; on a busy machine it may be, then once more.
  const auto deadline = std::chrono::steady_clock::now() + test_deadline;
  bool was_quick = false;
  while (!was_quick) {
    REQUIRE(std::chrono::steady_clock::now() < deadline);
    const auto due_at = disk.bridge().due_at();
    REQUIRE(due_at.has_value());
    const int before = disk.wakes;
    write_here(disk.bridge(), 4096);
    const int woken = disk.wakes - before;
    was_quick = boot_time_now() < *due_at;
    if (was_quick) CHECK(woken == 0);
    while (frames_to_send(disk.bridge()) == 0)
      REQUIRE(std::chrono::steady_clock::now() < deadline);
    if (was_quick) CHECK(boot_time_now() >= *due_at);
  }
}

TEST_CASE("bridge: many frames do not wait for the moment that they may gather") {
  ServedDisk disk(OnLocalError::hold, Mode::async, {"b"});
  disk.bridge().step(primary_event::PeerAttached{replica, {}});
  const int before = disk.wakes;
  std::size_t sent = 0;
  for (std::uint64_t i = 0; i < 64; ++i)
    write_here(disk.bridge(), 4096 * i);
  CHECK(disk.wakes > before);
  REQUIRE(eventually([&] {
    sent += frames_to_send(disk.bridge());
    return sent == 64;
  }));
}

}  // namespace
}  // namespace replicad
