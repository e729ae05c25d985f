#pragma once
// What follows for this host when its primary's role has moved, or was offered to another host: it
// asks the voters, and durably draws the conclusion. Blocking; HTTP threads and the role keeper's.

#include <string>

#include "replicad/control_api.h"

namespace replicad {

enum class Settlement {
  promoted,      ///< another host is the primary, this one a replica
  not_promoted,  ///< this host has a new term, under which the offer can no longer be taken
  unknown,       ///< no quorum of the voters answers
};

[[nodiscard]] VolumeState state_of(ControlContext& context, const std::shared_ptr<Volume>& volume);
/// Control address of member `host`; empty if unknown.
[[nodiscard]] std::string control_address(const VolumeState& state, const std::string& host);
/// "/v1/volumes/NAME[/VERB]"
[[nodiscard]] std::string volume_path(const std::string& name, const std::string& verb = {});

/// Ends the plugin without an answer to what it holds, durably becomes a replica of `primary`, takes
/// up the role. `point` as Volume::become_replica. On error it has not become a replica.
[[nodiscard]] Status give_up_role(ControlContext& context,
                                  const std::shared_ptr<Volume>& volume,
                                  const std::string& primary,
                                  const std::optional<HistoryPoint>& point);

/// Another history was met: durably in the state SPLIT, then the export, if there is one, is ended
/// cleanly.
[[nodiscard]] Status stop_for_rival(ControlContext& context,
                                    const std::shared_ptr<Volume>& volume,
                                    const Record& rival);

/// One attempt to settle a volume whose state has a transfer. `error` (may be null): what kept it
/// from being settled.
[[nodiscard]] Settlement settle_transfer(ControlContext& context,
                                         const std::shared_ptr<Volume>& volume,
                                         Error* error);

}  // namespace replicad
