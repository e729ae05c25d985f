#pragma once
// What every command has at hand: the options that all commands share, the terminal, and how
// results and errors are shown. One thread.

#include <cstdint>
#include <istream>
#include <ostream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/base/result.h"
#include "ctl/cluster.h"

namespace replicad::ctl {

/// Exit codes of replicactl; stable (docs/json-output.md).
enum ExitCode : int {
  exit_ok = 0,
  exit_failed = 1,
  exit_usage = 2,
  exit_refused = 3,
  exit_unreachable = 4,
  exit_not_found = 5,
  exit_timeout = 124,
};
[[nodiscard]] ExitCode exit_code(Errc code);

struct Terminal {
  std::istream& in;
  std::ostream& out;
  std::ostream& err;
  bool in_is_tty = false;
  bool out_is_tty = false;
  bool err_is_tty = false;
};

struct Options {
  bool json = false;
  bool dry_run = false;
  bool yes = false;
  bool quiet = false;
  bool color = false;
  std::uint64_t timeout_ms = 0;  ///< --timeout; 0 = not given
};

/// What a word of a table is coloured by.
enum class Tone { plain, good, warn, bad, strong };

class Context {
 public:
  Context(Terminal& terminal, Options options, Cluster cluster, std::vector<std::string> arguments)
      : terminal_(terminal),
        options_(options),
        cluster_(std::move(cluster)),
        arguments_(std::move(arguments)) {}

  [[nodiscard]] Terminal& terminal() { return terminal_; }
  [[nodiscard]] const Options& options() const { return options_; }
  [[nodiscard]] Cluster& cluster() { return cluster_; }
  /// Words of the command line behind the command; their number has been checked.
  [[nodiscard]] const std::vector<std::string>& arguments() const { return arguments_; }
  /// The volume's name: the first argument, checked when the command line was read.
  [[nodiscard]] const std::string& volume() const { return arguments_.front(); }

  /// One line for people; nothing with -o json or --quiet.
  void say(const std::string& line);
  /// A JSON answer on stdout, with "schema": 1.
  void print_json(nlohmann::json json);
  [[nodiscard]] std::string paint(const std::string& text, Tone tone) const;
  /// Asks on a terminal; without one, or with --yes or --dry-run, the answer is yes. Errors:
  /// Errc::refused for a no.
  [[nodiscard]] Status confirm(const std::string& question);

 private:
  Terminal& terminal_;
  Options options_;
  Cluster cluster_;
  std::vector<std::string> arguments_;
};

/// Shows `error` on stderr: one JSON object with -o json, else "replicactl: ..." and the hint.
void print_error(Terminal& terminal, bool json, const Error& error);
[[nodiscard]] nlohmann::json error_json(const Error& error);
/// As compact text that is plain ASCII, whatever the strings in it hold.
[[nodiscard]] std::string dump_json(const nlohmann::json& json);

}  // namespace replicad::ctl
