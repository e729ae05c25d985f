#pragma once
// How a state file that was put back to an older copy is recognised (docs/decisions/0013): with every vote goes what is
// remembered of the members' state files, and whoever was told of itself what its file does not know has an old file.
// Pure values and rules.

#include <cstdint>
#include <map>
#include <string>

namespace replicad {

/// How far a member's state file had come when this was told.
struct StateStamp {
  std::uint64_t generation = 0;  ///< of the file, on stable storage by then
  std::uint32_t start = 0;       ///< random: of the process that wrote it
  std::uint64_t loaded = 0;      ///< generation that this process found

  friend bool operator==(const StateStamp&, const StateStamp&) = default;
};

/// By host.
using StateStamps = std::map<std::string, StateStamp>;

/// What rounds of ballots, and generations, a member that was put back may have forgotten at most: it goes on behind so
/// many.
constexpr std::uint64_t forgotten_max = std::uint64_t{1} << 32;

/// Generation with which a member begins that was added by the record of this version: above all that an earlier member
/// of its name can have told.
[[nodiscard]] std::uint64_t first_generation(std::uint64_t version);
/// Whether a file with stamp `own` knows of what was told as `heard`: the same process told it, or its file had come as
/// far by the time it was loaded.
[[nodiscard]] bool knows_of(const StateStamp& own, const StateStamp& heard);
/// Takes `heard` over where it is the later one on the same way. Of a file that was put back nothing is taken over.
void remember(StateStamps& known, const std::string& host, const StateStamp& heard);
void remember(StateStamps& known, const StateStamps& heard);

}  // namespace replicad
