// Loss of power in a rewind: whatever a block held that the new history does not have is kept, at every moment.

#include <algorithm>

#include "replicad/lost_writes.h"
#include "tests/power/scenario.h"

namespace replicad {
namespace {

constexpr std::uint64_t rewound_bytes = 2 * mib;
constexpr std::uint64_t own_begin = 256 * kib;
constexpr std::uint64_t own_bytes = 1 * mib;
constexpr Sequence left_sequence = 9;
constexpr int rewind_states = 250;
constexpr int rewind_states_until_bug = 3000;

struct RewindRecord {
  DiskRecord record;
  std::vector<std::byte> before;
};

/// A host with content of its own gets another history, in pieces, beside live writes.
RewindRecord record_rewind(std::mt19937_64& random) {
  const std::vector<std::uint64_t> sizes{rewound_bytes};
  const TempDirectory directory;
  auto ring = create_uring_ring(256);
  REQUIRE(ring.has_value());
  ReactorThread reactor(create_reactor(create_recording_ring(std::move(*ring))));
  ReplicaHost host(reactor, directory.path(), sizes);
  {
    const Fd fd(::open(host.image_path(0).c_str(), O_WRONLY | O_CLOEXEC));
    const std::vector<std::byte> own(own_bytes, std::byte{0xee});
    REQUIRE(write_all_at(fd.get(), own, own_begin).has_value());
  }
  host.change_state([](VolumeState& state) { state.checkpoint = {{1, 5}, left_sequence, {3, 3}}; });
  host.keep_state_file();
  RewindRecord rewind;
  rewind.before = host.image(0);
  DiskRecorder recorder(directory.path());
  REQUIRE(host.open().has_value());
  FakePrimary primary(sizes);
  for (std::uint64_t i = 0; i < 3; ++i)
    primary.write_pattern(0, i * 500'000, 8 * kib, i);
  primary.attach(host);
  primary.send(encode_start({.copy = true, .after = primary.point.sequence, .save = true}));
  constexpr std::uint64_t piece = 64 * kib;
  for (std::uint64_t offset = 0; offset < rewound_bytes; offset += piece) {
    primary.send(primary.write_pattern(0, random() % (rewound_bytes - 9000), 9000, random()));
    const auto begin = primary.images[0].begin() + static_cast<std::ptrdiff_t>(offset);
    const std::vector<std::byte> data(begin, begin + static_cast<std::ptrdiff_t>(piece));
    primary.send(primary.frame(FrameType::copy_data, {0, offset, piece}, data));
  }
  primary.finish_copy();
  host.kill();
  primary.disconnect();
  rewind.record = recorder.finish();
  return rewind;
}

/// What the files hold, by the offset of the block.
std::map<std::uint64_t, std::vector<std::byte>> kept_blocks(const std::string& directory) {
  std::map<std::uint64_t, std::vector<std::byte>> blocks;
  const auto numbers = list_lost_files(directory);
  if (!numbers) return blocks;
  for (const std::uint64_t number : *numbers) {
    auto reader = LostFileReader::open(directory, number);
    if (!reader) continue;
    for (;;) {
      const auto record = reader->next(true);
      if (!record || !*record) break;
      if ((*record)->is_damaged) continue;
      auto content = (*record)->content;
      if ((*record)->is_zero) content.resize((*record)->range.length_bytes);
      for (std::uint64_t at = 0; at < content.size(); at += block_bytes) {
        const auto begin = content.begin() + static_cast<std::ptrdiff_t>(at);
        blocks[(*record)->range.offset_bytes + at].assign(begin, begin + block_bytes);
      }
    }
  }
  return blocks;
}

std::optional<std::string> check_rewind(const RewindRecord& rewind, const CrashState& crash) {
  const TempDirectory directory;
  crash.write_to(directory.path());
  const auto state = StateStore::load(directory.path() + "/state");
  if (!state) return state.error().message;
  const bool claims_old = state->consistent && state->checkpoint.sequence == left_sequence &&
                          state->checkpoint.epoch == Epoch{1, 5};
  const auto& image = crash.contents.at(crash.names.at("disk0.raw"));
  const auto kept = kept_blocks(lost_directory(directory.path()));
  for (std::uint64_t at = 0; at < rewound_bytes; at += block_bytes) {
    const auto begin = static_cast<std::ptrdiff_t>(at);
    const std::span now(image.begin() + begin, block_bytes);
    const std::span before(rewind.before.begin() + begin, block_bytes);
    if (std::ranges::equal(now, before)) continue;
    if (claims_old) return fmt::format("block {} has changed, and nothing is marked", at);
    // What the new history has held as well is no loss.
    if (at < own_begin || at >= own_begin + own_bytes) continue;
    const auto found = kept.find(at);
    if (found == kept.end() || !std::ranges::equal(found->second, before))
      return fmt::format("block {} has changed, and what it held is not kept", at);
  }
  return std::nullopt;
}

std::optional<std::string> find_rewind_failure(const RewindRecord& rewind,
                                               int count,
                                               const IgnoredSync& ignored,
                                               std::mt19937_64& random) {
  for (int i = 0; i < count; ++i) {
    const Moment at = 1 + random() % rewind.record.last;
    const auto kind = static_cast<CrashKind>(random() % crash_kinds);
    const auto crash = make_crash_state(rewind.record, at, kind, ignored, random);
    if (auto broken = check_rewind(rewind, crash)) {
      return fmt::format(
          "power lost at {} of {}, {}: {}", at, rewind.record.last, to_text(kind), *broken);
    }
  }
  return std::nullopt;
}

void check_rewind_bug_found(const IgnoredSync& ignored) {
  auto random = seeded_random();
  const auto failure =
      find_rewind_failure(record_rewind(random), rewind_states_until_bug, ignored, random);
  REQUIRE(failure.has_value());
  MESSAGE("found: ", *failure);
}

}  // namespace

TEST_CASE("power: in a rewind each block is marked, and what it held kept, before it changes") {
  auto random = seeded_random();
  const RewindRecord rewind = record_rewind(random);
  const auto failure = find_rewind_failure(rewind, rewind_states, nullptr, random);
  INFO(failure.value_or(""));
  CHECK_FALSE(failure.has_value());
}

TEST_CASE("power: planted bug: in a rewind a block is replaced before what it held is synced") {
  check_rewind_bug_found([](const DiskRecord& record, const DiskOperation& sync) {
    return sync.kind == DiskOperation::Kind::sync_file &&
           was_named(record, sync.file, "lost-writes/");
  });
}

TEST_CASE("power: planted bug: in a rewind the file of lost writes has no durable name") {
  check_rewind_bug_found([](const DiskRecord& /*record*/, const DiskOperation& sync) {
    return sync.kind == DiskOperation::Kind::sync_directory && sync.directory == "lost-writes";
  });
}

TEST_CASE("power: planted bug: in a rewind a block is replaced before the mark is durable") {
  check_rewind_bug_found([](const DiskRecord& /*record*/, const DiskOperation& sync) {
    return sync.kind == DiskOperation::Kind::sync_directory && sync.directory == ".";
  });
}

}  // namespace replicad
