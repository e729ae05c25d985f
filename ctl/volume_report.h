#pragma once
// A volume as its members together describe it: what list, status and wait show. Pure.

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/control/views.h"

namespace replicad::ctl {

/// One member: what the primary says of it, or else what it says of itself.
struct MemberRow {
  std::string host;
  std::string role;   ///< primary, replica, or none (no member, but it has a part)
  std::string state;  ///< of control-api.md, or unreachable, missing
  bool reachable = false;
  bool votes = false;  ///< it answers and has a part of the volume that it can read
  bool in_sync = false;
  std::optional<bool> consistent;
  std::optional<bool> is_short;
  std::optional<Sequence> sent;
  std::optional<Sequence> received;
  std::optional<Sequence> logged;
  std::optional<Sequence> durable;
  std::optional<Sequence> applied;
  std::string digest;
  std::optional<std::uint64_t> lag_bytes;
  std::optional<double> lag_seconds;
  std::optional<std::uint64_t> backlog_bytes;
  std::optional<CopyView> copy;
  std::optional<Error> error;
};

struct VolumeReport {
  std::string name;
  const VolumeView* view = nullptr;  ///< the primary's, else that of the latest epoch; never null
  const VolumeView* primary = nullptr;  ///< null when it is not known or does not answer
  std::string state;                    ///< the primary's state, or "unknown"
  std::vector<MemberRow> members;       ///< primary first, then in the order of the members' list
  std::vector<std::string> problems;    ///< printable

  [[nodiscard]] std::size_t replicas_in_sync() const;
};

/// `reports` has at least one answer with the volume and must outlive the report.
[[nodiscard]] VolumeReport make_volume_report(const std::string& name,
                                              const std::vector<MemberReport>& reports);

/// docs/json-output.md, "status", for a volume of which no host can say more than the name.
[[nodiscard]] nlohmann::json unreadable_json(const std::string& name,
                                             const std::vector<MemberReport>& reports);
/// docs/json-output.md, "status".
[[nodiscard]] nlohmann::json status_json(const VolumeReport& report);

struct VerifyProgress {
  std::uint64_t done_bytes = 0;
  std::uint64_t total_bytes = 0;
};
[[nodiscard]] VerifyProgress progress_of(const VerifyView& verify);
/// "is equal", or how it is not.
[[nodiscard]] std::string side_text(const VerifySideView& side);
/// How far a verify is, or what the last one has found; printable.
[[nodiscard]] std::string verify_text(const VerifyView& verify);

/// What every status says of failover: whether the loss of the primary leaves a majority and a copy.
[[nodiscard]] std::string failover_text(const VolumeReport& report);

}  // namespace replicad::ctl
