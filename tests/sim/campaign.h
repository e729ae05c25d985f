#pragma once
// Running seeds: one after the other in this process; a failing one is shrunk in child processes, so that an aborted
// invariant (RD_CHECK) is a result like any other.

#include <cstdint>
#include <optional>
#include <string>

#include "tests/sim/options.h"
#include "tests/sim/world.h"

namespace replicad::sim {

struct RunResult {
  std::optional<std::string> violation;
  std::uint64_t trace_hash = 0;
  bool counts = false;  ///< big enough: three data members, 200 writes, 3 faults
};

/// Sums over many runs, or over reports of many runs.
struct Totals {
  Counters faults;
  Counters branches;
  Counters counts;
  std::uint64_t seeds = 0;
  std::uint64_t counted = 0;
  std::uint64_t failed = 0;
  Duration virtual_time{};
};

/// Runs one world in this process. `totals` may be null.
[[nodiscard]] RunResult run_options(const Options& options, bool traced, Totals* totals);

/// The smallest world found that still breaks the same promise; prints its trace.
[[nodiscard]] Options shrink(const Options& options);
/// What running `options` in a child process says: empty = nothing is wrong.
[[nodiscard]] std::string run_in_child(const Options& options, bool traced);

/// For people: what was injected, and which rare branches were reached and which never.
[[nodiscard]] std::string report(const Totals& totals);
/// For the sum over several processes.
[[nodiscard]] std::string encode_totals(const Totals& totals);
/// Adds what encode_totals() has made; false if `text` is something else.
[[nodiscard]] bool add_totals(const std::string& text, Totals& totals);

}  // namespace replicad::sim
