// Loss of power, shown on the code that runs in production: its writes, syncs and changes of directories are recorded,
// what a crash may leave is made from that, and a host is started on it. A planted bug is a sync that counts as never
// made.
//
// RD_POWER_SEEDS=n: so many scenarios (1), RD_POWER_STATES=n: crash states of each (60).

#include "replicad/lost_writes.h"
#include "tests/power/scenario.h"

namespace replicad {
namespace {

using Kind = DiskOperation::Kind;

int from_environment(const char* name, int otherwise) {
  const char* given = std::getenv(name);
  return given != nullptr ? std::atoi(given) : otherwise;
}

int scenarios() {
  return from_environment("RD_POWER_SEEDS", 1);
}
int states_of_each() {
  return from_environment("RD_POWER_STATES", 60);
}
constexpr int states_until_found = 3000;

bool is_log(const DiskRecord& record, const DiskOperation& sync) {
  return sync.kind == Kind::sync_file && was_named(record, sync.file, "log/");
}
bool is_image(const DiskRecord& record, const DiskOperation& sync) {
  return sync.kind == Kind::sync_file && was_named(record, sync.file, "disk0.raw");
}
bool is_state(const DiskRecord& record, const DiskOperation& sync) {
  return sync.kind == Kind::sync_file && was_named(record, sync.file, "state");
}
bool is_directory(const DiskRecord& /*record*/, const DiskOperation& sync, const char* directory) {
  return sync.kind == Kind::sync_directory && sync.directory == directory;
}

void check_all(ReplicaScenario (*record)(std::mt19937_64&)) {
  auto random = seeded_random();
  for (int i = 0; i < scenarios(); ++i) {
    const ReplicaScenario scenario = record(random);
    const auto failure = find_failure(scenario, states_of_each(), nullptr, random);
    INFO(failure.value_or(""));
    REQUIRE_FALSE(failure.has_value());
  }
}

void check_found(ReplicaScenario (*record)(std::mt19937_64&), const IgnoredSync& ignored) {
  auto random = seeded_random();
  const ReplicaScenario scenario = record(random);
  const auto failure = find_failure(scenario, states_until_found, ignored, random);
  REQUIRE(failure.has_value());
  MESSAGE("found: ", *failure);
}

// --- the state file

struct StateScenario {
  DiskRecord record;
  std::vector<std::string> contents;  ///< by generation
};

VolumeState first_state() {
  VolumeState state;
  state.name = "vm1";
  state.uuid = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9";
  state.disks = {{"vda", 4 * mib, "/disk0.raw", false}};
  state.members = {{"a", "", "", false}, {"b", "", "", false}};
  state.primary = "a";
  state.epoch = {1, 77};
  return state;
}

/// Twelve changes, some of them asked for before the one ahead is durable; every answer is a promise.
StateScenario record_state() {
  const TempDirectory directory;
  const std::string path = directory.path() + "/state";
  StateScenario scenario;
  scenario.contents.push_back(encode_volume_state(first_state()));
  REQUIRE(write_file_durably(path, scenario.contents[0]).has_value());
  DiskRecorder recorder(directory.path());
  ReactorThread reactor;
  auto worker = Worker::create();
  std::unique_ptr<StateStore> store;
  std::atomic<int> answered = 0;
  reactor.call(
      [&] { store = std::make_unique<StateStore>(*reactor, *worker, path, first_state()); });
  for (int i = 0; i < 12; ++i) {
    reactor.call([&] {
      store->update(
          [](VolumeState& state) -> Status {
            ++state.epoch.number;
            state.sequence_reserved += 1000;
            return {};
          },
          [&](const Status& status) {
            REQUIRE(status.has_value());
            scenario.contents.push_back(encode_volume_state(store->state()));
            recorder.mark("generation", store->state().generation);
            ++answered;
          });
    });
    if (i % 3 == 0) REQUIRE(wait_until([&] { return answered == i + 1; }));
  }
  REQUIRE(wait_until([&] { return answered == 12; }));
  reactor.call([&] { store.reset(); });
  scenario.record = recorder.finish();
  return scenario;
}

std::optional<std::string> check_state(const StateScenario& scenario, const CrashState& crash) {
  const TempDirectory directory;
  crash.write_to(directory.path());
  const auto state = StateStore::load(directory.path() + "/state");
  if (!state) return state.error().message;
  const std::uint64_t promised = scenario.record.marked("generation", crash.at);
  if (state->generation < promised)
    return fmt::format("generation {} was durable, {} is there", promised, state->generation);
  if (state->generation >= scenario.contents.size() ||
      encode_volume_state(*state) != scenario.contents[state->generation])
    return fmt::format("generation {} is no state that was ever written", state->generation);
  return std::nullopt;
}

/// Every moment, each kind of crash.
std::optional<std::string> find_state_failure(const StateScenario& scenario,
                                              const IgnoredSync& ignored,
                                              std::mt19937_64& random) {
  for (Moment at = 1; at <= scenario.record.last; ++at) {
    for (int kind = 0; kind < crash_kinds; ++kind) {
      const auto crash =
          make_crash_state(scenario.record, at, static_cast<CrashKind>(kind), ignored, random);
      if (auto broken = check_state(scenario, crash))
        return fmt::format("power lost at {}, {}: {}", at, to_text(crash.kind), *broken);
    }
  }
  return std::nullopt;
}

void check_state_bug_found(const IgnoredSync& ignored) {
  auto random = seeded_random();
  const auto failure = find_state_failure(record_state(), ignored, random);
  REQUIRE(failure.has_value());
  MESSAGE("found: ", *failure);
}

}  // namespace

TEST_CASE("power: the state file has the old or the new content, and what was answered is there") {
  auto random = seeded_random();
  const StateScenario scenario = record_state();
  CHECK(scenario.record.count(Kind::rename) == 12);
  CHECK(scenario.record.count(Kind::sync_file) == 12);
  CHECK(scenario.record.count(Kind::sync_directory) == 12);
  const auto failure = find_state_failure(scenario, nullptr, random);
  INFO(failure.value_or(""));
  CHECK_FALSE(failure.has_value());
}

TEST_CASE("power: what was read of a state file is there afterwards, whoever renamed it") {
  auto random = seeded_random();
  const TempDirectory directory;
  const std::string path = directory.path() + "/state";
  VolumeState state = first_state();
  REQUIRE(write_file_durably(path, encode_volume_state(state)).has_value());
  ++state.generation;
  // This process ended before it synced the directory.
  const std::string temporary = path + ".tmp";
  REQUIRE(write_file_durably(temporary, encode_volume_state(state)).has_value());
  DiskRecorder recorder(directory.path());
  REQUIRE(::rename(temporary.c_str(), path.c_str()) == 0);
  const auto read = StateStore::load(path);
  REQUIRE(read.has_value());
  CHECK(read->generation == state.generation);
  recorder.mark("read", 1);
  const DiskRecord record = recorder.finish();
  for (int kind = 0; kind < crash_kinds; ++kind) {
    const auto crash =
        make_crash_state(record, record.last, static_cast<CrashKind>(kind), nullptr, random);
    const TempDirectory after;
    crash.write_to(after.path());
    const auto found = StateStore::load(after.path() + "/state");
    REQUIRE(found.has_value());
    CHECK(found->generation == state.generation);
  }
}

TEST_CASE("power: what a rewind takes for kept is there afterwards, whoever wrote it") {
  auto random = seeded_random();
  const TempDirectory directory;
  const std::string kept = directory.path() + "/lost-writes";
  LostHeader header;
  header.volume = "vm1";
  header.volume_uuid = first_state().uuid;
  header.host = header.primary = "a";
  header.disks = {{"vda", 1 * mib}};
  auto file = LostFileWriter::create(kept, header);
  REQUIRE(file.has_value());
  const std::vector<std::byte> content(8192, std::byte{7});
  DiskRecorder recorder(directory.path());
  {
    // What a process that ended before its sync had written.
    const Fd fd(
        ::open((kept + "/" + lost_file_name((*file)->number())).c_str(), O_RDWR | O_CLOEXEC));
    REQUIRE(fd.valid());
    const FrameHeader record = lost_record({0, 4096, content.size()}, content);
    std::array<std::byte, frame_header_bytes> bytes{};
    encode_header(record, bytes);
    REQUIRE(write_all_at(fd.get(), bytes, lost_header_bytes).has_value());
    REQUIRE(write_all_at(fd.get(), content, lost_header_bytes + frame_header_bytes).has_value());
  }
  BlockMap saved({1 * mib});
  REQUIRE(mark_saved(kept, 1, saved).has_value());
  REQUIRE(saved.overlaps_any({0, 4096, 512}));
  recorder.mark("read", 1);
  const DiskRecord record = recorder.finish();
  for (int kind = 0; kind < crash_kinds; ++kind) {
    const auto crash =
        make_crash_state(record, record.last, static_cast<CrashKind>(kind), nullptr, random);
    const TempDirectory after;
    crash.write_to(after.path());
    BlockMap found({1 * mib});
    REQUIRE(mark_saved(after.path() + "/lost-writes", 1, found).has_value());
    CHECK(found.overlaps_any({0, 4096, 512}));
  }
}

TEST_CASE("power: planted bug: the state file's directory is not synced") {
  check_state_bug_found([](const DiskRecord& record, const DiskOperation& sync) {
    return is_directory(record, sync, ".");
  });
}

TEST_CASE("power: planted bug: the state file is renamed before it is synced") {
  check_state_bug_found(is_state);
}

TEST_CASE(
    "power: a replica's log and image are the writes 1..n, with all that was reported durable") {
  check_all(record_stream);
}

TEST_CASE("power: a replica in a full copy is what its state file says") {
  check_all(record_copy);
}

TEST_CASE("power: staged copy, a replica is the writes 1..n at every moment") {
  check_all(record_staged_copy);
}

TEST_CASE("power: the recorder sees every kind of operation") {
  auto random = seeded_random();
  const ReplicaScenario scenario = record_stream(random);
  for (const Kind kind : {Kind::write,
                          Kind::zero,
                          Kind::create,
                          Kind::rename,
                          Kind::make_directory,
                          Kind::sync_file,
                          Kind::sync_directory}) {
    CAPTURE(static_cast<int>(kind));
    CHECK(scenario.record.count(kind) > 0);
  }
  const auto& operations = scenario.record.operations;
  // A segment that becomes a spare, and the other way.
  for (const auto& names : {std::pair("log/0", "log/spare."), std::pair("log/spare.", "log/0")}) {
    CHECK(std::any_of(operations.begin(), operations.end(), [&](const DiskOperation& operation) {
      return operation.kind == Kind::rename && operation.name.starts_with(names.first) &&
             operation.target.starts_with(names.second);
    }));
  }
  for (const auto which : {is_log, is_image, is_state}) {
    CHECK(std::any_of(operations.begin(), operations.end(), [&](const DiskOperation& operation) {
      return which(scenario.record, operation);
    }));
  }
}

TEST_CASE("power: planted bug: the log is not synced before it is reported durable") {
  check_found(record_stream, is_log);
}

TEST_CASE("power: planted bug: the log's directory is not synced") {
  check_found(record_stream, [](const DiskRecord& record, const DiskOperation& sync) {
    return is_directory(record, sync, "log");
  });
}

TEST_CASE("power: planted bug: the checkpoint is recorded before the images are synced") {
  check_found(record_stream, is_image);
}

TEST_CASE("power: planted bug: the trail covers a checkpoint before its pages are synced") {
  check_found(record_stream, [](const DiskRecord& record, const DiskOperation& sync) {
    return was_named(record, sync.file, "trail");
  });
}

TEST_CASE("power: planted bug: a copy counts as whole before the images are synced") {
  check_found(record_copy, is_image);
}

TEST_CASE("power: planted bug: a stage is committed before it is synced") {
  check_found(record_staged_copy, [](const DiskRecord& record, const DiskOperation& sync) {
    return was_named(record, sync.file, "log/resync.stage");
  });
}

TEST_CASE("power: planted bug: a stage is removed before the images are synced") {
  check_found(record_staged_copy, is_image);
}

TEST_CASE("power: planted bug: promise and mark are answered before the state file is durable") {
  const IgnoredSync ignored = [](const DiskRecord& record, const DiskOperation& sync) {
    return is_directory(record, sync, ".");
  };
  SUBCASE("stream") {
    check_found(record_stream, ignored);
  }
  SUBCASE("copy") {
    check_found(record_copy, ignored);
  }
}

}  // namespace replicad
