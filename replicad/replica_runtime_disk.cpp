// The disk side of ReplicaRuntime: applying, checkpoints, failures and the end.

#include <algorithm>
#include <fstream>
#include <utility>

#include <unistd.h>

#include "core/base/check.h"
#include "core/base/log.h"
#include "replicad/image_check.h"
#include "replicad/replica_offload.h"
#include "replicad/replica_runtime.h"

namespace replicad {

namespace {

// A copy is brought to the disk while it runs, so that its last sync is short.
constexpr std::uint64_t copy_sync_bytes = 64 * mib;

/// Small enough that a full log need not wait for the time trigger: only what is durable is applied and leaves it.
std::uint64_t sync_bytes(const VolumeSettings& settings) {
  return std::min(16 * mib, settings.log_bytes / 4);
}

std::vector<std::uint64_t> sizes_of(const std::vector<DiskState>& disks) {
  std::vector<std::uint64_t> sizes;
  sizes.reserve(disks.size());
  for (const DiskState& disk : disks)
    sizes.push_back(disk.bytes);
  return sizes;
}

/// Ends `part`, if there is one, and then does what is next.
template <typename Part>
std::function<void()> stop_then(std::shared_ptr<Part> part, std::function<void()> next) {
  if (!part) return next;
  return [part = std::move(part), next = std::move(next)] { part->stop(next); };
}

}  // namespace

Result<RecoveredLog> ReplicaRuntime::recover(const std::string& log_dir,
                                             const VolumeState& state,
                                             const std::string& host,
                                             const std::string& boot_id,
                                             const ImageSet& images) {
  // The images hold what no log repeats: what a copy has brought, or what a primary had written when its term ended
  // without order. A sync of that may have failed; the next copy compares with what is on the disk.
  if (!state.consistent || !state.clean) RD_TRY(images.drop_cache());
  if (!state.consistent) {
    // The image is no prefix of any history: the log continues nothing.
    RD_TRY(remove_log(log_dir));
    return RecoveredLog{};
  }
  std::optional<Epoch> parked;
  if (!state.stage_bytes) {
    parked = find_parked_stage(log_dir, state.uuid, state.checkpoint, boot_id);
    if (!parked) RD_TRY(remove_stage(log_dir));
  }
  auto log = recover_log({.directory = log_dir,
                          .volume_uuid = state.uuid,
                          .checkpoint = state.checkpoint,
                          .is_synced = state.whole,
                          .watched = sampled_ranges(state, host)});
  if (log && !state.stage_bytes) {
    log->trail = load_trail(
        log_dir.substr(0, log_dir.rfind('/')), state.uuid, sizes_of(state.disks), state.checkpoint);
  }
  if (!log || !parked) return log;
  if (log->logged == state.checkpoint) {
    log->parked = parked;
  } else {
    RD_TRY(remove_stage(log_dir));
  }
  return log;
}

/// Some bytes for the page cache: nothing has to be durable.
void ReplicaRuntime::mark_kept_if_whole() {
  if (marked_kept_ || failure_ || core_->is_short()) return;
  std::ofstream(setup_.kept_marker, std::ios::trunc) << setup_.boot_id;
  marked_kept_ = true;
}

void ReplicaRuntime::begin(RecoveredLog recovered) {
  const VolumeState& state = setup_.hooks.state();
  if (!recovered.cut.empty()) {
    log(LogLevel::info,
        "log_cut",
        "volume={} sequence={} at={}",
        state.name,
        recovered.logged.sequence,
        log_value(recovered.cut));
  }
  ++generation_;
  ++core_serial_;
  preparing_rewind_ = false;
  held_records_.clear();
  next_saver_.reset();
  quiet_ = false;
  checkpointing_ = false;
  checkpoint_bytes_ = 0;
  backlog_bytes_ = recovered.backlog_bytes;
  ReplicaStanding standing = replica_standing(state, setup_.host, recovered.logged);
  standing.whole = standing.whole || std::exchange(setup_.kept, false);
  standing.parked = recovered.parked;
  core_.emplace(ReplicaConfig{.host = setup_.host,
                              .volume = state.name,
                              .volume_uuid = state.uuid,
                              .disk_bytes = sizes_of(state.disks),
                              .boot_id = setup_.boot_id,
                              .sync_bytes = sync_bytes(state.settings)},
                standing);
  mark_kept_if_whole();
  trail_point_ = state.checkpoint;
  if (recovered.trail) {
    trail_ = std::move(recovered.trail->trail);
    trail_generation_ = recovered.trail->generation;
  } else {
    trail_ = Trail(sizes_of(state.disks));
    trail_.begin(trail_point_);
  }
  const ReplicaApplier::Start start{.point = state.checkpoint,
                                    .segment_index = recovered.apply_segment,
                                    .offset_bytes = recovered.apply_offset};
  LogStore::Hooks hooks;
  hooks.on_logged = guarded_always(
      [](ReplicaRuntime& self, Sequence through) { self.feed(replica_event::Logged{through}); });
  hooks.on_durable = guarded_always([](ReplicaRuntime& self) {
    if (self.applier_) self.applier_->kick();
  });
  hooks.on_full = guarded_always([](ReplicaRuntime& self) { self.checkpoint_if_due(); });
  hooks.on_error =
      guarded_always([](ReplicaRuntime& self, const Error& error) { self.fail(error); });
  hooks.limits = [state_of = setup_.hooks.state] {
    const VolumeSettings& settings = state_of().settings;
    return LogStore::Limits{settings.segment_bytes, settings.log_bytes};
  };
  log_ =
      std::make_shared<LogStore>(reactor_, *worker_, setup_.log_dir, state.uuid, std::move(hooks));
  log_->adopt(std::move(recovered));
  if (state.stage_bytes) {
    start_unstaging(*state.stage_bytes);
  } else if (core_->is_consistent()) {
    start_applier(start);
  }
}

// --- applying

void ReplicaRuntime::start_applier(const ReplicaApplier::Start& start) {
  ReplicaApplier::Hooks hooks;
  hooks.on_applied =
      guarded([](ReplicaRuntime& self, const HistoryPoint& point, std::uint64_t bytes) {
        self.on_applied(point, bytes);
      });
  hooks.on_error = guarded([](ReplicaRuntime& self, const Error& error) { self.fail(error); });
  hooks.on_frame =
      guarded([](ReplicaRuntime& self, const FrameHeader& header) { self.trail_.note(header); });
  applier_ = std::make_shared<ReplicaApplier>(reactor_,
                                              *worker_,
                                              setup_.images,
                                              sizes_of(setup_.hooks.state().disks),
                                              log_,
                                              std::move(hooks));
  applier_->start(start);
}

void ReplicaRuntime::on_applied(const HistoryPoint& point, std::uint64_t bytes) {
  backlog_bytes_ -= std::min(backlog_bytes_, bytes);
  checkpoint_bytes_ += bytes;
  trail_point_ = point;
  feed(replica_event::Applied{point});
  checkpoint_if_due();
  if (retrying_) take_pending_attach();
}

void ReplicaRuntime::start_unstaging(std::uint64_t bytes) {
  stage_bytes_ = bytes;
  backlog_bytes_ += bytes;
  StageApplier::Hooks hooks;
  hooks.on_done = guarded([](ReplicaRuntime& self) { self.feed(replica_event::StageApplied{}); });
  hooks.on_error = guarded([](ReplicaRuntime& self, const Error& error) { self.fail(error); });
  stage_applier_ = std::make_shared<StageApplier>(
      reactor_, *worker_, setup_.images, sizes_of(setup_.hooks.state().disks), std::move(hooks));
  stage_applier_->start(setup_.log_dir, setup_.hooks.state().uuid, bytes);
}

/// The log is gone: the images are written to from here on, in a rewind behind its saver.
void ReplicaRuntime::begin_copy_images() {
  const VolumeState& state = setup_.hooks.state();
  const auto saver = std::exchange(next_saver_, nullptr);
  if (!state.rewind || saver) {
    start_copy_writer(state.rewind ? saver : nullptr);
    return;
  }
  prepare_rewind(
      state.checkpoint,
      guarded([](ReplicaRuntime& self, const Result<std::shared_ptr<RewindSaver>>& ready) {
        if (ready) {
          self.start_copy_writer(*ready);
        } else {
          self.rewind_error_ = ready.error();
          self.fail(ready.error());
        }
      }));
}

void ReplicaRuntime::start_copy_writer(std::shared_ptr<RewindSaver> saver) {
  copy_frames_.clear();
  copy_unsynced_bytes_ = 0;
  copy_writer_ = std::make_shared<ImageWriter>(reactor_, *worker_, setup_.images);
  copy_writer_->set_hooks(
      {.on_progress =
           guarded([](ReplicaRuntime& self, ImageWriter::Tag tag) { self.on_copy_progress(tag); }),
       .on_error = guarded([](ReplicaRuntime& self, const Error& error) { self.fail(error); })});
  saver_ = std::move(saver);
  if (saver_) {
    saver_->set_hooks(
        {.on_ready = guarded([](ReplicaRuntime& self, const RewindSaver::Change& change) {
           self.write_copied(change.header, change.payload, change.owner);
         }),
         .on_error = guarded([](ReplicaRuntime& self, const Error& error) {
           self.rewind_error_ = error;
           self.fail(error);
         })});
  }
  feed(replica_event::LogDropped{});
}

void ReplicaRuntime::on_copy_progress(ImageWriter::Tag tag) {
  Sequence through = 0;
  while (!copy_frames_.empty() && copy_frames_.front().tag <= tag) {
    through = std::max(through, copy_frames_.front().sequence);
    copy_frames_.pop_front();
  }
  sync_copy_if_due();
  const auto session = core_->session();
  if (through > 0 && session) feed(replica_event::CopyWritten{*session, through});
}

void ReplicaRuntime::sync_copy_if_due() {
  if (copy_syncing_ || copy_unsynced_bytes_ < copy_sync_bytes) return;
  copy_syncing_ = true;
  copy_unsynced_bytes_ = 0;
  setup_.images->sync(reactor_, guarded_always([](ReplicaRuntime& self, const Status& status) {
                        self.copy_syncing_ = false;
                        if (!status) self.fail(status.error());
                      }));
}

/// `done` runs when no change of the images is in flight any more.
void ReplicaRuntime::stop_images(std::function<void()> done) {
  done = stop_then(std::exchange(stage_applier_, nullptr), std::move(done));
  done = stop_then(std::exchange(copy_writer_, nullptr), std::move(done));
  done = stop_then(std::exchange(saver_, nullptr), std::move(done));
  stop_then(std::exchange(applier_, nullptr), std::move(done))();
}

// --- checkpoint

/// Order: images on stable storage, log on stable storage up to there (so that a hole behind a checkpoint is
/// damage, never a power loss), the record; only then segments are used again.
void ReplicaRuntime::checkpoint_if_due() {
  if (checkpointing_ || failure_ || closing_ || !applier_) return;
  const HistoryPoint point = core_->applied();
  const auto& segments = log_->segments();
  const bool frees_space = log_->waits_for_space() && segments.size() > 1 &&
                           segments[1]->before.sequence <= point.sequence;
  const bool much = checkpoint_bytes_ >= setup_.hooks.state().settings.segment_bytes;
  if (!much && !frees_space) return;
  checkpointing_ = true;
  const std::uint64_t bytes = checkpoint_bytes_;
  setup_.images->sync(
      reactor_, guarded([point, bytes](ReplicaRuntime& self, const Status& status) {
        if (!status) {
          self.fail(status.error());
          return;
        }
        self.log_->sync(self.guarded([point, bytes](ReplicaRuntime& runtime,
                                                    const Result<Sequence>& synced) {
          if (!synced) return;
          runtime.save_trail(point, runtime.guarded([point, bytes](ReplicaRuntime& saved) {
            saved.mark_images(
                false,
                saved.guarded([point, bytes](ReplicaRuntime& marked, std::vector<ImageMark> marks) {
                  marked.record_checkpoint(point, bytes, std::move(marks));
                }));
          }));
        }));
      }));
}

/// `done` runs when the file covers `point`, or that did not work: then it says nothing of the images at the next
/// start.
void ReplicaRuntime::save_trail(const HistoryPoint& point, std::function<void()> done) {
  const VolumeState& state = setup_.hooks.state();
  const Trail::Changes changes = trail_.take_changed();
  offload(
      *worker_,
      reactor_,
      [directory = setup_.log_dir.substr(0, setup_.log_dir.rfind('/')),
       update = make_trail_update(trail_, changes, state.uuid, ++trail_generation_, point)] {
        return write_trail(directory, update);
      },
      [weak = weak_from_this(), core = core_serial_, done = std::move(done)](const Status& status) {
        if (!status)
          log(LogLevel::warn, "trail_not_written", "error={}", log_value(status.error().message));
        const auto self = weak.lock();
        if (self && self->core_serial_ == core) self->trail_.end_save(status.has_value());
        done();
      });
}

/// So that the images are recognised at the next start; none if that does not work. What is written to them meanwhile
/// is in the log behind the checkpoint, so that nobody expects it to be as it is now.
void ReplicaRuntime::mark_images(bool at_rest, std::function<void(std::vector<ImageMark>)> done) {
  offload(
      *worker_,
      reactor_,
      [images = setup_.images, offsets = setup_.images->sample_offsets(), at_rest] {
        return images->mark(offsets, at_rest);
      },
      [done = std::move(done)](Result<std::vector<ImageMark>> marks) {
        if (!marks)
          log(LogLevel::warn, "images_not_marked", "message={}", log_value(marks.error().message));
        done(marks ? std::move(*marks) : std::vector<ImageMark>{});
      });
}

void ReplicaRuntime::record_checkpoint(const HistoryPoint& point,
                                       std::uint64_t bytes,
                                       std::vector<ImageMark> marks) {
  if (failure_ || closing_) return;
  setup_.hooks.update_state(
      [point, marks = std::move(marks)](VolumeState& state) {
        if (apply_checkpoint(point, state)) set_marks(state, marks, point);
      },
      guarded([point, bytes](ReplicaRuntime& self, const Status& status) {
        self.checkpointing_ = false;
        if (!status) {
          self.fail(status.error());
          return;
        }
        self.checkpoint_bytes_ -= std::min(self.checkpoint_bytes_, bytes);
        self.log_->recycle(point.sequence);
        self.checkpoint_if_due();
      }));
}

// --- failure and recovery

void ReplicaRuntime::fail(const Error& error) {
  if (failure_ || closing_) return;
  if (!is_repeated(error)) {
    log(LogLevel::error,
        "replica_failed",
        "volume={} code={} message={}",
        setup_.hooks.state().name,
        errc_name(error.code),
        log_value(error.message));
    if (setup_.hooks.on_disk_error) setup_.hooks.on_disk_error();
  }
  failure_ = error;
  ::unlink(setup_.kept_marker.c_str());
  marked_kept_ = false;
  retrying_ = false;
  feed(replica_event::Failed{error});
  refuse_pending_attach(error);
  stop_all([weak = weak_from_this()] {
    const auto self = weak.lock();
    if (!self) return;
    self->quiet_ = true;
    if (self->quiet_done_) {
      std::exchange(self->quiet_done_, nullptr)();
    } else if (self->pending_attach_) {
      self->retry();
    }
  });
}

/// Ends log, applier and writer; `done` runs when nothing of them is in flight any more.
void ReplicaRuntime::stop_all(std::function<void()> then) {
  ++generation_;
  const auto store = std::exchange(log_, nullptr);
  auto done = stop_then(std::exchange(stage_, nullptr), std::move(then));
  stop_images([store, done = std::move(done)] {
    if (!store) {
      done();
      return;
    }
    store->stop(done);
  });
}

/// A connection wants in after a failure: what failed is tried again from what the disk proves.
void ReplicaRuntime::retry() {
  RD_CHECK(quiet_);
  if (recovering_ || closing_) return;
  recovering_ = true;
  // A checkpoint may still be on its way to the state file. What is applied again must not begin before it: the image
  // would be behind what the file says. Changes are made in order, so this one comes after it.
  setup_.hooks.update_state(
      [](VolumeState&) {},
      guarded_always([](ReplicaRuntime& self, const Status& /*status*/) { self.recover_again(); }));
}

void ReplicaRuntime::recover_again() {
  offload(
      *worker_,
      reactor_,
      [log_dir = setup_.log_dir,
       state = setup_.hooks.state(),
       host = setup_.host,
       boot_id = setup_.boot_id,
       images = setup_.images] { return recover(log_dir, state, host, boot_id, *images); },
      [weak = weak_from_this()](Result<RecoveredLog> recovered) {
        if (const auto self = weak.lock()) self->on_recovered(std::move(recovered));
      });
}

void ReplicaRuntime::on_recovered(Result<RecoveredLog> recovered) {
  recovering_ = false;
  if (quiet_done_) {
    std::exchange(quiet_done_, nullptr)();
    return;
  }
  if (!recovered) {
    failure_ = recovered.error();
    refuse_pending_attach(*failure_);
    return;
  }
  failure_.reset();
  retrying_ = true;
  begin(std::move(*recovered));
  take_pending_attach();
}

/// The backlog goes into the images first: if they still fail, the primary is not told otherwise in between.
void ReplicaRuntime::take_pending_attach() {
  if (core_->is_consistent() && (core_->is_unstaging() || core_->applied() != core_->logged()))
    return;
  retrying_ = false;
  if (!pending_attach_) return;
  PendingAttach attach = std::move(*pending_attach_);
  pending_attach_.reset();
  if (attach.connection->is_open()) open_session(attach.connection, attach.message);
}

void ReplicaRuntime::refuse_pending_attach(const Error& error) {
  if (!pending_attach_) return;
  const auto connection = std::move(pending_attach_->connection);
  pending_attach_.reset();
  connection->send(encode_refuse({error.code, error.message, error.hint}));
  connection->close_after_send(error);
}

// --- the end

void ReplicaRuntime::shutdown(bool discard_log, std::function<void()> done) {
  if (closing_) {
    reactor_.post(std::move(done));
    return;
  }
  const bool failed = failure_.has_value();
  closing_ = true;
  const Error error{Errc::busy, 0, "the replica is being closed", {}};
  refuse_pending_attach(error);
  for (const auto& [id, session] : sessions_)
    session.connection->close(error);
  if (promotion_done_) {
    reactor_.post([promotion_done = std::exchange(promotion_done_, nullptr), error] {
      promotion_done(tl::unexpected(error));
    });
  }
  auto finish = [weak = weak_from_this(), discard_log, done = std::move(done)] {
    if (const auto self = weak.lock()) self->finish_shutdown(discard_log, done);
  };
  if (failed) {
    when_quiet(std::move(finish));
    return;
  }
  // Whatever comes back late from before belongs to an older generation.
  ++generation_;
  stop_images(guarded([finish](ReplicaRuntime& self) { self.record_last_checkpoint(finish); }));
}

void ReplicaRuntime::when_quiet(std::function<void()> function) {
  if (quiet_ && !recovering_) {
    reactor_.post(std::move(function));
  } else {
    quiet_done_ = std::move(function);
  }
}

/// Brings images and log to the disk and records how far the images are, if that means anything.
void ReplicaRuntime::record_last_checkpoint(const std::function<void()>& done) {
  const bool means_something =
      core_->is_consistent() && !core_->is_copying() && !core_->is_unstaging();
  const HistoryPoint point = core_->applied();
  const bool at_rest = point == core_->logged();
  const Sequence told = core_->is_short() ? counter_max : core_->marks().received;
  auto stop = guarded([done](ReplicaRuntime& self) { self.stop_all(done); });
  setup_.images->sync(
      reactor_,
      guarded([stop, means_something, point, told, at_rest](ReplicaRuntime& self,
                                                            const Status& images) {
        self.log_->sync(self.guarded([stop, means_something, point, told, at_rest, images](
                                         ReplicaRuntime& runtime, const Result<Sequence>& synced) {
          if (!means_something || !images || !synced) {
            stop();
            return;
          }
          const bool is_whole = *synced >= told;
          runtime.save_trail(
              point, runtime.guarded([stop, point, is_whole, at_rest](ReplicaRuntime& saved) {
                saved.mark_images(
                    at_rest && is_whole,
                    saved.guarded([stop, point, is_whole](ReplicaRuntime& marked,
                                                          const std::vector<ImageMark>& marks) {
                      marked.record_end(point, is_whole, marks, stop);
                    }));
              }));
        }));
      }));
}

void ReplicaRuntime::record_end(const HistoryPoint& point,
                                bool is_whole,
                                const std::vector<ImageMark>& marks,
                                std::function<void()> done) {
  setup_.hooks.update_state(
      [point, is_whole, marks](VolumeState& state) {
        if (!state.consistent) return;
        state.checkpoint = point;
        state.whole = is_whole;
        set_marks(state, marks, point);
      },
      [done = std::move(done)](const Status& status) {
        if (!status)
          log(LogLevel::warn, "checkpoint_failed", "message={}", log_value(status.error().message));
        done();
      });
}

void ReplicaRuntime::finish_shutdown(bool discard_log, std::function<void()> done) {
  const auto kept = std::make_shared<std::vector<Fd>>();
  const auto release =
      [weak = weak_from_this(), kept, done = std::move(done)](const Status& status) {
        if (!status) {
          log(LogLevel::warn, "log_not_removed", "message={}", log_value(status.error().message));
        }
        if (const auto self = weak.lock()) {
          if (self->setup_.hooks.close_later) self->setup_.hooks.close_later(std::move(*kept));
          self->sessions_.clear();
          self->setup_.images.reset();
        }
        done();
      };
  offload(
      *worker_,
      reactor_,
      [log_dir = setup_.log_dir, discard_log, kept] {
        return discard_log ? remove_log(log_dir, kept.get()) : Status();
      },
      release);
}

}  // namespace replicad
