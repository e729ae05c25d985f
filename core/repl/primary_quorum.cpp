// An `async` primary answers without its members, so nothing else tells it that its term may be over: it stops when it
// hears of a later epoch, or when no majority of the voters has been heard for ack_timeout (declared in primary.h).

#include <algorithm>
#include <utility>

#include "core/repl/primary.h"

namespace replicad {

namespace {

/// Longer ago than any timeout.
constexpr Instant never_heard{-std::chrono::hours(24 * 365)};

}  // namespace

void Primary::on_event(const primary_event::VoterHeard& event, Instant now, Effects& /*effects*/) {
  if (event.fence.number > epoch_.number) {
    overtaken_ = true;
  } else {
    note_heard(event.host, std::min(event.at, now));
  }
}

void Primary::on_event(const primary_event::VotersChanged& event,
                       Instant /*now*/,
                       Effects& /*effects*/) {
  // Not even that a majority has made the change: how long ago that was is not known.
  set_voters(event.voters, never_heard);
}

void Primary::on_event(const primary_event::LaterEpoch& event,
                       Instant /*now*/,
                       Effects& /*effects*/) {
  if (event.epoch == epoch_) overtaken_ = true;
}

void Primary::set_voters(VoterSet voters, Instant unknown_heard) {
  voters_ = std::move(voters);
  is_quorum_alone_ = voters_.hosts.empty() || has_quorum(voters_, {host_});
  const auto heard_before = std::exchange(heard_, {});
  for (const std::string& host : voters_.hosts) {
    const auto known = heard_before.find(host);
    heard_[host] = known == heard_before.end() ? unknown_heard : known->second;
  }
  majority_heard_ = latest_majority();
}

void Primary::note_heard(std::string_view host, Instant at) {
  const auto voter = heard_.find(host);
  if (voter == heard_.end() || voter->second >= at) return;
  voter->second = at;
  majority_heard_ = latest_majority();
}

/// The latest time since when so many have been heard as make a majority with this host.
Instant Primary::latest_majority() const {
  std::vector<std::pair<Instant, std::string>> latest;
  for (const auto& [name, heard] : heard_)
    latest.emplace_back(heard, name);
  std::ranges::sort(latest, std::greater{});
  std::vector<std::string> yes{host_};
  for (const auto& [heard, name] : latest) {
    yes.push_back(name);
    if (has_quorum(voters_, yes)) return heard;
  }
  return never_heard;
}

/// Before each event, so that none is answered too late, and behind it.
void Primary::look_at_quorum(Instant now, Effects& effects) {
  const bool silence = !is_quorum_alone_ && now - majority_heard_ > ack_timeout_;
  // What was held in `async` is not let go by a change of the mode.
  const bool counts = mode_ == Mode::async || !held_answers_.empty();
  if (counts && (silence || overtaken_)) {
    if (!cut_off_since_) cut_off_since_ = now;
    return;
  }
  cut_off_since_.reset();
  for (const RequestId id : std::exchange(held_answers_, {}))
    effects.push_back(primary_effect::Answer{id, false});
}

}  // namespace replicad
