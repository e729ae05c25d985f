#pragma once
// Requests to the control API of another host. Blocking; any thread.

#include <chrono>
#include <string>

#include <nlohmann/json.hpp>

#include "core/base/result.h"

namespace replicad {

struct PeerAnswer {
  int status = 0;
  nlohmann::json body;

  [[nodiscard]] bool ok() const { return status >= 200 && status < 300; }
  /// The error of an answer that is not ok().
  [[nodiscard]] Error error() const;
  /// The peer has looked at the request and done nothing of it. Else (5xx) it may have done some of
  /// it.
  [[nodiscard]] bool is_definite_refusal() const;
};

struct PeerRequest {
  std::string address;  ///< "host:port", "[v6]:port" or "unix:/path"
  std::string method;   ///< GET or POST
  std::string path;
  nlohmann::json body = nullptr;
  std::chrono::milliseconds timeout{
      5000};  ///< for the answer; connecting has 2 s of its own at most
};

/// Errors: Errc::unreachable: no connection, so the peer knows nothing of the request;
/// Errc::timeout: it was sent and no answer came, whatever happened there; Errc::protocol: an
/// answer that cannot be read.
[[nodiscard]] Result<PeerAnswer> ask_peer(const PeerRequest& request);

}  // namespace replicad
