#pragma once
// What a host did while its disk was recorded, and whether what a loss of power left of it is what was promised.

#include <optional>
#include <random>
#include <string>
#include <vector>

#include "tests/power/crash_state.h"
#include "tests/replicad/replica_fixture.h"

namespace replicad {

/// A replica's work, recorded. Marks: "durable" (sequence), "epoch", "copied" (sequence) as the primary was told;
/// "promoted" (sequence): the images alone must hold everything up to there.
struct ReplicaScenario {
  DiskRecord record;
  FakePrimary primary;
  std::uint64_t disk_bytes = 0;
  bool stays_consistent = false;  ///< at every moment
};

/// Streams through several segments with flushes and checkpoints; the connection breaks and a higher epoch attaches;
/// ends with a promotion.
[[nodiscard]] ReplicaScenario record_stream(std::mt19937_64& random);
/// Streams, falls out of the history, and is filled by a full copy in place beside live writes.
[[nodiscard]] ReplicaScenario record_copy(std::mt19937_64& random);
/// The same, staged: the replica is never inconsistent.
[[nodiscard]] ReplicaScenario record_staged_copy(std::mt19937_64& random);

/// Starts a host on what is left. nullopt: all that was promised is there; otherwise what is not.
[[nodiscard]] std::optional<std::string> check_replica(ReactorThread& reactor,
                                                       const ReplicaScenario& scenario,
                                                       const CrashState& crash);

/// Checks `count` crash states; the first that fails, with what made it.
[[nodiscard]] std::optional<std::string> find_failure(const ReplicaScenario& scenario,
                                                      int count,
                                                      const IgnoredSync& ignored,
                                                      std::mt19937_64& random);

/// Whether the synced file has or had a name that begins with `prefix`.
[[nodiscard]] bool was_named(const DiskRecord& record, FileId file, const std::string& prefix);

}  // namespace replicad
