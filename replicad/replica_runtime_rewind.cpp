// A rewind on the replica: the file that keeps what only this host has (declared in replica_runtime.h).

#include <chrono>
#include <limits>

#include "core/base/log.h"
#include "core/store/activity_file.h"
#include "io/file.h"
#include "replicad/replica_offload.h"
#include "replicad/replica_runtime.h"

namespace replicad {

namespace {

/// What stands before the new history's changes and the images: where it keeps, and what it need not keep.
struct RewindKeeper {
  std::unique_ptr<LostFileWriter> file;
  BlockMap kept;
};

std::uint64_t seconds_since_1970() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(
      std::max<std::int64_t>(0, std::chrono::duration_cast<std::chrono::seconds>(now).count()));
}

LostHeader lost_header(const VolumeState& state,
                       const std::string& host,
                       const HistoryPoint& left) {
  LostHeader header;
  header.volume = state.name;
  header.volume_uuid = state.uuid;
  header.host = host;
  for (const DiskState& disk : state.disks)
    header.disks.push_back({disk.name, disk.bytes});
  header.left = left;
  header.term = left.epoch;
  header.primary = state.primary;
  header.epoch = state.epoch;
  header.begun_seconds = seconds_since_1970();
  return header;
}

/// A rewind that goes on is still of the history at which it began.
void take_over_beginning(const std::string& directory, std::uint64_t first, LostHeader& header) {
  const auto begun = LostFileReader::open(directory, first);
  if (!begun) return;
  header.left = begun->header().left;
  header.term = begun->header().term;
}

}  // namespace

/// So that a primary on whose history it is not need not compare everything. Only if all that it has is in the images:
/// what is not applied is not on its trail yet.
void ReplicaRuntime::tell_parted(Session& session, AttachedMessage& message) {
  const bool is_at_rest = core_->is_consistent() && !core_->is_copying() &&
                          !core_->is_unstaging() && core_->applied() == core_->logged() &&
                          trail_point_ == core_->logged();
  if (!session.knows_trail || !is_at_rest) return;
  message.parted = tell_parting(trail_, session.history, core_->logged());
  if (!message.parted) return;
  session.has_told = true;
  session.parted = message.parted->ranges;
}

/// `ready` with a saver whose file exists, on the reactor's thread.
void ReplicaRuntime::prepare_rewind(const HistoryPoint& left, SaverReady ready) {
  const VolumeState& state = setup_.hooks.state();
  std::vector<std::uint64_t> disk_bytes;
  for (const DiskState& disk : state.disks)
    disk_bytes.push_back(disk.bytes);
  const std::string volume_dir = setup_.log_dir.substr(0, setup_.log_dir.rfind('/'));
  auto work = [directory = lost_directory(volume_dir),
               header = lost_header(state, setup_.host, left),
               first = state.rewind,
               own = own_ranges_,
               disk_bytes]() mutable -> Result<std::shared_ptr<RewindKeeper>> {
    auto keeper = std::make_shared<RewindKeeper>(
        RewindKeeper{nullptr, BlockMap(disk_bytes, std::numeric_limits<std::size_t>::max())});
    if (first) {
      take_over_beginning(directory, *first, header);
      remove_empty_lost_files(directory, *first);
      RD_TRY(mark_saved(directory, *first, keeper->kept));
    }
    if (own) {
      keeper->kept.mark_all();
      for (const Range& range : *own)
        keeper->kept.clear(range);
    }
    auto file = LostFileWriter::create(directory, header);
    if (!file) return tl::unexpected(file.error());
    keeper->file = std::move(*file);
    return keeper;
  };
  offload(*worker_,
          reactor_,
          std::move(work),
          guarded_always(
              [ready = std::move(ready)](ReplicaRuntime& self,
                                         const Result<std::shared_ptr<RewindKeeper>>& keeper) {
                if (!keeper) return ready(tl::unexpected(keeper.error()));
                ready(std::make_shared<RewindSaver>(self.reactor_,
                                                    *self.worker_,
                                                    self.setup_.images,
                                                    std::move((*keeper)->file),
                                                    std::move((*keeper)->kept)));
              }));
}

/// The file comes first: without one nothing is marked, and nothing changes.
void ReplicaRuntime::begin_rewind(const ReplicaRecord& record) {
  preparing_rewind_ = true;
  prepare_rewind(record.point,
                 [weak = weak_from_this(), core = core_serial_, record](
                     Result<std::shared_ptr<RewindSaver>> saver) {
                   const auto self = weak.lock();
                   if (!self || self->core_serial_ != core) return;
                   self->preparing_rewind_ = false;
                   if (!saver) {
                     self->rewind_error_ = saver.error();
                     self->feed(replica_event::StateRecorded{tl::unexpected(saver.error())});
                     self->record_held();
                     return;
                   }
                   log(LogLevel::warn,
                       "rewind",
                       "volume={} left_epoch={} left_sequence={} primary={} epoch={} file={}",
                       self->setup_.hooks.state().name,
                       record.point.epoch.number,
                       record.point.sequence,
                       record.primary,
                       record.epoch.number,
                       (*saver)->file_number());
                   self->next_saver_ = std::move(*saver);
                   self->record_state(record);
                   self->record_held();
                 });
}

/// What came while the file was made: records are answered in their order.
void ReplicaRuntime::record_held() {
  while (!held_records_.empty() && !preparing_rewind_) {
    const ReplicaRecord record = std::move(held_records_.front());
    held_records_.pop_front();
    perform(replica_effect::RecordState{record});
  }
}

}  // namespace replicad
