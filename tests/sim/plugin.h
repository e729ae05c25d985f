#pragma once
// The primary's update agent (nbd-plugin/) around the real Primary: guest requests, image, ring, links to the replicas,
// copies, and the requests to the local replicad.

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "core/repl/primary.h"
#include "tests/sim/activity_model.h"
#include "tests/sim/network.h"
#include "tests/sim/oracle.h"
#include "tests/sim/program.h"

namespace replicad::sim {

class Cluster;
class Daemon;
class Plugin;

/// What a claim gives.
struct ClaimGrant {
  Epoch epoch;
  HistoryPoint history;
  Sequence reserved = 0;
  std::vector<std::string> in_sync;
  bool was_clean = true;
  VoterSet voters;
};

/// One replica's connection, for as long as the plugin lives (nbd-plugin/peer_link, copy_job).
class PeerLink : public std::enable_shared_from_this<PeerLink> {
 public:
  PeerLink(Plugin& plugin, PeerIndex peer, HostIndex host);

  void connect();
  void on_second();
  void send_start(const StartMessage& message);
  void run_copy(const ResyncPlan& plan);
  void copy_locked();
  void close(const Error& error);
  void kick();
  void request_sync();
  void ping();
  void abandon();
  /// The member has promised a later term.
  [[nodiscard]] bool is_outdated() const { return outdated_; }

 private:
  void adopt(const std::shared_ptr<Connection>& connection);
  void retry(const Error& error);
  Status on_frame(const FrameView& frame);
  void on_closed(const Error& error);
  void note_answered(std::uint64_t heartbeat);
  void next_piece();
  void compare_next();
  void send_sums(const Range& range);
  Status on_diffs(const FrameView& frame);
  [[nodiscard]] bool has_compared() const { return compare_.empty() && unanswered_.empty(); }
  void finish_piece(std::uint64_t serial);
  void end_copy();
  void drop_copy();
  [[nodiscard]] bool is_connected() const;

  Plugin& plugin_;
  PeerIndex peer_;
  HostIndex host_;
  std::shared_ptr<Connection> connection_;
  std::uint64_t connection_serial_ = 0;
  bool attached_ = false;
  bool outdated_ = false;
  Epoch epoch_;
  Instant attached_at_;
  std::uint64_t heartbeat_ = 0;
  std::map<std::uint64_t, Instant> heartbeats_;
  bool window_in_flight_ = false;
  Duration delay_;
  Instant last_heard_;
  Sequence digest_sent_ = 0;

  bool copying_ = false;
  std::uint64_t copy_serial_ = 0;
  BlockMap copy_left_;            ///< to be sent
  BlockMap compare_;              ///< to be compared
  std::deque<Range> unanswered_;  ///< being compared
  bool piece_under_way_ = false;
  Range copy_range_;
  std::vector<std::byte> piece_;  ///< finished, not taken by the kernel yet
  bool piece_in_flight_ = false;
  bool copy_sent_ = false;  ///< every piece
  std::optional<HistoryPoint> copy_end_;
};

class Plugin : public std::enable_shared_from_this<Plugin> {
 public:
  Plugin(Cluster& cluster, HostIndex host);

  /// Claims the volume from the host's replicad; serves when that succeeds, else dies.
  void start();
  void die();
  /// Before it serves, a plugin ends with its connection to replicad.
  void daemon_died();
  [[nodiscard]] bool is_alive() const { return life_.is_alive(); }
  [[nodiscard]] bool is_serving() const { return is_alive() && primary_.has_value(); }
  /// Takes a request of the guest; the answer goes to the cluster's guest.
  void submit(const GuestOp& op);

  // Requests of replicad. `done` runs in the plugin.
  void hold(HostIndex target, Duration deadline, std::function<void(Result<HistoryPoint>)> done);
  /// Of the daemon that has just been restarted, or of this plugin's claim.
  void join(const std::shared_ptr<Daemon>& daemon) {
    daemon_ = daemon;
    joined_at_ = world_.now();
  }
  /// replicad was there all the time since.
  [[nodiscard]] bool is_joined_since(Instant time) const { return daemon() && joined_at_ <= time; }
  Status seal();
  void resume(const std::optional<Epoch>& epoch);
  void request_copy(HostIndex host);
  void set_mode(Mode mode, Congestion congestion);
  void stop();
  /// What replicad has heard from a voter.
  void voter_heard(HostIndex host, Instant at, const Epoch& fence) {
    step_later(primary_event::VoterHeard{host_name(host), at, fence});
  }
  /// A member refuses this term.
  [[nodiscard]] bool is_outdated() const;

  [[nodiscard]] const Primary& core() const { return *primary_; }
  [[nodiscard]] HostIndex host() const { return host_; }
  [[nodiscard]] Mode mode() const { return mode_; }

  // For PeerLink.
  [[nodiscard]] Cluster& cluster() { return cluster_; }
  [[nodiscard]] World& world() { return world_; }
  [[nodiscard]] Machine& machine() { return machine_; }
  [[nodiscard]] const Life& life() const { return life_; }
  void step(const PrimaryEvent& event);
  Primary::SendWindow take(PeerIndex peer, std::uint64_t bytes_max);
  [[nodiscard]] std::vector<std::byte> ring_bytes(const Primary::SendWindow& window) const;
  void step_later(PrimaryEvent event);

 private:
  struct Pending {
    GuestOp op;
    Change change;
    FrameHeader header;
    std::uint64_t ring_offset = 0;
    bool placed = false;
    bool failed = false;  ///< the image could not take it
    bool wants_answer = true;
    bool synced = false;     ///< flush: the image is durable
    Mode mode = Mode::sync;  ///< that it is answered in: when it was numbered, or after `async`
    Congestion congestion = Congestion::throttle;
  };
  struct Filled {
    std::uint32_t crc = 0;
    Range range;
    Blocks stamps;
  };

  void on_claimed(const Result<ClaimGrant>& grant);
  void serve(const ClaimGrant& grant, ActivityModel::Known known);
  void write_image(RequestId id, int error);
  void cool_regularly();
  void finish_activity(const HistoryPoint& point, std::function<void()> done);
  void step_locked(const PrimaryEvent& event);
  void seal_ready();
  void perform_now(const PrimaryEffect& effect, std::vector<PrimaryEffect>& later);
  void turn();
  void perform(const PrimaryEffect& effect);
  void admitted(RequestId id);
  void written(RequestId id, int error);
  void fill(RequestId id);
  void put_frame(FrameHeader header, std::uint64_t offset, const Blocks& stamps);
  void answer(RequestId id, bool failed);
  [[nodiscard]] std::function<void(Status)> asked(std::function<void(Status)> done);
  void send_record(const std::vector<std::string>& in_sync);
  void send_reserve(Sequence until);
  void sync_local(std::function<void(bool)> done);
  void every_tick();
  void every_second();
  void finish_hold(Result<HistoryPoint> result);
  [[nodiscard]] std::shared_ptr<Daemon> daemon() const;

  Cluster& cluster_;
  World& world_;
  Machine& machine_;
  HostIndex host_;
  Life life_;
  std::weak_ptr<Daemon> daemon_;
  std::shared_ptr<ActivityModel> activity_;
  Instant asked_at_;
  Instant joined_at_;
  std::optional<Primary> primary_;
  std::vector<std::byte> ring_;
  std::map<RequestId, Pending> requests_;
  std::map<Sequence, Filled> filled_;  ///< in the ring, not sealed yet
  std::vector<PrimaryEffect> for_reactor_;
  std::set<PeerIndex> sendable_;  ///< handled behind for_reactor_
  bool turning_ = false;
  bool stepping_ = false;
  std::vector<std::shared_ptr<PeerLink>> links_;
  std::function<void(Result<HistoryPoint>)> hold_done_;
  std::map<std::uint64_t, std::function<void(Status)>> asked_;  ///< requests without an answer
  std::uint64_t last_asked_ = 0;
  Sequence reserved_ = 0;
  Mode mode_ = Mode::sync;
  Congestion congestion_ = Congestion::throttle;
  bool stopping_ = false;
};

}  // namespace replicad::sim
