#pragma once
// Between a replica's state machine and its host's state file. Pure functions, any thread.

#include <string_view>

#include "core/repl/replica.h"
#include "core/store/volume_state.h"

namespace replicad {

/// Where the replica on `host` stands, by its state file and the end of its log that recovery has proven.
[[nodiscard]] ReplicaStanding replica_standing(const VolumeState& state,
                                               std::string_view host,
                                               const HistoryPoint& logged);

/// Makes the change. `lost_file`: number of the file of lost writes that a rewind has made for itself.
void apply_record(const ReplicaRecord& record, std::uint64_t lost_file, VolumeState& state);

/// The images durably hold `point`, and the log is durable up to there. What a resync has put on record meanwhile
/// stays: a mark or a commit of a later point, or that the image is no prefix of any history. Result: whether it
/// counts.
bool apply_checkpoint(const HistoryPoint& point, VolumeState& state);

}  // namespace replicad
