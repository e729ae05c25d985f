#pragma once
// JSON of volumes: what the control API and the agent socket say (docs/control-api.md,
// docs/protocol.md). Pure functions, any thread.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/control/views.h"
#include "core/store/volume_state.h"
#include "replicad/json_fields.h"
#include "replicad/replica_volume.h"

namespace replicad {

[[nodiscard]] nlohmann::json to_json(const Epoch& epoch);
[[nodiscard]] nlohmann::json to_json(const HistoryPoint& point);
[[nodiscard]] nlohmann::json to_json(const VolumeSettings& settings);
[[nodiscard]] nlohmann::json to_json(const std::vector<MemberState>& members);
/// Without witnesses: for the plugin.
/// {"hosts","tie_break"}: whose majority a primary must hear, for the plugin.
[[nodiscard]] nlohmann::json voters_json(const std::optional<Record>& record);
[[nodiscard]] nlohmann::json data_members_json(const std::vector<MemberState>& members);
[[nodiscard]] nlohmann::json to_json(const Error& error);
/// null or the error.
[[nodiscard]] nlohmann::json to_json(const std::optional<Error>& error);

/// Reads "settings"-like fields into `settings`; those that are absent stay. Ranges are checked
/// later, by check_volume_state.
void read_settings(const nlohmann::json& object, FieldReader& outer, VolumeSettings& settings);
/// Reads the list `name` of {"host","stream","control"}.
[[nodiscard]] std::vector<MemberState> read_members(FieldReader& fields, const char* name);

/// How far a copy to a replica is.
struct CopyStatus {
  std::uint64_t done_bytes = 0;  ///< sent, or found equal
  std::uint64_t total_bytes = 0;
  std::uint64_t sent_bytes = 0;  ///< payload
  std::uint64_t blocks_left = 0;
};

/// What the plugin last said of itself, checked (`status` event, `hold` reply).
struct PeerStatus {
  std::string host;
  std::string state;
  bool in_sync = false;
  Sequence sent = 0;
  Sequence received = 0;
  Sequence logged = 0;
  Sequence durable = 0;
  Sequence applied = 0;
  std::string digest;
  std::uint64_t lag_bytes = 0;
  std::optional<double> lag_seconds;
  std::vector<DiskLoss> lag_disks;  ///< an older plugin does not tell
  std::optional<CopyStatus> copy;
  std::optional<Error> error;
};

struct PluginStatus {
  std::string state;  ///< serving, held, sealed, failed
  HistoryPoint history;
  nlohmann::json verify;  ///< null: none since the export began
  std::vector<PeerStatus> replicas;
  bool overtaken = false;  ///< it has heard of a later epoch
  nlohmann::json counters = nlohmann::json::object();
  std::optional<Error> error;
};

[[nodiscard]] nlohmann::json to_json(const std::vector<DiskLoss>& losses);
[[nodiscard]] nlohmann::json to_json(const PeerStatus& peer);
/// Errors: Errc::invalid_argument with the field's name. Any JSON is safe; unknown fields are
/// ignored.
[[nodiscard]] Result<PluginStatus> plugin_status_from(const nlohmann::json& event);
[[nodiscard]] std::vector<PeerStatus> read_peers(FieldReader& fields, const char* name);

/// Where an export can be opened.
struct ExportInfo {
  std::int64_t pid = 0;
  std::string socket;  ///< path; empty if the export was started by hand on a socket unknown here
};
/// "nbd+unix:///DISK?socket=PATH"
[[nodiscard]] std::string export_uri(const std::string& socket, const std::string& disk);
[[nodiscard]] nlohmann::json export_json(const ExportInfo& info, const VolumeState& state);

/// Everything a volume's status is made of.
struct VolumeSnapshot {
  std::string host;
  VolumeState state;
  std::string shown_state;  ///< docs/control-api.md, "state"
  std::optional<Error> error;
  std::optional<ExportInfo> nbd_export;
  std::optional<PluginStatus> plugin;    ///< last known, primary
  bool plugin_running = false;           ///< `plugin` is current
  std::optional<ReplicaStatus> replica;  ///< replica, while its log and images are open
  std::optional<ExportInfo> standby;     ///< of a handover, once clients are served
  std::optional<Error> standby_error;    ///< why it does not start, or does not get the role
};
[[nodiscard]] nlohmann::json volume_json(const VolumeSnapshot& snapshot);

}  // namespace replicad
