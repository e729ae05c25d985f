#pragma once
// The daemon as a whole: wires reactor, worker, volumes, servers. main() and the tests own one.

#include <memory>
#include <string>

#include "replicad/options.h"
#include "replicad/service_manager.h"

namespace replicad {

class Daemon {
 public:
  /// Takes the lock of the state directory, opens every volume, listens and serves. Returns when it
  /// is ready. `options` have passed check_options(). Errors: everything that keeps it from
  /// starting, with the name of the directory, port or file; what had been opened is closed again.
  /// `given`: NBD sockets of volumes that the service manager has kept or opened.
  [[nodiscard]] static Result<std::unique_ptr<Daemon>> start(const Options& options,
                                                             GivenSockets given = {});
  /// As stop().
  virtual ~Daemon() = default;

  /// Ends cleanly: requests under way, then replicas (log and images synced). Exports keep serving.
  /// Blocking.
  virtual void stop() = 0;

  /// Where it listens: stream port as told to others, control API on TCP ("" for none).
  [[nodiscard]] virtual const std::string& stream_address() const = 0;
  [[nodiscard]] virtual const std::string& control_address() const = 0;
};

}  // namespace replicad
