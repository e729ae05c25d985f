#pragma once
// What replicad can be told, on the command line and in an INI file alike. Manual: replicad.pod.

#include <string>
#include <vector>

#include "core/base/log.h"
#include "core/base/result.h"

namespace replicad {

struct Options {
  std::string host;  ///< name of this host among the members; never empty after check_options()
  std::string state_dir = "/var/lib/replicad";
  std::string image_dir;  ///< default: state_dir/images
  std::string run_dir = "/run/replica";
  std::string listen = "127.0.0.1:7400";  ///< stream port
  std::string advertise;                  ///< stream address for others; empty: where it listens
  std::string control;    ///< TCP address of the control API; empty: unix socket only
  std::string transport;  ///< "plaintext", or empty
  bool plaintext_beyond_loopback = false;
  std::string socket_group;  ///< may connect to the NBD sockets besides this user; empty: nobody
  std::string nbdkit = "nbdkit";
  std::string plugin = "replica";
  LogLevel log_level = LogLevel::info;

  [[nodiscard]] std::string agent_socket() const { return run_dir + "/agent.sock"; }
  [[nodiscard]] std::string control_socket() const { return run_dir + "/control.sock"; }
};

struct ParsedOptions {
  enum class Action { run, help, version, recover, dump_state, restore_state };
  Action action = Action::run;
  Options options;
  std::string text;      ///< what to print for help and version
  std::string volume;    ///< of recover, dump_state, restore_state
  std::string file;      ///< of restore_state
  bool dry_run = false;  ///< of recover
};

/// Reads the arguments (without the program's name) and the file that --config names; the command
/// line wins. Errors: Errc::invalid_argument for an unknown key or a value that cannot be read (a
/// usage error), others when the file cannot be read.
[[nodiscard]] Result<ParsedOptions> parse_options(const std::vector<std::string>& arguments);

/// Fills in defaults that depend on the host and checks every value. Blocking (resolves names).
/// Errors name the key and the rule.
[[nodiscard]] Status check_options(Options& options);
/// The same for those that commands without a daemon need: host and directories.
[[nodiscard]] Status check_offline_options(Options& options);

/// Refuses an address that leaves this host unless the options allow it. `what` names it in the
/// message.
[[nodiscard]] Status check_plaintext_address(const Options& options,
                                             const std::string& what,
                                             const std::string& address);

/// Splits "host:port" or "[v6]:port". Errors: Errc::invalid_argument.
struct HostPort {
  std::string host;
  int port = 0;
};
[[nodiscard]] Result<HostPort> split_host_port(const std::string& address);

}  // namespace replicad
