// What `replicad recover`, `dump-state` and `restore-state` do with a host's files.

#include "replicad/offline.h"

#include <fcntl.h>

#include "replicad/state_dir.h"
#include "replicad/state_store.h"
#include "tests/replicad/replica_fixture.h"

namespace replicad {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t image_size = 256 * kib;

/// A host's state directory with the replica "b" of volume vm1 in it, whose daemon was killed.
class KilledReplica {
 public:
  KilledReplica() : host_(reactor_, make_directory(), {image_size, image_size}) {
    options.host = "b";
    options.state_dir = dir_.path();
    options.image_dir = dir_.path() + "/images";
    REQUIRE(host_.open().has_value());
    primary.resume(host_);
    for (unsigned i = 0; i < 60; ++i) {
      primary.send(primary.write_pattern(
          i % 2, std::uint64_t{512} * (7 * i % 400), 4096 + std::uint64_t{512} * (i % 5), i));
    }
    primary.send(primary.zero(0, 8192, 16384, true));
    primary.send(primary.trim(1, 4096, 4096));
    primary.send(primary.flush());
    primary.wait_marks(
        [this](const Watermarks& at) { return at.logged == primary.point.sequence; });
    host_.kill();
    save(host_.state());
  }

  Options options;
  FakePrimary primary{{image_size, image_size}};

  void save(const VolumeState& state) const {
    REQUIRE(write_file_durably(volume_dir() + "/state", encode_volume_state(state)).has_value());
  }
  [[nodiscard]] VolumeState state() const {
    const auto state = StateStore::load(volume_dir() + "/state");
    REQUIRE(state.has_value());
    return *state;
  }
  [[nodiscard]] std::string volume_dir() const { return dir_.path() + "/volumes/vm1"; }
  [[nodiscard]] std::string log_dir() const { return host_.log_dir(); }
  [[nodiscard]] std::string image_path(std::size_t disk) const { return host_.image_path(disk); }
  /// Everything below the volume's folder, for comparison.
  [[nodiscard]] std::map<std::string, std::string> files() const {
    std::map<std::string, std::string> content;
    for (const auto& entry : fs::recursive_directory_iterator(volume_dir())) {
      if (!entry.is_regular_file()) continue;
      content[entry.path().string()] = read_file(entry.path().string(), 64 * mib).value();
    }
    return content;
  }
  /// The images are as they were when nothing had been applied yet; the log has it all.
  void forget_applied() const {
    for (std::size_t disk = 0; disk < 2; ++disk) {
      const Fd file(::open(image_path(disk).c_str(), O_RDWR | O_CLOEXEC));
      REQUIRE(write_all_at(file.get(), std::vector<std::byte>(image_size), 0).has_value());
    }
  }
  void check_images() const { primary.check_images(host_); }
  /// Once nothing that kill() left in flight holds the images any more.
  Result<std::string> recover(bool dry_run = false) {
    Result<std::string> result;
    REQUIRE(wait_until([&] {
      result = recover_volume(options, "vm1", dry_run);
      return result.has_value() || result.error().code != Errc::busy;
    }));
    return result;
  }

 private:
  std::string make_directory() {
    REQUIRE(make_directories(volume_dir(), 0750).has_value());
    return volume_dir();
  }

  TempDirectory dir_;
  ReactorThread reactor_;
  ReplicaHost host_;
};

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_CASE(
    "recover: the log goes into the images, which then stand alone, and a second time does "
    "nothing") {
  KilledReplica replica;
  REQUIRE(replica.state().checkpoint.sequence == 0);
  const auto looked = replica.recover(true);
  REQUIRE_MESSAGE(looked.has_value(), looked.error().message);
  const std::string position = fmt::format("position: sequence {}, epoch 1, digest {}",
                                           replica.primary.point.sequence,
                                           to_hex(replica.primary.point.digest));
  CHECK_MESSAGE(has(*looked, position), *looked);
  CHECK_MESSAGE(has(*looked, "would go"), *looked);
  replica.forget_applied();
  const auto recovered = replica.recover();
  REQUIRE_MESSAGE(recovered.has_value(), recovered.error().message);
  CHECK_MESSAGE(has(*recovered, position), *recovered);
  CHECK_MESSAGE(has(*recovered, "role: replica of a"), *recovered);
  CHECK_MESSAGE(has(*recovered, replica.image_path(1)), *recovered);
  replica.check_images();
  CHECK(replica.state().checkpoint == replica.primary.point);
  const auto again = replica.recover();
  REQUIRE(again.has_value());
  CHECK_MESSAGE(has(*again, "log: 0 bytes"), *again);
  CHECK_MESSAGE(has(*again, position), *again);
  replica.check_images();
}

TEST_CASE("recover: --dry-run changes no byte, also where the log is torn") {
  KilledReplica replica;
  REQUIRE(replica.recover(true).has_value());
  std::string last;
  for (const auto& entry : fs::directory_iterator(replica.log_dir())) {
    if (entry.path().extension() == ".seg") last = std::max(last, entry.path().string());
  }
  {
    // Half of a frame behind the end.
    const Fd file(::open(last.c_str(), O_RDWR | O_CLOEXEC));
    const auto& frame = replica.primary.write_pattern(0, 0, 4096, 99);
    std::uint64_t end = segment_header_bytes;
    for (std::size_t i = 0; i + 1 < replica.primary.history.size(); ++i)
      end += replica.primary.history[i].size();
    REQUIRE(write_all_at(file.get(), std::span(frame).first(frame.size() / 2), end).has_value());
  }
  const auto before = replica.files();
  const auto looked = replica.recover(true);
  REQUIRE_MESSAGE(looked.has_value(), looked.error().message);
  CHECK_MESSAGE(has(*looked, "log: it ends at"), *looked);
  CHECK((replica.files() == before));
  const auto recovered = replica.recover();
  REQUIRE(recovered.has_value());
  CHECK(replica.state().checkpoint == replica.primary.points[replica.primary.point.sequence - 1]);
  CHECK_FALSE((replica.files() == before));
}

TEST_CASE("recover: refuses beside a daemon or another user of the images, and changes nothing") {
  KilledReplica replica;
  REQUIRE(replica.recover(true).has_value());
  const auto before = replica.files();
  {
    const auto lock = lock_state_dir(replica.options.state_dir);
    REQUIRE(lock.has_value());
    const auto refused = recover_volume(replica.options, "vm1", false);
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().code == Errc::busy);
    CHECK_FALSE(dump_volume_state(replica.options, "vm1").has_value());
  }
  {
    const auto image = open_image_locked(replica.image_path(1), image_size);
    REQUIRE(image.has_value());
    for (const bool dry_run : {false, true}) {
      const auto refused = recover_volume(replica.options, "vm1", dry_run);
      REQUIRE_FALSE(refused.has_value());
      CHECK(refused.error().code == Errc::busy);
      CHECK(has(refused.error().message, replica.image_path(1)));
    }
  }
  CHECK((replica.files() == before));
}

TEST_CASE("recover: incomplete images, a damaged log or state, and strangers are named") {
  KilledReplica replica;
  REQUIRE(replica.recover(true).has_value());
  const auto refusal = [&](const std::string& name = "vm1") {
    const auto refused = recover_volume(replica.options, name, false);
    REQUIRE_FALSE(refused.has_value());
    return refused.error();
  };
  CHECK(refusal("vm2").code == Errc::not_found);
  CHECK(refusal("../vm1").code == Errc::invalid_argument);
  replica.options.host = "x";
  CHECK(has(refusal().message, "not a member"));
  replica.options.host = "b";
  const VolumeState state = replica.state();
  VolumeState changed = state;
  changed.consistent = false;
  replica.save(changed);
  const auto before = replica.files();
  CHECK(refusal().code == Errc::inconsistent);
  CHECK((replica.files() == before));
  changed = state;
  changed.checkpoint.sequence = 3;
  replica.save(changed);
  CHECK(refusal().code == Errc::corrupt);
  REQUIRE(write_file_durably(replica.volume_dir() + "/state", "replicad-state 1 x").has_value());
  CHECK(refusal().code == Errc::corrupt);
}

TEST_CASE("recover: on the primary the images are told as they are, with what is known of them") {
  KilledReplica replica;
  REQUIRE(replica.recover(true).has_value());
  VolumeState state = replica.state();
  state.primary = "b";
  state.history = replica.primary.point;
  replica.save(state);
  const auto clean = replica.recover();
  REQUIRE(clean.has_value());
  CHECK_MESSAGE(has(*clean, "role: primary"), *clean);
  CHECK_MESSAGE(has(*clean, to_hex(state.history.digest)), *clean);
  state.clean = false;
  state.sequence_reserved = 5000;
  state.transfer = TransferState{"c", {9, 9}, replica.primary.point};
  replica.save(state);
  const auto unclean = replica.recover();
  REQUIRE(unclean.has_value());
  CHECK_MESSAGE(has(*unclean, "position: unknown, at most sequence 5000"), *unclean);
  CHECK_MESSAGE(has(*unclean, "if c took over"), *unclean);
}

TEST_CASE("restore-state: a dumped state becomes a volume of its own, on this host alone") {
  KilledReplica replica;
  REQUIRE(replica.recover().has_value());
  const auto text = dump_volume_state(replica.options, "vm1");
  REQUIRE(text.has_value());
  const VolumeState old = replica.state();
  const auto restore = [&](const std::string& from) {
    return restore_volume_state(replica.options, "vm1", from);
  };
  CHECK(restore(*text).error().code == Errc::exists);
  REQUIRE(fs::remove(replica.volume_dir() + "/state"));
  // The log may hold what the images lack.
  CHECK(restore(*text).error().code == Errc::exists);
  fs::remove_all(replica.log_dir());
  CHECK(restore("{}").error().code == Errc::corrupt);
  CHECK(restore(text->substr(0, text->size() / 2)).error().code == Errc::corrupt);
  CHECK(restore_volume_state(replica.options, "vm2", *text).error().code == Errc::invalid_argument);
  {
    const auto image = open_image_locked(replica.image_path(0), image_size);
    CHECK(restore(*text).error().code == Errc::busy);
  }
  VolumeState incomplete = old;
  incomplete.consistent = false;
  CHECK(restore(encode_volume_state_body(incomplete)).error().code == Errc::inconsistent);
  // Of a committed resync the images may hold any part.
  incomplete = old;
  incomplete.stage_bytes = 8192;
  CHECK(restore(encode_volume_state_body(incomplete)).error().code == Errc::inconsistent);
  CHECK_FALSE(fs::exists(replica.volume_dir() + "/state"));

  const auto restored = restore(*text);
  REQUIRE_MESSAGE(restored.has_value(), restored.error().message);
  const VolumeState state = replica.state();
  CHECK(state.uuid != old.uuid);
  CHECK(has(*restored, state.uuid));
  // What the images looked like once does not count: they are taken as they are.
  std::vector<DiskState> disks = old.disks;
  for (DiskState& disk : disks)
    disk.mark = {};
  CHECK(state.disks == disks);
  CHECK(state.settings == old.settings);
  CHECK(state.primary == "b");
  CHECK(state.in_sync == std::vector<std::string>{"b"});
  CHECK(state.members.size() == 1);
  CHECK(state.history == HistoryPoint{});
  replica.check_images();
  const auto told = recover_volume(replica.options, "vm1", false);
  REQUIRE(told.has_value());
  CHECK(has(*told, "role: primary"));
}

}  // namespace
}  // namespace replicad
