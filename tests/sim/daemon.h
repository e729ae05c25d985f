#pragma once
// replicad of one host as far as a volume is concerned (replicad/volume*, switchover, settlement): the state file,
// claims, votes, records, the role and its transfer. A model: this logic lives in replicad, not in core.

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <set>

#include "core/control/failover_view.h"
#include "core/vote/proposer.h"
#include "tests/sim/plugin.h"
#include "tests/sim/replica_program.h"

namespace replicad::sim {

class Daemon : public std::enable_shared_from_this<Daemon> {
 public:
  using Done = std::function<void(Status)>;

  Daemon(Cluster& cluster, HostIndex host);

  void start();
  void die();
  [[nodiscard]] bool is_alive() const { return life_.is_alive(); }

  // Requests of the plugin. Answers come later.
  void claim(const std::shared_ptr<Plugin>& plugin, std::function<void(Result<ClaimGrant>)> reply);
  void rejoin(const std::shared_ptr<Plugin>& plugin);
  void record_in_sync(const std::vector<std::string>& in_sync, Done reply);
  void reserve(Sequence until, Done reply);
  void stopped(const HistoryPoint& point, Done reply);
  void plugin_died();

  // Requests of an operator.
  [[nodiscard]] bool can_activate() const;
  void switchover(HostIndex to);
  /// Takes the primary's role over without asking the primary.
  void failover();
  /// The images count as they are: the primary compares all of them.
  void readmit();
  /// They are not what this host wrote.
  [[nodiscard]] bool refuses_images() const { return refuses_images_; }

  [[nodiscard]] const VolumeState& state() const { return machine_.state; }
  [[nodiscard]] bool is_primary() const { return state().primary == machine_.name; }
  /// For a violation's text.
  [[nodiscard]] std::string describe() const;
  [[nodiscard]] bool is_busy() const { return !operation_.empty() || replica_busy_; }
  [[nodiscard]] const std::shared_ptr<ReplicaProgram>& replica() const { return replica_; }

 private:
  struct Update {
    std::function<Status(VolumeState&)> change;
    Done done;
  };
  struct View {
    std::string primary;
    bool has_failed = false;
    bool consistent = false;
  };
  enum class RoleDue : std::uint8_t { none, ask, promote, demote };
  using Chosen = std::function<void(Result<Record>)>;
  struct Proposal {
    Proposal(const std::string& host, std::uint32_t nonce, RecordChange change)
        : proposer(host, nonce, std::move(change)) {}
    Proposer proposer;
    Chosen done;
    std::optional<Result<Record>> result;
    bool learning = false;  ///< this host's own voter is told of what was chosen
  };
  struct PromotionOrder {
    HostIndex from = 0;
    Epoch term;   ///< that ends
    Epoch epoch;  ///< that is offered
    HistoryPoint point;
  };

  void update(std::function<Status(VolumeState&)> change, Done done);
  void run_next();
  void take_role();
  [[nodiscard]] bool are_other_images();
  void learn_identity();
  void accept(const std::shared_ptr<Connection>& connection);
  Status attach(const std::shared_ptr<Connection>& connection, const AttachMessage& message);
  [[nodiscard]] std::shared_ptr<Plugin> plugin() const;
  void record_claim(const Record& record,
                    const std::shared_ptr<Plugin>& plugin,
                    const std::function<void(Result<ClaimGrant>)>& reply);
  void on_claimed(const Status& written,
                  bool was_clean,
                  const std::shared_ptr<Plugin>& plugin,
                  const std::function<void(Result<ClaimGrant>)>& reply);

  [[nodiscard]] bool is_witness() const;
  [[nodiscard]] std::uint32_t draw_tag() {
    return static_cast<std::uint32_t>(world_.random.next());
  }

  // daemon_vote.cpp: the voter, proposals, and what follows from a record
  /// Asks another host's replicad; `done` gets nullopt when no answer comes.
  template <typename Answer>
  void ask(HostIndex to,
           Duration timeout,
           std::function<void(Daemon&, std::function<void(Answer)>)> request,
           std::function<void(std::optional<Answer>)> done);
  void vote_prepare(const PrepareRequest& request, std::function<void(Result<PrepareReply>)> done);
  void vote_accept(const AcceptRequest& request, std::function<void(Result<AcceptReply>)> done);
  void vote_chosen(const ChosenNotice& notice, Done done);
  void propose(RecordChange change, Duration timeout, Chosen done);
  void drive(const std::shared_ptr<Proposal>& proposal, const ProposerEvent& event);
  void perform(const std::shared_ptr<Proposal>& proposal, const ProposerEffect& effect);
  void finish(const std::shared_ptr<Proposal>& proposal, const Result<Record>& result);
  [[nodiscard]] RoleDue role_due() const;
  void keep_role();
  void follow_role();
  void watch_voters();
  void demote();
  void renew(const std::shared_ptr<Plugin>& plugin);

  // daemon_role.cpp: the transfer of the primary's role
  [[nodiscard]] View view() const;
  void on_held(HostIndex to, const Result<HistoryPoint>& point);
  void offer(HostIndex to, const HistoryPoint& point);
  void promote(const PromotionOrder& order, const Done& done);
  void seal_replica(const Epoch& epoch,
                    const std::optional<HistoryPoint>& point,
                    std::function<void(Result<HistoryPoint>)> done);
  void record_promotion(const Record& record, const HistoryPoint& point, Done done);
  void reopen_replica();
  [[nodiscard]] CopyInfo copy_info() const;
  void take_over(const std::optional<HistoryPoint>& longest);
  void settle();
  void go_on(const Record& record);
  void give_up_role(const std::string& primary, const std::optional<HistoryPoint>& point);
  Status remove_log();
  void record_replica(const std::string& primary, const std::optional<HistoryPoint>& point);
  void end_operation();

  Cluster& cluster_;
  World& world_;
  Machine& machine_;
  HostIndex host_;
  Life life_;
  std::deque<Update> updates_;
  bool updating_ = false;
  bool role_pending_ = false;
  std::shared_ptr<ReplicaProgram> replica_;
  bool replica_busy_ = false;
  bool opened_badly_ = false;
  bool refuses_images_ = false;
  std::weak_ptr<Plugin> session_;  ///< the plugin that has claimed
  std::string operation_;
  bool recheck_ = false;  ///< the voters must be asked who is the primary
  std::set<HostIndex> voters_asked_;
  bool holding_ = false;  ///< the plugin was asked to hold and has not answered
};

}  // namespace replicad::sim
