// The guest's threads at an image that fails.

#include "tests/plugin/served_disk.h"

namespace replicad {
namespace {

bool is_ready(std::future<int>& answer) {
  return answer.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

TEST_CASE("bridge: a write that fails is tried again until it works, others go on meanwhile") {
  ServedDisk disk(OnLocalError::hold);
  HalfDisk half;
  auto answer = disk.write(writable_size + 8192, 'x');
  REQUIRE(disk.is_waited_for());
  const Error trouble = *disk.bridge().local_trouble().current();
  CHECK(trouble.message.find(disk.path()) != std::string::npos);
  CHECK(trouble.hint.find("on-local-error=fail") != std::string::npos);
  CHECK(disk.write(0, 'y').get() == 0);
  CHECK_FALSE(is_ready(answer));
  half.mend();
  CHECK(answer.get() == 0);
  CHECK(disk.byte_at(writable_size + 8192) == 'x');
  CHECK_FALSE(disk.bridge().local_trouble().current());
  CHECK_FALSE(disk.failure());
  CHECK(disk.bridge().look([](const Primary& p) { return p.ring().next() - 1; }) == 2);
}

TEST_CASE(
    "bridge: on-local-error=fail, also when set later, answers with the error and fails the "
    "volume") {
  ServedDisk disk(OnLocalError::hold);
  ServedDisk other(OnLocalError::fail);
  const HalfDisk half;
  auto answer = disk.write(writable_size, 'x');
  REQUIRE(disk.is_waited_for());
  disk.set_policy(OnLocalError::fail);
  CHECK(answer.get() == EFBIG);
  CHECK(disk.failure().has_value());
  CHECK(disk.write(0, 'y').get() == EIO);
  CHECK(other.write(writable_size, 'x').get() == EFBIG);
}

TEST_CASE(
    "bridge: a durable write that fails is not tried again, and nothing is answered behind it") {
  ServedDisk disk(OnLocalError::hold);
  HalfDisk half;
  auto durable = disk.write(writable_size, 'x', true);
  REQUIRE(eventually([&] { return disk.failure().has_value(); }));
  half.mend();
  auto later = disk.write(0, 'y');
  CHECK(later.wait_for(std::chrono::milliseconds(300)) == std::future_status::timeout);
  CHECK_FALSE(is_ready(durable));
  disk.set_policy(OnLocalError::fail);
  CHECK(durable.get() == EFBIG);
  CHECK(later.get() == EIO);
}

TEST_CASE("bridge: the end of the server lets go of everybody who waits for the image") {
  ServedDisk disk(OnLocalError::hold);
  const HalfDisk half;
  auto first = disk.write(writable_size, 'x');
  auto behind = disk.write(writable_size, 'y');
  REQUIRE(disk.is_waited_for());
  disk.stopping = true;
  CHECK(first.get() != 0);
  CHECK(behind.get() != 0);
}

/// The activity file's pages begin there: headers and the image's first blocks can be written.
constexpr std::uint64_t without_activity_pages = 64 * kib;

TEST_CASE("bridge: a write waits, unwritten, until its region is marked in the activity map") {
  ServedDisk disk(OnLocalError::hold);
  HalfDisk half(without_activity_pages);
  auto answer = disk.write(0, 'x');
  REQUIRE(disk.is_waited_for());
  CHECK(disk.bridge().local_trouble().current()->message.find("activity map") != std::string::npos);
  CHECK_FALSE(is_ready(answer));
  CHECK(disk.byte_at(0) == 0);
  half.mend();
  CHECK(answer.get() == 0);
  CHECK(disk.byte_at(0) == 'x');
  CHECK_FALSE(disk.failure());
}

TEST_CASE("bridge: an activity map that cannot be written keeps no hold waiting") {
  ServedDisk disk(OnLocalError::hold);
  HalfDisk half(without_activity_pages);
  auto answer = disk.write(0, 'x');
  REQUIRE(disk.is_waited_for());
  disk.bridge().step(
      primary_event::Hold{std::nullopt, boot_time_now() + std::chrono::seconds(600)});
  const auto phase_is = [&](Primary::HoldPhase phase) {
    return disk.bridge().look([&](const Primary& p) { return p.hold_phase() == phase; });
  };
  REQUIRE(eventually([&] { return phase_is(Primary::HoldPhase::flushing); }));
  CHECK_FALSE(is_ready(answer));
  half.mend();
  disk.bridge().step(primary_event::ImagesSynced{true});
  REQUIRE(phase_is(Primary::HoldPhase::reached));
  disk.bridge().step(primary_event::Resume{std::nullopt});
  CHECK(answer.get() == 0);
  CHECK(disk.byte_at(0) == 'x');
}

TEST_CASE("bridge: with on-local-error=fail a region that cannot be marked fails the write alone") {
  ServedDisk disk(OnLocalError::fail);
  HalfDisk half(without_activity_pages);
  CHECK(disk.write(0, 'x').get() == EFBIG);
  CHECK_FALSE(disk.failure());
  half.mend();
  CHECK(disk.write(0, 'y').get() == 0);
}

TEST_CASE("bridge: a read that fails waits, too") {
  ServedDisk disk(OnLocalError::hold);
  CHECK(disk.write(image_size - 4096, 'z').get() == 0);
  REQUIRE(::truncate(disk.path().c_str(), image_size / 2) == 0);
  std::vector<std::byte> data(4096);
  auto answer = std::async(std::launch::async,
                           [&] { return disk.bridge().read(0, data, image_size - 4096); });
  REQUIRE(disk.is_waited_for());
  CHECK_FALSE(is_ready(answer));
  REQUIRE(::truncate(disk.path().c_str(), image_size) == 0);
  CHECK(answer.get() == 0);
  disk.set_policy(OnLocalError::fail);
  REQUIRE(::truncate(disk.path().c_str(), image_size / 2) == 0);
  CHECK(disk.bridge().read(0, data, image_size - 4096) == EIO);
}

}  // namespace
}  // namespace replicad
