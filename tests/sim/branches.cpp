// The rare places of the simulated programs (World::reached), sorted by name.

#include <array>

#include "tests/sim/world.h"

namespace replicad::sim {

namespace {

constexpr auto branches = std::to_array<std::string_view>({
    "a committed stage brought in after a restart",
    "a connection ends in the middle of a frame",
    "a log that was left over could not be removed",
    "a promise of a term that another has",
    "a region goes cold",
    "a region goes cold, lacks on record",
    "a rewind of what it has changed itself",
    "a stage dropped",
    "a stage failed",
    "a stage gone on with",
    "a stage outgrows its space",
    "a stage parked",
    "a staged resync committed",
    "a trail goes on after a restart",
    "a trail that could not be written",
    "activity map of the term before goes on",
    "all short: the longest is chosen",
    "an export begins with a trail",
    "another image readmitted",
    "another image refused",
    "answer after the end of the term",
    "async answer after the end of the term",
    "blocks compared for a copy",
    "checkpoint recorded",
    "claim granted after the end of its term",
    "clean stop",
    "compared blocks are equal",
    "copy interrupted",
    "end of a copy waits for writes",
    "export fenced at its rejoin",
    "export rejoined",
    "failover chosen",
    "fdatasync of the log failed",
    "former primary gave up its role",
    "full copy completed",
    "hold failed",
    "log full: the stream waits",
    "log segment used again",
    "no space on the primary",
    "offer refused",
    "primary goes on in a higher epoch",
    "promoted",
    "promoted by failover",
    "promotion finished after a restart",
    "proposal made again",
    "proposal of unknown outcome",
    "replica could not be opened",
    "replica failed",
    "replica recovered after a failure",
    "replicactl plans a failover",
    "replicactl plans a switchover",
    "replicactl refuses a failover",
    "replicactl refuses a switchover",
    "sequences reserved",
    "switchover of unknown outcome",
    "term renewed",
    "the activity map could not be written",
    "the primary's image failed",
    "torn tail of a log cut",
    "transfer settled: not promoted",
    "transfer settled: promoted",
    "two controllers at once",
    "unclean claim",
});

}  // namespace

const std::span<const std::string_view> branches_known(branches);

}  // namespace replicad::sim
