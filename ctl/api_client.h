#pragma once
// One request to one daemon's control API. Blocking; any thread.

#include <cstdint>
#include <string>

#include <nlohmann/json.hpp>

#include "core/base/result.h"
#include "core/control/plan.h"

namespace replicad::ctl {

struct Timeouts {
  std::uint32_t connect_ms = 3000;
  std::uint32_t answer_ms = 5000;
};

struct ApiAnswer {
  Result<nlohmann::json> body;
  /// The request left this host but no answer came back: it may have been carried out.
  bool maybe_done = false;
};

/// Errors: what the daemon answered; Errc::unreachable (no connection, or lost), Errc::timeout,
/// Errc::protocol (the answer is no JSON object, or longer than 8 MiB), Errc::invalid_argument (bad
/// address).
[[nodiscard]] ApiAnswer call_api(const std::string& address,
                                 const ApiRequest& request,
                                 const Timeouts& timeouts);

}  // namespace replicad::ctl
