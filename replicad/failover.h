#pragma once
// Taking the primary's role without the primary: on the host that shall have it. Blocking; HTTP
// threads.
//
//   look       every member is asked what it has and whether it still hears the primary
//   pre-vote   one that does is reason enough to do nothing, unless forced
//   seal       this replica takes no more frames, applies and syncs all it has logged
//   propose    the voters choose: the next epoch, this host the primary and alone in sync
//   serve      durable here, then the export starts

#include "replicad/control_api.h"

namespace replicad {

struct FailoverRequest {
  bool force =
      false;  ///< also if the primary lives, this host is not in sync, or no quorum answers
  bool dry_run = false;
};

/// Errors: why nothing has changed, with what every copy has. The caller holds the volume's
/// operation. Answer: docs/control-api.md, "Failover".
[[nodiscard]] Result<nlohmann::json> run_failover(ControlContext& context,
                                                  const std::shared_ptr<Volume>& volume,
                                                  const FailoverRequest& request);

}  // namespace replicad
