// Copies to a replica, staged and in place (declared in replica.h).

#include <algorithm>

#include "core/base/check.h"
#include "core/repl/make_error.h"
#include "core/repl/replica.h"

namespace replicad {

void Replica::begin_copy(const StartMessage& message, Instant now, Effects& effects) {
  if (message.after > counter_max) {
    refuse(make_error(Errc::protocol, "copy after sequence {}", message.after), effects);
    return;
  }
  if (message.go_on) {
    go_on_copying(message, effects);
    return;
  }
  if (session_->phase == Phase::copying && staged_) effects.push_back(replica_effect::DropStage{});
  drop_parked(effects);
  session_->phase = Phase::waiting;
  report_at_ = now + config_.alive_delay;
  copy_taken_ = HistoryPoint{{}, message.after, {}};
  copy_written_ = 0;
  staged_ = consistent_ && !message.in_place && !message.save;
  keep_ = message.keep;
  copy_saves_ = message.save;
  const bool needs_rest = staged_ || message.keep || message.save || is_unstaging();
  if (message.keep && !consistent_ && !resync_) {
    refuse(make_error(Errc::inconsistent, "nothing is known of the image here: it cannot be kept"),
           effects);
  } else if (consistent_ && needs_rest) {
    // What the log does not hold durably is not applied.
    copy_ = CopyStep::applying;
    if (!pending_.empty()) pending_.back().wants_sync = true;
    sync_due_ = true;
    sync_if_due(now, effects);
    advance_waiting(effects);
  } else if (message.keep && *resync_ != session_->epoch) {
    mark_copy(effects);
  } else if (message.save && resync_) {
    mark_rewind(effects);
  } else if (consistent_ || (resync_ && !message.keep)) {
    copy_ = CopyStep::marking;
    record({ReplicaRecord::Kind::inconsistent, {}, {}, {}}, effects);
  } else {
    copy_ = CopyStep::draining;
    advance_waiting(effects);
  }
}

/// The log is empty and applied, and the checkpoint is where it ends: all that a stage needs was done when it began.
void Replica::go_on_copying(const StartMessage& message, Effects& effects) {
  if (parked_ != session_->epoch) {
    refuse(make_error(Errc::protocol, "no copy of epoch {} to go on with", session_->epoch.number),
           effects);
    return;
  }
  RD_CHECK(consistent_ && copy_ == CopyStep::none);
  RD_CHECK(applied_ == logged_);
  parked_.reset();
  session_->phase = Phase::copying;
  copy_ = CopyStep::copying;
  staged_ = true;
  keep_ = message.keep;
  copy_saves_ = false;
  copy_taken_ = HistoryPoint{{}, message.after, {}};
  copy_written_ = message.after;
  effects.push_back(replica_effect::OpenStage{session_->epoch, logged_, true});
  report(effects);
}

void Replica::drop_parked(Effects& effects) {
  if (!parked_) return;
  parked_.reset();
  effects.push_back(replica_effect::DropStage{});
}

void Replica::mark_copy(Effects& effects) {
  const HistoryPoint& base = consistent_ ? applied_ : resync_base_;
  const auto in_place = keep_ ? ReplicaRecord::Kind::resyncing : ReplicaRecord::Kind::inconsistent;
  const auto kind = staged_ ? ReplicaRecord::Kind::staging : in_place;
  copy_ = CopyStep::marking;
  record({kind, session_->epoch, {}, base}, effects);
}

void Replica::mark_rewind(Effects& effects) {
  const HistoryPoint& left = consistent_ ? applied_ : resync_base_;
  copy_ = CopyStep::marking;
  record({ReplicaRecord::Kind::rewinding, session_->epoch, session_->primary, left}, effects);
}

void Replica::on_marked(const ReplicaRecord& record, const Status& status, Effects& effects) {
  RD_CHECK(copy_ == CopyStep::marking);
  if (!status) {
    copy_ = CopyStep::none;
    if (phase() == Phase::waiting) refuse(status.error(), effects);
    return;
  }
  copy_ = CopyStep::draining;
  if (record.kind == ReplicaRecord::Kind::staging) return;
  resync_.reset();
  if (record.kind != ReplicaRecord::Kind::resyncing) return;
  resync_ = record.epoch;
  resync_base_ = record.point;
}

void Replica::on_event(const replica_event::LogDropped& /*event*/,
                       Instant /*now*/,
                       Effects& effects) {
  if (failure_) return;
  RD_CHECK(copy_ == CopyStep::dropping);
  RD_CHECK(pending_.empty());
  sync_due_ = false;
  unsynced_bytes_ = 0;
  unsynced_since_.reset();
  if (staged_) {
    RD_CHECK(applied_ == logged_ && logged_ == received_);
    durable_ = logged_.sequence;
    effects.push_back(replica_effect::RestartLog{logged_, 0});
  } else {
    consistent_ = false;
    received_ = logged_ = applied_ = {};
    durable_ = 0;
  }
  if (phase() == Phase::waiting) {
    copy_ = CopyStep::copying;
    if (staged_) {
      effects.push_back(replica_effect::OpenStage{session_->epoch, logged_, false});
    }
    session_->phase = Phase::copying;
    copy_written_ = copy_taken_.sequence;
    report(effects);
  } else {
    copy_ = CopyStep::none;
    copy_written_ = 0;
  }
  advance_waiting(effects);
}

void Replica::take_copy_frame(const FrameHeader& header, Effects& effects) {
  Status accepted;
  if (is_numbered(header.type)) accepted = check_follows(copy_taken_, header);
  if (accepted) accepted = check_frame(header);
  if (!accepted) {
    refuse(std::move(accepted).error(), effects);
    advance_waiting(effects);
    return;
  }
  if (is_numbered(header.type)) {
    copy_taken_.epoch = header.epoch;
    copy_taken_.sequence = header.sequence;
  }
  if (staged_) {
    effects.push_back(replica_effect::StageFrame{});
  } else {
    effects.push_back(replica_effect::WriteImage{});
  }
}

void Replica::on_event(const replica_event::CopyWritten& event, Instant now, Effects& /*effects*/) {
  if (failure_ || !is_current(event.session) || session_->phase != Phase::copying) return;
  RD_CHECK(event.through <= copy_taken_.sequence);
  RD_CHECK(event.through >= copy_written_);
  copy_written_ = event.through;
  report_later(now);
}

void Replica::on_event(const replica_event::CopyEndArrived& event, Instant now, Effects& effects) {
  if (!is_current(event.session)) return;
  RD_CHECK(takes_input());
  const HistoryPoint& point = event.point;
  if (session_->phase != Phase::copying) {
    refuse(make_error(Errc::protocol, "copy_end without a copy"), effects);
    return;
  }
  const bool wrong_epoch = copy_taken_.epoch.number != 0
                               ? point.epoch != copy_taken_.epoch
                               : point.epoch.number > session_->epoch.number;
  if (point.sequence != copy_taken_.sequence || wrong_epoch) {
    refuse(make_error(Errc::protocol,
                      "copy_end at sequence {} of epoch {} behind sequence {} of epoch {}",
                      point.sequence,
                      point.epoch.number,
                      copy_taken_.sequence,
                      copy_taken_.epoch.number),
           effects);
    return;
  }
  copy_end_ = point;
  copy_ = CopyStep::syncing;
  session_->phase = Phase::waiting;
  report_at_ = now + config_.alive_delay;
  if (staged_) {
    effects.push_back(replica_effect::SyncStage{});
  } else {
    effects.push_back(replica_effect::SyncImages{});
  }
}

void Replica::on_event(const replica_event::StageSynced& event, Instant /*now*/, Effects& effects) {
  if (failure_) return;
  RD_CHECK(staged_ && copy_ == CopyStep::syncing);
  copy_ = CopyStep::recording;
  record({ReplicaRecord::Kind::committed, {}, {}, copy_end_, event.bytes}, effects);
}

/// The images are as they were: only the copy has failed.
void Replica::on_event(const replica_event::StageFailed& event, Instant /*now*/, Effects& effects) {
  const bool uses_stage = copy_ == CopyStep::copying || copy_ == CopyStep::syncing;
  if (failure_ || !staged_ || !uses_stage) return;
  copy_ = CopyStep::none;
  copy_written_ = 0;
  effects.push_back(replica_effect::DropStage{});
  if (session_) refuse(event.error, effects);
  advance_waiting(effects);
}

void Replica::on_copy_recorded(const ReplicaRecord& record,
                               const Status& status,
                               Effects& effects) {
  RD_CHECK(copy_ == CopyStep::recording);
  const HistoryPoint& point = record.point;
  copy_ = CopyStep::none;
  if (!status) {
    if (staged_) effects.push_back(replica_effect::DropStage{});
    if (phase() == Phase::waiting) refuse(status.error(), effects);
    return;
  }
  consistent_ = true;
  short_ = false;
  resync_.reset();
  received_ = logged_ = point;
  durable_ = point.sequence;
  copy_written_ = 0;
  if (record.kind == ReplicaRecord::Kind::committed) {
    unstaging_ = UnstageStep::applying;
    unstaged_point_ = point;
    applied_ = {};
  } else {
    applied_ = point;
  }
  effects.push_back(replica_effect::RestartLog{point, record.stage_bytes});
  if (phase() != Phase::waiting) return;
  session_->phase = Phase::streaming;
  effects.push_back(replica_effect::SendCopyDone{session_->id, point});
}

void Replica::on_event(const replica_event::StageApplied& /*event*/,
                       Instant /*now*/,
                       Effects& effects) {
  if (failure_) return;
  RD_CHECK(unstaging_ == UnstageStep::applying);
  unstaging_ = UnstageStep::syncing;
  effects.push_back(replica_effect::SyncImages{});
}

void Replica::on_unstaged(const Status& status, Effects& effects) {
  RD_CHECK(unstaging_ == UnstageStep::recording);
  if (!status) {
    // The file still says that the stage counts, and it is there: what is in the images twice does no harm.
    failure_ = status.error();
    if (session_) refuse(status.error(), effects);
    return;
  }
  unstaging_ = UnstageStep::none;
  applied_ = unstaged_point_;
  effects.push_back(replica_effect::EndStage{applied_});
  verify_applied(effects);
}

}  // namespace replicad
