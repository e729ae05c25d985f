#pragma once
// From what each host said of a volume to the steps of a command, or a refusal with its reason.
// Used by --dry-run and by execution alike. Pure: sends nothing.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/base/limits.h"
#include "core/control/placement.h"
#include "core/control/views.h"

namespace replicad {

/// One request of the control API.
struct ApiRequest {
  std::string method;   ///< GET, POST, PUT, DELETE
  std::string path;     ///< with query, percent-encoded where needed
  nlohmann::json body;  ///< null = none
};

/// One request to one host.
struct Step {
  std::string host;
  std::string address;  ///< of its control API
  ApiRequest request;
  std::string text;  ///< what it does, for people
  bool required =
      true;  ///< its failure ends the plan; otherwise it is reported and the plan goes on
  /// What takes it back, if it was done or may have been done, when a later required step fails.
  std::optional<ApiRequest> undo;
  std::uint32_t answer_ms = 60'000;  ///< how long the host may take
  std::uint32_t busy_ms =
      0;  ///< for so long it is asked again while something else is under way there
};

/// A host that should have had a step but cannot be reached: the command does the rest and then
/// fails.
struct SkippedHost {
  std::string host;
  std::string reason;
};

struct Plan {
  std::string volume;
  std::vector<Step> steps;         ///< in this order, one after the other
  std::vector<std::string> notes;  ///< what a person should know before
  std::vector<SkippedHost> skipped;
  std::string skipped_hint;  ///< what to do about them
};

struct CreateRequest {
  struct Disk {
    std::string name;
    std::uint64_t bytes = 0;
    std::string adopt;  ///< path on the primary; empty = a new image
  };
  std::string name;
  std::string uuid;
  std::vector<Disk> disks;
  nlohmann::json settings = nlohmann::json::object();
  std::vector<std::string> witnesses;  ///< hosts that vote only
  bool overcommit = false;             ///< images may be larger than the free space
};

/// Replicas first, the primary last, each with an undo. `chosen`: primary first, all of them
/// answered in `hosts`. `existing`: what each host said of a volume of that name. Errors:
/// Errc::exists, Errc::unreachable (a chosen host did not answer whether it has one).
[[nodiscard]] Result<Plan> plan_create(const CreateRequest& request,
                                       const std::vector<std::string>& chosen,
                                       const std::vector<HostReport>& hosts,
                                       const std::vector<MemberReport>& existing);

[[nodiscard]] Result<Plan> plan_activate(const std::string& volume,
                                         const std::vector<MemberReport>& reports);
[[nodiscard]] Result<Plan> plan_deactivate(const std::string& volume,
                                           const std::vector<MemberReport>& reports);

/// Errors: Errc::refused when the volume is not served.
[[nodiscard]] Result<Plan> plan_restart(const std::string& volume,
                                        const std::vector<MemberReport>& reports);

struct SwitchoverRequest {
  std::string to;  ///< empty = the best in-sync replica by the placement score
  std::uint32_t deadline_ms = switchover_deadline_ms_default;
};

/// One step, at the primary; none if `to` is the primary already (a note says so). `hosts`: for the
/// score.
[[nodiscard]] Result<Plan> plan_switchover(const std::string& volume,
                                           const SwitchoverRequest& request,
                                           const std::vector<MemberReport>& reports,
                                           const std::vector<HostReport>& hosts);

struct HandoverRequest {
  std::string to;
  std::uint32_t deadline_ms =
      switchover_deadline_ms_default;  ///< of the pause while it is prepared
};

/// One step, at the primary: prepares the move of a running VM's disks to `to`.
[[nodiscard]] Result<Plan> plan_handover(const std::string& volume,
                                         const HandoverRequest& request,
                                         const std::vector<MemberReport>& reports);
/// Whether the role has moved or not.
[[nodiscard]] Result<Plan> plan_end_handover(const std::string& volume,
                                             const std::vector<MemberReport>& reports);
/// The VM has been migrated: the role's move, unless a write of the guest has caused it, and the end.
[[nodiscard]] Result<Plan> plan_finish_handover(const std::string& volume,
                                                const std::vector<MemberReport>& reports);

struct FailoverOptions {
  std::string to;  ///< empty = the most complete in-sync replica, then the best host
  bool force = false;
};

/// One step, at the new primary; its notes say what every copy has. Refused (Errc::refused,
/// Errc::unreachable without a quorum) with the same lines, unless forced.
[[nodiscard]] Result<Plan> plan_failover(const std::string& volume,
                                         const FailoverOptions& options,
                                         const std::vector<MemberReport>& reports,
                                         const std::vector<HostReport>& hosts);

/// Two histories: those that have another one than `keep` give theirs up, those that have the same go
/// on, then its primary takes the former as members. Notes say what each has. Refused if there is one.
[[nodiscard]] Result<Plan> plan_resolve(const std::string& volume,
                                        const std::string& keep,
                                        const std::vector<MemberReport>& reports);

/// Primary first, then the other members; members that do not answer are skipped. A mode that asks
/// more of the replicas reaches them first, and is refused if one that is in sync does not answer.
[[nodiscard]] Result<Plan> plan_set(const std::string& volume,
                                    const nlohmann::json& settings,
                                    const std::vector<MemberReport>& reports);

/// `host` looks again whether its images are those that it wrote; if they are not, they count as they are all the same
/// (docs/control-api.md, "readmit").
[[nodiscard]] Result<Plan> plan_readmit(const std::string& volume,
                                        const std::string& host,
                                        bool force,
                                        const std::vector<MemberReport>& reports);

/// Refused for a member in sync: only one that is detached is copied to.
[[nodiscard]] Result<Plan> plan_resync(const std::string& volume,
                                       const std::string& host,
                                       const std::vector<MemberReport>& reports);

struct VerifyRequest {
  std::string host;  ///< empty: every replica
  bool repair = false;
  bool force = false;
  bool stop = false;  ///< ends the one that is under way; nothing else is asked
};
[[nodiscard]] Result<Plan> plan_verify(const std::string& volume,
                                       const VerifyRequest& request,
                                       const std::vector<MemberReport>& reports);

enum class AddedMember {
  copy,
  overcommitted,  ///< a copy, also where the images do not fit once they are full
  witness,        ///< no images
};

/// The new host first (with an undo), then the members' lists, primary first. `host` answered in
/// `hosts`.
[[nodiscard]] Result<Plan> plan_add_replica(const std::string& volume,
                                            const std::string& host,
                                            const std::vector<MemberReport>& reports,
                                            const std::vector<HostReport>& hosts,
                                            AddedMember added = AddedMember::copy);

/// The members' lists, primary first, then the removed host's part. Without `force`: Errc::refused
/// if that host keeps lost writes.
[[nodiscard]] Result<Plan> plan_remove_replica(const std::string& volume,
                                               const std::string& host,
                                               bool force,
                                               const std::vector<MemberReport>& reports);

/// Replicas first, the primary last: whatever stops it half-way, the newest copy is still there and
/// the command can be given again. Without `force`: Errc::refused with the list of what would be
/// lost.
[[nodiscard]] Result<Plan> plan_delete(const std::string& volume,
                                       bool force,
                                       const std::vector<MemberReport>& reports);

}  // namespace replicad
