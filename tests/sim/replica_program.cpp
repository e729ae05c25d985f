#include "tests/sim/replica_program.h"

#include <algorithm>

#include "core/base/check.h"

namespace replicad::sim {

namespace {

constexpr auto acceptor = Connection::Side::acceptor;

}  // namespace

ReplicaProgram::ReplicaProgram(World& world,
                               Machine& machine,
                               const Options& options,
                               Histories& histories,
                               Life life,
                               Hooks hooks)
    : world_(world),
      machine_(machine),
      options_(options),
      histories_(histories),
      life_(std::move(life)),
      hooks_(std::move(hooks)) {}

Status ReplicaProgram::open() {
  const auto found = recover();
  if (!found) return tl::unexpected(found.error());
  begin(*found);
  return {};
}

// --- events and effects

void ReplicaProgram::feed(ReplicaEvent event) {
  if (feeding_) {
    events_.push_back(std::move(event));
    return;
  }
  feeding_ = true;
  for (;;) {
    effects_.clear();
    core_->step(event, machine_.clock(), effects_);
    core_->check_invariants();
    for (std::size_t i = 0; i < effects_.size(); ++i) {
      std::visit([this](const auto& effect) { perform(effect); }, effects_[i]);
    }
    if (events_.empty()) break;
    event = std::move(events_.front());
    events_.pop_front();
  }
  feeding_ = false;
  after_step();
}

void ReplicaProgram::after_step() {
  if (const auto id = core_->session()) {
    if (const auto session = sessions_.find(*id); session != sessions_.end()) {
      if (core_->takes_input()) {
        session->second.connection->resume(acceptor);
      } else {
        session->second.connection->pause(acceptor);
      }
    }
  }
  arm_timer();
}

void ReplicaProgram::arm_timer() {
  const auto at = core_->wake_at();
  if (!at || (timer_at_ && *timer_at_ <= *at)) return;
  timer_at_ = *at;
  const Duration delay = std::max(Duration{}, *at - machine_.clock());
  machine_.after(delay, life_.guard([weak = weak_from_this(), at = *at] {
    const auto self = weak.lock();
    if (!self || self->timer_at_ != at) return;
    self->timer_at_.reset();
    self->feed(replica_event::TimePassed{});
  }));
}

void ReplicaProgram::learn_promise() {
  const Epoch& recorded = hooks_.state().epoch;
  const Epoch& known = core_->promised();
  const bool raised = recorded.number > known.number;
  if (raised || (recorded.number == known.number && recorded.tag != known.tag)) {
    feed(replica_event::PromiseRaised{recorded});
  }
}

void ReplicaProgram::send(SessionId session, std::vector<std::byte> frame) {
  const auto found = sessions_.find(session);
  if (found != sessions_.end()) found->second.connection->send(acceptor, std::move(frame));
}

void ReplicaProgram::perform(const replica_effect::SendAttached& effect) {
  const AttachedMessage& message = effect.message;
  world_.note("{} attached: logged {} durable {} applied {} consistent {}",
              machine_.name,
              message.logged.sequence,
              message.durable,
              message.applied,
              message.consistent);
  world_.require(machine_.state.epoch.number >= core_->promised().number,
                 "P3 fence: {} attached before its promise was durable",
                 machine_.name);
  world_.require(message.durable <= log_->durable() || !message.consistent,
                 "P1 durable: {} says that {} is durable, its log is so up to {}",
                 machine_.name,
                 message.durable,
                 log_->durable());
  if (message.consistent) {
    check_prefix();
    // `attached` tells of watermarks as well.
    Watermarks& told = machine_.told[core_->promised().number];
    told.received = std::max(told.received, message.logged.sequence);
    told.logged = std::max(told.logged, message.logged.sequence);
    told.durable = std::max(told.durable, message.durable);
  }
  AttachedMessage told_message = message;
  const auto session = sessions_.find(effect.session);
  const bool is_at_rest = core_->is_consistent() && !core_->is_copying() &&
                          !core_->is_unstaging() && core_->applied() == core_->logged() &&
                          trail_point_ == core_->logged();
  if (session != sessions_.end() && session->second.knows_trail && is_at_rest) {
    told_message.parted = tell_parting(trail_, session->second.history, core_->logged());
    session->second.has_told = told_message.parted.has_value();
  }
  send(effect.session, encode_attached(told_message));
}

void ReplicaProgram::check_log_has(const Watermarks& marks) {
  world_.require(marks.logged <= log_->logged().sequence,
                 "P1 logged: {} says that {} is logged, its log ends at {}",
                 machine_.name,
                 marks.logged,
                 log_->logged().sequence);
  world_.require(marks.durable <= log_->durable(),
                 "P1 durable: {} says that {} is durable, its log is so up to {}",
                 machine_.name,
                 marks.durable,
                 log_->durable());
}

void ReplicaProgram::perform(const replica_effect::SendWatermarks& effect) {
  const Watermarks& marks = effect.marks;
  if (core_->is_consistent() && !core_->is_copying()) {
    if (log_) check_log_has(marks);  // it may have failed in this very step
    machine_.told_durable = std::max(machine_.told_durable, marks.durable);
    Watermarks& told = machine_.told[core_->promised().number];
    told.received = std::max(told.received, marks.received);
    told.logged = std::max(told.logged, marks.logged);
    told.durable = std::max(told.durable, marks.durable);
  }
  send(effect.session, encode_watermarks(marks, effect.heartbeat));
}

void ReplicaProgram::perform(const replica_effect::SendCopyDone& effect) {
  world_.note("{} has a whole copy at {}", machine_.name, effect.point.sequence);
  world_.require(machine_.state.consistent && machine_.state.checkpoint == effect.point,
                 "P2 copy: {} says that its copy is whole before that is on record",
                 machine_.name);
  Watermarks& told = machine_.told[core_->promised().number];
  told.received = told.logged = told.durable = std::max(told.durable, effect.point.sequence);
  send(effect.session, encode_copy_done({effect.point}));
}

void ReplicaProgram::perform(const replica_effect::Refuse& effect) {
  const auto found = sessions_.find(effect.session);
  if (found == sessions_.end()) return;
  const Error& error = effect.error;
  world_.note("{} refuses: {}", machine_.name, error.message);
  if (error.code == Errc::protocol) {
    world_.violate(
        fmt::format("P8 protocol: {} refuses a correct primary: {}", machine_.name, error.message));
  }
  found->second.connection->send(acceptor, encode_refuse({error.code, error.message, error.hint}));
  found->second.connection->close_after_send(acceptor, error);
}

void ReplicaProgram::perform(const replica_effect::CloseSession& effect) {
  const auto found = sessions_.find(effect.session);
  if (found != sessions_.end()) found->second.connection->close(acceptor, effect.error);
}

void ReplicaProgram::perform(const replica_effect::AppendFrame& effect) {
  if (!log_) return;
  log_->append({frame_->bytes.begin(), frame_->bytes.end()}, effect.after);
}

void ReplicaProgram::perform(const replica_effect::WriteImage& /*effect*/) {
  if (!copy_writer_) return;
  const FrameHeader& header = frame_->header;
  const auto tag = copy_writer_->add(header, frame_->payload);
  copy_frames_.push_back({tag, is_numbered(header.type) ? header.sequence : 0});
}

void ReplicaProgram::perform(const replica_effect::OpenStage& effect) {
  StageModel::Hooks hooks;
  hooks.on_written = guarded([](ReplicaProgram& self, Sequence through) {
    const auto session = self.core_->session();
    if (session) self.feed(replica_event::CopyWritten{*session, through});
  });
  hooks.on_error = guarded([](ReplicaProgram& self, const Error& error) {
    self.world_.reached("a stage failed");
    self.feed(replica_event::StageFailed{error});
  });
  if (const auto before = std::exchange(stage_, nullptr)) before->stop([] {});
  when_parked_ = nullptr;
  stage_ = std::make_shared<StageModel>(world_, machine_, options_, life_, std::move(hooks));
  const StageHeader header{volume_uuid, effect.base, effect.epoch, machine_.boot_id()};
  if (!effect.go_on) return stage_->open(header);
  when_parked_ = [stage = stage_, header] { stage->go_on(header); };
  if (parking_ == 0) std::exchange(when_parked_, nullptr)();
}

void ReplicaProgram::perform(const replica_effect::ParkStage& /*effect*/) {
  if (!stage_) return;
  world_.reached("a stage parked");
  const auto stage = std::exchange(stage_, nullptr);
  ++parking_;
  stage->stop([weak = weak_from_this()] {
    const auto self = weak.lock();
    if (self && --self->parking_ == 0 && self->when_parked_) {
      std::exchange(self->when_parked_, nullptr)();
    }
  });
}

void ReplicaProgram::perform(const replica_effect::StageFrame& /*effect*/) {
  if (!stage_) return;
  const FrameHeader& header = frame_->header;
  stage_->append({frame_->bytes.begin(), frame_->bytes.end()},
                 is_numbered(header.type) ? header.sequence : 0);
}

void ReplicaProgram::perform(const replica_effect::SyncStage& /*effect*/) {
  if (!stage_) return;
  stage_->sync(guarded([](ReplicaProgram& self, std::uint64_t bytes) {
    self.feed(replica_event::StageSynced{bytes});
  }));
}

void ReplicaProgram::perform(const replica_effect::DropStage& /*effect*/) {
  world_.reached("a stage dropped");
  drop_stage();
}

void ReplicaProgram::perform(const replica_effect::EndStage& effect) {
  world_.require(!machine_.state.stage_bytes,
                 "P2 stage: {} removes a stage that its state file counts on",
                 machine_.name);
  unstaging_.reset();
  drop_stage();
  start_applier(effect.point, 0, segment_header_bytes);
  if (retrying_) take_pending_attach();
}

void ReplicaProgram::perform(const replica_effect::CompareBlocks& effect) {
  auto start = life_.guard([weak = weak_from_this(),
                            session = effect.session,
                            range = frame_->header.range,
                            sums = decode_block_sums(frame_->payload)] {
    if (const auto self = weak.lock()) self->start_compare(session, range, sums);
  });
  if (stage_) {
    stage_->when_known(std::move(start));
  } else {
    start();
  }
}

// The primary here never asks for that: it changes nothing.
void ReplicaProgram::perform(const replica_effect::VerifyBlocks& /*effect*/) {
  world_.require(false, "verify: {} was asked to compare on a stream", machine_.name);
}
void ReplicaProgram::perform(const replica_effect::VerifyNow& /*effect*/) {}

void ReplicaProgram::start_compare(SessionId session,
                                   const Range& range,
                                   const std::vector<Digest>& sums) {
  machine_.io([] {}, life_.guard([weak = weak_from_this(), session, range, sums](int error) {
    const auto self = weak.lock();
    if (!self) return;
    if (error != 0) return self->fail(errno_to_error(error, "read to compare"));
    Images images;
    for (const Image& image : self->machine_.images)
      images.push_back(image.blocks());
    const bool lays = self->options_.planted != Planted::unlaid_stage;
    if (self->stage_ && lays) self->stage_->lay_over(images);
    const auto own = sums_of(images[range.disk], range);
    std::vector<bool> differs;
    for (std::size_t i = 0; i < own.size(); ++i)
      differs.push_back(own[i] != sums[i]);
    self->send(session, encode_block_diffs(range, differs));
  }));
}

void ReplicaProgram::perform(const replica_effect::SyncLog& /*effect*/) {
  if (!log_) return;
  log_->sync(guarded([](ReplicaProgram& self, const Result<Sequence>& through) {
    if (!through) return;
    self.feed(replica_event::LogSynced{*through});
    self.apply_more();
  }));
}

void ReplicaProgram::perform(const replica_effect::DropLog& /*effect*/) {
  if (!log_) return;
  // Either it counts no more, or all of it is in the images and that is on record.
  world_.require(!machine_.state.consistent || machine_.state.checkpoint == core_->logged(),
                 "P2 mark: {} drops its log before it is recorded inconsistent",
                 machine_.name);
  if (!machine_.state.consistent) machine_.told_durable = 0;
  ++generation_;
  checkpointing_ = false;
  stop_images(guarded([](ReplicaProgram& self) {
    self.log_->drop(self.guarded([](ReplicaProgram& program, const Status& status) {
      if (!status) return;
      program.checkpoint_bytes_ = 0;
      program.start_copy_writer();
      program.feed(replica_event::LogDropped{});
    }));
  }));
}

void ReplicaProgram::perform(const replica_effect::SyncImages& /*effect*/) {
  auto sync = guarded([](ReplicaProgram& self) {
    sync_images(self.machine_,
                self.life_,
                self.guarded([](ReplicaProgram& program, const Status& status) {
                  if (status) {
                    program.feed(replica_event::ImagesSynced{});
                  } else {
                    program.fail(status.error());
                  }
                }),
                false);
  });
  if (copy_writer_) {
    copy_writer_->when_idle(std::move(sync));
  } else {
    sync();
  }
}

void ReplicaProgram::perform(const replica_effect::RestartLog& effect) {
  if (!log_) return;
  log_->restart(effect.point);
  machine_.told_durable = effect.point.sequence;
  copy_writer_.reset();
  copy_frames_.clear();
  if (effect.point != trail_point_) {
    trail_.begin(effect.point);
    trail_point_ = effect.point;
  }
  if (effect.stage_bytes > 0) {
    world_.reached("a staged resync committed");
    start_unstaging(effect.stage_bytes);
  } else {
    start_applier(effect.point, 0, segment_header_bytes);
  }
}

void ReplicaProgram::perform(const replica_effect::RecordState& effect) {
  const ReplicaRecord record = effect.record;
  if (record.kind == ReplicaRecord::Kind::copy_done) {
    // It is about to be believed: the image must be that of the history, on stable storage.
    const Images wanted = histories_.at(record.point);
    for (std::size_t disk = 0; disk < wanted.size(); ++disk) {
      const Blocks& has = machine_.images[disk].stable();
      const auto [have, want] = std::ranges::mismatch(has, wanted[disk]);
      if (have == has.end()) continue;
      world_.violate(fmt::format(
          "P2 copy: {} ends a copy at {}, but its image is another one: block {} of disk {} is "
          "{:#x}, in the cache {:#x}, should be {:#x}",
          machine_.name,
          record.point.sequence,
          have - has.begin(),
          disk,
          *have,
          machine_.images[disk].blocks()[static_cast<std::size_t>(have - has.begin())],
          *want));
    }
  }
  const bool is_mark = record.kind == ReplicaRecord::Kind::inconsistent ||
                       record.kind == ReplicaRecord::Kind::resyncing ||
                       record.kind == ReplicaRecord::Kind::rewinding;
  const bool is_lost =
      (options_.planted == Planted::mark_without_effect && is_mark) ||
      (options_.planted == Planted::shared_term && record.kind == ReplicaRecord::Kind::promise);
  hooks_.update_state(
      [record, is_lost](VolumeState& state) {
        if (!is_lost) apply_record(record, 0, state);
      },
      life_.guard(
          [weak = weak_from_this(), core = core_serial_, kind = record.kind](const Status& status) {
            const auto self = weak.lock();
            if (!self || self->core_serial_ != core) return;
            self->learn_promise();
            if (!status && kind == ReplicaRecord::Kind::unstaged) self->fail(status.error());
            self->feed(replica_event::StateRecorded{status});
          }));
}

void ReplicaProgram::perform(const replica_effect::PromotionDone& effect) {
  std::function<void()> tell =
      life_.guard([done = std::exchange(promotion_done_, nullptr), status = effect.status] {
        if (done) done(status);
      });
  if (!effect.status) return machine_.after(Duration{}, std::move(tell));
  save_trail(core_->applied(), std::move(tell));
}

// --- sessions

void ReplicaProgram::attach(const std::shared_ptr<Connection>& connection,
                            const AttachMessage& message) {
  if (closing_) {
    const Error error{Errc::busy, 0, "the replica is being closed", {}};
    connection->send(acceptor, encode_refuse({error.code, error.message, error.hint}));
    connection->close_after_send(acceptor, error);
    return;
  }
  if (!failure_ && !recovering_ && !retrying_) {
    open_session(connection, message);
    return;
  }
  refuse_pending_attach({Errc::busy, 0, "replaced by a new connection of the primary", {}});
  connection->pause(acceptor);
  pending_attach_ = PendingAttach{connection, message};
  if (failure_ && quiet_) retry();
}

void ReplicaProgram::open_session(const std::shared_ptr<Connection>& connection,
                                  const AttachMessage& message) {
  const SessionId id = ++last_session_;
  sessions_[id] =
      Session{connection, has_feature(message.features, feature_trail), message.history, false};
  connection->pause(acceptor);
  const std::weak_ptr<ReplicaProgram> weak = weak_from_this();
  connection->start(acceptor,
                    {.on_frame = [weak, id, life = life_](const FrameView& frame) -> Status {
                       const auto self = weak.lock();
                       return self && life.is_alive() ? self->on_frame(id, frame) : Status();
                     },
                     .on_closed = life_.guard([weak, id](const Error& /*error*/) {
                       if (const auto self = weak.lock()) self->on_closed(id);
                     })});
  learn_promise();
  feed(replica_event::AttachArrived{id, message, hooks_.state().primary == machine_.name});
}

Status ReplicaProgram::on_frame(SessionId session, const FrameView& frame) {
  learn_promise();
  if (core_->session() != session) return {};
  switch (frame.header.type) {
    case FrameType::start: {
      const auto message = decode_start(frame.payload);
      if (!message) return tl::unexpected(message.error());
      if (message->parted) {
        world_.reached("a rewind of what it has changed itself");
        world_.require(sessions_.at(session).has_told, "P8: a rewind of what was not told");
      }
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
    default:
      break;
  }
  frame_ = &frame;
  feed(replica_event::FrameArrived{session, frame.header});
  frame_ = nullptr;
  return {};
}

void ReplicaProgram::on_closed(SessionId session) {
  sessions_.erase(session);
  if (core_->session() != session) return;
  world_.note("{} lost its session", machine_.name);
  feed(replica_event::SessionClosed{session});
}

void ReplicaProgram::prepare_promotion(const Epoch& epoch,
                                       const std::optional<HistoryPoint>& point,
                                       std::function<void(Status)> done) {
  std::optional<Error> refused = failure_;
  if (closing_ || promotion_done_ || recovering_) {
    refused = Error{Errc::busy, 0, "the replica is being promoted or closed", {}};
  }
  if (refused) {
    machine_.after(Duration{}, life_.guard([done = std::move(done), error = *refused] {
      done(tl::unexpected(error));
    }));
    return;
  }
  promotion_done_ = std::move(done);
  learn_promise();
  feed(replica_event::PromotionRequested{epoch, point});
}

}  // namespace replicad::sim
