#pragma once
// Which hosts to ask and where: --hosts, a hosts file, or the local daemon.

#include <string>
#include <string_view>
#include <vector>

#include "core/base/result.h"

namespace replicad::ctl {

struct HostAddress {
  std::string name;     ///< empty: the daemon there is asked for its name and its volumes' members
  std::string address;  ///< "host:port", "[v6]:port" or "unix:/path"
};

/// "a=127.0.0.1:7401,b=unix:/run/b.sock"; an entry without a name is one to start from. Errors:
/// Errc::invalid_argument for a bad address, a bad name, or a name given twice.
[[nodiscard]] Result<std::vector<HostAddress>> parse_hosts(std::string_view text);
/// Content of a hosts file: lines "name address", empty lines, and comments that begin with #.
/// `path` for messages.
[[nodiscard]] Result<std::vector<HostAddress>> parse_hosts_file(std::string_view content,
                                                                const std::string& path);

/// --hosts, else the file of --hosts-file, else that of $REPLICACTL_HOSTS, else /etc/replicad/hosts
/// if it is there, else the local daemon's socket. Reads files and the environment.
[[nodiscard]] Result<std::vector<HostAddress>> load_hosts(const std::string& hosts_option,
                                                          const std::string& hosts_file_option);

/// An address in its parts. `port` 0 = a unix socket, whose path is in `host`.
struct ParsedAddress {
  std::string host;
  int port = 0;
};
[[nodiscard]] Result<ParsedAddress> parse_address(std::string_view text);

}  // namespace replicad::ctl
