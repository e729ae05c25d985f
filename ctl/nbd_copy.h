#pragma once
// Copying into an export of this machine: what must be known before, and nbdcopy as a child
// process.

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "core/base/result.h"

namespace replicad::ctl {

/// What `import` copies from.
struct ImportSource {
  std::string argument;  ///< for nbdcopy: an absolute path or an NBD URI
  std::uint64_t bytes = 0;
};

/// A file, a block device, or an NBD URI (asked for its size). Errors: Errc::not_found,
/// Errc::invalid_argument (no file or device; a qcow2 image), Errc::unreachable (URI).
[[nodiscard]] Result<ImportSource> open_source(const std::string& text);

/// Size of the export behind `uri`. Errors: Errc::unreachable.
[[nodiscard]] Result<std::uint64_t> export_bytes(const std::string& uri);

/// Connections that the kernel's list of unix sockets (/proc/net/unix) shows on the server's side
/// of `path`.
[[nodiscard]] std::size_t count_connections(std::string_view proc_net_unix, std::string_view path);

/// Runs nbdcopy and calls `on_percent` as it goes; the destination is flushed at the end. Blocking.
/// Errors: Errc::io_error with what nbdcopy said; Errc::not_found if it is not installed.
[[nodiscard]] Status run_nbdcopy(const std::string& source,
                                 const std::string& destination_uri,
                                 const std::function<void(unsigned percent)>& on_percent);

}  // namespace replicad::ctl
