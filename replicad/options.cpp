#include "replicad/options.h"

// g++ 12 takes the any_cast inside Boost's typed_value::notify for one that may give null.
#pragma GCC diagnostic ignored "-Wnull-dereference"

#include <array>
#include <charconv>
#include <fstream>
#include <iostream>
#include <sstream>

#include <boost/program_options.hpp>
#include <sys/un.h>
#include <unistd.h>

#include "core/store/volume_state.h"
#include "io/net.h"

namespace replicad {

namespace {

namespace po = boost::program_options;

constexpr std::string_view help_head =
    "Usage: replicad [OPTIONS]\n"
    "       replicad [OPTIONS] recover [--dry-run] VOLUME\n"
    "       replicad [OPTIONS] dump-state VOLUME\n"
    "       replicad [OPTIONS] restore-state VOLUME FILE\n"
    "\n"
    "Keeps this host's part of replicated volumes: receives the primary's stream, writes log and\n"
    "images, hands the images to the NBD export while this host is the primary, and answers\n"
    "replicactl. Every option but --config, --help and --version may also stand in the\n"
    "configuration file, one KEY=VALUE a line; the command line wins.\n"
    "\n"
    "With a command it does that instead, while no daemon runs: `recover` brings a replica's log\n"
    "into its images, so that they can be used without replicad; `dump-state` prints what this\n"
    "host knows of a volume, and `restore-state` makes a new volume of such a text and the images\n"
    "it names.\n"
    "\n";

constexpr std::string_view help_tail =
    "\n"
    "Exit status: 0 after SIGTERM or SIGINT and for a command that is done, 1 if the daemon could\n"
    "not start or go on or the command failed, 2 for a usage error. Manual page: replicad(8).\n";

po::options_description key_descriptions(Options& to, std::string& log_level) {
  po::options_description keys("Options");
  auto add = keys.add_options();
  add("host",
      po::value(&to.host)->value_name("NAME"),
      "name of this host (default: its host name)");
  add("state-dir",
      po::value(&to.state_dir)->value_name("DIR")->default_value(to.state_dir),
      "state and logs of the volumes");
  add("image-dir",
      po::value(&to.image_dir)->value_name("DIR"),
      "where new images are made (default: STATE-DIR/images)");
  add("run-dir",
      po::value(&to.run_dir)->value_name("DIR")->default_value(to.run_dir),
      "sockets of the agents, of the control API and of the exports");
  add("listen",
      po::value(&to.listen)->value_name("ADDR:PORT")->default_value(to.listen),
      "stream port; port 0 takes a free one");
  add("advertise",
      po::value(&to.advertise)->value_name("ADDR:PORT"),
      "stream address told to other hosts (default: as listen)");
  add("control",
      po::value(&to.control)->value_name("ADDR:PORT"),
      "control API on TCP besides the unix socket (default: none)");
  add("transport",
      po::value(&to.transport)->value_name("plaintext"),
      "how hosts talk; this version knows only plaintext, which must be asked for");
  add("plaintext-beyond-loopback",
      po::value(&to.plaintext_beyond_loopback)
          ->value_name("yes|no")
          ->default_value(false, "no")
          ->implicit_value(true, "yes"),
      "allow plaintext on addresses other than loopback");
  add("socket-group",
      po::value(&to.socket_group)->value_name("NAME"),
      "group that may connect to the NBD sockets, such as kvm (default: none)");
  add("nbdkit",
      po::value(&to.nbdkit)->value_name("PATH")->default_value(to.nbdkit),
      "the nbdkit program");
  add("plugin",
      po::value(&to.plugin)->value_name("PATH")->default_value(to.plugin),
      "the nbdkit plugin, a name or a path");
  add("log-level",
      po::value(&log_level)->value_name("LEVEL")->default_value("info"),
      "error, warn, info or debug");
  return keys;
}

Result<LogLevel> log_level_from(const std::string& name) {
  if (name == "error") return LogLevel::error;
  if (name == "warn") return LogLevel::warn;
  if (name == "info") return LogLevel::info;
  if (name == "debug") return LogLevel::debug;
  return fail(Errc::invalid_argument, "log-level={}: use error, warn, info or debug", name);
}

Status read_config_file(const std::string& path,
                        const po::options_description& keys,
                        po::variables_map& values) {
  std::ifstream file(path);
  if (!file) return fail_errno(errno, "cannot read the configuration file {}", path);
  try {
    po::store(po::parse_config_file(file, keys), values);
    // A directory can be opened, but not read.
    if (file.bad()) return fail_errno(errno, "cannot read the configuration file {}", path);
  } catch (const po::error& error) {
    return fail(Errc::invalid_argument, "{}: {}", path, error.what());
  }
  return {};
}

std::string own_host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) return {};
  return name.data();
}

Status check_directory(std::string_view key, const std::string& path) {
  if (path.empty() || path.front() != '/') {
    return fail(Errc::invalid_argument, "{}={}: an absolute path is needed", key, path);
  }
  return {};
}

Status check_addresses(const Options& options) {
  RD_TRY(check_plaintext_address(options, "listen", options.listen));
  if (!options.control.empty()) {
    RD_TRY(check_plaintext_address(options, "control", options.control));
  }
  if (!options.advertise.empty()) {
    RD_TRY(check_plaintext_address(options, "advertise", options.advertise));
    return {};
  }
  const auto listen = split_host_port(options.listen);
  if (listen->host == "0.0.0.0" || listen->host == "::") {
    return with_hint(
        fail(Errc::invalid_argument, "listen={} is no address that others can use", options.listen),
        "set advertise=ADDR:PORT to the address at which other hosts reach this one");
  }
  return {};
}

Status take_command(const std::vector<std::string>& words, ParsedOptions& parsed) {
  using Action = ParsedOptions::Action;
  if (words.empty()) {
    if (!parsed.dry_run) return {};
    return fail(Errc::invalid_argument, "--dry-run belongs to the command recover");
  }
  const std::string& name = words.front();
  if (name == "recover") parsed.action = Action::recover;
  if (name == "dump-state") parsed.action = Action::dump_state;
  if (name == "restore-state") parsed.action = Action::restore_state;
  if (parsed.action == Action::run) {
    return fail(Errc::invalid_argument, "\"{}\" is no command of replicad", name);
  }
  if (parsed.dry_run && parsed.action != Action::recover) {
    return fail(Errc::invalid_argument, "--dry-run belongs to the command recover");
  }
  const std::size_t wanted = parsed.action == Action::restore_state ? 3 : 2;
  if (words.size() != wanted) {
    return fail(Errc::invalid_argument,
                "{} takes {}",
                name,
                wanted == 3 ? "a volume and a file" : "one volume");
  }
  parsed.volume = words[1];
  if (wanted == 3) parsed.file = words[2];
  return {};
}

}  // namespace

Result<ParsedOptions> parse_options(const std::vector<std::string>& arguments) {
  ParsedOptions parsed;
  std::string config;
  std::string log_level;
  std::vector<std::string> words;
  const po::options_description keys = key_descriptions(parsed.options, log_level);
  po::options_description shown("Options");
  auto add = shown.add_options();
  add("config", po::value(&config)->value_name("FILE"), "read options from this file too");
  add("dry-run", po::bool_switch(&parsed.dry_run), "with recover: change nothing");
  add("help", "print this and exit");
  add("version", "print the version and exit");
  shown.add(keys);
  po::options_description all = shown;
  all.add_options()("words", po::value(&words));
  po::variables_map values;
  try {
    po::positional_options_description positional;
    positional.add("words", -1);
    po::store(po::command_line_parser(arguments).options(all).positional(positional).run(), values);
    if (values.count("help") != 0) {
      std::ostringstream text;
      text << help_head << shown << help_tail;
      parsed.action = ParsedOptions::Action::help;
      parsed.text = text.str();
      return parsed;
    }
    if (values.count("version") != 0) {
      parsed.action = ParsedOptions::Action::version;
      parsed.text = "replicad " REPLICAD_VERSION "\n";
      return parsed;
    }
    if (values.count("config") != 0) {
      RD_TRY(read_config_file(values["config"].as<std::string>(), keys, values));
    }
    po::notify(values);
  } catch (const po::error& error) {
    return with_hint(fail(Errc::invalid_argument, "{}", error.what()), "see replicad --help");
  }
  if (const Status taken = take_command(words, parsed); !taken) {
    return with_hint(tl::unexpected(taken.error()), "see replicad --help");
  }
  auto level = log_level_from(log_level);
  if (!level) return tl::unexpected(level.error());
  parsed.options.log_level = *level;
  return parsed;
}

Status check_offline_options(Options& options) {
  if (options.host.empty()) options.host = own_host_name();
  if (!is_valid_name(options.host)) {
    return with_hint(
        fail(Errc::invalid_argument, "host={}: not a valid host name", options.host),
        "set host=NAME; a-z, 0-9, '.', '_' and '-' are allowed, at most 64 characters");
  }
  if (options.image_dir.empty()) options.image_dir = options.state_dir + "/images";
  RD_TRY(check_directory("state-dir", options.state_dir));
  RD_TRY(check_directory("image-dir", options.image_dir));
  RD_TRY(check_directory("run-dir", options.run_dir));
  return {};
}

Status check_options(Options& options) {
  if (options.transport.empty()) {
    return with_hint(
        fail(Errc::not_supported,
             "TLS is not available in this version, and transport=plaintext is not set"),
        "set transport=plaintext to let hosts talk without encryption and "
        "authentication");
  }
  if (options.transport != "plaintext") {
    return with_hint(fail(Errc::not_supported,
                          "transport={}: this version knows only transport=plaintext",
                          options.transport),
                     "TLS is not available in this version");
  }
  RD_TRY(check_offline_options(options));
  if (options.run_dir.size() + sizeof "/.sock" + volume_name_bytes_max >
      sizeof(sockaddr_un{}.sun_path)) {
    return fail(Errc::invalid_argument,
                "run-dir={}: too long, a socket path has at most {} bytes",
                options.run_dir,
                sizeof(sockaddr_un{}.sun_path) - 1);
  }
  if (options.nbdkit.empty()) return fail(Errc::invalid_argument, "nbdkit= is empty");
  if (options.plugin.empty()) return fail(Errc::invalid_argument, "plugin= is empty");
  return check_addresses(options);
}

Status check_plaintext_address(const Options& options,
                               const std::string& what,
                               const std::string& address) {
  const auto parts = split_host_port(address);
  if (!parts)
    return fail(Errc::invalid_argument, "{}={}: {}", what, address, parts.error().message);
  const auto resolved = resolve(address);
  if (!resolved) {
    return fail(Errc::invalid_argument, "{}={}: {}", what, address, resolved.error().message);
  }
  if (!resolved->is_local() && !options.plaintext_beyond_loopback) {
    return with_hint(
        fail(
            Errc::refused, "{}={}: plaintext is allowed on loopback addresses only", what, address),
        "anybody on that network could read and change the disks; if it is trusted, set "
        "plaintext-beyond-loopback=yes");
  }
  return {};
}

Result<HostPort> split_host_port(const std::string& address) {
  const auto colon = address.rfind(':');
  const auto bad = [&] {
    return fail(Errc::invalid_argument, "\"{}\" is not of the form ADDRESS:PORT", address);
  };
  if (colon == std::string::npos || colon == 0) return bad();
  HostPort parts{address.substr(0, colon), 0};
  if (parts.host.front() == '[') {
    if (parts.host.size() < 3 || parts.host.back() != ']') return bad();
    parts.host = parts.host.substr(1, parts.host.size() - 2);
  } else if (parts.host.find(':') != std::string::npos) {
    return bad();
  }
  const char* begin = address.data() + colon + 1;
  const char* end = address.data() + address.size();
  const auto [after, error] = std::from_chars(begin, end, parts.port);
  if (begin == end || error != std::errc{} || after != end || parts.port < 0 ||
      parts.port > 65535) {
    return bad();
  }
  return parts;
}

}  // namespace replicad
