#pragma once
// What a claim tells the plugin of its volume, decoded from the agent's JSON (docs/protocol.md, "The agent
// socket"). Pure functions.

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/base/modes.h"
#include "core/base/time.h"
#include "core/vote/record.h"
#include "core/wire/messages.h"

namespace replicad {

struct DiskGrant {
  std::string name;
  std::uint64_t bytes = 0;
  std::string path;
};

struct MemberGrant {
  std::string host;
  std::string stream;
};

struct SettingsGrant {
  Mode mode = Mode::sync;
  Congestion congestion = Congestion::throttle;
  OnLocalError on_local_error = OnLocalError::hold;
  std::uint64_t ring_bytes = ring_bytes_default;
  std::uint32_t ack_timeout_ms = ack_timeout_ms_default;
  std::uint32_t quorum_timeout_ms = quorum_timeout_ms_default;  ///< 0: wait for ever
};

struct Grant {
  std::string host;  ///< own host name
  std::string uuid;
  Epoch epoch;
  std::vector<DiskGrant> disks;
  std::vector<MemberGrant> members;  ///< own host included
  VoterSet voters;
  SettingsGrant settings;
  HistoryPoint history;
  Sequence reserved = 0;
  std::vector<std::string> in_sync;
  bool unclean = false;
  std::string directory;  ///< of the volume's state on this host
  std::uint32_t standby =
      0;  ///< id of the handover that this export is the standby of; 0: it is the primary's
  Instant asked_at;  ///< when it was asked for
};

/// Errors of all: Errc::protocol naming the field.
[[nodiscard]] Result<Grant> decode_grant(const nlohmann::json& value);
[[nodiscard]] Result<SettingsGrant> decode_settings(const nlohmann::json& value);
[[nodiscard]] Result<std::vector<MemberGrant>> decode_members(const nlohmann::json& value);
[[nodiscard]] Result<VoterSet> decode_voters(const nlohmann::json& value);
[[nodiscard]] Result<Epoch> decode_epoch(const nlohmann::json& value);

[[nodiscard]] nlohmann::json epoch_json(const Epoch& epoch);
[[nodiscard]] nlohmann::json point_json(const HistoryPoint& point);
[[nodiscard]] nlohmann::json error_json(const Error& error);

}  // namespace replicad
