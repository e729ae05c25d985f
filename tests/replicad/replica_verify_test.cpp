// Comparing on a stream, on real files (`verify`).

#include "tests/replicad/replica_fixture.h"

namespace replicad {
namespace {

const std::vector<std::uint64_t> disks = {4 * mib, 4608};

struct Verifying {
  ReactorThread reactor;
  TempDirectory directory;
  ReplicaHost host{reactor, directory.path(), disks};
  FakePrimary primary{disks};

  Verifying() {
    REQUIRE(host.open().has_value());
    primary.features.emplace_back(feature_verify);
    CHECK(has_feature(primary.resume(host).features, feature_verify));
    for (std::uint64_t i = 0; i < 20; ++i)
      primary.send(primary.write_pattern(0, i * 50'000, 40'000, i));
    primary.send(primary.write_pattern(1, 4096, 512, 99));
  }
  void ask(const Range& range, Sequence after) {
    const std::span<const std::byte> image(primary.images[range.disk]);
    std::vector<Digest> sums;
    for (std::uint64_t at = 0; at < range.length_bytes; at += 4096) {
      sums.push_back(block_sum(image.subspan(
          range.offset_bytes + at, std::min<std::uint64_t>(4096, range.length_bytes - at))));
    }
    primary.send(encode_block_sums(range, sums, after));
  }
  /// The next answer; watermarks that come before are taken.
  OwnedFrame answer() {
    for (;;) {
      auto frame = primary.receive();
      REQUIRE(frame.has_value());
      if (frame->header.type == FrameType::watermarks) {
        primary.take(*frame);
        continue;
      }
      REQUIRE(frame->header.type == FrameType::block_diffs);
      return *frame;
    }
  }
  std::vector<Range> diffs(const Range& range, Sequence after) {
    ask(range, after);
    const OwnedFrame frame = answer();
    CHECK(frame.header.range == range);
    return decode_block_diffs(range, frame.payload);
  }
  void flip(DiskIndex disk, std::uint64_t offset) {
    const Fd file(::open(host.state().disks[disk].path.c_str(), O_RDWR | O_CLOEXEC));
    REQUIRE(file.valid());
    char byte = 0;
    REQUIRE(::pread(file.get(), &byte, 1, static_cast<off_t>(offset)) == 1);
    byte = static_cast<char>(~byte);
    REQUIRE(::pwrite(file.get(), &byte, 1, static_cast<off_t>(offset)) == 1);
  }
};

}  // namespace

TEST_CASE("replica verify: equal behind the last write, and flipped bytes are found") {
  Verifying v;
  const Sequence last = v.primary.point.sequence;
  // Nothing of it may be applied yet: the answer waits for that.
  v.primary.send(encode_empty(FrameType::sync_request));
  CHECK(v.diffs({0, 0, mib}, last).empty());
  CHECK(v.diffs({1, 0, 4608}, last).empty());
  v.flip(0, 4096 * 3 + 17);
  v.flip(1, 4600);
  CHECK(v.diffs({0, 0, mib}, last) == std::vector<Range>{{0, 4096 * 3, 4096}});
  CHECK(v.diffs({1, 0, 4608}, 0) == std::vector<Range>{{1, 4096, 512}});
  // Written anew they are equal again.
  const auto piece = [&](const Range& range) {
    const auto begin =
        v.primary.images[range.disk].begin() + static_cast<std::ptrdiff_t>(range.offset_bytes);
    return std::vector<std::byte>(begin, begin + static_cast<std::ptrdiff_t>(range.length_bytes));
  };
  v.primary.send(v.primary.write(0, 4096 * 3, piece({0, 4096 * 3, 4096})));
  v.primary.send(v.primary.write(1, 4096, piece({1, 4096, 512})));
  v.primary.send(encode_empty(FrameType::sync_request));
  CHECK(v.diffs({0, 0, mib}, last + 2).empty());
  CHECK(v.diffs({1, 0, 4608}, last + 2).empty());
  CHECK(v.host.state().consistent);
  v.primary.check_images(v.host);
}

TEST_CASE("replica verify: a sequence that is still to come is waited for") {
  Verifying v;
  const Sequence next = v.primary.point.sequence + 1;
  const std::vector<std::byte>& frame = v.primary.write_pattern(0, 2 * mib, 4096, 7);
  v.ask({0, 2 * mib, 4096}, next);
  // Behind it: answered at once, so the first one waits.
  CHECK(v.diffs({0, 3 * mib, 4096}, 0).empty());
  v.primary.send(frame);
  v.primary.send(encode_empty(FrameType::sync_request));
  const OwnedFrame answer = v.answer();
  CHECK(answer.header.range == Range{0, 2 * mib, 4096});
  CHECK(decode_block_diffs(answer.header.range, answer.payload).empty());
}

TEST_CASE("replica verify: a block that cannot be read differs, the others are compared") {
  Verifying v;
  const Sequence last = v.primary.point.sequence;
  v.primary.wait_applied();
  REQUIRE(::truncate(v.host.state().disks[1].path.c_str(), 4096) == 0);
  CHECK(v.diffs({1, 0, 4608}, last) == std::vector<Range>{{1, 4096, 512}});
  REQUIRE(::truncate(v.host.state().disks[1].path.c_str(), 4608) == 0);
}

TEST_CASE("replica verify: more unanswered frames than are allowed end the session") {
  Verifying v;
  const Sequence never = v.primary.point.sequence + 1000;
  for (std::size_t i = 0; i <= compares_in_flight_max; ++i)
    v.ask({0, 0, 4096}, never);
  for (;;) {
    const auto frame = v.primary.receive();
    if (!frame) break;
    REQUIRE(frame->header.type == FrameType::watermarks);
  }
  REQUIRE(wait_until([&] { return v.host.status().state == "disconnected"; }));
  // A new session begins with none.
  CHECK(has_feature(v.primary.resume(v.host).features, feature_verify));
  v.primary.send(encode_empty(FrameType::sync_request));
  CHECK(v.diffs({0, 0, mib}, v.primary.point.sequence).empty());
}

}  // namespace replicad
