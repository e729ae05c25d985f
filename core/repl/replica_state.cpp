#include "core/repl/replica_state.h"

namespace replicad {

ReplicaStanding replica_standing(const VolumeState& state,
                                 std::string_view host,
                                 const HistoryPoint& logged) {
  return {.promised = state.epoch,
          .primary = promised_primary(state, host),
          .consistent = state.consistent,
          .logged = logged,
          .durable = logged.sequence,
          .applied = state.checkpoint,
          .resync = state.resync,
          .unstaging = state.stage_bytes.has_value(),
          .whole = state.whole};
}

void apply_record(const ReplicaRecord& record, std::uint64_t lost_file, VolumeState& state) {
  switch (record.kind) {
    case ReplicaRecord::Kind::promise:
      if (!record.primary.empty()) {
        state.whole = false;
        begin_writing(state);
      }
      // A fence may have come in between; a promise is never taken back.
      if (record.epoch.number < state.epoch.number) return;
      state.epoch = record.epoch;
      // Promised to no primary in particular: by a vote.
      if (!record.primary.empty()) state.primary = record.primary;
      return;
    case ReplicaRecord::Kind::staging:
      state.checkpoint = record.point;
      return;
    case ReplicaRecord::Kind::committed:
      state.checkpoint = record.point;
      state.stage_bytes = record.stage_bytes;
      return;
    case ReplicaRecord::Kind::unstaged:
      state.stage_bytes.reset();
      return;
    case ReplicaRecord::Kind::inconsistent:
      state.consistent = false;
      state.resync.reset();
      return;
    case ReplicaRecord::Kind::resyncing:
      state.consistent = false;
      state.resync = record.epoch;
      state.checkpoint = record.point;
      return;
    case ReplicaRecord::Kind::rewinding:
      state.consistent = false;
      state.resync.reset();
      if (!state.rewind) state.rewind = lost_file;
      return;
    case ReplicaRecord::Kind::copy_done:
      state.consistent = true;
      state.resync.reset();
      state.rewind.reset();
      state.checkpoint = record.point;
      return;
  }
}

bool apply_checkpoint(const HistoryPoint& point, VolumeState& state) {
  if (!state.consistent || point.sequence < state.checkpoint.sequence) return false;
  state.checkpoint = point;
  return true;
}

}  // namespace replicad
