// The replica half of a volume on a disk that is late, short or failing.

#include "tests/replicad/disk_fault_ring.h"
#include "tests/replicad/replica_fixture.h"

namespace replicad {
namespace {

const std::vector<std::uint64_t> one_disk{4 * mib};

struct FaultyReactor {
  std::shared_ptr<DiskFaults> faults = std::make_shared<DiskFaults>();
  ReactorThread reactor;

  explicit FaultyReactor(std::uint64_t seed = 1) : reactor(faulty_reactor(faults, seed)) {}
};

void overlapping_changes(FakePrimary& primary, std::mt19937_64& random, int count) {
  for (int i = 0; i < count; ++i) {
    const std::uint64_t offset = random() % 64 * 512;
    const std::uint64_t length = 1 + random() % 8192;
    switch (random() % 10) {
      case 0:
        primary.trim(0, offset, length);
        break;
      case 1:
        primary.zero(0, offset, length, false);
        break;
      case 2:
        primary.write_pattern(0, 1 * mib + offset * 40, 100'000, random());
        break;
      default:
        primary.write_pattern(0, offset, length, random());
    }
    primary.send(primary.history.back());
  }
}

}  // namespace

TEST_CASE("replica faults: short and late disk operations end in equal images") {
  auto random = seeded_random();
  FaultyReactor faulty(random());
  const TempDirectory directory;
  ReplicaHost host(faulty.reactor, directory.path(), one_disk);
  faulty.faults->short_percent = 20;
  faulty.faults->late_percent = 30;
  FakePrimary primary(one_disk);
  for (int round = 0; round < 3; ++round) {
    host.reopen();
    primary.resume(host);
    overlapping_changes(primary, random, 400);
    primary.wait_applied();
    primary.check_images(host);
    host.kill();
    primary.disconnect();
  }
  CHECK(faulty.faults->shortened > 10);
  CHECK(faulty.faults->delayed > 10);
  CHECK(faulty.faults->overlaps == 0);
}

namespace {

/// False: the replica has hung up.
bool push(FakePrimary& primary, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::size_t sent = primary.send_some(bytes, 1000);
    if (sent == 0) return false;
    bytes = bytes.subspan(sent);
  }
  return true;
}

/// Attaches and sends what the replica lacks. False: it does not take it now.
bool try_resume(FakePrimary& primary, ReplicaHost& host) {
  primary.use(host.connect());
  if (!push(primary, encode_attach(primary.attach_message()))) return false;
  const auto answer = primary.receive();
  if (!answer || answer->header.type != FrameType::attached) return false;
  const auto attached = decode_attached(answer->payload);
  REQUIRE(attached.has_value());
  CHECK(attached->consistent);
  REQUIRE(attached->logged == primary.points[attached->logged.sequence]);
  if (!push(primary, encode_start({.copy = false, .after = attached->logged.sequence})))
    return false;
  for (Sequence next = attached->logged.sequence; next < primary.history.size(); ++next) {
    if (!push(primary, primary.history[next])) return false;
  }
  return true;
}

/// A replica takes writes, flushes and checkpoints while its n-th change of the disk fails. False: there were fewer.
bool survives_failure(int number, int error) {
  FaultyReactor faulty;
  const TempDirectory directory;
  ReplicaHost host(faulty.reactor, directory.path(), one_disk);
  REQUIRE(host.open().has_value());
  FakePrimary primary(one_disk);
  for (std::uint64_t i = 0; i < 12; ++i) {
    primary.write_pattern(0, i % 5 * 4096, 250'000, i, i % 3 == 0 ? frame_flag_fua : 0);
    if (i % 4 == 0) primary.trim(0, 3 * mib, 65536);
    if (i % 2 == 0) primary.flush();
  }
  faulty.faults->io_error = error;
  faulty.faults->failing_io = number;
  bool connected = false;
  const auto deadline = std::chrono::steady_clock::now() + test_deadline;
  while (!connected || host.status().marks.applied != primary.point.sequence) {
    REQUIRE(std::chrono::steady_clock::now() < deadline);
    if (!connected) {
      connected = try_resume(primary, host);
      continue;
    }
    connected = push(primary, encode_empty(FrameType::heartbeat));
    const auto frame = connected ? primary.receive() : std::nullopt;
    if (frame && frame->header.type == FrameType::watermarks) primary.take(*frame);
    connected = frame && frame->header.type == FrameType::watermarks;
  }
  primary.check_images(host);
  return faulty.faults->failing_io == 0;
}

}  // namespace

TEST_CASE("replica faults: whichever change of the disk fails, nothing is lost, and it goes on") {
  int number = 1;
  while (survives_failure(number, number % 2 == 0 ? EIO : ENOSPC))
    ++number;
  // Log, images, checkpoints: there were many.
  CHECK(number > 10);
}

TEST_CASE("replica faults: nothing is durable or applied before the log's sync has ended") {
  FaultyReactor faulty;
  const TempDirectory directory;
  ReplicaHost host(faulty.reactor, directory.path(), one_disk);
  REQUIRE(host.open().has_value());
  FakePrimary primary(one_disk);
  primary.resume(host);
  faulty.faults->hold_syncs = true;
  primary.send(primary.write_pattern(0, 0, 4096, 1, frame_flag_fua));
  primary.send(primary.flush());
  primary.wait_marks([](const Watermarks& at) { return at.logged == 2; });
  for (int i = 0; i < 20; ++i) {
    primary.send(encode_empty(FrameType::heartbeat));
    primary.take(*primary.receive());
  }
  CHECK(primary.marks.logged == 2);
  CHECK(primary.marks.durable == 0);
  CHECK(primary.marks.applied == 0);
  CHECK((host.image(0) == std::vector<std::byte>(one_disk[0])));
  faulty.faults->hold_syncs = false;
  primary.wait_marks([](const Watermarks& at) { return at.durable == 2 && at.applied == 2; });
  primary.check_images(host);
}

TEST_CASE("replica faults: a promotion is not done before the images are synced") {
  FaultyReactor faulty;
  const TempDirectory directory;
  ReplicaHost host(faulty.reactor, directory.path(), one_disk);
  REQUIRE(host.open().has_value());
  FakePrimary primary(one_disk);
  primary.resume(host);
  primary.send(primary.write_pattern(0, 0, 4096, 1));
  primary.wait_marks([](const Watermarks& at) { return at.applied == 1 && at.durable == 1; });
  faulty.faults->hold_syncs = true;
  auto result = host.begin_promotion({2, 2}, primary.point);
  REQUIRE(wait_until([&] { return host.state().epoch == Epoch{2, 2}; }));
  for (int i = 0; i < 20; ++i)
    (void)host.status();
  CHECK(result.wait_for(std::chrono::milliseconds(0)) == std::future_status::timeout);
  faulty.faults->hold_syncs = false;
  REQUIRE(result.wait_for(test_deadline) == std::future_status::ready);
  CHECK(result.get().has_value());
}

TEST_CASE("replica faults: a checkpoint is not recorded before images and log are synced") {
  FaultyReactor faulty;
  const TempDirectory directory;
  ReplicaHost host(faulty.reactor, directory.path(), one_disk);
  REQUIRE(host.open().has_value());
  FakePrimary primary(one_disk);
  primary.resume(host);
  faulty.faults->hold_syncs = true;
  for (std::uint64_t i = 0; i < 12; ++i)
    primary.send(primary.write_pattern(0, i * 4096, 700'000, i));
  primary.wait_marks([](const Watermarks& at) { return at.logged == 12; });
  const std::size_t files = host.log_files().size();
  CHECK(host.state().checkpoint.sequence == 0);
  CHECK(std::filesystem::exists(host.log_dir() + "/" + segment_file_name(1)));
  CHECK(files >= 3);
  faulty.faults->hold_syncs = false;
  REQUIRE(wait_until([&] { return host.state().checkpoint.sequence > 5; }));
  REQUIRE(wait_until(
      [&] { return !std::filesystem::exists(host.log_dir() + "/" + segment_file_name(1)); }));
}

TEST_CASE("replica faults: after a failed sync of the log the replica starts anew from its disk") {
  FaultyReactor faulty;
  const TempDirectory directory;
  ReplicaHost host(faulty.reactor, directory.path(), one_disk);
  REQUIRE(host.open().has_value());
  FakePrimary primary(one_disk);
  primary.resume(host);
  for (std::uint64_t i = 0; i < 20; ++i)
    primary.send(primary.write_pattern(0, i * 4096, 9000, i));
  primary.wait_marks([](const Watermarks& at) { return at.logged == 20; });
  faulty.faults->failing_syncs = 1;
  primary.send(primary.flush());
  CHECK(primary.expect_refuse().code == Errc::io_error);
  CHECK(host.status().state == "failed");
  CHECK(host.disk_errors == 1);
  const AttachedMessage attached = primary.resume(host);
  CHECK(attached.logged.sequence >= 20);
  CHECK(attached.durable == attached.logged.sequence);
  primary.send(primary.flush());
  primary.wait_marks([&](const Watermarks& at) { return at.durable == primary.point.sequence; });
  primary.wait_applied();
  primary.check_images(host);
}

TEST_CASE("replica faults: a failed write is not lost, to the log nor to the image") {
  FaultyReactor faulty;
  const TempDirectory directory;
  ReplicaHost host(faulty.reactor, directory.path(), one_disk);
  REQUIRE(host.open().has_value());
  FakePrimary primary(one_disk);
  auto random = seeded_random();
  for (int round = 0; round < 10; ++round) {
    primary.resume(host);
    overlapping_changes(primary, random, 20);
    primary.wait_applied();
    // The append, or the write of the image that follows it.
    const bool image = round % 2 == 1;
    faulty.faults->failing_write = image ? 2 : 1;
    primary.send(primary.write_pattern(0, random() % mib, 5000, random()));
    const RefuseMessage refused = primary.expect_refuse();
    CHECK(refused.code == Errc::io_error);
    CHECK((refused.message.find("image") != std::string::npos) == image);
    primary.disconnect();
  }
  primary.resume(host);
  primary.wait_applied();
  primary.check_images(host);
}

TEST_CASE("replica faults: a copy is not done before its images are synced") {
  FaultyReactor faulty;
  const TempDirectory directory;
  ReplicaHost host(faulty.reactor, directory.path(), one_disk);
  REQUIRE(host.open().has_value());
  FakePrimary primary(one_disk);
  primary.attach(host);
  primary.send(encode_start({.copy = true, .after = 0, .in_place = true}));
  for (std::uint64_t offset = 0; offset < 4 * mib; offset += mib) {
    primary.send(primary.frame(FrameType::copy_zero, {0, offset, mib}, {}));
  }
  primary.send(primary.write_pattern(0, 100, 5000, 1));
  faulty.faults->hold_syncs = true;
  primary.send(encode_copy_end({primary.point}));
  // The reports of a copy that waits for its disk.
  for (int reports = 0; reports < 3; ++reports) {
    const auto frame = primary.receive();
    REQUIRE(frame.has_value());
    REQUIRE(frame->header.type == FrameType::watermarks);
  }
  CHECK_FALSE(host.state().consistent);
  faulty.faults->hold_syncs = false;
  primary.receive_copy_done();
  CHECK(host.state().consistent);
  primary.check_images(host);
}

TEST_CASE("replica faults: a log is not removed before the mark of the copy is recorded") {
  FaultyReactor faulty;
  const TempDirectory directory;
  ReplicaHost host(faulty.reactor, directory.path(), one_disk);
  REQUIRE(host.open().has_value());
  FakePrimary primary(one_disk);
  primary.resume(host);
  primary.send(primary.write_pattern(0, 0, 4096, 1));
  primary.send(primary.flush());
  primary.wait_applied();
  primary.disconnect();
  primary.attach(host);
  const auto files = host.log_files();
  host.hold_updates(true);
  primary.send(encode_start({.copy = true, .after = primary.point.sequence, .in_place = true}));
  primary.send(primary.frame(FrameType::copy_zero, {0, 0, 4096}, {}));
  // The reports of a copy that waits.
  for (int reports = 0; reports < 2; ++reports)
    REQUIRE(primary.receive().value().header.type == FrameType::watermarks);
  CHECK(host.log_files() == files);
  primary.check_images(host);
  host.hold_updates(false);
  const auto first_segment = host.log_dir() + "/" + segment_file_name(1);
  REQUIRE(wait_until([&] { return !std::filesystem::exists(first_segment); }));
  CHECK_FALSE(host.state().consistent);
}

TEST_CASE("replica faults: a log is not removed while writes from it into an image are in flight") {
  FaultyReactor faulty;
  const TempDirectory directory;
  ReplicaHost host(faulty.reactor, directory.path(), one_disk);
  REQUIRE(host.open().has_value());
  FakePrimary primary(one_disk);
  primary.resume(host);
  faulty.faults->hold_syncs = true;
  primary.send(primary.write_pattern(0, 0, 4096, 1, frame_flag_fua));
  primary.wait_marks([](const Watermarks& at) { return at.logged == 1; });
  faulty.faults->hold_writes = true;
  faulty.faults->hold_syncs = false;
  primary.wait_marks([](const Watermarks& at) { return at.durable == 1; });
  REQUIRE(wait_until([&] { return host.image(0) == primary.images[0]; }));
  const auto files = host.log_files();
  primary.send(encode_start({.copy = true, .after = primary.point.sequence, .in_place = true}));
  REQUIRE(wait_until([&] { return !host.state().consistent; }));
  // The reports of a copy that waits.
  for (int reports = 0; reports < 3; ++reports)
    REQUIRE(primary.receive().value().header.type == FrameType::watermarks);
  CHECK(host.log_files() == files);
  faulty.faults->hold_writes = false;
  REQUIRE(wait_until([&] { return host.log_files().empty(); }));
  primary.finish_copy();
  primary.check_images(host);
}

TEST_CASE("replica faults: a copy is not reported as done before that is recorded") {
  FaultyReactor faulty;
  const TempDirectory directory;
  ReplicaHost host(faulty.reactor, directory.path(), one_disk);
  REQUIRE(host.open().has_value());
  FakePrimary primary(one_disk);
  primary.attach(host);
  primary.send(encode_start({.copy = true, .after = 0, .in_place = true}));
  REQUIRE(wait_until([&] { return !host.state().consistent; }));
  host.hold_updates(true);
  primary.send(primary.frame(FrameType::copy_zero, {0, 0, one_disk[0]}, {}));
  primary.send(encode_copy_end({primary.point}));
  for (int reports = 0; reports < 2; ++reports)
    REQUIRE(primary.receive().value().header.type == FrameType::watermarks);
  CHECK_FALSE(host.state().consistent);
  host.hold_updates(false);
  primary.receive_copy_done();
  CHECK(host.state().consistent);
}

TEST_CASE("replica faults: a segment is not used again before the checkpoint is recorded") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), one_disk);
  REQUIRE(host.open().has_value());
  FakePrimary primary(one_disk);
  primary.resume(host);
  host.hold_updates(true);
  for (std::uint64_t i = 0; i < 12; ++i)
    primary.send(primary.write_pattern(0, i * 4096, 700'000, i));
  primary.send(primary.flush());
  primary.wait_applied();
  REQUIRE(wait_until([&] { return host.held_updates() == 1; }));
  // It goes on meanwhile.
  for (std::uint64_t i = 0; i < 6; ++i)
    primary.send(primary.write_pattern(0, i * 4096, 700'000, i));
  primary.send(primary.flush());
  primary.wait_applied();
  CHECK(host.held_updates() == 1);
  CHECK(std::filesystem::exists(host.log_dir() + "/" + segment_file_name(1)));
  CHECK(host.state().checkpoint.sequence == 0);
  host.hold_updates(false);
  REQUIRE(wait_until(
      [&] { return !std::filesystem::exists(host.log_dir() + "/" + segment_file_name(1)); }));
  CHECK(host.state().checkpoint.sequence > 0);
}

TEST_CASE("replica faults: a stage is kept, and no log behind it applied, before it is recorded") {
  ReactorThread reactor;
  const TempDirectory directory;
  ReplicaHost host(reactor, directory.path(), one_disk);
  REQUIRE(host.open().has_value());
  FakePrimary primary(one_disk);
  primary.write_pattern(0, 0, 8192, 1);
  const std::vector<std::byte> old_image = host.image(0);
  const auto has_stage = [&] { return std::filesystem::exists(host.log_dir() + "/resync.stage"); };
  const auto wait_held = [&] { return wait_until([&] { return host.held_updates() == 1; }); };
  primary.attach(host);
  host.hold_updates(true);
  primary.send(encode_start({.copy = true, .after = primary.point.sequence}));
  const std::vector<std::byte> data(primary.images[0].begin(), primary.images[0].begin() + 8192);
  primary.send(primary.frame(FrameType::copy_data, {0, 0, 8192}, data));
  // The mark: nothing is staged before it.
  REQUIRE(wait_held());
  CHECK_FALSE(has_stage());
  host.make_one_update();
  REQUIRE(wait_until(has_stage));
  primary.send(encode_copy_end({primary.point}));
  // The commit: nothing comes into the image before it.
  REQUIRE(wait_held());
  for (int reports = 0; reports < 3; ++reports)
    REQUIRE(primary.receive().value().header.type == FrameType::watermarks);
  CHECK((host.image(0) == old_image));
  host.make_one_update();
  primary.receive_copy_done();
  // That it is in the image.
  REQUIRE(wait_held());
  CHECK((host.image(0) == primary.images[0]));
  const std::vector<std::byte> copied_image = host.image(0);
  primary.send(primary.write_pattern(0, 1 * mib, 4096, 2, frame_flag_fua));
  primary.wait_marks([&](const Watermarks& at) { return at.durable == primary.point.sequence; });
  CHECK(primary.marks.applied == 0);
  CHECK((host.image(0) == copied_image));
  CHECK(has_stage());
  host.hold_updates(false);
  primary.wait_applied();
  primary.check_images(host);
  REQUIRE(wait_until([&] { return !has_stage(); }));
}

}  // namespace replicad
