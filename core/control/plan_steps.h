#pragma once
// Pieces that the planners of plan.h share; not for others.

#include <string>
#include <vector>

#include "core/control/members.h"
#include "core/control/plan.h"

namespace replicad::planning {

[[nodiscard]] tl::unexpected<Error> refuse(std::string message, std::string hint);
/// "/v1/volumes/NAME" plus `action` ("/set"). `volume` is a checked name, so nothing needs
/// encoding.
[[nodiscard]] std::string volume_path(const std::string& volume, const char* action = "");
[[nodiscard]] ApiRequest delete_request(const std::string& volume, const std::string& uuid);
[[nodiscard]] Step make_step(const MemberReport& report, ApiRequest request, std::string text);
/// Members besides the primary, by the primary's list: those that answered are returned, the others
/// are put on plan.skipped.
[[nodiscard]] std::vector<const MemberReport*> other_members(
    const MemberReport& primary, const std::vector<MemberReport>& reports, Plan& plan);
/// Errc::busy while the volume is being handed over.
[[nodiscard]] Status check_not_moving(const VolumeView& volume);
/// Errc::busy while a handover is prepared.
[[nodiscard]] Status check_no_handover(const VolumeView& volume);

}  // namespace replicad::planning
