#pragma once
// Records, ballots and voters' states as JSON: in the state file (docs/disk-format.md) and between
// hosts (docs/control-api.md) alike. Any JSON is safe.

#include <nlohmann/json.hpp>

#include "core/vote/voter.h"

namespace replicad {

[[nodiscard]] nlohmann::json handover_json(const HandoverState& handover);
[[nodiscard]] nlohmann::json record_json(const Record& record);
[[nodiscard]] nlohmann::json ballot_json(const Ballot& ballot);
[[nodiscard]] nlohmann::json voter_json(const VoterState& state);
[[nodiscard]] nlohmann::json stamps_json(const StateStamps& stamps);

/// Errors: Errc::protocol with the field that is wrong. What is returned obeys check_record().
[[nodiscard]] Result<Record> record_from_json(const nlohmann::json& value);
[[nodiscard]] Result<Ballot> ballot_from_json(const nlohmann::json& value);
[[nodiscard]] Result<VoterState> voter_from_json(const nlohmann::json& value);
[[nodiscard]] Result<StateStamps> stamps_from_json(const nlohmann::json& value);

}  // namespace replicad
