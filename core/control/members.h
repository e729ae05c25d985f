#pragma once
// Who is who among the members of a volume, from what each host said of it. Pure.

#include <string>
#include <vector>

#include "core/control/views.h"

namespace replicad {

/// nullptr if `host` was not asked.
[[nodiscard]] const MemberReport* report_of(const std::vector<MemberReport>& reports,
                                            const std::string& host);
/// The host answered: it has no part of the volume.
[[nodiscard]] bool says_not_found(const MemberReport& report);
/// The host answered: it cannot read what it keeps of the volume.
[[nodiscard]] bool says_broken(const MemberReport& report);
/// Why nothing is known of the volume at `host`, printable; empty if something is.
[[nodiscard]] std::string why_silent(const std::vector<MemberReport>& reports,
                                     const std::string& host);
/// Errc::refused if two hosts have different volumes of this name.
[[nodiscard]] Status check_uuids(const std::string& volume,
                                 const std::vector<MemberReport>& reports);

/// The member that is the primary: the one that says so with the highest epoch. Errors:
/// Errc::not_found when no host has the volume; Errc::unreachable when the primary does not answer;
/// Errc::refused when the members disagree: two primaries of one epoch, different uuids, or a later
/// epoch at a member that follows another primary.
[[nodiscard]] Result<const MemberReport*> find_primary(const std::string& volume,
                                                       const std::vector<MemberReport>& reports);

/// What a delete would lose and what it would leave, one line per disk and host, printable.
[[nodiscard]] std::vector<std::string> describe_loss(const std::vector<MemberReport>& reports);

/// What is wrong with a volume and what helps, for status, printable: members that do not answer or
/// report an error, detached replicas, parts at hosts that are no members.
[[nodiscard]] std::vector<std::string> volume_problems(const std::string& volume,
                                                       const std::vector<MemberReport>& reports);

}  // namespace replicad
