// Taking over from a primary that is lost (replicad/failover.cpp), declared in daemon.h.

#ifndef __clang__
// g++ 12 takes the value of an empty optional for one that may be read.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "tests/sim/cluster.h"
#include "tests/sim/daemon.h"
#include "tests/sim/daemon_ask.h"

namespace replicad::sim {

void Daemon::failover() {
  const VoterState& vote = state().vote;
  const bool fit = !is_witness() && !is_primary() && !is_busy() && replica_ && state().consistent &&
                   state().clean && !replica_->has_failed() && vote.record &&
                   contains_host(vote.record->in_sync, machine_.name);
  if (!fit) return;
  operation_ = "failover";
  if (!replica_->core().is_short()) return take_over(std::nullopt);
  struct Look {
    Record record;
    std::vector<CopyInfo> copies;
    std::size_t waits = 0;
  };
  auto look = std::make_shared<Look>(Look{*vote.record, {}, vote.record->in_sync.size()});
  for (const std::string& host : look->record.in_sync) {
    ask<CopyInfo>(
        host_index(host),
        ask_timeout,
        [](Daemon& member, const std::function<void(CopyInfo)>& answer) {
          answer(member.copy_info());
        },
        [this, look, host](const std::optional<CopyInfo>& copy) {
          CopyInfo silent;
          silent.host = host;
          silent.in_sync = true;
          look->copies.push_back(copy.value_or(silent));
          if (--look->waits > 0) return;
          const auto longest = longest_of_short(look->record, look->copies);
          const bool is_longest = contains_host(longest, machine_.name) &&
                                  state().vote.record == look->record && replica_;
          if (!is_longest) return end_operation();
          world_.reached("all short: the longest is chosen");
          take_over(replica_->core().logged());
        });
  }
}

/// What this host's GET says of its copy.
CopyInfo Daemon::copy_info() const {
  CopyInfo copy;
  copy.host = machine_.name;
  copy.reachable = copy.in_sync = true;
  copy.consistent = is_primary() ? state().clean : state().consistent;
  copy.is_short = replica_ && replica_->core().is_short();
  copy.end_known = is_primary() ? state().clean : replica_ != nullptr;
  const HistoryPoint point = replica_ ? replica_->core().logged() : state().history;
  copy.epoch = point.epoch;
  copy.sequence = point.sequence;
  return copy;
}

/// `longest`: this copy may lack something, and is the longest of all at that point.
void Daemon::take_over(const std::optional<HistoryPoint>& longest) {
  const Epoch term = state().vote.record->epoch;
  seal_replica(
      state().epoch, std::nullopt, [this, term, longest](const Result<HistoryPoint>& point) {
        if (!point) return end_operation();
        const bool fit =
            !replica_->core().is_short() ||
            (longest && point->epoch == longest->epoch && point->sequence >= longest->sequence);
        if (!fit) return reopen_replica();
        propose(change_failover({machine_.name, term, draw_tag(), false}),
                proposal_timeout,
                [this, point = *point](const Result<Record>& record) {
                  if (!record) {
                    recheck_ = true;
                    return reopen_replica();
                  }
                  world_.reached("promoted by failover");
                  record_promotion(*record, point, [](const Status& /*written*/) {});
                });
      });
}

}  // namespace replicad::sim
