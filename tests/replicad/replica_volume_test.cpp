// The replica half of a volume with real sockets, log files and images.

#include "replicad/replica_volume.h"

#include <csignal>
#include <filesystem>

#include <sys/mount.h>
#include <sys/resource.h>

#include "tests/replicad/replica_fixture.h"

namespace replicad {
namespace {

const std::vector<std::uint64_t> two_disks{8 * mib, 1 * mib + 512};

/// A random change within two_disks; offsets cluster so that many overlap.
void random_change(FakePrimary& primary, std::mt19937_64& random) {
  const auto disk = static_cast<DiskIndex>(random() % 2);
  const std::uint64_t size = primary.images[disk].size();
  const std::uint64_t length = 1 + random() % (random() % 8 == 0 ? 300'000 : 9000);
  const std::uint64_t offset = random() % 4 == 0 ? random() % (size - length) : random() % 20'000;
  switch (random() % 8) {
    case 0:
      primary.zero(disk, offset, length, random() % 2 == 0);
      break;
    case 1:
      primary.trim(disk, offset, length);
      break;
    case 2:
      primary.flush();
      break;
    default:
      primary.write_pattern(
          disk, offset, length, random(), random() % 16 == 0 ? frame_flag_fua : 0);
  }
}

}  // namespace

TEST_CASE("replica volume: a stream ends in equal images and digests") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  REQUIRE(host.open().has_value());
  CHECK(host.status().state == "disconnected");
  FakePrimary primary(two_disks);
  const AttachedMessage attached = primary.attach(host);
  CHECK(attached.consistent);
  CHECK(attached.logged == HistoryPoint{});
  CHECK(attached.boot_id == *boot_id());
  primary.send(encode_start({.copy = false, .after = 0}));
  auto random = seeded_random();
  for (int i = 0; i < 2000; ++i)
    random_change(primary, random);
  for (const auto& frame : primary.history)
    primary.send(frame);
  primary.send(encode_digest(primary.point));
  primary.wait_applied();
  primary.check_images(host);
  const ReplicaStatus status = host.status();
  CHECK(status.state == "streaming");
  CHECK(status.connected);
  CHECK(status.backlog_bytes == 0);
  CHECK(status.logged == primary.point);
  CHECK(status.marks.applied_digest == primary.point.digest);
  host.shutdown(false);
  CHECK(host.state().checkpoint == primary.point);
}

TEST_CASE("replica volume: a flush and a FUA write are made durable at once") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  REQUIRE(host.open().has_value());
  FakePrimary primary(two_disks);
  primary.resume(host);
  primary.send(primary.write_pattern(0, 0, 4096, 1));
  primary.send(primary.flush());
  // No heartbeat: the replica reports by itself.
  while (primary.marks.durable < 2)
    primary.take(*primary.receive());
  primary.send(primary.write_pattern(0, 8192, 4096, 2, frame_flag_fua));
  while (primary.marks.durable < 3)
    primary.take(*primary.receive());
  primary.send(primary.write_pattern(0, 4096, 4096, 3));
  primary.send(encode_empty(FrameType::sync_request));
  while (primary.marks.durable < 4)
    primary.take(*primary.receive());
  // And what nobody asked for, after a second.
  primary.send(primary.write_pattern(0, 4096, 4096, 4));
  while (primary.marks.durable < 5)
    primary.take(*primary.receive());
}

TEST_CASE(
    "replica volume: a replica whose host went down is short until it lacks nothing, one that was "
    "shut down is not") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  FakePrimary primary(two_disks);
  host.reopen();
  CHECK_FALSE(host.status().is_short);
  CHECK(host.state().whole);
  primary.attach(host);
  CHECK_FALSE(host.state().whole);
  primary.send(encode_start({.copy = false, .after = 0, .answered = 0}));
  primary.send(primary.write_pattern(0, 0, 4096, 1));
  primary.wait_applied();
  CHECK_FALSE(host.status().is_short);

  // In `sync` what it told is in its log file, which the process does not take along; the host may.
  host.kill();
  host.reopen();
  CHECK_FALSE(host.status().is_short);
  primary.attach(host);
  host.kill();
  const std::string marker = directory.path() + "/kept";
  REQUIRE(std::filesystem::remove(marker));
  host.reopen();
  CHECK(host.status().is_short);
  CHECK_FALSE(std::filesystem::exists(marker));
  primary.attach(host);
  // One write that was answered is still missing.
  primary.send(encode_start({.copy = false, .after = 1, .answered = 2}));
  primary.wait_marks([](const Watermarks& marks) { return marks.logged == 1; });
  CHECK(host.status().is_short);
  primary.send(primary.write_pattern(0, 4096, 4096, 2, frame_flag_fua));
  primary.wait_applied();
  CHECK_FALSE(host.status().is_short);
  CHECK(std::filesystem::exists(marker));

  host.shutdown(false);
  CHECK(host.state().whole);
  host.reopen();
  CHECK_FALSE(host.status().is_short);

  // Short at the end as at the beginning, if nobody has said otherwise.
  primary.attach(host);
  host.kill();
  REQUIRE(std::filesystem::remove(marker));
  host.reopen();
  host.shutdown(false);
  CHECK_FALSE(host.state().whole);
}

TEST_CASE("replica volume: a killed replica recovers a prefix and catches up") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  FakePrimary primary(two_disks);
  auto random = seeded_random();
  Sequence acknowledged = 0;
  for (int round = 0; round < 8; ++round) {
    host.reopen();
    const AttachedMessage attached = primary.resume(host);
    CHECK(attached.logged.sequence >= acknowledged);
    CHECK(attached.durable == attached.logged.sequence);
    for (int i = 0; i < 300; ++i) {
      random_change(primary, random);
      primary.send(primary.history.back());
      if (random() % 64 != 0) continue;
      primary.wait_marks(
          [&](const Watermarks& at) { return at.logged + 20 > primary.point.sequence; });
    }
    acknowledged = primary.marks.logged;
    host.kill();
    primary.disconnect();
  }
  host.reopen();
  primary.resume(host);
  primary.wait_applied();
  primary.check_images(host);
}

TEST_CASE(
    "replica volume: one that is gone in the moment of its first append begins nothing more") {
  ReactorThread reactor;
  const TempDirectory directory;
  for (int round = 0; round < 100; ++round) {
    const std::string own = fmt::format("{}/{}", directory.path(), round);
    REQUIRE(make_directories(own, 0750).has_value());
    ReplicaHost host(reactor, own, std::vector<std::uint64_t>{64 * kib});
    REQUIRE(host.open().has_value());
    FakePrimary primary(std::vector<std::uint64_t>{64 * kib});
    primary.resume(host);
    primary.send(primary.write_pattern(0, 0, 4096, 1));
    host.kill();
  }
}

TEST_CASE("replica volume: segments are recycled and the log stays within its budget") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  host.change_state([](VolumeState& state) { state.settings.log_bytes = 4 * segment_bytes_min; });
  REQUIRE(host.open().has_value());
  FakePrimary primary(two_disks);
  primary.resume(host);
  for (std::uint64_t i = 0; i < 100; ++i) {
    primary.send(primary.write_pattern(0, (i * 511'000) % (7 * mib), 700'000, i));
    CHECK(host.status().log_bytes <= 4 * segment_bytes_min);
  }
  primary.wait_applied();
  primary.check_images(host);
  CHECK(host.log_files().size() <= 4);
  CHECK(host.state().checkpoint.sequence > 80);
  host.kill();
  primary.disconnect();
  host.reopen();
  const AttachedMessage attached = primary.resume(host);
  CHECK(attached.logged == primary.point);
  primary.send(primary.write_pattern(0, 0, 4096, 1));
  primary.wait_applied();
  primary.check_images(host);
}

TEST_CASE("replica volume: a full log holds the primary back and loses nothing") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  host.change_state([](VolumeState& state) { state.settings.log_bytes = 2 * segment_bytes_min; });
  REQUIRE(host.open().has_value());
  FakePrimary primary(two_disks);
  primary.resume(host);
  primary.send(primary.write_pattern(0, 0, 512, 1));
  primary.wait_applied();
  // Without checkpoints no segment comes free.
  host.hold_updates(true);
  std::vector<std::byte> stream;
  for (std::uint64_t i = 0; i < 60; ++i) {
    const auto& frame = primary.write_pattern(0, (i * 300'000) % (7 * mib), 500'000, i);
    stream.insert(stream.end(), frame.begin(), frame.end());
  }
  std::size_t sent = 0;
  for (int idle = 0; idle < 5;) {
    const std::size_t part = primary.send_some(std::span(stream).subspan(sent), 200);
    sent += part;
    idle = part == 0 ? idle + 1 : 0;
  }
  // Two segments, the receive buffer, and what the socket holds.
  CHECK(sent < 2 * segment_bytes_min + 6 * mib);
  const ReplicaStatus status = host.status();
  CHECK(status.state == "streaming");
  CHECK(status.log_bytes == 2 * segment_bytes_min);
  CHECK(status.marks.logged < primary.point.sequence);
  host.hold_updates(false);
  primary.send(std::span(stream).subspan(sent));
  primary.wait_applied();
  primary.check_images(host);
  CHECK(host.status().log_bytes <= 2 * segment_bytes_min);
}

TEST_CASE("replica volume: trim and zero reach the image as such") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  REQUIRE(host.open().has_value());
  FakePrimary primary(two_disks);
  primary.resume(host);
  primary.send(primary.write_pattern(0, 0, 1 * mib, 1));
  primary.send(primary.write_pattern(0, 1 * mib, 1 * mib, 2));
  primary.send(primary.write_pattern(0, 2 * mib, 1 * mib, 3));
  primary.wait_applied();
  const auto allocated = [&] {
    struct stat status {};
    REQUIRE(::stat(host.image_path(0).c_str(), &status) == 0);
    return static_cast<std::uint64_t>(status.st_blocks) * 512;
  };
  CHECK(allocated() >= 3 * mib);
  primary.send(primary.trim(0, 0, 1 * mib));
  primary.send(primary.zero(0, 1 * mib, 1 * mib, true));
  primary.send(primary.zero(0, 2 * mib, 1 * mib, false));
  primary.wait_applied();
  CHECK(allocated() >= 1 * mib);
  CHECK(allocated() < 2 * mib);
  primary.check_images(host);
}

TEST_CASE("replica volume: a full copy beside live writes makes an image consistent") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  // Garbage that the copy must replace, also where the primary has a hole.
  {
    const Fd fd(::open(host.image_path(0).c_str(), O_WRONLY | O_CLOEXEC));
    REQUIRE(write_all_at(fd.get(), std::vector<std::byte>(5 * mib, std::byte{0xee}), 1 * mib)
                .has_value());
  }
  REQUIRE(host.open().has_value());
  FakePrimary primary(two_disks);
  for (std::uint64_t i = 0; i < 40; ++i)
    primary.write_pattern(0, i * 50'000, 40'000, i);
  const Sequence after = primary.point.sequence;
  primary.attach(host);
  primary.send(encode_start({.copy = true, .after = after, .in_place = true}));
  const auto copy = [&](DiskIndex disk, std::uint64_t offset, std::uint64_t length) {
    const auto begin = primary.images[disk].begin() + static_cast<std::ptrdiff_t>(offset);
    const std::vector<std::byte> data(begin, begin + static_cast<std::ptrdiff_t>(length));
    const bool hole =
        std::all_of(data.begin(), data.end(), [](std::byte b) { return b == std::byte{0}; });
    const Range range{disk, offset, length};
    primary.send(
        primary.frame(hole ? FrameType::copy_zero : FrameType::copy_data,
                      range,
                      hole ? std::span<const std::byte>() : std::span<const std::byte>(data)));
  };
  const auto copy_all = [&](std::uint64_t until) {
    for (std::uint64_t offset = 0; offset < until; offset += 512 * kib) {
      copy(0, offset, std::min<std::uint64_t>(512 * kib, 8 * mib - offset));
      primary.send(primary.write_pattern(0, (offset * 7) % (7 * mib), 30'000, offset));
    }
  };

  SUBCASE("to its end") {
    copy_all(8 * mib);
    copy(1, 0, 1 * mib);
    copy(1, 1 * mib, 512);
    primary.finish_copy();
    CHECK(host.state().consistent);
    CHECK(host.state().checkpoint == primary.point);
    primary.check_images(host);
    primary.send(primary.write_pattern(1, 512, 1024, 5));
    primary.wait_applied();
    primary.check_images(host);
    host.kill();
    primary.disconnect();
    host.reopen();
    CHECK(primary.resume(host).logged == primary.point);
    primary.wait_applied();
    primary.check_images(host);
  }
  SUBCASE("interrupted: it stays inconsistent and begins anew") {
    copy_all(2 * mib);
    REQUIRE(wait_until([&] { return !host.state().consistent; }));
    CHECK(host.status().state == "copying");
    primary.disconnect();
    REQUIRE(wait_until([&] { return host.status().state == "inconsistent"; }));
    const Status promoted = host.promote({2, 1}, primary.point);
    REQUIRE_FALSE(promoted.has_value());
    CHECK(promoted.error().code == Errc::inconsistent);
    host.kill();
    host.reopen();
    CHECK(host.status().state == "inconsistent");
    const AttachedMessage attached = primary.attach(host);
    CHECK_FALSE(attached.consistent);
    CHECK(attached.logged == HistoryPoint{});
    primary.send(encode_start({.copy = true, .after = primary.point.sequence, .in_place = true}));
    copy_all(8 * mib);
    copy(1, 0, 1 * mib);
    copy(1, 1 * mib, 512);
    primary.finish_copy();
    primary.check_images(host);
  }
}

TEST_CASE("replica volume: a resync of what it lacks, interrupted by a crash and gone on with") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  REQUIRE(host.open().has_value());
  FakePrimary primary(two_disks);
  primary.resume(host);
  for (std::uint64_t i = 0; i < 60; ++i)
    primary.send(primary.write_pattern(0, i * 60'000, 50'000, i));
  primary.wait_marks([&](const Watermarks& at) { return at.logged == primary.point.sequence; });
  const HistoryPoint base = primary.point;
  primary.disconnect();
  // What it misses: one block here and one there.
  primary.write_pattern(0, 409600, 4096, 1000);
  primary.write_pattern(1, mib, 512, 1001);
  AttachedMessage attached = primary.attach(host);
  CHECK(attached.logged == base);
  primary.send(encode_start(
      {.copy = true, .after = primary.point.sequence, .keep = true, .in_place = true}));
  const auto piece = [&](const Range& range) {
    const auto begin =
        primary.images[range.disk].begin() + static_cast<std::ptrdiff_t>(range.offset_bytes);
    const std::vector<std::byte> data(begin,
                                      begin + static_cast<std::ptrdiff_t>(range.length_bytes));
    return primary.frame(FrameType::copy_data, range, data);
  };
  primary.send(piece({0, 409600, 4096}));
  primary.send(primary.write_pattern(0, 7 * mib, 4096, 1002));
  REQUIRE(wait_until([&] { return !host.state().consistent; }));
  CHECK(host.state().resync == primary.epoch);
  CHECK(host.state().checkpoint == base);
  host.kill();
  primary.disconnect();
  host.reopen();
  attached = primary.attach(host);
  CHECK_FALSE(attached.consistent);
  CHECK(attached.resync == primary.epoch);
  CHECK(attached.logged == base);
  primary.send(encode_start(
      {.copy = true, .after = primary.point.sequence, .keep = true, .in_place = true}));
  primary.send(piece({0, 409600, 4096}));
  primary.send(piece({0, 7 * mib, 4096}));

  // The rest is compared: what differs, and only that, is asked for.
  const auto sums_of = [&](const Range& range) {
    std::vector<Digest> sums;
    const std::span<const std::byte> image(primary.images[range.disk]);
    for (std::uint64_t at = 0; at < range.length_bytes; at += 4096) {
      sums.push_back(block_sum(image.subspan(
          range.offset_bytes + at, std::min<std::uint64_t>(4096, range.length_bytes - at))));
    }
    return encode_block_sums(range, sums);
  };
  const auto diffs_of = [&](const Range& range) {
    primary.send(sums_of(range));
    for (;;) {
      const auto frame = primary.receive();
      REQUIRE(frame.has_value());
      if (frame->header.type == FrameType::watermarks) continue;
      REQUIRE(frame->header.type == FrameType::block_diffs);
      CHECK(frame->header.range == range);
      return decode_block_diffs(range, frame->payload);
    }
  };
  CHECK(diffs_of({0, 2 * mib, mib}).empty());
  CHECK(diffs_of({1, mib, 512}) == std::vector<Range>{{1, mib, 512}});
  primary.send(piece({1, mib, 512}));
  primary.finish_copy();
  CHECK(host.state().consistent);
  CHECK_FALSE(host.state().resync.has_value());
  primary.check_images(host);
}

TEST_CASE("replica volume: the mark of an inconsistent image is durable before it changes") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  REQUIRE(host.open().has_value());
  FakePrimary primary(two_disks);
  primary.attach(host);
  host.hold_updates(true);
  primary.send(encode_start({.copy = true, .after = 0, .in_place = true}));
  const std::vector<std::byte> data(4096, std::byte{1});
  primary.send(primary.frame(FrameType::copy_data, {0, 0, 4096}, data));
  primary.send_some(encode_empty(FrameType::heartbeat), 100);
  // The keep-alive report of a waiting copy proves that the frames had their chance.
  REQUIRE(primary.receive().has_value());
  CHECK((host.image(0) == std::vector<std::byte>(8 * mib)));
  CHECK(host.state().consistent);
  host.hold_updates(false);
  REQUIRE(wait_until([&] { return host.image(0)[0] == std::byte{1}; }));
  CHECK_FALSE(host.state().consistent);
}

TEST_CASE("replica volume: a promise is durable before the attach is answered") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  REQUIRE(host.open().has_value());
  FakePrimary primary(two_disks);
  host.hold_updates(true);
  primary.epoch = {5, 50};
  primary.use(host.connect());
  primary.send(encode_attach(primary.attach_message()));
  CHECK(host.status().connected == false);
  CHECK(host.state().epoch == Epoch{1, 77});
  host.hold_updates(false);
  const auto answer = primary.receive();
  REQUIRE(answer.has_value());
  CHECK(answer->header.type == FrameType::attached);
  CHECK(host.state().epoch == Epoch{5, 50});

  AttachMessage stale = primary.attach_message();
  stale.epoch = {4, 40};
  CHECK(primary.attach_refused(host, stale).code == Errc::stale_epoch);
  AttachMessage fork = primary.attach_message();
  fork.epoch = {5, 51};
  CHECK(primary.attach_refused(host, fork).code == Errc::diverged);
  AttachMessage other = primary.attach_message();
  other.volume_uuid = random_uuid();
  CHECK(primary.attach_refused(host, other).code == Errc::refused);

  host.fail_updates(Error{Errc::no_space, ENOSPC, "state file: no space", {}});
  AttachMessage higher = primary.attach_message();
  higher.epoch = {6, 60};
  CHECK(primary.attach_refused(host, higher).code == Errc::no_space);
  host.fail_updates(std::nullopt);
  primary.epoch = {6, 60};
  primary.attach(host);
  CHECK(host.state().epoch == Epoch{6, 60});
}

TEST_CASE("replica volume: a fence ends the session of the lower epoch") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  REQUIRE(host.open().has_value());
  FakePrimary primary(two_disks);
  primary.resume(host);
  primary.send(primary.write_pattern(0, 0, 4096, 1));
  primary.wait_applied();
  host.change_state([](VolumeState& state) { state.epoch = {3, 9}; });
  primary.send(primary.write_pattern(0, 0, 4096, 2));
  CHECK(primary.expect_refuse().code == Errc::stale_epoch);
  CHECK(host.status().logged.sequence == 1);
}

TEST_CASE("replica volume: a wrong digest ends the session as diverged") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  REQUIRE(host.open().has_value());
  FakePrimary primary(two_disks);
  primary.resume(host);
  primary.send(primary.write_pattern(0, 0, 4096, 1));
  HistoryPoint wrong = primary.point;
  wrong.digest.low ^= 1;
  primary.send(encode_digest(wrong));
  CHECK(primary.expect_refuse().code == Errc::diverged);
}

TEST_CASE("replica volume: garbage and frames out of place end the session, not the replica") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  REQUIRE(host.open().has_value());
  FakePrimary primary(two_disks);
  primary.resume(host);
  primary.send(primary.write_pattern(0, 0, 4096, 1));
  primary.wait_applied();

  SUBCASE("garbage") {
    primary.send(std::vector<std::byte>(200, std::byte{0x5a}));
    CHECK(primary.expect_refuse().code == Errc::protocol);
  }
  SUBCASE("a gap") {
    primary.write_pattern(0, 0, 512, 2);
    FakePrimary later = FakePrimary(two_disks);
    later.point.sequence = 2;
    later.epoch = primary.epoch;
    const std::vector<std::byte> data(512);
    primary.send(later.frame(FrameType::write, {0, 0, 512}, data));
    CHECK(primary.expect_refuse().code == Errc::protocol);
    primary.history.pop_back();
    primary.points.pop_back();
    primary.point = primary.points.back();
    primary.images[0] = host.image(0);
  }
  SUBCASE("beyond the disk, with good frames before it in the same packet") {
    std::vector<std::byte> bytes = primary.write_pattern(0, 512, 512, 3);
    const std::vector<std::byte> data(512);
    const auto bad = primary.frame(FrameType::write, {1, 1 * mib + 512, 512}, data);
    bytes.insert(bytes.end(), bad.begin(), bad.end());
    primary.send(bytes);
    CHECK(primary.expect_refuse().code == Errc::protocol);
  }
  SUBCASE("a frame only a replica sends") {
    primary.send(encode_watermarks({}));
    CHECK(primary.expect_refuse().code == Errc::protocol);
  }
  primary.disconnect();
  CHECK(primary.resume(host).logged == primary.point);
  primary.send(primary.write_pattern(0, 100, 512, 7));
  primary.wait_applied();
  primary.check_images(host);
}

TEST_CASE("replica volume: a promotion waits for the images and compares") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  REQUIRE(host.open().has_value());
  FakePrimary primary(two_disks);
  primary.resume(host);
  for (std::uint64_t i = 0; i < 200; ++i) {
    primary.send(primary.write_pattern(0, (i * 37'000) % (7 * mib), 60'000, i));
  }
  primary.wait_marks([&](const Watermarks& at) { return at.logged == primary.point.sequence; });

  SUBCASE("equal") {
    REQUIRE(host.promote({2, 5}, primary.point).has_value());
    CHECK(host.state().epoch == Epoch{2, 5});
    primary.check_images(host);
    CHECK(primary.attach_refused(host, primary.attach_message()).code == Errc::stale_epoch);
    host.shutdown(true);
    CHECK(host.log_files().empty());
    CHECK(host.state().checkpoint == primary.point);
  }
  SUBCASE("other digest") {
    HistoryPoint wrong = primary.point;
    wrong.digest.high ^= 1;
    const Status status = host.promote({2, 5}, wrong);
    REQUIRE_FALSE(status.has_value());
    CHECK(status.error().code == Errc::diverged);
    primary.epoch = {3, 6};
    CHECK(primary.resume(host).logged == primary.point);
    primary.send(primary.write_pattern(0, 0, 512, 9));
    primary.wait_applied();
    primary.check_images(host);
  }
  SUBCASE("more was written elsewhere") {
    HistoryPoint later = primary.point;
    later.sequence += 1;
    const Status status = host.promote({2, 5}, later);
    REQUIRE_FALSE(status.has_value());
    CHECK(status.error().code == Errc::too_far_behind);
  }
  SUBCASE("stale epoch: the session goes on") {
    const Status status = host.promote({1, 78}, primary.point);
    REQUIRE_FALSE(status.has_value());
    CHECK(status.error().code == Errc::stale_epoch);
    primary.wait_applied();
  }
}

TEST_CASE("replica volume: images in use and damaged logs are refused with their names") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  FakePrimary primary(two_disks);
  REQUIRE(host.open().has_value());

  SUBCASE("in use") {
    ReplicaHost* const same = &host;
    const Status second = same->open();
    REQUIRE_FALSE(second.has_value());
    CHECK(second.error().code == Errc::busy);
    CHECK(second.error().message.find("disk0.raw") != std::string::npos);
  }
  SUBCASE("damage before the checkpoint's end") {
    primary.resume(host);
    for (std::uint64_t i = 0; i < 20; ++i)
      primary.send(primary.write_pattern(0, i * 4096, 4096, i));
    primary.wait_applied();
    host.shutdown(false);
    const std::string path = host.log_dir() + "/" + segment_file_name(1);
    {
      const Fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
      REQUIRE(write_all_at(fd.get(), std::vector<std::byte>(64, std::byte{1}), 20'000).has_value());
    }
    const Status status = host.open();
    REQUIRE_FALSE(status.has_value());
    CHECK(status.error().code == Errc::corrupt);
    CHECK(status.error().message.find(path) != std::string::npos);
    CHECK(status.error().message.find("offset") != std::string::npos);
    primary.check_images(host);
  }
  SUBCASE("a missing segment") {
    primary.resume(host);
    host.hold_updates(true);
    for (std::uint64_t i = 0; i < 20; ++i)
      primary.send(primary.write_pattern(0, i * 4096, 500'000, i));
    primary.wait_applied();
    host.kill();
    std::filesystem::remove(host.log_dir() + "/" + segment_file_name(1));
    Status status;
    REQUIRE(wait_until([&] {
      status = host.open();
      return status.has_value() || status.error().code != Errc::busy;
    }));
    REQUIRE_FALSE(status.has_value());
    CHECK(status.error().code == Errc::corrupt);
    CHECK(status.error().message.find("missing") != std::string::npos);
  }
}

TEST_CASE("replica volume: damage that applying finds is reported, not written") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  REQUIRE(host.open().has_value());
  FakePrimary primary(two_disks);
  primary.resume(host);
  primary.send(primary.write_pattern(0, 0, 4096, 1));
  primary.wait_applied();
  host.kill();
  primary.disconnect();
  // Other bytes in the frame that recovery must read again.
  const std::string path = host.log_dir() + "/" + segment_file_name(1);
  host.reopen();
  CHECK(primary.resume(host).logged == primary.point);
  host.kill();
  primary.disconnect();
  REQUIRE(wait_until([&] {
    const auto images = open_image_locked(host.image_path(0), 8 * mib);
    return images.has_value();
  }));
  {
    const Fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    REQUIRE(write_all_at(fd.get(), std::vector<std::byte>(8, std::byte{1}), 4096 + 64 + 100)
                .has_value());
  }
  // It was never proven durable by a checkpoint or a later segment: the log is cut there.
  host.reopen();
  const AttachedMessage attached = primary.resume(host);
  CHECK(attached.logged == HistoryPoint{});
  primary.wait_applied();
  primary.check_images(host);
}

namespace {

/// A small file system of its own; needs the right to mount.
class SmallFileSystem {
 public:
  explicit SmallFileSystem(const std::string& path) : path_(path) {
    mounted_ = ::mount("tmpfs", path.c_str(), "tmpfs", 0, "size=14m") == 0;
  }
  SmallFileSystem(const SmallFileSystem&) = delete;
  SmallFileSystem& operator=(const SmallFileSystem&) = delete;
  ~SmallFileSystem() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  [[nodiscard]] bool mounted() const { return mounted_; }

 private:
  std::string path_;
  bool mounted_ = false;
};

/// Files of this process end at `bytes` while it lives.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(std::uint64_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &old_) == 0);
    rlimit low = old_;
    low.rlim_cur = bytes;
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &low) == 0);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit old_{};
};

}  // namespace

TEST_CASE("replica volume: a full disk refuses the session until there is space") {
  const TempDirectory directory;
  const SmallFileSystem small(directory.path());
  if (!small.mounted()) {
    MESSAGE("skipped: no right to mount a file system");
    return;
  }
  ReactorThread reactor;
  ReplicaHost host(reactor, directory.path(), two_disks);
  host.change_state([](VolumeState& state) { state.settings.log_bytes = 3 * segment_bytes_min; });
  const std::string ballast = directory.path() + "/ballast";

  SUBCASE("no space for the log") {
    {
      const Fd fd(::open(ballast.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
      REQUIRE(::fallocate(fd.get(), 0, 0, 12 * mib) == 0);
    }
    REQUIRE(host.open().has_value());
    FakePrimary primary(two_disks);
    primary.resume(host);
    primary.send(primary.write_pattern(0, 0, 4096, 1));
    CHECK(primary.expect_refuse().code == Errc::no_space);
    CHECK(host.status().state == "failed");
    CHECK(host.status().error->code == Errc::no_space);
    CHECK(host.disk_errors == 1);
    std::filesystem::remove(ballast);
    CHECK(primary.resume(host).logged == HistoryPoint{});
    primary.wait_applied();
    primary.check_images(host);
    CHECK(host.status().state == "streaming");
  }
  SUBCASE("no space for the image") {
    REQUIRE(host.open().has_value());
    FakePrimary primary(two_disks);
    primary.resume(host);
    primary.send(primary.write_pattern(0, 0, 4096, 1));
    primary.wait_applied();
    {
      const Fd fd(::open(ballast.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
      std::uint64_t taken = 0;
      while (::fallocate(fd.get(), 0, static_cast<off_t>(taken), 64 * kib) == 0)
        taken += 64 * kib;
    }
    for (std::uint64_t i = 0; i < 4; ++i)
      primary.write_pattern(0, mib + i * 512 * kib, 500'000, i);
    for (Sequence next = 1; next < primary.history.size(); ++next)
      primary.send(primary.history[next]);
    CHECK(primary.expect_refuse().code == Errc::no_space);
    // Still full: the next attach is refused too, by what is tried again.
    CHECK(primary.attach_refused(host, primary.attach_message()).code == Errc::no_space);
    CHECK(host.status().state == "failed");
    std::filesystem::remove(ballast);
    primary.resume(host);
    primary.wait_applied();
    primary.check_images(host);
  }
}

TEST_CASE("replica volume: a limit on file sizes is an error, and passes") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), two_disks);
  REQUIRE(host.open().has_value());
  FakePrimary primary(two_disks);
  primary.resume(host);
  RefuseMessage refused;
  {
    const FileSizeLimit limit(1 * mib);
    primary.send(primary.write_pattern(0, 0, 4096, 1));
    refused = primary.expect_refuse();
  }
  CHECK(refused.code == Errc::io_error);
  CHECK(refused.message.find("spare.1") != std::string::npos);
  primary.resume(host);
  primary.wait_applied();
  primary.check_images(host);
}

}  // namespace replicad
