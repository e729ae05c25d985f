// The disk side of ReplicaProgram: recovery, applying, checkpoints, failures and the end.

#include <algorithm>
#include <cerrno>

#include "core/base/check.h"
#include "tests/sim/replica_program.h"

namespace replicad::sim {

namespace {

constexpr std::size_t read_ahead_max = 16;

}  // namespace

Result<ReplicaProgram::Found> ReplicaProgram::recover() const {
  RecoveryFiles files(machine_.log, [this] { return machine_.draw_error(); });
  const VolumeState& state = hooks_.state();
  const bool trusts = options_.planted == Planted::trusted_cache;
  if ((!state.consistent || !state.clean) && !trusts) RD_TRY(drop_image_cache());
  if (!state.consistent) {
    RD_TRY(remove_log_files(files));
    remove_stage(machine_);
    return Found{};
  }
  std::optional<Epoch> parked;
  if (!state.stage_bytes) {
    parked = find_parked_stage(machine_, state.checkpoint);
    if (!parked) remove_stage(machine_);
  }
  auto found = find_log(files,
                        {.directory = "log",
                         .volume_uuid = volume_uuid,
                         .checkpoint = state.checkpoint,
                         .is_synced = state.whole || trusts});
  if (!found && found.error().code == Errc::corrupt) {
    world_.violate(fmt::format("P2 log: recovery of {} takes what power loss leaves for damage: {}",
                               machine_.name,
                               found.error().message));
  }
  if (!found) return tl::unexpected(found.error());
  if (parked && found->logged != state.checkpoint) {
    remove_stage(machine_);
    parked.reset();
  }
  world_.note("{} recovered: checkpoint {} logged {} epoch {}{}",
              machine_.name,
              state.checkpoint.sequence,
              found->logged.sequence,
              found->logged.epoch.number,
              found->cut.empty() ? "" : ", cut");
  if (!found->cut.empty()) world_.reached("torn tail of a log cut");
  world_.require(found->logged.sequence >= machine_.told_durable,
                 "P1 durable: {} said that {} is durable, its log ends at {}",
                 machine_.name,
                 machine_.told_durable,
                 found->logged.sequence);
  return Found{*found, parked};
}

Status ReplicaProgram::drop_image_cache() const {
  for (Image& image : machine_.images) {
    if (machine_.draw_error()) {
      image.lose_sync(image.begin_sync());
      return fail_errno(EIO, "fdatasync image");
    }
    image.drop_cache();
  }
  return {};
}

void ReplicaProgram::begin(const Found& recovered) {
  const FoundLog& found = recovered.log;
  const VolumeState& state = hooks_.state();
  ++generation_;
  ++core_serial_;
  quiet_ = false;
  checkpointing_ = false;
  checkpoint_bytes_ = 0;
  ReplicaStanding standing = replica_standing(state, machine_.name, found.logged);
  standing.parked = recovered.parked;
  core_.emplace(ReplicaConfig{.host = machine_.name,
                              .volume = state.name,
                              .volume_uuid = state.uuid,
                              .disk_bytes = std::vector<std::uint64_t>(
                                  options_.disks, options_.blocks * block_bytes),
                              .boot_id = machine_.boot_id(),
                              .sync_bytes = 16 * kib},
                standing);
  trail_point_ = state.checkpoint;
  const std::vector<std::uint64_t> disk_bytes(options_.disks, options_.blocks * block_bytes);
  auto trail =
      state.stage_bytes ? std::nullopt : find_trail(machine_.trail, disk_bytes, state.checkpoint);
  if (trail) {
    world_.reached("a trail goes on after a restart");
    trail_ = std::move(trail->trail);
    trail_generation_ = trail->generation;
  } else {
    trail_ = Trail(disk_bytes, small_region_bytes);
    trail_.begin(trail_point_);
  }
  const std::weak_ptr<ReplicaProgram> weak = weak_from_this();
  LogModel::Hooks hooks;
  hooks.on_logged = [weak](Sequence through) {
    const auto self = weak.lock();
    if (!self) return;
    self->feed(replica_event::Logged{through});
    self->apply_more();
  };
  hooks.on_full = [weak] {
    if (const auto self = weak.lock()) self->checkpoint_if_due();
  };
  hooks.on_error = [weak](const Error& error) {
    if (const auto self = weak.lock()) self->fail(error);
  };
  log_ = std::make_shared<LogModel>(world_, machine_, options_, life_, std::move(hooks));
  log_->adopt(found);
  if (!core_->is_consistent()) return;
  check_prefix();
  if (state.stage_bytes) {
    world_.reached("a committed stage brought in after a restart");
    start_unstaging(*state.stage_bytes);
  } else {
    start_applier(state.checkpoint, found.apply_segment, found.apply_offset);
  }
}

StageScan ReplicaProgram::staged_frames(std::uint64_t bytes) const {
  const auto file = machine_.log.find(std::string(stage_file_name));
  world_.require(file && file->size() >= bytes, "P2 stage: the stage of {} is gone", machine_.name);
  StageScan found;
  if (file && file->size() >= bytes) {
    found = scan_stage(file->bytes().subspan(stage_header_bytes, bytes - stage_header_bytes));
    world_.require(found.valid_bytes == bytes - stage_header_bytes,
                   "P2 stage: the stage of {} does not hold what was committed: {}",
                   machine_.name,
                   found.reason);
  }
  return found;
}

/// From its beginning, after a restart too: what is in the images already is written again.
void ReplicaProgram::start_unstaging(std::uint64_t bytes) {
  stage_.reset();
  unstaging_ = std::make_shared<WriterModel>(machine_, life_);
  unstaging_->set_hooks(
      {.on_progress = [](WriterModel::Tag /*tag*/) {},
       .on_error = guarded([](ReplicaProgram& self, const Error& error) { self.fail(error); }),
       .check =
           [this] {
             world_.require(machine_.state.stage_bytes.has_value(),
                            "P2 stage: {} brings in a stage that is not committed",
                            machine_.name);
           }});
  const auto file = machine_.log.find(std::string(stage_file_name));
  for (const StagedFrame& frame : staged_frames(bytes).frames) {
    if (frame.header.type == FrameType::flush) continue;
    const auto payload = file->bytes().subspan(
        stage_header_bytes + frame.offset_bytes + frame_header_bytes, frame.header.payload_bytes);
    unstaging_->add(frame.header, payload);
  }
  unstaging_->when_idle(
      guarded([](ReplicaProgram& self) { self.feed(replica_event::StageApplied{}); }));
}

void ReplicaProgram::drop_stage() {
  if (const auto stage = std::exchange(stage_, nullptr)) stage->stop([] {});
  remove_stage(machine_);
}

void ReplicaProgram::check_prefix() const {
  // A former primary's unclean end is marked: its image is whatever its disk has kept.
  if (!hooks_.state().clean) return;
  Images images;
  for (const Image& image : machine_.images)
    images.push_back(image.blocks());
  HistoryPoint point = hooks_.state().checkpoint;
  if (const auto& staged = hooks_.state().stage_bytes) {
    const auto file = machine_.log.find(std::string(stage_file_name));
    for (const StagedFrame& frame : staged_frames(*staged).frames) {
      const FrameHeader& header = frame.header;
      if (header.type == FrameType::flush) continue;
      Blocks stamps(header.range.length_bytes / block_bytes, 0);
      if (header.payload_bytes > 0) {
        stamps = stamps_of(file->bytes().subspan(
            stage_header_bytes + frame.offset_bytes + frame_header_bytes, header.payload_bytes));
      }
      apply_stamps(images, header.range, stamps);
    }
  }
  for (const auto& segment : log_->segments()) {
    const auto bytes = segment->file->bytes().subspan(segment_header_bytes,
                                                      segment->end_bytes - segment_header_bytes);
    const ScanResult found = scan_frames(bytes, segment->before);
    world_.require(found.valid_bytes == bytes.size(),
                   "P2 log: a segment of {} does not hold what was logged: {}",
                   machine_.name,
                   found.reason);
    for (const ScannedFrame& frame : found.frames) {
      if (frame.header.sequence <= point.sequence) continue;
      const FrameHeader& header = frame.header;
      point = frame.after;
      if (header.type == FrameType::flush) continue;
      Blocks stamps(header.range.length_bytes / block_bytes, 0);
      if (header.type == FrameType::write) {
        stamps =
            stamps_of(bytes.subspan(frame.offset_bytes + frame_header_bytes, header.payload_bytes));
      }
      apply_stamps(images, header.range, stamps);
    }
  }
  const Images wanted = histories_.at(point);
  for (std::size_t disk = 0; disk < images.size(); ++disk) {
    const auto [have, want] = std::ranges::mismatch(images[disk], wanted[disk]);
    if (have == images[disk].end()) continue;
    world_.violate(fmt::format(
        "P2 prefix: image and log of {} are not the history up to {} of epoch {}: block {} of "
        "disk {} is {:#x}, should be {:#x}",
        machine_.name,
        point.sequence,
        point.epoch.number,
        have - images[disk].begin(),
        disk,
        *have,
        *want));
  }
}

void ReplicaProgram::check_image() const {
  const Images wanted = histories_.at(core_->applied());
  for (std::size_t disk = 0; disk < wanted.size(); ++disk) {
    world_.require(machine_.images[disk].blocks() == wanted[disk],
                   "P5 order: the image of {} is not the history up to {}",
                   machine_.name,
                   core_->applied().sequence);
  }
}

// --- applying

void ReplicaProgram::start_applier(const HistoryPoint& point,
                                   std::size_t segment,
                                   std::uint64_t offset) {
  applier_ = std::make_shared<WriterModel>(machine_, life_);
  if (options_.planted == Planted::overtaking_writes) applier_->let_overtake();
  applier_->set_hooks(
      {.on_progress =
           guarded([](ReplicaProgram& self, WriterModel::Tag tag) { self.on_applied(tag); }),
       .on_error = guarded([](ReplicaProgram& self, const Error& error) { self.fail(error); }),
       .check = nullptr});
  applying_.clear();
  read_point_ = point;
  read_offset_ = offset;
  read_segment_ = segment < log_->segments().size() ? log_->segments()[segment] : nullptr;
  apply_more();
}

bool ReplicaProgram::find_segment() {
  if (read_segment_ && read_offset_ < read_segment_->end_bytes) return true;
  for (const auto& segment : log_->segments()) {
    if (segment->before.sequence != read_point_.sequence || segment == read_segment_) continue;
    if (segment->end_bytes == segment_header_bytes) return false;
    read_segment_ = segment;
    read_offset_ = segment_header_bytes;
    return true;
  }
  return false;
}

void ReplicaProgram::apply_more() {
  if (!applier_ || !log_) return;
  // What the log may lose with power is not looked at yet: a scan costs time.
  while (read_point_.sequence < log_->durable() && applying_.size() < read_ahead_max &&
         find_segment()) {
    const auto rest =
        read_segment_->file->bytes().subspan(read_offset_, read_segment_->end_bytes - read_offset_);
    const ScanResult found = scan_frames(rest, read_point_);
    world_.require(!found.frames.empty(),
                   "P2 log: the log of {} at offset {} cannot be applied: {}",
                   machine_.name,
                   read_offset_,
                   found.reason);
    const Sequence before = read_point_.sequence;
    for (const ScannedFrame& frame : found.frames) {
      // What the log may lose with power must not be in the image.
      if (frame.after.sequence > log_->durable()) break;
      const auto payload =
          rest.subspan(frame.offset_bytes + frame_header_bytes, frame.header.payload_bytes);
      if (options_.planted != Planted::untold_trail) trail_.note(frame.header);
      applying_.push_back({applier_->add(frame.header, payload), frame.after, frame.frame_bytes()});
      read_point_ = frame.after;
      read_offset_ += frame.frame_bytes();
    }
    if (read_point_.sequence == before) return;
  }
}

void ReplicaProgram::on_applied(WriterModel::Tag tag) {
  HistoryPoint point;
  while (!applying_.empty() && applying_.front().tag <= tag) {
    point = applying_.front().after;
    checkpoint_bytes_ += applying_.front().frame_bytes;
    applying_.pop_front();
  }
  trail_point_ = point;
  feed(replica_event::Applied{point});
  if (!applier_) return;
  checkpoint_if_due();
  apply_more();
  if (retrying_) take_pending_attach();
}

void ReplicaProgram::start_copy_writer() {
  copy_frames_.clear();
  copy_writer_ = std::make_shared<WriterModel>(machine_, life_);
  copy_writer_->set_hooks(
      {.on_progress = guarded([](ReplicaProgram& self, WriterModel::Tag tag) {
         Sequence through = 0;
         while (!self.copy_frames_.empty() && self.copy_frames_.front().tag <= tag) {
           through = std::max(through, self.copy_frames_.front().sequence);
           self.copy_frames_.pop_front();
         }
         const auto session = self.core_->session();
         if (through > 0 && session) self.feed(replica_event::CopyWritten{*session, through});
       }),
       .on_error = guarded([](ReplicaProgram& self, const Error& error) { self.fail(error); }),
       .check = [this] {
         world_.require(!machine_.state.consistent,
                        "P2 mark: a copy changes the image of {}, which is not recorded "
                        "inconsistent",
                        machine_.name);
       }});
}

void ReplicaProgram::stop_images(std::function<void()> done) {
  const auto applier = std::exchange(applier_, nullptr);
  const auto writer = std::exchange(copy_writer_, nullptr);
  const auto unstaging = std::exchange(unstaging_, nullptr);
  auto stop_unstaging = [unstaging, done = std::move(done)] {
    if (unstaging) {
      unstaging->stop(done);
    } else {
      done();
    }
  };
  auto stop_writer = [writer, stop_unstaging] {
    if (writer) {
      writer->stop(stop_unstaging);
    } else {
      stop_unstaging();
    }
  };
  if (applier) {
    applier->stop(stop_writer);
  } else {
    stop_writer();
  }
}

// --- checkpoint

void ReplicaProgram::checkpoint_if_due() {
  if (checkpointing_ || failure_ || closing_ || !applier_) return;
  const HistoryPoint point = core_->applied();
  const auto& segments = log_->segments();
  const bool frees_space = log_->waits_for_space() && segments.size() > 1 &&
                           segments[1]->before.sequence <= point.sequence;
  const bool much = checkpoint_bytes_ >= options_.segment_bytes;
  if (!much && !frees_space) return;
  checkpointing_ = true;
  const std::uint64_t bytes = checkpoint_bytes_;
  sync_images(machine_,
              life_,
              guarded([point, bytes](ReplicaProgram& self, const Status& status) {
                if (!status) return self.fail(status.error());
                self.log_->sync(self.guarded([point, bytes](ReplicaProgram& program,
                                                            const Result<Sequence>& synced) {
                  if (!synced) return;
                  program.save_trail(point, program.guarded([point, bytes](ReplicaProgram& saved) {
                    saved.record_checkpoint(point, bytes);
                  }));
                }));
              }),
              false);
}

void ReplicaProgram::save_trail(const HistoryPoint& point, std::function<void()> done) {
  const Trail::Changes changes = trail_.take_changed();
  TrailSave save{changes.anew, {}, trail_.header(point), core_serial_, std::move(done)};
  for (const auto& [disk, page] : changes.pages)
    save.pages.emplace_back(disk, page, trail_.entries(disk, page));
  save.header.generation = ++trail_generation_;
  trail_saves_.push_back(std::move(save));
  if (trail_saves_.size() == 1) write_trail();
}

/// One behind the other, as a thread that has nothing else to do.
void ReplicaProgram::write_trail() {
  const TrailSave& save = trail_saves_.front();
  auto write_pages =
      [&record = machine_.trail, disks = options_.disks, pages = save.pages, anew = save.anew] {
        if (anew) record = {};
        record.pages.resize(disks);
        for (const auto& [disk, page, content] : pages) {
          record.pages[disk].resize(std::max<std::size_t>(record.pages[disk].size(), page + 1));
          record.pages[disk][page] = content;
        }
      };
  auto write_header = [&record = machine_.trail, header = save.header] {
    record.headers[header.generation % 2] = header;
  };
  machine_.io(write_pages,
              life_.guard([self = shared_from_this(), write_header](int error) {
                if (error != 0) return self->end_trail_save(error);
                self->machine_.io(
                    write_header,
                    self->life_.guard([self](int failed) { self->end_trail_save(failed); }),
                    true);
              }),
              true);
}

void ReplicaProgram::end_trail_save(int error) {
  const TrailSave ended = std::move(trail_saves_.front());
  trail_saves_.pop_front();
  if (error != 0) world_.reached("a trail that could not be written");
  if (ended.core == core_serial_) trail_.end_save(error == 0);
  if (!trail_saves_.empty()) write_trail();
  ended.done();
}

void ReplicaProgram::record_checkpoint(const HistoryPoint& point, std::uint64_t bytes) {
  if (failure_ || closing_) return;
  hooks_.update_state([point](VolumeState& state) { apply_checkpoint(point, state); },
                      guarded([point, bytes](ReplicaProgram& self, const Status& status) {
                        self.checkpointing_ = false;
                        if (!status) return self.fail(status.error());
                        self.world_.reached("checkpoint recorded");
                        self.checkpoint_bytes_ -= std::min(self.checkpoint_bytes_, bytes);
                        self.log_->recycle(point.sequence);
                        self.checkpoint_if_due();
                      }));
}

// --- failure and recovery

void ReplicaProgram::fail(const Error& error) {
  if (failure_ || closing_) return;
  world_.note("{} failed: {}", machine_.name, error.message);
  world_.reached("replica failed");
  failure_ = error;
  retrying_ = false;
  feed(replica_event::Failed{error});
  refuse_pending_attach(error);
  stop_all(life_.guard([weak = weak_from_this()] {
    const auto self = weak.lock();
    if (!self) return;
    self->quiet_ = true;
    if (self->quiet_done_) {
      std::exchange(self->quiet_done_, nullptr)();
    } else if (self->pending_attach_) {
      self->retry();
    }
  }));
}

void ReplicaProgram::stop_all(std::function<void()> done) {
  ++generation_;
  if (const auto stage = std::exchange(stage_, nullptr)) stage->stop([] {});
  const auto store = std::exchange(log_, nullptr);
  stop_images([store, done = std::move(done)] {
    if (!store) {
      done();
      return;
    }
    store->stop(done);
  });
}

void ReplicaProgram::retry() {
  if (recovering_ || closing_) return;
  recovering_ = true;
  machine_.io([] {}, life_.guard([weak = weak_from_this()](int /*error*/) {
    const auto self = weak.lock();
    if (!self) return;
    const auto found = self->recover();
    self->recovering_ = false;
    if (self->quiet_done_) {
      std::exchange(self->quiet_done_, nullptr)();
      return;
    }
    if (!found) {
      self->failure_ = found.error();
      self->refuse_pending_attach(found.error());
      return;
    }
    self->world_.reached("replica recovered after a failure");
    self->failure_.reset();
    self->retrying_ = true;
    self->begin(*found);
    self->take_pending_attach();
  }));
}

void ReplicaProgram::take_pending_attach() {
  if (core_->is_consistent() && (core_->is_unstaging() || core_->applied() != core_->logged()))
    return;
  retrying_ = false;
  if (!pending_attach_) return;
  const PendingAttach attach = std::move(*pending_attach_);
  pending_attach_.reset();
  if (attach.connection->is_open(Connection::Side::acceptor)) {
    open_session(attach.connection, attach.message);
  }
}

void ReplicaProgram::refuse_pending_attach(const Error& error) {
  if (!pending_attach_) return;
  const auto connection = pending_attach_->connection;
  pending_attach_.reset();
  connection->send(Connection::Side::acceptor,
                   encode_refuse({error.code, error.message, error.hint}));
  connection->close_after_send(Connection::Side::acceptor, error);
}

// --- the end

void ReplicaProgram::shutdown(bool discard_log, std::function<void()> done) {
  if (closing_) {
    machine_.after(Duration{}, life_.guard(std::move(done)));
    return;
  }
  const bool failed = failure_.has_value();
  closing_ = true;
  const Error error{Errc::busy, 0, "the replica is being closed", {}};
  refuse_pending_attach(error);
  for (const auto& [id, session] : sessions_)
    session.connection->close(Connection::Side::acceptor, error);
  auto finish = [weak = weak_from_this(), discard_log, done = std::move(done)] {
    if (const auto self = weak.lock()) self->finish_shutdown(discard_log, done);
  };
  if (failed) {
    if (quiet_ && !recovering_) {
      machine_.after(Duration{}, life_.guard(std::move(finish)));
    } else {
      quiet_done_ = std::move(finish);
    }
    return;
  }
  ++generation_;
  stop_images(guarded([finish](ReplicaProgram& self) { self.record_last_checkpoint(finish); }));
}

void ReplicaProgram::record_last_checkpoint(const std::function<void()>& done) {
  const bool means_something =
      core_->is_consistent() && !core_->is_copying() && !core_->is_unstaging();
  const HistoryPoint point = core_->applied();
  const Sequence told = core_->is_short() ? counter_max : core_->marks().received;
  const std::function<void()> stop = guarded([done](ReplicaProgram& self) { self.stop_all(done); });
  const auto on_synced = [stop, means_something, point, told](ReplicaProgram& self,
                                                              const Result<Sequence>& synced) {
    if (!means_something || !synced) return stop();
    self.save_trail(point,
                    self.guarded([stop, point, is_whole = *synced >= told](ReplicaProgram& saved) {
                      saved.hooks_.update_state(
                          [point, is_whole](VolumeState& state) {
                            if (!state.consistent) return;
                            state.checkpoint = point;
                            state.whole = is_whole;
                          },
                          [stop](const Status& /*status*/) { stop(); });
                    }));
  };
  sync_images(machine_,
              life_,
              guarded([stop, on_synced](ReplicaProgram& self, const Status& images) {
                if (!images) return stop();
                self.log_->sync(self.guarded(on_synced));
              }),
              false);
}

void ReplicaProgram::finish_shutdown(bool discard_log, std::function<void()> done) {
  if (discard_log) {
    // Whatever of this fails is left over; the daemon removes it later.
    RecoveryFiles files(machine_.log, [] { return false; });
    (void)remove_log_files(files);
    remove_stage(machine_);
    machine_.told_durable = 0;
  }
  machine_.after(Duration{}, life_.guard(std::move(done)));
}

}  // namespace replicad::sim
