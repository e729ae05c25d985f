#pragma once
// replicad of one host as far as a volume is concerned (replicad/volume*, switchover, settlement): the state file,
// claims, records, the role and its transfer. A model: this logic lives in replicad, not in core.

#include <deque>
#include <functional>
#include <memory>
#include <optional>

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
  void stopped(const HistoryPoint& point, const std::vector<std::string>& in_sync, Done reply);
  void plugin_died();

  // Requests of an operator.
  [[nodiscard]] bool can_activate() const;
  void switchover(HostIndex to);

  [[nodiscard]] const VolumeState& state() const { return machine_.state; }
  [[nodiscard]] bool is_primary() const { return state().primary == machine_.name; }
  [[nodiscard]] bool is_busy() const { return !operation_.empty() || replica_busy_; }
  [[nodiscard]] const std::shared_ptr<ReplicaProgram>& replica() const { return replica_; }

 private:
  struct Update {
    std::function<Status(VolumeState&)> change;
    Done done;
  };
  struct View {
    std::string primary;
    Epoch epoch;
    bool promoting = false;
    bool has_failed = false;
    bool consistent = false;
  };
  enum class Fencing : std::uint8_t { fenced, primary_there, no_answer };

  void update(std::function<Status(VolumeState&)> change, Done done);
  void run_next();
  void take_role();
  void accept(const std::shared_ptr<Connection>& connection);
  Status attach(const std::shared_ptr<Connection>& connection, const AttachMessage& message);
  [[nodiscard]] std::shared_ptr<Plugin> plugin() const;
  void on_claimed(const Status& written,
                  bool was_clean,
                  const std::shared_ptr<Plugin>& plugin,
                  const std::function<void(Result<ClaimGrant>)>& reply);

  // daemon_switchover.cpp
  /// Asks another host's replicad; `done` gets nullopt when no answer comes.
  template <typename Answer>
  void ask(HostIndex to,
           Duration timeout,
           std::function<void(Daemon&, std::function<void(Answer)>)> request,
           std::function<void(std::optional<Answer>)> done);
  [[nodiscard]] View view() const;
  void fence(const Epoch& epoch, Done done);
  void promote(HostIndex from,
               const Epoch& epoch,
               const HistoryPoint& point,
               const std::vector<std::string>& in_sync,
               Done done);
  void record_promotion(const Epoch& epoch,
                        const HistoryPoint& point,
                        const std::vector<std::string>& in_sync,
                        Done done);
  void on_held(HostIndex to, const Result<HistoryPoint>& point);
  void offer(HostIndex to, const HistoryPoint& point);
  void on_promise(HostIndex to, const std::optional<Status>& answer);
  void settle();
  void fence_target(HostIndex to,
                    Epoch epoch,
                    int attempts,
                    std::function<void(Fencing, Epoch)> done);
  void finish_promoted(const std::string& primary, const Epoch& epoch);
  void finish_not_promoted(const Epoch& epoch);
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
  std::weak_ptr<Plugin> session_;  ///< the plugin that has claimed
  std::string operation_;
  bool holding_ = false;  ///< the plugin was asked to hold and has not answered
};

}  // namespace replicad::sim
