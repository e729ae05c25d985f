#pragma once
// Moving the primary's role to a replica, on the old primary's side: the planned move with its
// proof. Blocking; HTTP threads.
//
//   preflight  the target is in sync, reachable, a consistent replica of this volume
//   hold       the plugin holds new writes; all before is durable everywhere and applied there
//   seal       no deadline ends the hold any more
//   transfer   durable: from here on the target may have become the primary
//   promote    the target proposes itself to the voters, and starts its export
//   success    durable: a replica of the target. The plugin ends without answering what it holds
//   otherwise  this host proposes a new term of its own to the voters: granted, the plugin goes on
//              in it; refused, the target is the primary; no quorum, it asks again (settlement.h),
//              and nothing is served here meanwhile

#include <chrono>

#include "replicad/control_api.h"

namespace replicad {

struct SwitchoverRequest {
  std::string to;
  std::chrono::milliseconds deadline{switchover_deadline_ms_default};
  bool dry_run = false;
  std::uint32_t handover = 0;   ///< the move, or the way back, of the handover with this id
  bool only_untouched = false;  ///< refused once the guest's write was let in here
};

/// Whether the switchover may begin, and why not. The caller holds the volume's operation.
[[nodiscard]] Status check_switchover(ControlContext& context,
                                      const std::shared_ptr<Volume>& volume,
                                      const SwitchoverRequest& request);
/// Its first half alone: the guest's writes are held until everything before is durable at every in-sync member and
/// applied at the target, with an equal digest; then they go on.
[[nodiscard]] Status drain_to(ControlContext& context,
                              const std::shared_ptr<Volume>& volume,
                              const SwitchoverRequest& request);

/// Errors: why nothing has changed; or, with Errc::timeout, that the outcome is not known yet and
/// will settle by itself. The caller holds the volume's operation. Answer: the proof
/// (docs/control-api.md).
[[nodiscard]] Result<nlohmann::json> run_switchover(ControlContext& context,
                                                    const std::shared_ptr<Volume>& volume,
                                                    const SwitchoverRequest& request);

}  // namespace replicad
