// Loss of power of a primary: whatever is left of its activity file, it tells where the images may differ.

#include "tests/plugin/activity_term.h"
#include "tests/power/scenario.h"

namespace replicad {
namespace {

constexpr int writes = 60;
constexpr int states = 400;
constexpr int states_until_activity_bug = 3000;

std::string region_name(std::uint64_t region) {
  return fmt::format("region {}", region);
}

/// A term whose members are away: what is written they lack, hot or cold.
DiskRecord record_activity(std::mt19937_64& random) {
  const TempPath temp;
  DiskRecorder recorder(temp.path());
  PrimaryTerm term(temp, 2, {{1, 1}, 100, {5, 6}}, false);
  recorder.mark("begun", 1);
  for (int i = 0; i < writes; ++i) {
    const std::uint64_t offset = random() % (PrimaryTerm::disk / 4096) * 4096;
    REQUIRE(term.write(offset));
    recorder.mark(region_name(offset / region_bytes), 1);
    if (i % 8 == 0) term.cool(static_cast<int>(random() % 30));
  }
  return recorder.finish();
}

std::optional<std::string> check_activity(const DiskRecord& record, const CrashState& crash) {
  const TempPath temp;
  crash.write_to(temp.path());
  const PrimaryTerm term(temp, 3, behind_crash(3), true);
  const bool begun = record.marked("begun", crash.at) > 0;
  if (term.known.lacks.empty()) {
    // Everything is compared: right, and not to be expected once the term has begun.
    return begun ? std::optional<std::string>("the file tells nothing any more") : std::nullopt;
  }
  for (std::uint64_t region = 0; region < PrimaryTerm::disk / region_bytes; ++region) {
    if (record.marked(region_name(region), crash.at) == 0) continue;
    const Range range{0, region * region_bytes, region_bytes};
    for (const char* host : {"b", "c"}) {
      const KnownLack& lack = term.lack(host);
      if (!lack.suspect.overlaps_any(range) && !lack.dirty.overlaps_any(range))
        return fmt::format(
            "region {} was written to, and {} is not known to lack it", region, host);
    }
  }
  return std::nullopt;
}

std::optional<std::string> find_activity_failure(const DiskRecord& record,
                                                 int count,
                                                 const IgnoredSync& ignored,
                                                 std::mt19937_64& random) {
  for (int i = 0; i < count; ++i) {
    const Moment at = 1 + random() % record.last;
    const auto kind = static_cast<CrashKind>(random() % crash_kinds);
    if (auto broken = check_activity(record, make_crash_state(record, at, kind, ignored, random))) {
      return fmt::format("power lost at {} of {}, {}: {}", at, record.last, to_text(kind), *broken);
    }
  }
  return std::nullopt;
}

}  // namespace

TEST_CASE("power: a primary's activity file knows of every region that was written to") {
  auto random = seeded_random();
  const auto failure = find_activity_failure(record_activity(random), states, nullptr, random);
  INFO(failure.value_or(""));
  CHECK_FALSE(failure.has_value());
}

TEST_CASE("power: planted bug: a region is written to before its mark is synced") {
  auto random = seeded_random();
  const IgnoredSync ignored = [](const DiskRecord& record, const DiskOperation& sync) {
    return sync.kind == DiskOperation::Kind::sync_file && was_named(record, sync.file, "activity");
  };
  const auto failure =
      find_activity_failure(record_activity(random), states_until_activity_bug, ignored, random);
  REQUIRE(failure.has_value());
  MESSAGE("found: ", *failure);
}

}  // namespace replicad
