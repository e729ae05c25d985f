#include "io/cached_writes.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <random>
#include <vector>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/uio.h>

#include "io/file.h"
#include "tests/io/io_fixture.h"

namespace replicad {
namespace {

std::vector<std::byte> random_bytes(std::mt19937_64& random, std::size_t count) {
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes)
    byte = static_cast<std::byte>(random());
  return bytes;
}

Fd new_file(const TemporaryDirectory& directory) {
  Fd fd(::open(directory.file("image").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  REQUIRE(fd.valid());
  return fd;
}

int run_one(CachedWrites& writes, const RingOperation& operation) {
  writes.add(operation);
  REQUIRE(!writes.idle());
  writes.run();
  std::array<RingCompletion, 4> completions;
  REQUIRE(writes.reap(completions) == 1);
  CHECK(completions[0].user_data == operation.user_data);
  CHECK(writes.idle());
  return completions[0].result;
}

}  // namespace

TEST_CASE("cached writes: any gathering of vectors ends in the file as it is") {
  std::mt19937_64 random(test_seed());
  const TemporaryDirectory directory;
  const Fd fd = new_file(directory);
  CachedWrites writes;
  for (int round = 0; round < 40; ++round) {
    const std::size_t size_max = round % 2 == 0 ? 5000 : 400'000;
    std::vector<std::vector<std::byte>> buffers;
    std::vector<iovec> vectors;
    std::vector<std::byte> expected;
    for (std::size_t i = 0;
         i < 1 + random() % 150 && expected.size() < CachedWrites::operation_bytes_max;
         ++i) {
      buffers.push_back(random_bytes(random, random() % size_max));
      vectors.push_back({buffers.back().data(), buffers.back().size()});
      expected.insert(expected.end(), buffers.back().begin(), buffers.back().end());
    }
    const std::uint64_t offset = random() % 100'000;
    const int result = run_one(writes,
                               {.opcode = RingOpcode::writev,
                                .fd = fd.get(),
                                .address = vectors.data(),
                                .length = static_cast<std::uint32_t>(vectors.size()),
                                .offset_bytes = offset,
                                .piece_bytes = random() % 3 * (1 + random() % 50'000),
                                .user_data = random()});
    REQUIRE(result >= 0);
    const auto written = static_cast<std::size_t>(result);
    // Short only behind what one operation makes at a time.
    CHECK(written >= std::min(expected.size(), CachedWrites::operation_bytes_max));
    CHECK(written <= expected.size());
    std::vector<std::byte> found(written);
    REQUIRE(read_all_at(fd.get(), found, offset).has_value());
    CHECK(std::equal(found.begin(), found.end(), expected.begin()));
  }
}

TEST_CASE("cached writes: a long write is short, an impossible one its errno") {
  const TemporaryDirectory directory;
  const Fd fd = new_file(directory);
  CachedWrites writes;
  std::vector<std::byte> bytes(3 * mib, std::byte{7});
  CHECK(run_one(writes,
                {.opcode = RingOpcode::write,
                 .fd = fd.get(),
                 .address = bytes.data(),
                 .length = static_cast<std::uint32_t>(bytes.size())}) ==
        static_cast<int>(CachedWrites::operation_bytes_max));
  const Fd read_only(::open(directory.file("image").c_str(), O_RDONLY | O_CLOEXEC));
  CHECK(run_one(writes,
                {.opcode = RingOpcode::write,
                 .fd = read_only.get(),
                 .address = bytes.data(),
                 .length = 512}) == -EBADF);
}

TEST_CASE("cached writes: while the disk is slow nothing is taken") {
  CachedWrites writes;
  const Instant start = Instant{} + std::chrono::hours(1);
  CHECK(writes.may_take(start));
  writes.sync_begins(5, start);
  writes.sync_begins(6, start + std::chrono::seconds(1));
  CHECK(writes.may_take(start + CachedWrites::sync_time_max));
  CHECK_FALSE(writes.may_take(start + CachedWrites::sync_time_max + std::chrono::milliseconds(1)));
  writes.sync_ends(5);
  CHECK(writes.may_take(start + CachedWrites::sync_time_max + std::chrono::milliseconds(1)));
  writes.sync_ends(6);
  const Instant end = start + CachedWrites::write_time_max;
  writes.note_time(start, end);
  CHECK(writes.may_take(end));
  writes.note_time(start, end + std::chrono::milliseconds(1));
  CHECK_FALSE(writes.may_take(end + CachedWrites::slow_time));
  CHECK(writes.may_take(end + CachedWrites::slow_time + std::chrono::milliseconds(1)));
}

}  // namespace replicad
