#pragma once
// One volume on this host: its durable state, the role that follows from it, and whoever holds its
// images: the ReplicaVolume, this class itself (a primary that is not served keeps them locked), or
// the plugin, which claims them over the agent socket. Reactor thread only, unless a member says
// otherwise.

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "replicad/agent_session.h"
#include "replicad/endpoint.h"
#include "replicad/options.h"
#include "replicad/replica_volume.h"
#include "replicad/state_store.h"
#include "replicad/volume_json.h"

namespace replicad {

/// For the answer to `resume`.
constexpr Duration plugin_resume_timeout = std::chrono::seconds(10);

enum class HostTrouble { link_loss, disk_error };

class VoteDriver;

/// What a host's role lacks to be what the record says.
enum class RoleDue {
  none,
  ask,      ///< whether the record it has was chosen, or is the last one, is not known
  promote,  ///< it is the recorded primary and still a replica
  demote,   ///< another host is
  renew,    ///< it serves, and a member refuses its term: it has promised a later one
};

/// What all volumes of a host share.
struct VolumeEnvironment {
  Reactor& reactor;
  Worker& worker;
  Worker& background;  ///< for what nobody waits for
  const Options& options;
  std::function<void(HostTrouble)> count_trouble;
  VoteDriver* votes = nullptr;          ///< set before any volume is loaded
  std::function<void()> wake_keeper{};  ///< some volume's role is due (role_keeper.h)
  GivenSockets given_sockets{};         ///< of the service manager, that no volume has taken yet
  bool stopping = false;  ///< the daemon ends: plugins that hang up are not taken for dead

  [[nodiscard]] std::string volumes_dir() const { return options.state_dir + "/volumes"; }
  [[nodiscard]] std::string volume_dir(const std::string& name) const {
    return volumes_dir() + "/" + name;
  }
};

/// What POST promote asks for, checked for form.
struct PromotionRequest {
  std::string from;
  Epoch term;   ///< of `from`, which ends
  Epoch epoch;  ///< of the new term
  HistoryPoint history;
  bool activate = true;
  std::optional<std::uint32_t> handover = {};  ///< it must be on record
};

class Volume : public std::enable_shared_from_this<Volume> {
 public:
  using Done = std::function<void(Status)>;

  /// Reads the state file. A volume whose file is damaged exists too: is_broken().
  static std::shared_ptr<Volume> load(VolumeEnvironment& environment, const std::string& name);
  /// For a volume of which nothing is on disk yet; the first update() makes it durable.
  static std::shared_ptr<Volume> create(VolumeEnvironment& environment, const std::string& name);
  Volume(const Volume&) = delete;
  Volume& operator=(const Volume&) = delete;

  [[nodiscard]] const std::string& name() const { return name_; }
  /// Its state file cannot be read: it is listed, nothing else.
  [[nodiscard]] bool is_broken() const { return load_error_.has_value(); }
  [[nodiscard]] const VolumeState& state() const { return store_->state(); }
  [[nodiscard]] bool is_primary() const { return state().primary == environment_.options.host; }
  [[nodiscard]] VolumeSnapshot snapshot() const;
  void update(StateStore::Change change, Done done) {
    store_->update(std::move(change), std::move(done));
  }
  /// No change of the state is on its way to the disk.
  [[nodiscard]] bool is_settled() const { return store_->is_idle(); }
  [[nodiscard]] ExportCommand export_command() const;
  /// The NBD socket. Held from the first export on for as long as another one is to follow.
  [[nodiscard]] Endpoint& endpoint() { return endpoint_; }

  // One operation of an operator or a peer at a time.

  /// Errors: Errc::busy with the name of the operation under way; the load error of a broken
  /// volume.
  [[nodiscard]] Status begin_operation(const std::string& what);
  void end_operation() {
    operation_.clear();
    if (is_standby_amiss()) environment_.wake_keeper();
  }
  [[nodiscard]] bool has_operation() const { return !operation_.empty(); }
  [[nodiscard]] const std::string& operation() const { return operation_; }

  // Role and images (volume.cpp).

  /// Takes up what the role asks for: opens the replica, or locks the primary's images. What
  /// another process still holds is tried again until it works; open_error() says why not. Harmless
  /// if it is done already.
  void take_role();
  [[nodiscard]] const std::optional<Error>& open_error() const { return open_error_; }
  /// The images are locked, the replica is open, or a plugin has them.
  [[nodiscard]] bool has_images() const;
  /// Its images are not those that this host wrote (image_check.h): it stands still until look_again() finds the
  /// right ones, or accept_images() was called.
  [[nodiscard]] bool has_other_images() const {
    return open_error_ && open_error_->code == Errc::inconsistent && !has_images();
  }
  void look_again();
  /// The images count as they are, durably: at a replica as nothing that a disk ever had, so that the primary compares
  /// them in full, or, with `trust`, for what they should be; at the primary as what an unclean end has left.
  void accept_images(bool trust, Done done);
  /// Lets go of images and log. `discard_log`: also removes the log. Not with a plugin.
  void release(bool discard_log, std::function<void()> done);
  /// Before the daemon ends: undoes a claim of a plugin that does not serve yet. Others are left
  /// alone.
  void abandon_claim(std::function<void()> done);
  /// Looks after the export's process (collects it when it has ended) and the NBD socket (lets go of one that nothing
  /// is going to serve). Called every second.
  void tend();

  // The voter (volume_vote.cpp). What is answered is durable by then.

  void vote_prepare(const PrepareRequest& request, std::function<void(Result<PrepareReply>)> done);
  void vote_accept(const AcceptRequest& request, std::function<void(Result<AcceptReply>)> done);
  void vote_chosen(const ChosenNotice& notice, Done done);
  /// What another voter told of the state files that it knows (docs/decisions/0013), with a request or an answer.
  void hear_stamps(const StateStamps& heard);
  /// What goes along with a vote: of this host's state file, and what it remembers of others'.
  [[nodiscard]] StateStamps stamps() const;
  /// The state file was put back to an older copy (docs/decisions/0013).
  [[nodiscard]] bool is_put_back() const { return put_back_ || state().put_back; }
  /// `record` was chosen without this host's vote, above all that it may have promised: it takes part again,
  /// its images to be compared in full.
  void end_put_back(const std::optional<Record>& record, Done done);
  [[nodiscard]] RoleDue role_due() const;
  /// The record is to be asked for again, or has just been.
  void set_recheck(bool recheck) {
    recheck_ = recheck;
    if (!recheck && std::exchange(preparing_open_, false)) set_preparing(false);
  }
  /// A later term than the one that was refused begins, or another attempt comes later.
  void note_renewal();
  /// State SPLIT: another history was met (core/vote/fork.h).
  [[nodiscard]] bool is_split() const { return state().rival.has_value(); }
  /// Durably in the state SPLIT: nothing is served from now on, but by an export that runs and that the
  /// caller ends.
  void note_rival(const Record& rival, Done done);
  /// This member's history is given up for that of `kept`: durably a replica of its primary, without a
  /// vote until it is a member there. Its images stay as they are, at a point that is on no history.
  /// No plugin has them.
  void join_history(const Record& kept, Done done);
  /// Why the last proposal found no quorum; shown until one does.
  void note_vote(std::optional<Error> error) { vote_error_ = std::move(error); }

  // A handover (volume_standby.cpp).

  /// By which the plugin serves: `sync` from before a handover is on record until one without it is known to have been
  /// chosen in this host's own term.
  [[nodiscard]] VolumeSettings settings_in_force() const;
  /// A handover is being put on record here. leave_preparing_open(): whether it is on record is not known.
  void set_preparing(bool preparing);
  void leave_preparing_open();
  /// The handover on record, if it names this host.
  [[nodiscard]] const HandoverState* handover() const;
  /// Id of the handover whose standby is to be here; 0: none. From the record alone.
  [[nodiscard]] std::uint32_t standby_due() const;
  /// The standby that is here is not the one that is due.
  [[nodiscard]] bool is_standby_amiss() const;
  [[nodiscard]] bool is_standby_dead() const {
    return standby_ && standby_->wait_exit(std::chrono::milliseconds(0));
  }
  /// `process`: null while it is being started.
  void set_standby(std::uint32_t id, std::shared_ptr<ExportProcess> process);
  void note_standby(bool serves);
  /// That of the handover `id` has not started. False, and of no account, if it is not the one due any more.
  [[nodiscard]] bool note_standby_failed(std::uint32_t id, Error error);
  /// It is to be killed. May be null.
  [[nodiscard]] std::shared_ptr<ExportProcess> take_standby();
  [[nodiscard]] std::optional<ExportInfo> standby_info() const;

  // The replica's side (volume.cpp).

  /// A connection whose first frame was `message`. An error is for the caller to answer.
  [[nodiscard]] Status attach(const std::shared_ptr<FrameConnection>& connection,
                              const AttachMessage& message);
  /// Before a promotion: ends the session, takes no more frames, waits until everything logged is
  /// applied and synced. With `point`: promises `epoch` durably first and compares with the point.
  /// Then either record_promotion() or reopen_replica() must follow. On error (also Errc::timeout
  /// after `timeout`) it has stayed a replica.
  void seal_replica(const Epoch& epoch,
                    const std::optional<HistoryPoint>& point,
                    Duration timeout,
                    const std::function<void(Result<HistoryPoint>)>& done);
  /// The record names this host: durably becomes the primary at `point`, with the images locked.
  void record_promotion(const Record& record, const HistoryPoint& point, bool activate, Done done);
  /// After a promotion that did not happen: the session ended, so the replica starts anew from its
  /// checkpoint.
  void reopen_replica();
  /// Likewise a replica whose disk has failed, to try it again. Does nothing to any other.
  void reopen_failed_replica();
  /// Whether promote may begin.
  [[nodiscard]] Status check_promotion(const PromotionRequest& request) const;
  /// Durably becomes a replica of `primary`. With `point`, which its images hold; without, they hold
  /// an unclean end and no more than a copy helps. take_role() comes later, when no plugin has them
  /// any more.
  void become_replica(const std::string& primary,
                      const std::optional<HistoryPoint>& point,
                      Done done);

  // The plugin's side (volume_agent.cpp).

  /// First request of a connection: `claim` or `rejoin`.
  void on_first_request(const std::shared_ptr<AgentSession>& session,
                        const std::string& op,
                        std::uint64_t id,
                        const nlohmann::json& request);
  /// A plugin holds the images or is about to.
  [[nodiscard]] bool has_plugin() const { return phase_ != Phase::none; }
  [[nodiscard]] bool is_serving() const { return phase_ == Phase::serving; }
  /// Errors as AgentSession::request, and Errc::refused when no plugin serves.
  void plugin_request(const std::string& op,
                      nlohmann::json fields,
                      Duration timeout,
                      AgentSession::Answer answer);
  void plugin_release();
  [[nodiscard]] std::optional<ExportInfo> export_info() const;
  [[nodiscard]] std::shared_ptr<ExportProcess> export_process() const { return process_; }

  /// Before nbdkit is started here: checks that it may be. Errors: Errc::refused, Errc::busy.
  [[nodiscard]] Status prepare_export();
  void set_export_process(std::shared_ptr<ExportProcess> process);
  /// The start is given up: `serving` is refused from now on. The process must be killed, not
  /// stopped.
  void abandon_export() { abandoned_ = true; }
  /// The plugin has said `serving` since prepare_export(), abandoned or not: guests may have been
  /// answered.
  [[nodiscard]] bool has_served() const { return has_served_; }
  void end_export_start() { starting_ = false; }
  /// While it is set a stop on request is the first half of a restart: the volume stays active, its socket open.
  void set_restarting(bool restarting) { restarting_ = restarting; }
  /// The export is to be started now, because it ended otherwise than by request (with this daemon alive, or with
  /// `autostart`), or because a promotion was cut short. What is waited for before is in the
  /// snapshot's error.
  [[nodiscard]] bool export_due() const;
  /// An attempt to start it has failed: the voters are asked before the next one, which comes the
  /// later the more have failed.
  void note_start_failed(const Error& error);

 private:
  enum class Phase {
    none,
    claiming,  ///< the claim is being made durable
    claimed,   ///< the plugin has the images and has not said `serving`
    serving,
    stopped,  ///< it has stopped cleanly and will hang up
  };

  Volume(VolumeEnvironment& environment, std::string name);
  ~Volume();
  /// Whoever drops the last reference, on any thread: the volume ends on the reactor thread.
  static std::shared_ptr<Volume> make(VolumeEnvironment& environment, const std::string& name);

  // volume.cpp
  void open_replica();
  void lock_images();
  void watch_images();
  Status note_failed_writes();
  void retry_role();
  void note_open(Status status);
  void learn_identities(const std::vector<int>& fds);
  [[nodiscard]] ReplicaVolume::Hooks replica_hooks();
  [[nodiscard]] std::string shown_state() const;
  [[nodiscard]] std::optional<Error> shown_error() const;
  [[nodiscard]] Error split_error() const;
  [[nodiscard]] std::string log_dir() const { return environment_.volume_dir(name_) + "/log"; }
  void discard_leftover_log() const;
  [[nodiscard]] Status check_voting() const;
  [[nodiscard]] Status check_vote() const;
  [[nodiscard]] Error put_back_error() const;
  void note_put_back(std::uint64_t generation);
  [[nodiscard]] bool is_refused() const;
  void watch_voters();
  void ask_voters();
  void on_voter_heard(const std::string& host, Instant asked, const Result<Epoch>& fence);
  void tell_fence(const std::string& host, Instant asked, const Epoch& fence);

  // volume_standby.cpp
  using Reply = std::function<void(Result<nlohmann::json>)>;
  /// A request that the standby holds.
  struct Gate {
    std::shared_ptr<AgentSession> session;
    Reply reply;
    bool wants_role = false;
    bool durable = false;            ///< a flush
    bool asked = false;              ///< the primary has been asked since it came
    std::optional<Position> awaits;  ///< what the primary has answered
    [[nodiscard]] bool waits() const { return !wants_role && !asked; }
  };
  void follow_handover();
  [[nodiscard]] bool is_standby_claim() const;
  [[nodiscard]] nlohmann::json standby_grant() const;
  void on_standby_request(const std::shared_ptr<AgentSession>& session,
                          bool wants_role,
                          const nlohmann::json& request,
                          Reply reply);
  void tend_gates();
  [[nodiscard]] bool has_applied(Gate& gate);
  void ask_for_answered();
  void on_answered(const Result<nlohmann::json>& answer);
  void ask_for_role();
  void ask_primary(const std::string& verb,
                   const nlohmann::json& body,
                   std::chrono::milliseconds timeout,
                   std::function<void(Volume&, const Result<nlohmann::json>&)> done);

  // volume_agent.cpp
  void on_request(const std::shared_ptr<AgentSession>& session,
                  const std::string& op,
                  std::uint64_t id,
                  const nlohmann::json& request);
  [[nodiscard]] Status check_claim() const;
  void claim(const std::shared_ptr<AgentSession>& session,
             const nlohmann::json& request,
             Reply reply);
  void record_claim(const Record& record, const Reply& reply);
  void on_claimed(Status written, bool was_clean, const Reply& reply);
  void undo_claim();
  void rejoin(const std::shared_ptr<AgentSession>& session,
              const nlohmann::json& request,
              Reply reply);
  void end_hold(bool missed_term);
  void take_socket_back();
  void serving(const nlohmann::json& request, const Reply& reply);
  void record_in_sync(const nlohmann::json& request, Reply reply);
  void reserve(const nlohmann::json& request, Reply reply);
  void stopped(const nlohmann::json& request, Reply reply);
  void record_stop(const HistoryPoint& history,
                   const std::vector<ImageMark>& marks,
                   const Reply& reply);
  void on_event(const nlohmann::json& event);
  void on_plugin_closed(const std::shared_ptr<AgentSession>& session, const Error& error);
  void note_unclean_end(const Error& error);
  [[nodiscard]] bool awaits_start() const;
  void delay_start();
  void bind_session(const std::shared_ptr<AgentSession>& session);
  void drop_session();
  [[nodiscard]] nlohmann::json claim_result(bool unclean) const;

  VolumeEnvironment& environment_;
  std::string name_;
  std::unique_ptr<StateStore> store_;
  std::optional<Error> load_error_;
  std::string operation_;
  bool released_ = false;  ///< release() was called: the role is not taken up again

  std::unique_ptr<ReplicaVolume> replica_;
  bool replica_busy_ = false;  ///< a promotion or shutdown of it is under way
  std::vector<Fd> images_;     ///< primary without a plugin
  /// Of the images that a plugin has, opened before it wrote: of writes that failed the kernel tells these, too.
  std::vector<Fd> watches_;
  std::optional<Error> open_error_;
  Instant open_since_{};  ///< when the images were first wanted
  bool opening_ = false;  ///< a retry is scheduled

  bool recheck_ = true;  ///< the record may have changed while this host was away
  std::optional<Error> vote_error_;
  /// Generation that others know of; on its way to the state file.
  std::optional<std::uint64_t> put_back_;

  Phase phase_ = Phase::none;
  std::shared_ptr<AgentSession> session_;
  bool claim_was_clean_ = true;
  bool starting_ = false;   ///< this host is starting an export
  bool abandoned_ = false;  ///< ... and has given it up
  bool has_served_ = false;
  std::shared_ptr<ExportProcess> process_;
  std::vector<std::shared_ptr<ExportProcess>> former_processes_;  ///< not seen to have ended yet
  Endpoint endpoint_;
  bool ended_by_request_ = false;  ///< the last export, if there was one
  bool restarting_ = false;        ///< the next one follows the request
  bool lost_ =
      false;  ///< it ended otherwise while this daemon looked on, and none has served since
  unsigned failed_starts_ = 0;  ///< and exports that did not live for long
  Instant start_again_at_{};
  Instant serving_since_{};
  std::optional<Error> start_error_;
  std::int64_t plugin_pid_ = 0;
  std::optional<PluginStatus> plugin_status_;
  Instant renew_after_{};
  bool watching_voters_ = false;        ///< a timer runs
  std::set<std::string> voters_asked_;  ///< that have not answered yet
  std::optional<Error> last_end_;       ///< why the last export ended, if uncleanly

  bool handover_mode_ = false;    ///< the plugin is to be `sync`
  bool preparing_ = false;        ///< a handover is being put on record
  bool preparing_open_ = false;   ///< ... and whether it is, is not known
  std::uint32_t standby_id_ = 0;  ///< of the standby that is here, or being started
  std::shared_ptr<ExportProcess> standby_;
  bool standby_serves_ = false;
  std::optional<Error> standby_error_;
  std::uint32_t standby_error_id_ = 0;  ///< of the handover whose standby failed
  std::vector<Gate> gates_;
  bool gates_timer_ = false;
  bool asking_ = false;  ///< what the primary has answered
  bool taking_ = false;  ///< for the role
  Instant ask_after_{};
  Instant standby_after_{};
};

}  // namespace replicad
