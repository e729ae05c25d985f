// An `async` primary answers without its members, so nothing else tells it that its term may be over: it stops when it
// hears of a later epoch, or when no majority of the voters has been heard for ack_timeout (declared in primary.h).

#include <algorithm>
#include <utility>

#include "core/repl/primary.h"

namespace replicad {

void Primary::on_event(const primary_event::VoterHeard& event, Instant now, Effects& /*effects*/) {
  if (event.fence.number > epoch_.number) {
    overtaken_ = true;
  } else {
    note_heard(event.host, std::min(event.at, now));
  }
}

void Primary::on_event(const primary_event::VotersChanged& event,
                       Instant now,
                       Effects& /*effects*/) {
  voters_ = event.voters;
  // Only a majority could change them.
  note_all_heard(now);
}

void Primary::on_event(const primary_event::LaterEpoch& event,
                       Instant /*now*/,
                       Effects& /*effects*/) {
  if (event.epoch == epoch_) overtaken_ = true;
}

void Primary::note_all_heard(Instant now) {
  is_quorum_alone_ = voters_.hosts.empty() || has_quorum(voters_, {host_});
  heard_.clear();
  for (const std::string& host : voters_.hosts)
    heard_[host] = now;
  majority_heard_ = now;
}

void Primary::note_heard(std::string_view host, Instant at) {
  const auto voter = heard_.find(host);
  if (voter == heard_.end() || voter->second >= at) return;
  voter->second = at;
  std::vector<std::pair<Instant, std::string>> latest;
  for (const auto& [name, heard] : heard_)
    latest.emplace_back(heard, name);
  std::ranges::sort(latest, std::greater{});
  std::vector<std::string> yes{host_};
  for (const auto& [heard, name] : latest) {
    yes.push_back(name);
    if (!has_quorum(voters_, yes)) continue;
    majority_heard_ = std::max(majority_heard_, heard);
    return;
  }
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
