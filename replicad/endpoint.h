#pragma once
// The listening NBD socket of one volume. It outlives the exports (nbdkit) that are handed it one after the other, so
// that a client whose export has ended connects again at once: it waits in the socket's queue until the next export
// takes it. Held by this process, and by the service manager beyond it where there is one. Reactor thread only, but
// for open_socket().

#include <map>
#include <string>

#include "core/base/result.h"
#include "io/fd.h"
#include "replicad/export.h"
#include "replicad/service_manager.h"

namespace replicad {

class Endpoint {
 public:
  /// `path`: of the socket.
  Endpoint(std::string volume, std::string path)
      : volume_(std::move(volume)), path_(std::move(path)) {}

  [[nodiscard]] bool is_open() const { return fd_.valid(); }
  /// For an export that is to be started. Errors: the process has too many descriptors.
  [[nodiscard]] Result<Fd> duplicate() const;

  /// A new socket at command.socket(), for hold(); what an earlier one has left there is replaced. `group` may own it
  /// ("": this process's). Blocking. Errors: Errc::busy when something still listens there, Errc::not_found for the
  /// group.
  [[nodiscard]] static Result<Fd> open_socket(const ExportCommand& command,
                                              const std::string& group);
  /// Holds it from now on, and gives the service manager a duplicate.
  void hold(Fd socket);
  /// Takes over the socket that the service manager has kept or opened for this volume, if there is one.
  void take_given(GivenSockets& given);
  /// Takes a duplicate of the socket that `process`, started by an earlier replicad, listens on. Errors: it has none
  /// at this path, or the kernel forbids it.
  [[nodiscard]] Status take_from(const ExportProcess& process);
  /// Nothing is served any more: clients are refused from now on. A socket that belongs to a socket unit stays open,
  /// and clients are turned away by turn_away().
  void drop();
  /// Ends the connections that wait at a socket on which nobody serves.
  void turn_away() const;

 private:
  std::string volume_;
  std::string path_;
  Fd fd_;
  bool is_units_ =
      false;  ///< opened by a socket unit, which goes on listening whatever happens here
};

}  // namespace replicad
