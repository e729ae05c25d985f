#pragma once
// The end of a switchover that is past its point of no return, on the old primary's side: the
// target is asked what became of the offer, and this host durably draws the conclusion. Blocking;
// HTTP threads and the resolver's own.

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "replicad/control_api.h"

namespace replicad {

enum class Settlement {
  promoted,      ///< the target is the primary, this host a replica
  not_promoted,  ///< it is not and never will be under that offer; this host goes on in a higher
                 ///< epoch
  unknown,       ///< the target does not answer, or has not decided
};

[[nodiscard]] VolumeState state_of(ControlContext& context, const std::shared_ptr<Volume>& volume);
/// Control address of member `host`; empty if unknown.
[[nodiscard]] std::string control_address(const VolumeState& state, const std::string& host);
/// "/v1/volumes/NAME[/VERB]"
[[nodiscard]] std::string volume_path(const std::string& name, const std::string& verb = {});
/// A new epoch above everything this host has promised or offered.
[[nodiscard]] Epoch epoch_above(const VolumeState& state);

enum class FenceOutcome {
  fenced,         ///< it refuses the offered epoch for good
  primary_there,  ///< it has become the primary
  no_answer,
};
/// Makes the target refuse everything below `epoch`, which ends above all it has promised. `error`:
/// its last answer.
[[nodiscard]] FenceOutcome fence_target(const VolumeState& state,
                                        const std::string& address,
                                        Epoch& epoch,
                                        Error& error);

/// Durably becomes a replica of `primary`, ends the plugin without an answer to what it holds,
/// takes up the role. On error nothing has changed.
[[nodiscard]] Status finish_promoted(ControlContext& context,
                                     const std::shared_ptr<Volume>& volume,
                                     const std::string& primary,
                                     const Epoch& epoch,
                                     const HistoryPoint& point);
/// Durably takes `epoch`, below which the target can no longer be promoted, and goes on serving if
/// it served.
[[nodiscard]] Status finish_not_promoted(ControlContext& context,
                                         const std::shared_ptr<Volume>& volume,
                                         const Epoch& epoch);

/// One attempt to settle a volume whose state has a transfer. `error` (may be null): what kept it
/// from being settled.
[[nodiscard]] Settlement settle_transfer(ControlContext& context,
                                         const std::shared_ptr<Volume>& volume,
                                         Error* error);

/// Settles, in a thread of its own, transfers that no request is working on: after a restart, or
/// when a request gave up waiting.
class TransferResolver {
 public:
  explicit TransferResolver(ControlContext& context);
  TransferResolver(const TransferResolver&) = delete;
  TransferResolver& operator=(const TransferResolver&) = delete;
  ~TransferResolver();

 private:
  void run();
  void settle_all();

  ControlContext& context_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace replicad
