#include "replicad/replica_runtime.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"
#include "replicad/replica_offload.h"

namespace replicad {

namespace {

/// The end of the primary's process, orderly or not, is no fault of the link.
bool is_link_fault(const Error& error) {
  return error.sys_errno != 0 && error.sys_errno != ECONNRESET && error.sys_errno != EPIPE;
}

}  // namespace

class ReplicaRuntime::BufferHold {
 public:
  explicit BufferHold(std::shared_ptr<FrameConnection> connection)
      : connection_(std::move(connection)) {
    connection_->hold_buffer();
  }
  BufferHold(const BufferHold&) = delete;
  BufferHold& operator=(const BufferHold&) = delete;
  BufferHold(BufferHold&&) = delete;
  BufferHold& operator=(BufferHold&&) = delete;
  ~BufferHold() { connection_->release_buffer(); }

 private:
  std::shared_ptr<FrameConnection> connection_;
};

ReplicaRuntime::ReplicaRuntime(Reactor& reactor, Setup setup)
    : reactor_(reactor), setup_(std::move(setup)), worker_(Worker::create()) {}

ReplicaRuntime::~ReplicaRuntime() {
  if (timer_) reactor_.cancel_timer(*timer_);
  if (verifier_state_) verifier_state_->ends = true;
  const Error error{Errc::unreachable, 0, "the replica is gone", {}};
  for (const auto& [id, session] : sessions_)
    session.connection->close(error);
  // What is in flight ends by itself; from here on nothing new is begun, and the worker is not used. The
  // log hears of it now, not when the images have ended: the worker ends with this object.
  if (const auto store = std::exchange(log_, nullptr)) store->stop([] {});
  if (const auto stage = std::exchange(stage_, nullptr)) stage->stop([] {});
  stop_images([] {});
}

// --- events and effects

void ReplicaRuntime::feed(ReplicaEvent event) {
  events_.push_back(std::move(event));
  if (feeding_) return;
  feeding_ = true;
  while (!events_.empty()) {
    const ReplicaEvent next = std::move(events_.front());
    events_.pop_front();
    effects_.clear();
    core_->step(next, reactor_.now(), effects_);
    // Effects feed events at most into the queue above.
    for (std::size_t i = 0; i < effects_.size(); ++i) {
      std::visit([this](const auto& effect) { perform(effect); }, effects_[i]);
    }
  }
  feeding_ = false;
  after_step();
}

void ReplicaRuntime::after_step() {
  mark_kept_if_whole();
  if (const auto id = core_->session()) {
    const auto session = sessions_.find(*id);
    if (session != sessions_.end()) {
      if (core_->takes_input()) {
        session->second.connection->resume();
      } else {
        session->second.connection->pause();
      }
    }
  }
  arm_timer();
}

void ReplicaRuntime::arm_timer() {
  const auto at = core_->wake_at();
  if (!at || (timer_ && timer_at_ <= *at)) return;
  if (timer_) reactor_.cancel_timer(*timer_);
  timer_at_ = *at;
  const Duration delay = std::max(Duration::zero(), *at - reactor_.now());
  timer_ = reactor_.add_timer(delay, [weak = weak_from_this()] {
    const auto self = weak.lock();
    if (!self) return;
    self->timer_.reset();
    self->feed(replica_event::TimePassed{});
  });
}

/// Another part of the daemon may have promised a higher epoch (fence).
void ReplicaRuntime::learn_promise() {
  const Epoch& recorded = setup_.hooks.state().epoch;
  const Epoch& known = core_->promised();
  const bool raised = recorded.number > known.number;
  if (raised || (recorded.number == known.number && recorded.tag != known.tag))
    feed(replica_event::PromiseRaised{recorded});
}

void ReplicaRuntime::send(SessionId session, std::vector<std::byte> frame) {
  const auto found = sessions_.find(session);
  if (found != sessions_.end()) found->second.connection->send(std::move(frame));
}

void ReplicaRuntime::perform(const replica_effect::SendAttached& effect) {
  log(LogLevel::info,
      "replica_attached",
      "volume={} logged={} durable={} applied={} consistent={}",
      setup_.hooks.state().name,
      effect.message.logged.sequence,
      effect.message.durable,
      effect.message.applied,
      effect.message.consistent);
  session_error_.reset();
  last_trouble_.clear();
  AttachedMessage message = effect.message;
  if (const auto session = sessions_.find(effect.session); session != sessions_.end())
    tell_parted(session->second, message);
  send(effect.session, encode_attached(message));
}

void ReplicaRuntime::perform(const replica_effect::SendWatermarks& effect) {
  send(effect.session, encode_watermarks(effect.marks, effect.heartbeat));
}

void ReplicaRuntime::perform(const replica_effect::SendCopyDone& effect) {
  log(LogLevel::info,
      "copy_done",
      "volume={} sequence={}",
      setup_.hooks.state().name,
      effect.point.sequence);
  send(effect.session, encode_copy_done({effect.point}));
}

void ReplicaRuntime::perform(const replica_effect::Refuse& effect) {
  const auto found = sessions_.find(effect.session);
  if (found == sessions_.end()) return;
  const Error& error = effect.error;
  if (!is_repeated(error)) {
    log(LogLevel::warn,
        "replica_refused",
        "volume={} code={} message={}",
        setup_.hooks.state().name,
        errc_name(error.code),
        log_value(error.message));
  }
  session_error_ = error;
  found->second.connection->send(encode_refuse({error.code, error.message, error.hint}));
  found->second.connection->close_after_send(error);
}

/// Whether this trouble was the last one too, with no session that worked in between: it is not told twice.
bool ReplicaRuntime::is_repeated(const Error& error) {
  if (last_trouble_ == error.message) return true;
  last_trouble_ = error.message;
  return false;
}

void ReplicaRuntime::perform(const replica_effect::CloseSession& effect) {
  const auto found = sessions_.find(effect.session);
  if (found == sessions_.end()) return;
  session_error_ = effect.error;
  found->second.connection->close(effect.error);
}

void ReplicaRuntime::perform(const replica_effect::AppendFrame& effect) {
  RD_CHECK(frame_ != nullptr);
  if (!log_) return;  // it has failed, the core will hear of it
  backlog_bytes_ += frame_->bytes.size();
  log_->append(frame_->bytes, effect.after, hold_of_current());
}

void ReplicaRuntime::perform(const replica_effect::WriteImage& /*effect*/) {
  RD_CHECK(frame_ != nullptr);
  if (!copy_writer_) return;
  if (saver_) {
    saver_->add(frame_->header, frame_->payload, hold_of_current());
  } else {
    write_copied(frame_->header, frame_->payload, hold_of_current());
  }
}

void ReplicaRuntime::write_copied(const FrameHeader& header,
                                  std::span<const std::byte> payload,
                                  std::shared_ptr<void> owner) {
  const auto tag = copy_writer_->add(header, payload, std::move(owner));
  copy_frames_.push_back({tag, is_numbered(header.type) ? header.sequence : 0});
  copy_unsynced_bytes_ += header.payload_bytes;
}

void ReplicaRuntime::perform(const replica_effect::OpenStage& effect) {
  StageWriter::Hooks hooks;
  hooks.on_written = guarded([](ReplicaRuntime& self, Sequence through) {
    if (const auto session = self.core_->session())
      self.feed(replica_event::CopyWritten{*session, through});
  });
  hooks.on_error = guarded([](ReplicaRuntime& self, const Error& error) {
    self.feed(replica_event::StageFailed{error});
  });
  hooks.reserve_bytes = [state_of = setup_.hooks.state] { return state_of().settings.log_bytes; };
  if (const auto before = std::exchange(stage_, nullptr)) before->stop([] {});
  when_parked_ = nullptr;
  stage_ = std::make_shared<StageWriter>(reactor_, *worker_, setup_.log_dir, std::move(hooks));
  const VolumeState& state = setup_.hooks.state();
  const StageHeader header{state.uuid, effect.base, effect.epoch, setup_.boot_id};
  if (!effect.go_on) return stage_->open(header);
  std::vector<std::uint64_t> disk_bytes;
  for (const DiskState& disk : state.disks)
    disk_bytes.push_back(disk.bytes);
  when_parked_ = [stage = stage_, header, disk_bytes] { stage->go_on(header, disk_bytes); };
  if (!parking_) std::exchange(when_parked_, nullptr)();
}

void ReplicaRuntime::perform(const replica_effect::StageFrame& /*effect*/) {
  RD_CHECK(frame_ != nullptr);
  if (!stage_) return;
  const FrameHeader& header = frame_->header;
  stage_->append(frame_->bytes, is_numbered(header.type) ? header.sequence : 0, hold_of_current());
}

void ReplicaRuntime::perform(const replica_effect::SyncStage& /*effect*/) {
  if (!stage_) return;
  stage_->sync(guarded([](ReplicaRuntime& self, std::uint64_t bytes) {
    self.feed(replica_event::StageSynced{bytes});
  }));
}

/// What is still queued counts for nothing: the copy that goes on finds out what is there, when no write of this one
/// is in flight any more.
void ReplicaRuntime::perform(const replica_effect::ParkStage& /*effect*/) {
  if (!stage_) return;
  const auto stage = std::exchange(stage_, nullptr);
  ++parking_;
  stage->stop(guarded_always([](ReplicaRuntime& self) {
    if (--self.parking_ == 0 && self.when_parked_) std::exchange(self.when_parked_, nullptr)();
  }));
}

void ReplicaRuntime::perform(const replica_effect::DropStage& /*effect*/) {
  if (const auto stage = std::exchange(stage_, nullptr)) stage->stop([] {});
  remove_stage_later();
}

void ReplicaRuntime::perform(const replica_effect::EndStage& effect) {
  stage_applier_.reset();
  backlog_bytes_ -= std::min(backlog_bytes_, stage_bytes_);
  stage_bytes_ = 0;
  remove_stage_later();
  start_applier({.point = effect.point, .segment_index = 0, .offset_bytes = segment_header_bytes});
}

/// The name goes before a later stage gets it: the worker does one thing after the other.
void ReplicaRuntime::remove_stage_later() {
  offload(
      *worker_,
      reactor_,
      [directory = setup_.log_dir] { return remove_stage(directory); },
      [](const Status& status) {
        if (!status) log(LogLevel::warn, "stage_not_removed", "{}", status.error().message);
      });
}

/// Ends a session that asks for too much at once.
bool ReplicaRuntime::may_compare(SessionId session) {
  if (compares_.size() + verifies_.size() < compares_in_flight_max) return true;
  const Error error{Errc::protocol, 0, "more compare frames than may be unanswered", {}};
  sessions_.at(session).connection->close(error);
  return false;
}

void ReplicaRuntime::perform(const replica_effect::VerifyBlocks& effect) {
  RD_CHECK(frame_ != nullptr);
  if (!may_compare(effect.session)) return;
  verifies_[++last_compare_] = {
      effect.session, effect.after, frame_->header.range, decode_block_sums(frame_->payload)};
}

void ReplicaRuntime::perform(const replica_effect::VerifyNow& effect) {
  for (auto& [id, verify] : verifies_) {
    if (verify.session == effect.session && verify.after <= effect.through && !verify.runs)
      start_verify(id, verify);
  }
}

/// Not on the worker that the log and the images wait for: a medium may be slow.
void ReplicaRuntime::start_verify(std::uint64_t id, Verify& verify) {
  verify.runs = true;
  if (!verifier_) {
    verifier_ = Worker::create();
    verifier_state_ = std::make_shared<VerifierState>();
  }
  offload(
      *verifier_,
      reactor_,
      [images = setup_.images, range = verify.range, state = verifier_state_] {
        if (state->ends) return MediumSums{};
        const auto reader = state->readers.try_emplace(range.disk, images->fd(range.disk)).first;
        return reader->second.read(range.offset_bytes, range.length_bytes);
      },
      guarded_always(
          [id](ReplicaRuntime& self, const MediumSums& own) { self.on_verified(id, own); }));
}

/// A block that cannot be read differs: written anew it may be readable again.
void ReplicaRuntime::on_verified(std::uint64_t id, const MediumSums& own) {
  const Verify verify = std::move(verifies_.at(id));
  verifies_.erase(id);
  if (own.sys_errno != 0) {
    log(LogLevel::error,
        "verify_read_failed",
        "volume={} path={} offset={} errno={}",
        setup_.hooks.state().name,
        log_value(setup_.images->path(verify.range.disk)),
        verify.range.offset_bytes,
        own.sys_errno);
  }
  std::vector<bool> differs;
  for (std::size_t i = 0; i < verify.sums.size(); ++i)
    differs.push_back(own.unreadable[i] || own.sums[i] != verify.sums[i]);
  send(verify.session, encode_block_diffs(verify.range, differs));
}

void ReplicaRuntime::perform(const replica_effect::CompareBlocks& effect) {
  RD_CHECK(frame_ != nullptr);
  if (!may_compare(effect.session)) return;
  const std::uint64_t id = ++last_compare_;
  const Range range = frame_->header.range;
  compares_[id] =
      BlockCompare::create(reactor_, setup_.images, range, decode_block_sums(frame_->payload));
  if (stage_) {
    stage_->when_known(guarded_always([id, session = effect.session, range](ReplicaRuntime& self) {
      self.start_compare(id, session, range);
    }));
  } else {
    start_compare(id, effect.session, range);
  }
}

void ReplicaRuntime::start_compare(std::uint64_t id, SessionId session, const Range& range) {
  const auto on_compared =
      [id, session, range](ReplicaRuntime& self,
                           const tl::expected<std::vector<bool>, BlockCompare::Failure>& differs) {
        self.compares_.erase(id);
        if (differs) {
          if (self.saver_) self.saver_->note_equal(range, *differs);
          self.send(session, encode_block_diffs(range, *differs));
        } else if (!differs.error().in_stage) {
          self.fail(differs.error().error);
        } else if (self.core_->session() == session) {
          self.feed(replica_event::StageFailed{differs.error().error});
        }
      };
  compares_.at(id)->start(stage_ ? stage_->overlay() : nullptr, guarded_always(on_compared));
}

void ReplicaRuntime::perform(const replica_effect::SyncLog& /*effect*/) {
  if (!log_) return;
  log_->sync(guarded([](ReplicaRuntime& self, const Result<Sequence>& through) {
    if (through) self.feed(replica_event::LogSynced{*through});
  }));
}

void ReplicaRuntime::perform(const replica_effect::DropLog& /*effect*/) {
  if (!log_) return;
  // From here on no checkpoint of the old log is recorded.
  ++generation_;
  checkpointing_ = false;
  stop_images(guarded([](ReplicaRuntime& self) {
    self.log_->drop(self.guarded([](ReplicaRuntime& runtime, const Status& status) {
      if (!status) return;  // the log has reported it
      runtime.backlog_bytes_ = 0;
      runtime.checkpoint_bytes_ = 0;
      runtime.begin_copy_images();
    }));
  }));
}

void ReplicaRuntime::perform(const replica_effect::SyncImages& /*effect*/) {
  auto sync = guarded([](ReplicaRuntime& self) {
    self.setup_.images->sync(self.reactor_,
                             self.guarded([](ReplicaRuntime& runtime, const Status& status) {
                               if (status) {
                                 runtime.feed(replica_event::ImagesSynced{});
                               } else {
                                 runtime.fail(status.error());
                               }
                             }));
  });
  if (saver_) {
    saver_->when_idle(
        guarded([sync](ReplicaRuntime& self) { self.copy_writer_->when_idle(sync); }));
  } else if (copy_writer_) {
    copy_writer_->when_idle(std::move(sync));
  } else {
    sync();
  }
}

void ReplicaRuntime::perform(const replica_effect::RestartLog& effect) {
  if (!log_) return;
  log_->restart(effect.point);
  copy_writer_.reset();
  copy_frames_.clear();
  if (const auto saver = std::exchange(saver_, nullptr)) saver->stop([] {});
  rewind_error_.reset();
  if (effect.point != trail_point_) {
    // A copy has brought them here: where they were in between is not known.
    trail_.begin(effect.point);
    trail_point_ = effect.point;
  }
  if (effect.stage_bytes > 0) {
    stage_.reset();
    start_unstaging(effect.stage_bytes);
    return;
  }
  start_applier({.point = effect.point, .segment_index = 0, .offset_bytes = segment_header_bytes});
}

void ReplicaRuntime::perform(const replica_effect::RecordState& effect) {
  if (preparing_rewind_) {
    held_records_.push_back(effect.record);
  } else if (effect.record.kind == ReplicaRecord::Kind::rewinding) {
    begin_rewind(effect.record);
  } else {
    record_state(effect.record);
  }
}

void ReplicaRuntime::record_state(const ReplicaRecord& record) {
  const std::uint64_t file = next_saver_ ? next_saver_->file_number() : 0;
  setup_.hooks.update_state(
      [record, file](VolumeState& state) { apply_record(record, file, state); },
      [weak = weak_from_this(), core = core_serial_, kind = record.kind](const Status& status) {
        const auto self = weak.lock();
        if (!self || self->core_serial_ != core) return;
        self->learn_promise();
        // The stage is still what the file says: it is brought in again.
        if (!status && kind == ReplicaRecord::Kind::unstaged) self->fail(status.error());
        self->feed(replica_event::StateRecorded{status});
      });
}

void ReplicaRuntime::perform(const replica_effect::PromotionDone& effect) {
  auto tell = [done = std::exchange(promotion_done_, nullptr), status = effect.status] {
    if (done) done(status);
  };
  if (!effect.status) return reactor_.post(std::move(tell));
  // The export begins with it.
  save_trail(core_->applied(), std::move(tell));
}

// --- sessions

void ReplicaRuntime::attach(std::shared_ptr<FrameConnection> connection,
                            const AttachMessage& message) {
  if (closing_) {
    const Error error{Errc::busy, 0, "the replica is being closed", {}};
    connection->send(encode_refuse({error.code, error.message, error.hint}));
    connection->close_after_send(error);
    return;
  }
  if (!failure_ && !recovering_ && !retrying_) {
    open_session(connection, message);
    return;
  }
  refuse_pending_attach({Errc::busy, 0, "replaced by a new connection of the primary", {}});
  connection->pause();
  pending_attach_ = PendingAttach{std::move(connection), message};
  if (failure_ && quiet_) retry();
}

void ReplicaRuntime::open_session(const std::shared_ptr<FrameConnection>& connection,
                                  const AttachMessage& message) {
  const SessionId id = ++last_session_;
  const std::weak_ptr<ReplicaRuntime> weak = weak_from_this();
  sessions_[id] = Session{.connection = connection,
                          .hold = {},
                          .knows_trail = has_feature(message.features, feature_trail),
                          .history = message.history};
  // Nothing is delivered before `attached` has been sent.
  connection->pause();
  connection->start({.on_frame =
                         [weak, id](const FrameView& frame) {
                           const auto self = weak.lock();
                           return self ? self->on_frame(id, frame) : Status();
                         },
                     .on_batch_end = {},
                     .on_closed =
                         [weak, id](const Error& error) {
                           if (const auto self = weak.lock()) self->on_closed(id, error);
                         }});
  last_frame_at_ = reactor_.now();
  learn_promise();
  const bool is_primary = setup_.hooks.state().primary == setup_.host;
  feed(replica_event::AttachArrived{id, message, is_primary});
}

Status ReplicaRuntime::on_frame(SessionId session, const FrameView& frame) {
  RD_CHECK(!feeding_);
  learn_promise();
  if (core_->session() != session) return {};
  last_frame_at_ = reactor_.now();
  switch (frame.header.type) {
    case FrameType::start: {
      const auto message = decode_start(frame.payload);
      if (!message) return tl::unexpected(message.error());
      const Session& of = sessions_.at(session);
      if (message->parted && !of.has_told)
        return replicad::fail(Errc::protocol, "start names ranges that were not told");
      own_ranges_ = message->parted ? std::optional(of.parted) : std::nullopt;
      feed(replica_event::StartArrived{session, *message});
      return {};
    }
    case FrameType::digest: {
      const auto point = decode_digest(frame.header, frame.payload);
      if (!point) return tl::unexpected(point.error());
      feed(replica_event::DigestArrived{session, *point});
      return {};
    }
    case FrameType::copy_end: {
      const auto message = decode_copy_end(frame.payload);
      if (!message) return tl::unexpected(message.error());
      feed(replica_event::CopyEndArrived{session, message->point});
      return {};
    }
    case FrameType::refuse: {
      const auto message = decode_refuse(frame.payload);
      if (!message) return tl::unexpected(message.error());
      const Error error{
          message->code, 0, "the primary refuses: " + message->message, message->hint};
      sessions_.at(session).connection->close(error);
      return {};
    }
    default:
      break;
  }
  frame_ = &frame;
  feed(replica_event::FrameArrived{session, frame.header});
  frame_ = nullptr;
  return {};
}

void ReplicaRuntime::on_closed(SessionId session, const Error& error) {
  sessions_.erase(session);
  std::erase_if(verifies_, [session](const auto& entry) {
    return entry.second.session == session && !entry.second.runs;
  });
  if (core_->session() != session) return;
  session_error_ = error;
  log(LogLevel::info,
      "replica_disconnected",
      "volume={} message={}",
      setup_.hooks.state().name,
      log_value(error.message));
  if (is_link_fault(error) && setup_.hooks.on_link_lost) setup_.hooks.on_link_lost();
  feed(replica_event::SessionClosed{session});
}

std::shared_ptr<ReplicaRuntime::BufferHold> ReplicaRuntime::hold_of_current() {
  Session& session = sessions_.at(*core_->session());
  auto hold = session.hold.lock();
  if (!hold) {
    hold = std::make_shared<BufferHold>(session.connection);
    session.hold = hold;
  }
  return hold;
}

// --- requests of the daemon

ReplicaStatus ReplicaRuntime::status() const {
  ReplicaStatus status;
  const Replica::Phase phase = core_->phase();
  status.connected = phase != Replica::Phase::none && phase != Replica::Phase::promising &&
                     phase != Replica::Phase::settling;
  if (last_frame_at_ != Instant{}) status.heard = reactor_.now() - last_frame_at_;
  status.consistent = core_->is_consistent();
  status.is_short = core_->is_short();
  status.marks = core_->marks();
  status.logged = core_->logged();
  status.backlog_bytes = backlog_bytes_;
  status.unstaging = core_->is_unstaging();
  status.log_bytes = log_ ? log_->bytes() : 0;
  status.error = failure_ ? failure_ : session_error_ ? session_error_ : rewind_error_;
  if (failure_) {
    status.state = "failed";
  } else if (core_->is_copying()) {
    status.state = "copying";
  } else if (!core_->is_consistent()) {
    status.state = "inconsistent";
  } else {
    const bool streams = phase == Replica::Phase::streaming || phase == Replica::Phase::waiting;
    status.state = streams ? "streaming" : status.connected ? "attached" : "disconnected";
  }
  return status;
}

void ReplicaRuntime::sync_soon() {
  if (!failure_ && !closing_) feed(replica_event::SyncWanted{});
}

void ReplicaRuntime::prepare_promotion(const Epoch& epoch,
                                       const std::optional<HistoryPoint>& point,
                                       std::function<void(Status)> done) {
  std::optional<Error> refused = failure_;
  if (closing_ || promotion_done_) {
    refused = Error{Errc::busy, 0, "the replica is being promoted or closed", {}};
  }
  if (refused) {
    reactor_.post([done = std::move(done), error = *refused] { done(tl::unexpected(error)); });
    return;
  }
  promotion_done_ = std::move(done);
  learn_promise();
  feed(replica_event::PromotionRequested{epoch, point});
}

}  // namespace replicad
