#pragma once
// The kernel's network block devices (/dev/nbdN), through generic netlink (linux/nbd-netlink.h). What nbd-client does
// not do is let a device outlive its connection. Blocking; one thread.

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/result.h"
#include "io/fd.h"

struct nl_sock;

namespace replicad::ctl {

/// A connection to an NBD server behind its handshake, for the kernel to go on with.
struct NbdConnection {
  Fd socket;
  std::uint64_t bytes = 0;
  std::uint16_t flags = 0;  ///< NBD_FLAG_.. of the transmission phase
};

/// Connects to an export and negotiates what the kernel understands. Waits as long as the socket is open and nobody
/// serves there. Errors: Errc::unreachable, Errc::not_found for the export.
[[nodiscard]] Result<NbdConnection> nbd_handshake(const std::string& socket,
                                                  const std::string& export_name);

class NbdKernel {
 public:
  /// Errors: Errc::not_supported without the module nbd, Errc::io_error with the kernel's word.
  [[nodiscard]] static Result<NbdKernel> open();

  /// Makes a device of the connection: `index`, or a free one. Requests wait for at most `dead_seconds` for another
  /// connection when this one ends. `identifier` names what it is connected to, for reconnect(). Errors: Errc::busy
  /// when the device is connected already.
  [[nodiscard]] Result<std::uint32_t> connect(std::optional<std::uint32_t> index,
                                              const NbdConnection& connection,
                                              const std::string& identifier,
                                              std::uint64_t dead_seconds);
  /// Gives a device whose connection has ended another one: requests are sent again on that. Errors: Errc::refused when
  /// it is no device of this identifier (any more).
  [[nodiscard]] Status reconnect(std::uint32_t index,
                                 const NbdConnection& connection,
                                 const std::string& identifier);
  [[nodiscard]] Status disconnect(std::uint32_t index);
  /// Whether the kernel says within `timeout` that the connection of device `index` has ended. Counts from open() on.
  [[nodiscard]] bool wait_dead(std::uint32_t index, std::chrono::milliseconds timeout);

 private:
  struct SocketDeleter {
    void operator()(nl_sock* socket) const;
  };
  using Socket = std::unique_ptr<nl_sock, SocketDeleter>;

  NbdKernel(Socket commands, Socket events, int family)
      : commands_(std::move(commands)), events_(std::move(events)), family_(family) {}

  Socket commands_;
  Socket events_;
  int family_;
};

/// What /sys/block/nbdN/backend says: the identifier that the device was connected with; "" for none.
[[nodiscard]] std::string nbd_backend(std::uint32_t index);
/// Devices with such an identifier.
[[nodiscard]] std::vector<std::uint32_t> nbd_devices_of(const std::string& identifier);
/// N of "/dev/nbdN" or "nbdN". Errors: Errc::invalid_argument.
[[nodiscard]] Result<std::uint32_t> nbd_index(const std::string& device);

}  // namespace replicad::ctl
