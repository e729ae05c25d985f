// Staged copies on real files: the replica is what it was until the commit, and what was committed afterwards.

#include "core/store/resync_stage.h"
#include "tests/replicad/replica_fixture.h"

namespace replicad {
namespace {

const std::vector<std::uint64_t> disks = {4 * mib, 512};

/// A replica with forty writes, and a primary that has forty more and sends them as a copy.
struct Staging {
  ReactorThread reactor;
  TempDirectory directory;
  ReplicaHost host{reactor, directory.path(), disks};
  FakePrimary primary{disks};
  std::vector<std::byte> image_before;
  HistoryPoint base;

  Staging() {
    REQUIRE(host.open().has_value());
    primary.resume(host);
    for (std::uint64_t i = 0; i < 40; ++i)
      primary.send(primary.write_pattern(0, i * 50'000, 40'000, i));
    primary.wait_applied();
    base = primary.point;
    image_before = host.image(0);
    primary.disconnect();
    for (std::uint64_t i = 0; i < 40; ++i)
      primary.write_pattern(0, i * 70'000, 40'000, 100 + i);
  }
  void start(bool keep = true) {
    CHECK(primary.attach(host).logged == base);
    primary.send(encode_start({.copy = true, .after = primary.point.sequence, .keep = keep}));
  }
  void send_copy() {
    for (std::uint64_t offset = 0; offset < disks[0]; offset += 256 * kib) {
      const auto begin = primary.images[0].begin() + static_cast<std::ptrdiff_t>(offset);
      const std::vector<std::byte> data(begin, begin + 256 * kib);
      primary.send(primary.frame(FrameType::copy_data, {0, offset, 256 * kib}, data));
      primary.send(primary.write_pattern(0, (offset * 7) % (3 * mib), 30'000, offset));
    }
  }
  [[nodiscard]] bool has_stage() const {
    return std::filesystem::exists(host.log_dir() + "/resync.stage");
  }
  /// What it was before the copy, and able to stream on from there.
  void check_unchanged() {
    CHECK(host.image(0) == image_before);
    CHECK(host.state().consistent);
    CHECK_FALSE(host.state().stage_bytes.has_value());
    CHECK(host.status().logged == base);
  }
};

}  // namespace

TEST_CASE("replica stage: a copy reaches the image behind its commit, then the stage goes") {
  Staging staging;
  bool keep = false;
  SUBCASE("of what is lacking") {
    keep = true;
  }
  SUBCASE("of everything") {}
  staging.start(keep);
  staging.send_copy();
  REQUIRE(wait_until([&] { return staging.has_stage(); }));
  staging.check_unchanged();
  CHECK(staging.host.status().state == "copying");
  staging.primary.finish_copy();
  staging.primary.send(staging.primary.write_pattern(1, 0, 512, 5));
  staging.primary.wait_applied();
  staging.primary.check_images(staging.host);
  CHECK_FALSE(staging.host.state().stage_bytes.has_value());
  REQUIRE(wait_until([&] { return !staging.has_stage(); }));
}

TEST_CASE("replica stage: killed before the commit it is where it was, and takes a promotion") {
  Staging staging;
  staging.start();
  staging.send_copy();
  REQUIRE(wait_until([&] { return staging.has_stage(); }));
  SUBCASE("killed") {
    staging.host.kill();
    staging.primary.disconnect();
    staging.host.reopen();
    staging.check_unchanged();
  }
  SUBCASE("the link is lost") {
    staging.primary.disconnect();
    REQUIRE(wait_until([&] { return staging.host.status().state == "disconnected"; }));
    staging.check_unchanged();
  }
  SUBCASE("under way") {}
  // What has come waits for the copy to go on, but for nothing else.
  CHECK(staging.has_stage());
  CHECK(staging.host.promote({3, 9}, staging.base).has_value());
  CHECK(staging.host.image(0) == staging.image_before);
  REQUIRE(wait_until([&] { return !staging.has_stage(); }));
}

namespace {

/// Compares each block that the stage holds, in pieces; sends what differs. Result: blocks that differed.
std::size_t compare_and_send(FakePrimary& primary) {
  std::size_t sent = 0;
  for (std::uint64_t offset = 0; offset < disks[0]; offset += 64 * kib) {
    const Range range{0, offset, 64 * kib};
    const auto data = std::span(primary.images[0]).subspan(offset, range.length_bytes);
    std::vector<Digest> sums;
    for (std::size_t at = 0; at < data.size(); at += 4096)
      sums.push_back(block_sum(data.subspan(at, 4096)));
    primary.send(encode_block_sums(range, sums));
    for (;;) {
      const auto frame = primary.receive();
      REQUIRE(frame.has_value());
      if (frame->header.type == FrameType::watermarks) continue;
      REQUIRE(frame->header.type == FrameType::block_diffs);
      for (const Range& differs : decode_block_diffs(range, frame->payload)) {
        sent += differs.length_bytes / 4096;
        primary.send(primary.frame(
            FrameType::copy_data,
            differs,
            std::span(primary.images[0]).subspan(differs.offset_bytes, differs.length_bytes)));
      }
      break;
    }
  }
  return sent;
}

}  // namespace

TEST_CASE("replica stage: an interrupted copy goes on with what has come, after kill -9 as well") {
  Staging staging;
  staging.start();
  staging.send_copy();
  // All of it has been written.
  staging.primary.send(encode_empty(FrameType::heartbeat));
  const Sequence last = staging.primary.point.sequence;
  for (bool written = false; !written;) {
    const auto frame = staging.primary.receive();
    REQUIRE(frame.has_value());
    REQUIRE(frame->header.type == FrameType::watermarks);
    written = decode_watermarks(frame->payload)->received == last;
    if (!written) staging.primary.send(encode_empty(FrameType::heartbeat));
  }
  const auto stage_bytes = std::filesystem::file_size(staging.host.log_dir() + "/resync.stage");
  bool cut = false;
  SUBCASE("the link is lost") {
    staging.primary.disconnect();
  }
  SUBCASE("killed, the last frame is torn") {
    staging.host.kill();
    staging.primary.disconnect();
    std::filesystem::resize_file(staging.host.log_dir() + "/resync.stage", stage_bytes - 100);
    cut = true;
    staging.host.reopen();
  }
  staging.primary.write_pattern(0, 1 * mib, 8192, 77);
  const AttachedMessage attached = staging.primary.attach(staging.host);
  CHECK(attached.stage == staging.primary.epoch);
  CHECK(attached.logged == staging.base);
  staging.primary.send(encode_start(
      {.copy = true, .after = staging.primary.point.sequence, .keep = true, .go_on = true}));
  const std::size_t sent = compare_and_send(staging.primary);
  CHECK(sent >= 2);
  CHECK(sent <= (cut ? 12 : 3));
  staging.check_unchanged();
  staging.primary.finish_copy();
  staging.primary.send(staging.primary.write_pattern(1, 0, 512, 5));
  staging.primary.wait_applied();
  staging.primary.check_images(staging.host);
  REQUIRE(wait_until([&] { return !staging.has_stage(); }));
}

TEST_CASE("replica stage: nothing goes on with a stage that does not fit") {
  Staging staging;
  staging.start();
  staging.send_copy();
  REQUIRE(wait_until([&] { return staging.has_stage(); }));
  staging.host.kill();
  staging.primary.disconnect();
  const std::string path = staging.host.log_dir() + "/resync.stage";
  StageHeader header{staging.host.state().uuid, staging.base, staging.primary.epoch, "this boot"};
  const auto put = [&] {
    std::array<std::byte, stage_header_bytes> bytes{};
    encode_stage_header(header, bytes);
    const Fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    REQUIRE(write_all_at(fd.get(), bytes, 0).has_value());
  };
  SUBCASE("the host has been down since") {
    put();
  }
  SUBCASE("it began elsewhere") {
    header.boot_id = boot_id().value();
    ++header.base.sequence;
    put();
  }
  SUBCASE("its header is damaged") {
    const Fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    REQUIRE(write_all_at(fd.get(), std::vector<std::byte>(8, std::byte{0x5a}), 100).has_value());
  }
  staging.host.reopen();
  CHECK_FALSE(staging.has_stage());
  CHECK_FALSE(staging.primary.attach(staging.host).stage.has_value());
  staging.check_unchanged();
}

TEST_CASE("replica stage: killed behind the commit the stage is brought in") {
  Staging staging;
  staging.start();
  staging.send_copy();
  staging.host.hold_updates(true);
  staging.primary.send(encode_copy_end({staging.primary.point}));
  REQUIRE(wait_until([&] { return staging.host.held_updates() == 1; }));
  CHECK(staging.host.image(0) == staging.image_before);
  // The commit goes into the state; what says that the stage is in the images does not.
  staging.host.make_one_update();
  REQUIRE(wait_until([&] { return staging.host.held_updates() == 1; }));
  CHECK(staging.host.state().stage_bytes.has_value());
  staging.host.kill();
  {
    // As if nothing of it had come to the image.
    const Fd fd(::open(staging.host.image_path(0).c_str(), O_WRONLY | O_CLOEXEC));
    REQUIRE(write_all_at(fd.get(), staging.image_before, 0).has_value());
  }
  staging.host.hold_updates(false);
  staging.primary.disconnect();
  staging.host.reopen();
  const AttachedMessage attached = staging.primary.resume(staging.host);
  CHECK(attached.consistent);
  CHECK(attached.logged == staging.primary.point);
  staging.primary.wait_applied();
  staging.primary.check_images(staging.host);
  REQUIRE(wait_until([&] { return !staging.has_stage(); }));
  CHECK_FALSE(staging.host.state().stage_bytes.has_value());
}

TEST_CASE("replica stage: without space for it the copy is refused and nothing has changed") {
  Staging staging;
  // More than any file system here has must stay free for the log.
  staging.host.change_state([](VolumeState& state) { state.settings.log_bytes = log_bytes_max; });
  struct statvfs space {};
  REQUIRE(::statvfs(staging.directory.path().c_str(), &space) == 0);
  REQUIRE(space.f_bavail * space.f_frsize < log_bytes_max);
  staging.start();
  const auto begin = staging.primary.images[0].begin();
  staging.primary.send(staging.primary.frame(
      FrameType::copy_data, {0, 0, 4096}, std::vector<std::byte>(begin, begin + 4096)));
  for (;;) {
    const auto frame = staging.primary.receive();
    REQUIRE(frame.has_value());
    if (frame->header.type == FrameType::watermarks) continue;
    REQUIRE(frame->header.type == FrameType::refuse);
    const auto refused = decode_refuse(frame->payload);
    REQUIRE(refused.has_value());
    CHECK(refused->code == Errc::no_space);
    CHECK(refused->message.find("bytes more are needed") != std::string::npos);
    break;
  }
  REQUIRE(wait_until([&] { return !staging.has_stage(); }));
  staging.check_unchanged();
  CHECK(staging.host.status().state == "disconnected");
}

TEST_CASE("replica stage: a committed stage that is damaged is named, and is no image") {
  Staging staging;
  staging.start();
  staging.send_copy();
  staging.host.hold_updates(true);
  staging.primary.send(encode_copy_end({staging.primary.point}));
  REQUIRE(wait_until([&] { return staging.host.held_updates() == 1; }));
  staging.host.kill();
  staging.host.hold_updates(false);
  const std::string path = staging.host.log_dir() + "/resync.stage";
  const auto bytes = std::filesystem::file_size(path);
  staging.host.change_state([&](VolumeState& state) {
    state.checkpoint = staging.primary.point;
    state.stage_bytes = bytes;
  });
  SUBCASE("gone") {
    std::filesystem::remove(path);
  }
  SUBCASE("cut") {
    std::filesystem::resize_file(path, bytes / 2);
  }
  SUBCASE("changed") {
    const Fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    REQUIRE(write_all_at(fd.get(), std::vector<std::byte>(8, std::byte{0x5a}), bytes - 100)
                .has_value());
  }
  staging.primary.disconnect();
  staging.host.reopen();
  REQUIRE(wait_until([&] { return staging.host.status().state == "failed"; }));
  const auto error = staging.host.status().error;
  REQUIRE(error.has_value());
  CHECK(error->code == Errc::corrupt);
  CHECK(error->message.find("resync.stage") != std::string::npos);
}

}  // namespace replicad
