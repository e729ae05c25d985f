// Holding the guest's writes for a switchover or a clean stop (declared in primary.h).

#include "core/base/check.h"
#include "core/repl/primary.h"

namespace replicad {

void Primary::on_event(const primary_event::Hold& event, Instant /*now*/, Effects& effects) {
  if (failure_) {
    effects.push_back(primary_effect::HoldFailed{*failure_});
    return;
  }
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
  // In the same step that begins the hold, so that no change slips in between.
  if (event.only_untouched && is_touched_) {
    effects.push_back(primary_effect::HoldFailed{
        Error{Errc::refused,
              0,
              "a write of the guest was let in here: whoever had the role before would not know it",
              "stop the VM that does not run here"}});
    return;
  }
  hold_phase_ = HoldPhase::draining;
  hold_images_synced_ = false;
  hold_ping_pending_ = false;
  hold_target_ = event.target;
  hold_deadline_ = event.deadline;
}

void Primary::on_event(const primary_event::ImagesSynced& event, Instant now, Effects& effects) {
  RD_CHECK(hold_syncs_under_way_ > 0);
  --hold_syncs_under_way_;
  if (!event.ok) {
    const Error error{Errc::io_error,
                      0,
                      "the primary's images could not be made durable",
                      "what was not durable may be lost: repair the disk"};
    // The kernel reports such a loss once: a later sync that succeeds proves nothing.
    on_event(primary_event::Fail{error}, now, effects);
    if (hold_phase_ == HoldPhase::flushing) fail_hold(error, effects);
    return;
  }
  // One that a given-up hold began says nothing about what was written since.
  if (hold_phase_ == HoldPhase::flushing && hold_syncs_under_way_ == 0) hold_images_synced_ = true;
}

void Primary::on_event(const primary_event::Seal& /*event*/,
                       Instant /*now*/,
                       Effects& /*effects*/) {
  if (hold_phase_ == HoldPhase::reached) hold_sealed_ = true;
}

void Primary::on_event(const primary_event::Resume& event, Instant now, Effects& effects) {
  if (event.epoch && *event.epoch > epoch_) {
    terms_.push_back({epoch_, ring_.sealed_point().sequence, true});
    epoch_ = *event.epoch;
    overtaken_ = false;
    inherited_ = ring_.sealed_point();
    for (PeerIndex index = 0; index < peers_.size(); ++index) {
      Peer& peer = peers_[index];
      if (peer.removed) continue;
      const Error error{Errc::stale_epoch, 0, "a new epoch began", {}};
      if (peer.phase == PeerPhase::disconnected) {
        // It may be attaching under the old epoch.
        effects.push_back(primary_effect::ClosePeer{index, error});
        continue;
      }
      // It is given ack_timeout to come back under the new epoch; until then it is waited for.
      peer.phase = PeerPhase::disconnected;
      peer.joining = false;
      peer.last_progress = now;
      close_peer(index, error, effects);
    }
  }
  end_hold(effects);
}

void Primary::advance_hold(Instant now, Effects& effects) {
  if (hold_phase_ != HoldPhase::draining && hold_phase_ != HoldPhase::flushing) return;
  if (hold_target_) {
    const Peer& target = peers_[*hold_target_];
    if (!target.recorded || target.leaving) {
      const std::string why = target.error ? target.error->message : "it came back since";
      fail_hold(
          Error{Errc::refused, 0, fmt::format("{} left the in-sync set: {}", target.host, why), {}},
          effects);
      return;
    }
  }
  if (hold_phase_ == HoldPhase::draining) {
    place_hold_flush(now, effects);
    return;
  }
  if (!hold_images_synced_ || !ring_.all_sealed()) return;
  bool durable = true;
  for (const Peer& peer : peers_) {
    if (acknowledges(peer) && peer.marks.durable < hold_sequence_) durable = false;
  }
  if (hold_target_ && !has_target_applied(durable, effects)) return;
  if (!durable) return;
  hold_phase_ = HoldPhase::reached;
  effects.push_back(primary_effect::HoldReached{ring_.sealed_point()});
}

void Primary::place_hold_flush(Instant now, Effects& effects) {
  if (!admitted_.empty() || !flushing_.empty() || !ring_.all_sealed()) return;
  if (ring_.next() > reserved_) return;
  if (!make_room(frame_header_bytes, effects)) return;
  ring_.reserve(frame_header_bytes);
  hold_sequence_ = ring_.next();
  place(std::nullopt, Change{.kind = FrameType::flush, .flags = 0, .range = {}}, now, effects);
  hold_phase_ = HoldPhase::flushing;
  hold_images_synced_ = false;
  ++hold_syncs_under_way_;
  effects.push_back(primary_effect::SyncImages{});
}

bool Primary::has_target_applied(bool durable, Effects& effects) {
  const Peer& target = peers_[*hold_target_];
  if (target.marks.applied < hold_sequence_) {
    if (durable && !hold_ping_pending_) {
      hold_ping_pending_ = true;
      effects.push_back(primary_effect::Ping{*hold_target_});
    }
    return false;
  }
  const Digest digest = ring_.sealed_point().digest;
  if (target.marks.applied_digest == digest) return true;
  fail_hold(Error{Errc::diverged,
                  0,
                  fmt::format("{} applied digest {} at sequence {}, the primary has {}",
                              target.host,
                              to_hex(target.marks.applied_digest),
                              hold_sequence_,
                              to_hex(digest)),
                  {}},
            effects);
  return false;
}

void Primary::fail_hold(Error error, Effects& effects) {
  effects.push_back(primary_effect::HoldFailed{std::move(error)});
  end_hold(effects);
}

void Primary::end_hold(Effects& effects) {
  hold_phase_ = HoldPhase::none;
  hold_sealed_ = false;
  hold_target_.reset();
  propose_record(effects);
  admit_waiting(effects);
}

}  // namespace replicad
