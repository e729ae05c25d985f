#pragma once
// Runs proposals of changes of a volume's record (core/vote/proposer.h): asks the voters, this
// host's among them, over the control API, each in a thread of its own with a short timeout.

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>

#include "core/vote/proposer.h"
#include "replicad/peer_client.h"
#include "replicad/volume.h"

namespace replicad {

/// A claim or a record waits so long for a quorum.
constexpr Duration proposal_timeout = std::chrono::seconds(6);

class VoteDriver {
 public:
  explicit VoteDriver(VolumeEnvironment& environment);
  VoteDriver(const VoteDriver&) = delete;
  VoteDriver& operator=(const VoteDriver&) = delete;
  ~VoteDriver();

  /// Blocking; not on the reactor thread. Returns the record that was chosen; this host's voter
  /// knows it then. Errors: as proposer_effect::Failed; Errc::unreachable also when `timeout` passes.
  [[nodiscard]] Result<Record> propose(const std::shared_ptr<Volume>& volume,
                                       RecordChange change,
                                       Duration timeout = proposal_timeout);
  /// The same in a thread; `done` runs on the reactor thread.
  void propose_later(const std::shared_ptr<Volume>& volume,
                     RecordChange change,
                     std::function<void(Result<Record>)> done);
  /// Asks a voter of volume `name` for the highest epoch that it has promised; nothing is promised or written by that.
  /// `done` runs on the reactor thread. Errors: as ask_peer; Errc::refused for another volume.
  void hear(const MemberState& voter,
            const std::string& name,
            const std::string& uuid,
            std::function<void(Result<Epoch>)> done);
  /// One request to another host, in a thread. `done` runs on the reactor thread, but not while the daemon stops.
  /// Errors: as ask_peer, and the peer's own.
  void ask_later(PeerRequest request, std::function<void(Result<nlohmann::json>)> done);
  /// Whether a quorum of the voters answers at all, found out without a promise, which would have to be written each
  /// time. Blocking; not on the reactor thread. Errors: Errc::unreachable, names who is awaited.
  [[nodiscard]] Status hear_quorum(const VolumeState& state) const;
  /// No more proposals begin (they fail at once); those under way end soon.
  void stop();
  /// After stop(): until the last thread has ended. The reactor must still run.
  void wait_idle();

 private:
  class Run;

  void start_thread(std::function<void()> work);
  void tell_stamps(const std::shared_ptr<Volume>& volume, const StateStamps& stamps);
  void send(const proposer_effect::SendPrepare& effect, const std::shared_ptr<Run>& run);
  void send(const proposer_effect::SendAccept& effect, const std::shared_ptr<Run>& run);
  void send(const proposer_effect::SendChosen& effect, const std::shared_ptr<Run>& run);

  VolumeEnvironment& environment_;
  std::mutex mutex_;
  std::condition_variable idle_;
  unsigned threads_ = 0;
  bool stopping_ = false;
};

}  // namespace replicad
