#pragma once
// HTTP around the control API: a server on the unix socket and, where configured, one on TCP. Owns
// their threads.

#include <memory>
#include <string>

#include "replicad/control_api.h"

namespace replicad {

class ControlServer {
 public:
  virtual ~ControlServer() = default;

  /// Binds, with a thread pool of its own; serve() begins to answer. `address`: "unix:/path" (mode
  /// 0660, a file that is there is replaced: make sure first that nobody serves on it) or
  /// "ADDR:PORT" (port 0: a free one). Errors: Errc::busy when the port is in use, Errc::io_error.
  [[nodiscard]] static Result<std::unique_ptr<ControlServer>> bind(const std::string& address);

  /// "ADDR:PORT" with the real port, or "unix:/path".
  [[nodiscard]] virtual const std::string& address() const = 0;
  /// Answers from now on. `context` must outlive stop().
  virtual void serve(ControlContext& context) = 0;
  /// Takes no more requests and waits for those under way. ControlContext::stopping should be set
  /// before.
  virtual void stop() = 0;
};

/// HTTP status of an error (docs/control-api.md).
[[nodiscard]] int http_status(Errc code);

}  // namespace replicad
