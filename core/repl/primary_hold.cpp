// Holding the guest's writes for a switchover or a clean stop (declared in primary.h).

#include "core/base/check.h"
#include "core/repl/primary.h"

namespace replicad {

void Primary::on_event(const primary_event::Hold& event, Instant /*now*/, Effects& effects) {
  if (hold_phase_ != HoldPhase::none) {
    effects.push_back(
        primary_effect::HoldFailed{Error{Errc::busy,
                                         0,
                                         "a hold is already under way",
                                         "wait for the other switchover or stop to end"}});
    return;
  }
  if (event.target && !peers_[*event.target].recorded) {
    effects.push_back(primary_effect::HoldFailed{
        Error{Errc::refused,
              0,
              fmt::format("{} is not in the in-sync set", peers_[*event.target].host),
              "wait until `replicactl status` shows it in sync, or resync it"}});
    return;
  }
  hold_phase_ = HoldPhase::draining;
  hold_images_synced_ = false;
  hold_ping_pending_ = false;
  hold_target_ = event.target;
  hold_deadline_ = event.deadline;
}

void Primary::on_event(const primary_event::ImagesSynced& event,
                       Instant /*now*/,
                       Effects& effects) {
  if (hold_phase_ != HoldPhase::flushing) return;
  if (!event.ok) {
    fail_hold(Error{Errc::io_error, 0, "the primary's images could not be made durable", {}},
              effects);
    return;
  }
  hold_images_synced_ = true;
}

void Primary::on_event(const primary_event::Seal& /*event*/,
                       Instant /*now*/,
                       Effects& /*effects*/) {
  RD_CHECK(hold_phase_ == HoldPhase::reached);
  hold_sealed_ = true;
}

void Primary::on_event(const primary_event::Resume& event, Instant now, Effects& effects) {
  if (event.epoch) {
    RD_CHECK(*event.epoch > epoch_);
    epoch_ = *event.epoch;
    inherited_ = ring_.sealed_point();
    for (PeerIndex index = 0; index < peers_.size(); ++index) {
      Peer& peer = peers_[index];
      if (peer.phase == PeerPhase::disconnected) continue;
      // It is given ack_timeout to come back under the new epoch; until then it is waited for.
      peer.phase = PeerPhase::disconnected;
      peer.joining = false;
      peer.last_progress = now;
      close_peer(index, Error{Errc::stale_epoch, 0, "a new epoch began", {}}, effects);
    }
  }
  end_hold(effects);
}

void Primary::advance_hold(Instant now, Effects& effects) {
  if (hold_phase_ == HoldPhase::draining) {
    if (!admitted_.empty() || !flushing_.empty() || !ring_.all_sealed()) return;
    if (!make_room(frame_header_bytes, effects)) return;
    ring_.reserve(frame_header_bytes);
    hold_sequence_ = ring_.next();
    place(std::nullopt, Change{.kind = FrameType::flush, .flags = 0, .range = {}}, now, effects);
    hold_phase_ = HoldPhase::flushing;
    effects.push_back(primary_effect::SyncImages{});
    return;
  }
  if (!hold_images_synced_ || !ring_.all_sealed()) return;
  bool durable = true;
  for (const Peer& peer : peers_) {
    if (acknowledges(peer) && peer.marks.durable < hold_sequence_) durable = false;
  }
  const HistoryPoint point = ring_.sealed_point();
  if (hold_target_) {
    const Peer& target = peers_[*hold_target_];
    if (!target.recorded || target.leaving) {
      fail_hold(Error{Errc::refused,
                      0,
                      fmt::format("{} left the in-sync set: {}",
                                  target.host,
                                  target.error ? target.error->message : "?"),
                      {}},
                effects);
      return;
    }
    if (target.marks.applied < hold_sequence_) {
      if (durable && !hold_ping_pending_) {
        hold_ping_pending_ = true;
        effects.push_back(primary_effect::Ping{*hold_target_});
      }
      return;
    }
    if (target.marks.applied_digest != point.digest) {
      fail_hold(Error{Errc::diverged,
                      0,
                      fmt::format("{} applied digest {} at sequence {}, the primary has {}",
                                  target.host,
                                  to_hex(target.marks.applied_digest),
                                  hold_sequence_,
                                  to_hex(point.digest)),
                      {}},
                effects);
      return;
    }
  }
  if (!durable) return;
  hold_phase_ = HoldPhase::reached;
  effects.push_back(primary_effect::HoldReached{point});
}

void Primary::fail_hold(Error error, Effects& effects) {
  effects.push_back(primary_effect::HoldFailed{std::move(error)});
  end_hold(effects);
}

void Primary::end_hold(Effects& effects) {
  hold_phase_ = HoldPhase::none;
  hold_sealed_ = false;
  hold_target_.reset();
  admit_waiting(effects);
}

}  // namespace replicad
