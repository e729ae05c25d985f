#include "core/repl/replica.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/repl/make_error.h"
#include "core/store/volume_state.h"

namespace replicad {

namespace {

/// Same number, other random tag: two terms that were opened without knowing of each other.
bool is_other_term(const Epoch& a, const Epoch& b) {
  return a.number == b.number && a.tag != b.tag;
}

}  // namespace

Replica::Replica(ReplicaConfig config, const ReplicaStanding& standing)
    : config_(std::move(config)),
      promised_(standing.promised),
      promised_durable_(standing.promised),
      primary_(standing.primary),
      consistent_(standing.consistent),
      recorded_whole_(standing.whole),
      short_(!standing.whole) {
  if (!consistent_) {
    resync_ = standing.resync;
    if (resync_) resync_base_ = standing.applied;
    return;
  }
  received_ = logged_ = standing.logged;
  durable_ = standing.durable;
  applied_ = standing.applied;
  RD_CHECK(durable_ <= logged_.sequence);
  RD_CHECK(applied_.sequence <= logged_.sequence);
  if (!standing.unstaging) {
    parked_ = standing.parked;
    RD_CHECK(!parked_ || applied_ == logged_);
    return;
  }
  unstaging_ = UnstageStep::applying;
  unstaged_point_ = standing.applied;
  applied_ = {};
}

void Replica::step(const ReplicaEvent& event, Instant now, std::vector<ReplicaEffect>& effects) {
  std::visit([&](const auto& alternative) { on_event(alternative, now, effects); }, event);
}

bool Replica::takes_input() const {
  const Phase at = phase();
  return at == Phase::idle || at == Phase::streaming || at == Phase::copying;
}

std::optional<Instant> Replica::wake_at() const {
  if (failure_) return std::nullopt;
  std::optional<Instant> at = report_at_;
  if (unsynced_since_ && !sync_in_flight_ &&
      (copy_ == CopyStep::none || copy_ == CopyStep::applying)) {
    const Instant sync_at = *unsynced_since_ + config_.sync_delay;
    if (!at || sync_at < *at) at = sync_at;
  }
  return at;
}

Watermarks Replica::marks() const {
  const bool staging = staged_ && (copy_ == CopyStep::copying || copy_ == CopyStep::syncing ||
                                   copy_ == CopyStep::recording);
  if (!consistent_ || staging) {
    Watermarks marks;
    marks.received = marks.logged = marks.applied = copy_written_;
    return marks;
  }
  return Watermarks{.received = received_.sequence,
                    .logged = logged_.sequence,
                    .durable = durable_,
                    .applied = applied_.sequence,
                    .logged_digest = logged_.digest,
                    .applied_digest = applied_.digest};
}

Replica::Phase Replica::phase() const {
  return session_ ? session_->phase : Phase::none;
}

std::optional<SessionId> Replica::session() const {
  return session_ ? std::optional(session_->id) : std::nullopt;
}

AttachedMessage Replica::standing() const {
  const bool offers_stage = session_ && session_->knows_go_on && parked_ == session_->epoch;
  return AttachedMessage{.protocol = protocol_version_max,
                         .features = {std::string(feature_go_on),
                                      std::string(feature_trail),
                                      std::string(feature_verify)},
                         .boot_id = config_.boot_id,
                         .consistent = consistent_,
                         .resync = resync_,
                         .stage = offers_stage ? parked_ : std::nullopt,
                         .logged = resync_ ? resync_base_ : logged_,
                         .durable = durable_,
                         .applied = applied_.sequence};
}

void Replica::check_invariants() const {
  RD_CHECK(durable_ <= logged_.sequence);
  RD_CHECK(applied_.sequence <= logged_.sequence);
  RD_CHECK(logged_.sequence + pending_.size() == received_.sequence);
  RD_CHECK(pending_.empty() || pending_.back().after == received_);
  RD_CHECK(promised_.number >= promised_durable_.number);
  RD_CHECK(copy_ != CopyStep::copying || consistent_ == staged_);
  RD_CHECK(unstaging_ == UnstageStep::none || consistent_);
  RD_CHECK(!parked_ || (consistent_ && received_ == logged_ && copy_ == CopyStep::none));
  if (!session_) return;
  RD_CHECK(session_->phase != Phase::none);
  RD_CHECK(session_->phase != Phase::streaming || (consistent_ && copy_ == CopyStep::none));
  RD_CHECK(session_->phase != Phase::copying || copy_ == CopyStep::copying);
  RD_CHECK(failure_ == std::nullopt);
}

// --- sessions

bool Replica::is_current(SessionId session) const {
  return session_ && session_->id == session;
}

Status Replica::check_attach(const AttachMessage& message, bool is_primary) const {
  if (message.protocol_min > protocol_version_max || message.protocol_max < protocol_version_min ||
      message.protocol_min > message.protocol_max) {
    return fail(Errc::version_mismatch,
                "primary speaks protocol {} to {}, this replica {} to {}",
                message.protocol_min,
                message.protocol_max,
                protocol_version_min,
                protocol_version_max);
  }
  if (message.volume != config_.volume) {
    return fail(
        Errc::not_found, "volume {} where {} was asked for", config_.volume, message.volume);
  }
  if (message.volume_uuid != config_.volume_uuid) {
    return fail(Errc::refused,
                "volume {} has uuid {} here, {} at the primary: they are not the same volume",
                config_.volume,
                config_.volume_uuid,
                message.volume_uuid);
  }
  if (message.replica != config_.host) {
    return fail(Errc::refused, "this is host {}, not {}", config_.host, message.replica);
  }
  if (!is_valid_name(message.primary)) {
    return fail(Errc::protocol, "attach from a primary without a valid host name");
  }
  if (message.primary == config_.host || is_primary) {
    return fail(Errc::refused, "host {} is the primary of volume {}", config_.host, config_.volume);
  }
  if (message.disk_bytes != config_.disk_bytes) {
    return fail(Errc::refused,
                "the disks of volume {} have other sizes or another number here",
                config_.volume);
  }
  return check_epoch(message);
}

Status Replica::check_epoch(const AttachMessage& message) const {
  const Epoch& epoch = message.epoch;
  if (epoch.number == 0 || epoch.number > counter_max) {
    return fail(Errc::protocol, "attach with epoch {}", epoch.number);
  }
  if (epoch.number < promised_.number) {
    return fail(Errc::stale_epoch,
                "epoch {} of primary {} is over: epoch {} was promised here",
                epoch.number,
                message.primary,
                promised_.number);
  }
  if (is_other_term(epoch, promised_)) {
    return fail(Errc::diverged,
                "another primary's term has the same epoch number {}: two histories",
                epoch.number);
  }
  if (epoch == promised_durable_ && !primary_.empty() && message.primary != primary_) {
    return fail(Errc::refused,
                "epoch {} belongs to primary {}, not {}",
                epoch.number,
                primary_,
                message.primary);
  }
  const bool promoting =
      promotion_ != PromotionStep::none &&
      !(promotion_ == PromotionStep::done && epoch.number > promotion_epoch_.number);
  if (promoting) return fail(Errc::busy, "this replica is being promoted");
  return {};
}

void Replica::on_event(const replica_event::AttachArrived& event,
                       Instant /*now*/,
                       Effects& effects) {
  Status accepted =
      failure_ ? Status(tl::unexpected(*failure_)) : check_attach(event.message, event.is_primary);
  if (!accepted) {
    effects.push_back(replica_effect::Refuse{event.session, std::move(accepted).error()});
    return;
  }
  if (session_) {
    effects.push_back(replica_effect::CloseSession{
        session_->id, make_error(Errc::busy, "replaced by a new connection of the primary")});
  }
  leave_session(effects);
  promotion_ = PromotionStep::none;
  const Epoch& epoch = event.message.epoch;
  session_ = Session{event.session, epoch, event.message.primary, Phase::promising};
  session_->knows_go_on = has_feature(event.message.features, feature_go_on);
  session_->knows_verify = has_feature(event.message.features, feature_verify);
  promised_ = epoch;
  const bool promised = epoch == promised_durable_ && event.message.primary == primary_;
  if (promised && !recorded_whole_) {
    session_->phase = Phase::settling;
  } else {
    record({ReplicaRecord::Kind::promise, epoch, event.message.primary, {}}, effects);
  }
  advance_waiting(effects);
}

void Replica::on_event(const replica_event::SessionClosed& event,
                       Instant /*now*/,
                       Effects& effects) {
  if (!is_current(event.session)) return;
  leave_session(effects);
  advance_waiting(effects);
}

/// A copy whose frames were being taken is over with its session; what else was begun is finished.
void Replica::leave_session(Effects& effects) {
  if (copy_ == CopyStep::copying && staged_) {
    parked_ = session_->epoch;
    effects.push_back(replica_effect::ParkStage{});
  }
  session_.reset();
  report_at_.reset();
  report_applied_at_.reset();
  whole_at_.reset();
  if (copy_ == CopyStep::applying) copy_ = CopyStep::none;
  if (copy_ == CopyStep::copying) {
    copy_ = CopyStep::none;
    copy_written_ = 0;
  }
}

void Replica::refuse(Error error, Effects& effects) {
  RD_CHECK(session_);
  effects.push_back(replica_effect::Refuse{session_->id, std::move(error)});
  leave_session(effects);
}

void Replica::on_event(const replica_event::StartArrived& event, Instant now, Effects& effects) {
  if (!is_current(event.session)) return;
  RD_CHECK(takes_input());
  if (event.message.copy) {
    begin_copy(event.message, now, effects);
  } else {
    begin_stream(event.message, effects);
  }
}

void Replica::begin_stream(const StartMessage& message, Effects& effects) {
  if (session_->phase != Phase::idle) {
    refuse(make_error(Errc::protocol, "start of a stream that has begun"), effects);
    return;
  }
  if (!consistent_) {
    refuse(make_error(Errc::inconsistent, "the image here is incomplete; only a full copy helps"),
           effects);
    return;
  }
  if (message.after != logged_.sequence) {
    refuse(make_error(Errc::protocol,
                      "stream starts after sequence {}, the log here ends at {}",
                      message.after,
                      logged_.sequence),
           effects);
    return;
  }
  drop_parked(effects);
  session_->phase = Phase::streaming;
  whole_at_ = message.answered;
  note_whole();
}

/// What it has durable is the primary's history, and nothing beyond `whole_at_` had been answered: whatever it ever
/// told a primary is here, or counts for nothing.
void Replica::note_whole() {
  if (!whole_at_ || durable_ < *whole_at_) return;
  short_ = false;
  whole_at_.reset();
}

void Replica::on_event(const replica_event::PromiseRaised& event,
                       Instant /*now*/,
                       Effects& effects) {
  if (event.epoch.number < promised_durable_.number || event.epoch == promised_durable_) return;
  promised_durable_ = event.epoch;
  primary_.clear();  // whose it is, the attach will tell
  if (event.epoch.number >= promised_.number) promised_ = event.epoch;
  if (session_ && session_->epoch != promised_ && session_->epoch.number <= promised_.number) {
    refuse(make_error(Errc::stale_epoch,
                      "epoch {} is over: epoch {} was promised here",
                      session_->epoch.number,
                      promised_.number),
           effects);
    advance_waiting(effects);
  }
}

void Replica::on_event(const replica_event::Failed& event, Instant /*now*/, Effects& effects) {
  if (failure_) return;
  failure_ = event.error;
  if (session_) refuse(event.error, effects);
  const bool promoting = promotion_ != PromotionStep::none && promotion_ != PromotionStep::done;
  if (promoting) end_promotion(tl::unexpected(event.error), effects);
}

// --- the stream

/// Rules for every frame that changes the image: the session's term and the disks' bounds.
Status Replica::check_frame(const FrameHeader& header) const {
  const bool future = header.epoch.number > session_->epoch.number;
  if (is_numbered(header.type) && (future || is_other_term(header.epoch, session_->epoch))) {
    return fail(Errc::protocol,
                "sequence {} is of epoch {} tag {}, the session of epoch {} tag {}",
                header.sequence,
                header.epoch.number,
                header.epoch.tag,
                session_->epoch.number,
                session_->epoch.tag);
  }
  if (header.type == FrameType::flush) return {};
  const Range& range = header.range;
  if (range.disk >= config_.disk_bytes.size()) {
    return fail(Errc::protocol,
                "sequence {} names disk {} of {}",
                header.sequence,
                range.disk,
                config_.disk_bytes.size());
  }
  if (!fits(range, config_.disk_bytes[range.disk])) {
    return fail(Errc::protocol,
                "sequence {}: offset {} length {} is beyond disk {} of {} bytes",
                header.sequence,
                range.offset_bytes,
                range.length_bytes,
                range.disk,
                config_.disk_bytes[range.disk]);
  }
  return {};
}

void Replica::on_event(const replica_event::FrameArrived& event, Instant now, Effects& effects) {
  if (!is_current(event.session)) return;
  RD_CHECK(takes_input());
  const FrameType type = event.header.type;
  if (type == FrameType::heartbeat) {
    session_->heartbeat = event.header.sequence;
    if (applied_.sequence < received_.sequence) report_applied_at_ = received_.sequence;
    report(effects);
  } else if (type == FrameType::sync_request) {
    request_sync(now, effects);
  } else if (is_numbered(type) && session_->phase == Phase::streaming) {
    take_numbered(event.header, effects);
  } else if ((is_numbered(type) || type == FrameType::copy_data || type == FrameType::copy_zero) &&
             session_->phase == Phase::copying) {
    take_copy_frame(event.header, effects);
  } else if (type == FrameType::block_sums && session_->phase == Phase::copying) {
    if (Status accepted = check_frame(event.header)) {
      effects.push_back(replica_effect::CompareBlocks{session_->id});
    } else {
      refuse(std::move(accepted).error(), effects);
      advance_waiting(effects);
    }
  } else if (type == FrameType::block_sums && session_->phase == Phase::streaming &&
             session_->knows_verify) {
    take_verify(event.header, effects);
  } else {
    refuse(make_error(Errc::protocol, "frame type {} is out of place", static_cast<unsigned>(type)),
           effects);
  }
}

void Replica::take_numbered(const FrameHeader& header, Effects& effects) {
  Status accepted = check_follows(received_, header);
  if (accepted) accepted = check_frame(header);
  if (!accepted) {
    refuse(std::move(accepted).error(), effects);
    return;
  }
  received_ = advance(received_, header);
  const bool wants_sync = header.type == FrameType::flush || (header.flags & frame_flag_fua) != 0;
  pending_.push_back({received_, frame_header_bytes + header.payload_bytes, wants_sync});
  effects.push_back(replica_effect::AppendFrame{received_});
}

/// The sequence may be one that has not come yet: what it belongs to is on its way.
void Replica::take_verify(const FrameHeader& header, Effects& effects) {
  Status accepted = check_frame(header);
  if (header.sequence > counter_max)
    accepted = fail(Errc::protocol, "blocks to compare at sequence {}", header.sequence);
  if (!accepted) {
    refuse(std::move(accepted).error(), effects);
    return;
  }
  effects.push_back(replica_effect::VerifyBlocks{session_->id, header.sequence});
  session_->verifies.insert(header.sequence);
  verify_applied(effects);
}

/// While a stage is on its way into the images they are at no point, and `applied_` is 0.
void Replica::verify_applied(Effects& effects) {
  if (phase() != Phase::streaming || is_unstaging()) return;
  std::multiset<Sequence>& waiting = session_->verifies;
  if (waiting.empty() || *waiting.begin() > applied_.sequence) return;
  waiting.erase(waiting.begin(), waiting.upper_bound(applied_.sequence));
  effects.push_back(replica_effect::VerifyNow{session_->id, applied_.sequence});
}

void Replica::on_event(const replica_event::DigestArrived& event,
                       Instant /*now*/,
                       Effects& effects) {
  if (!is_current(event.session)) return;
  RD_CHECK(takes_input());
  // The digest before a copy's start is not known; a session that has not started has nothing to compare.
  if (session_->phase != Phase::streaming) return;
  const HistoryPoint& point = event.point;
  if (point.sequence != received_.sequence || point.epoch != received_.epoch) {
    refuse(make_error(Errc::protocol,
                      "digest of sequence {} behind sequence {}",
                      point.sequence,
                      received_.sequence),
           effects);
  } else if (point.digest != received_.digest) {
    refuse(make_error(Errc::diverged,
                      "digest at sequence {} is {} here, {} at the primary",
                      point.sequence,
                      to_hex(received_.digest),
                      to_hex(point.digest)),
           effects);
  }
}

void Replica::on_event(const replica_event::Logged& event, Instant now, Effects& effects) {
  if (failure_) return;
  RD_CHECK(event.through <= received_.sequence);
  while (!pending_.empty() && pending_.front().after.sequence <= event.through) {
    const Pending& frame = pending_.front();
    logged_ = frame.after;
    unsynced_bytes_ += frame.frame_bytes;
    // A promotion waits until all of it is applied, and only what is durable is.
    sync_due_ = sync_due_ || frame.wants_sync || promotion_ != PromotionStep::none;
    pending_.pop_front();
  }
  if (!unsynced_since_) unsynced_since_ = now;
  sync_if_due(now, effects);
  if (phase() == Phase::streaming) report(effects);
  advance_waiting(effects);
}

void Replica::on_event(const replica_event::SyncWanted& /*event*/, Instant now, Effects& effects) {
  if (!failure_ && durable_ < received_.sequence) want_sync(now, effects);
}

void Replica::request_sync(Instant now, Effects& effects) {
  if (session_->phase != Phase::streaming) return;
  if (durable_ == received_.sequence) {
    report(effects);
  } else {
    want_sync(now, effects);
  }
}

void Replica::want_sync(Instant now, Effects& effects) {
  if (pending_.empty()) {
    sync_due_ = true;
    sync_if_due(now, effects);
  } else {
    pending_.back().wants_sync = true;
  }
}

void Replica::sync_if_due(Instant now, Effects& effects) {
  // A log that is about to be dropped is not worth a sync, and none may be in flight when it is.
  const bool doomed = copy_ == CopyStep::draining || copy_ == CopyStep::dropping;
  if (sync_in_flight_ || !consistent_ || doomed) return;
  if (logged_.sequence == durable_) {
    sync_due_ = false;
    unsynced_bytes_ = 0;
    unsynced_since_.reset();
    return;
  }
  const bool old = unsynced_since_ && now >= *unsynced_since_ + config_.sync_delay;
  if (!sync_due_ && !old && unsynced_bytes_ < config_.sync_bytes) return;
  sync_in_flight_ = true;
  sync_due_ = false;
  unsynced_bytes_ = 0;
  unsynced_since_.reset();
  effects.push_back(replica_effect::SyncLog{});
}

void Replica::on_event(const replica_event::LogSynced& event, Instant now, Effects& effects) {
  if (failure_) return;
  RD_CHECK(sync_in_flight_);
  RD_CHECK(event.through <= logged_.sequence);
  sync_in_flight_ = false;
  const bool moved = event.through > durable_;
  durable_ = std::max(durable_, event.through);
  note_whole();
  sync_if_due(now, effects);
  if (moved && phase() == Phase::streaming) report(effects);
  advance_waiting(effects);
}

void Replica::on_event(const replica_event::Applied& event, Instant now, Effects& effects) {
  if (failure_ || !consistent_) return;
  RD_CHECK(event.point.sequence <= logged_.sequence);
  RD_CHECK(event.point.sequence >= applied_.sequence);
  applied_ = event.point;
  const bool awaited = report_applied_at_ && applied_.sequence >= *report_applied_at_;
  if (awaited) report_applied_at_.reset();
  if (phase() == Phase::streaming) {
    if (awaited) {
      report(effects);
    } else {
      report_later(now);
    }
    verify_applied(effects);
  }
  advance_waiting(effects);
}

void Replica::report(Effects& effects) {
  RD_CHECK(session_);
  report_at_.reset();
  effects.push_back(replica_effect::SendWatermarks{session_->id, marks(), session_->heartbeat});
}

void Replica::report_later(Instant now) {
  if (!report_at_) report_at_ = now + config_.report_delay;
}

void Replica::on_event(const replica_event::TimePassed& /*event*/, Instant now, Effects& effects) {
  if (failure_) return;
  sync_if_due(now, effects);
  if (report_at_ && now >= *report_at_) {
    report_at_.reset();
    if (session_) report(effects);
    if (phase() == Phase::waiting) report_at_ = now + config_.alive_delay;
  }
}

// --- state file, promotion

void Replica::record(ReplicaRecord record, Effects& effects) {
  records_.push_back(record);
  effects.push_back(replica_effect::RecordState{std::move(record)});
}

void Replica::on_event(const replica_event::StateRecorded& event,
                       Instant /*now*/,
                       Effects& effects) {
  RD_CHECK(!records_.empty());
  const ReplicaRecord record = std::move(records_.front());
  records_.pop_front();
  if (failure_) return;
  switch (record.kind) {
    case ReplicaRecord::Kind::promise:
      on_promised(record, event.status, effects);
      break;
    case ReplicaRecord::Kind::inconsistent:
    case ReplicaRecord::Kind::resyncing:
    case ReplicaRecord::Kind::rewinding:
    case ReplicaRecord::Kind::staging:
      on_marked(record, event.status, effects);
      break;
    case ReplicaRecord::Kind::committed:
    case ReplicaRecord::Kind::copy_done:
      on_copy_recorded(record, event.status, effects);
      break;
    case ReplicaRecord::Kind::unstaged:
      on_unstaged(event.status, effects);
      break;
  }
  advance_waiting(effects);
}

void Replica::on_promised(const ReplicaRecord& record, const Status& status, Effects& effects) {
  if (status && record.epoch.number >= promised_durable_.number) {
    promised_durable_ = record.epoch;
    primary_ = record.primary;
  }
  if (status && !record.primary.empty()) recorded_whole_ = false;
  if (promotion_ == PromotionStep::promising && record.epoch == promotion_epoch_) {
    if (status) {
      promotion_ = PromotionStep::applying;
    } else {
      end_promotion(status, effects);
    }
    return;
  }
  const bool awaited = phase() == Phase::promising && session_->epoch == record.epoch &&
                       session_->primary == record.primary;
  if (!awaited) return;
  if (status) {
    session_->phase = Phase::settling;
  } else {
    refuse(status.error(), effects);
  }
}

void Replica::advance_waiting(Effects& effects) {
  if (failure_) return;
  const bool log_at_rest = pending_.empty() && !sync_in_flight_;
  const bool unstaged = unstaging_ == UnstageStep::none;
  if (copy_ == CopyStep::applying && log_at_rest && unstaged && applied_ == logged_) {
    copy_ = CopyStep::syncing_before;
    effects.push_back(replica_effect::SyncImages{});
  }
  if (copy_ == CopyStep::draining && log_at_rest) {
    copy_ = CopyStep::dropping;
    effects.push_back(replica_effect::DropLog{});
  }
  if (phase() == Phase::settling && pending_.empty() && copy_ == CopyStep::none) {
    session_->phase = Phase::idle;
    effects.push_back(replica_effect::SendAttached{session_->id, standing()});
  }
  advance_promotion(effects);
}

void Replica::on_event(const replica_event::PromotionRequested& event,
                       Instant now,
                       Effects& effects) {
  const auto refuse_promotion = [&](Error error) {
    effects.push_back(replica_effect::PromotionDone{tl::unexpected(std::move(error))});
  };
  if (failure_) {
    refuse_promotion(*failure_);
  } else if (promotion_ != PromotionStep::none && promotion_ != PromotionStep::done) {
    refuse_promotion(make_error(Errc::busy, "a promotion is under way"));
  } else if (!consistent_ || (copy_ != CopyStep::none && !staged_)) {
    refuse_promotion(
        make_error(Errc::inconsistent, "the image of host {} is incomplete", config_.host));
  } else if (event.epoch.number < promised_.number || is_other_term(event.epoch, promised_)) {
    refuse_promotion(
        make_error(Errc::stale_epoch,
                   "epoch {} tag {} was promised here, the promotion is of epoch {} tag {}",
                   promised_.number,
                   promised_.tag,
                   event.epoch.number,
                   event.epoch.tag));
  } else {
    promotion_ = PromotionStep::promising;
    promotion_epoch_ = promised_ = event.epoch;
    promotion_point_ = event.point;
    if (session_) {
      effects.push_back(replica_effect::CloseSession{
          session_->id, make_error(Errc::busy, "host {} is being promoted", config_.host)});
      leave_session(effects);
    }
    drop_parked(effects);
    record({ReplicaRecord::Kind::promise, event.epoch, primary_, {}}, effects);
    sync_due_ = true;
    sync_if_due(now, effects);
  }
}

void Replica::advance_promotion(Effects& effects) {
  const bool at_rest =
      pending_.empty() && copy_ == CopyStep::none && unstaging_ == UnstageStep::none;
  if (promotion_ != PromotionStep::applying || !at_rest || applied_.sequence != logged_.sequence) {
    return;
  }
  const HistoryPoint wanted = promotion_point_.value_or(applied_);
  if (applied_.sequence < wanted.sequence) {
    end_promotion(fail(Errc::too_far_behind,
                       "host {} has sequence {}, the history stands at {}",
                       config_.host,
                       applied_.sequence,
                       wanted.sequence),
                  effects);
  } else if (applied_ != wanted) {
    end_promotion(fail(Errc::diverged,
                       "host {} stands at sequence {} with digest {}, the history at {} with {}",
                       config_.host,
                       applied_.sequence,
                       to_hex(applied_.digest),
                       wanted.sequence,
                       to_hex(wanted.digest)),
                  effects);
  } else {
    promotion_ = PromotionStep::syncing;
    effects.push_back(replica_effect::SyncImages{});
  }
}

void Replica::end_promotion(Status status, Effects& effects) {
  promotion_ = status ? PromotionStep::done : PromotionStep::none;
  effects.push_back(replica_effect::PromotionDone{std::move(status)});
}

void Replica::on_event(const replica_event::ImagesSynced& /*event*/,
                       Instant /*now*/,
                       Effects& effects) {
  if (failure_) return;
  if (unstaging_ == UnstageStep::syncing) {
    unstaging_ = UnstageStep::recording;
    record({ReplicaRecord::Kind::unstaged, {}, {}, {}}, effects);
    return;
  }
  if (promotion_ == PromotionStep::syncing) {
    end_promotion({}, effects);
    return;
  }
  if (copy_ == CopyStep::syncing_before) {
    copy_ = CopyStep::none;
    if (phase() == Phase::waiting && copy_saves_) {
      mark_rewind(effects);
    } else if (phase() == Phase::waiting) {
      mark_copy(effects);
    }
    advance_waiting(effects);
    return;
  }
  RD_CHECK(copy_ == CopyStep::syncing);
  copy_ = CopyStep::recording;
  record({ReplicaRecord::Kind::copy_done, {}, {}, copy_end_}, effects);
}

}  // namespace replicad
