#include "ctl/run.h"

// g++ 12 takes the any_cast inside Boost's typed_value::notify for one that may give null.
#pragma GCC diagnostic ignored "-Wnull-dereference"

#include <algorithm>
#include <cstdlib>
#include <set>
#include <sstream>

#include <boost/program_options.hpp>

#include "core/base/names.h"
#include "core/control/text.h"
#include "ctl/commands.h"
#include "ctl/units.h"

namespace replicad::ctl {

namespace po = boost::program_options;

namespace {

constexpr std::uint32_t query_ms_default = 5000;
constexpr std::uint32_t connect_ms_max = 3000;

OptionSpecs global_specs() {
  OptionSpecs specs("Options of all commands");
  specs.add_options()("hosts",
                      po::value<std::string>()->value_name("NAME=ADDRESS,.."),
                      "hosts and the addresses of their control API: host:port or unix:/path")(
      "hosts-file",
      po::value<std::string>()->value_name("FILE"),
      "file with lines 'name address' (default $REPLICACTL_HOSTS, then /etc/replicad/hosts)")(
      "output,o", po::value<std::string>()->value_name("FORMAT"), "table (default) or json")(
      "dry-run", "show what would be done, change nothing")("yes,y", "ask no questions")(
      "quiet,q", "print results and errors only")(
      "color", po::value<std::string>()->value_name("WHEN"), "auto (default), always or never")(
      "timeout",
      po::value<std::string>()->value_name("SECONDS"),
      "how long a host may take to answer (default 5); with wait, verify and resync --wait: how "
      "long to wait in all")("help,h", "show help")("version", "show the version");
  return specs;
}

/// Options of all commands that are followed by a value.
bool takes_value(const std::string& word) {
  static const std::set<std::string> with_value{
      "--hosts", "--hosts-file", "-o", "--output", "--color", "--timeout"};
  return with_value.contains(word);
}

/// Index of the command's name among the words; their number if there is none.
std::size_t find_command_word(const std::vector<std::string>& words) {
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (takes_value(words[i])) {
      ++i;
    } else if (!words[i].starts_with('-')) {
      return i;
    }
  }
  return words.size();
}

std::string usage_text() {
  std::ostringstream text;
  text << "usage: replicactl [OPTIONS] COMMAND [ARGUMENTS]\n\n"
          "Creates, watches and moves replicated volumes by asking the replicad of each "
          "host.\n\nCommands:\n";
  std::size_t width = 0;
  for (const Command& command : all_commands())
    width = std::max(width, std::string_view(command.name).size());
  for (const Command& command : all_commands())
    text << fmt::format("  {:<{}}  {}\n", command.name, width, command.summary);
  text
      << '\n'
      << global_specs()
      << "\n`replicactl COMMAND --help` tells more. Exit codes: 0 done, 1 failed, 2 wrong usage,\n"
         "3 refused, 4 a daemon is unreachable, 5 not found, 124 timeout. Manual: replicactl(8).\n";
  return text.str();
}

std::string help_text(const Command& command) {
  std::ostringstream text;
  text << fmt::format("usage: replicactl {} [OPTIONS]{}{}\n\n{}.\n",
                      command.name,
                      *command.arguments == '\0' ? "" : " ",
                      command.arguments,
                      command.summary);
  if (*command.details != '\0') text << '\n' << command.details << '\n';
  if (command.add_options != nullptr) {
    OptionSpecs specs(fmt::format("Options of {}", command.name));
    command.add_options(specs);
    text << '\n' << specs;
  }
  text << '\n' << global_specs();
  return text.str();
}

/// The words after the command, parsed: options by name, the rest under "arguments".
Result<OptionValues> parse_words(const std::vector<std::string>& words, const Command* command) {
  OptionSpecs specs = global_specs();
  if (command != nullptr && command->add_options != nullptr) command->add_options(specs);
  specs.add_options()("arguments", po::value<std::vector<std::string>>());
  po::positional_options_description positional;
  positional.add("arguments", -1);
  const int style = po::command_line_style::default_style & ~po::command_line_style::allow_guessing;
  OptionValues values;
  try {
    po::store(
        po::command_line_parser(words).options(specs).positional(positional).style(style).run(),
        values);
    po::notify(values);
  } catch (const po::error& error) {
    return with_hint(fail(Errc::invalid_argument, "{}", error.what()),
                     command == nullptr ? "replicactl --help"
                                        : fmt::format("replicactl {} --help", command->name));
  }
  return values;
}

Result<std::vector<std::string>> take_arguments(const OptionValues& values,
                                                const Command& command) {
  std::vector<std::string> arguments;
  if (values.count("arguments") > 0) arguments = values["arguments"].as<std::vector<std::string>>();
  const auto usage = [&](const std::string& message) {
    return with_hint(fail(Errc::invalid_argument, "{}", message),
                     fmt::format("usage: replicactl {} {}", command.name, command.arguments));
  };
  if (arguments.size() < command.arguments_min)
    return usage(fmt::format("{}: an argument is missing", command.name));
  if (arguments.size() > command.arguments_max) {
    return usage(fmt::format(
        "{}: '{}' is one argument too many", command.name, arguments[command.arguments_max]));
  }
  if (command.names_volume && !arguments.empty() && !is_valid_name(arguments[0])) {
    return with_hint(fail(Errc::invalid_argument, "'{}' is no name of a volume", arguments[0]),
                     "names have up to 64 lower-case letters, digits, '.', '_' and '-', and begin "
                     "with a letter or digit");
  }
  return arguments;
}

/// Whether errors are to be JSON, as far as it can be told before the command line has been
/// understood.
bool wants_json(const std::vector<std::string>& words) {
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "-ojson" || words[i] == "--output=json") return true;
    if ((words[i] == "-o" || words[i] == "--output") && i + 1 < words.size() &&
        words[i + 1] == "json")
      return true;
  }
  return false;
}

bool wants_color(const std::string& when, const Terminal& terminal) {
  if (when == "always") return true;
  if (when == "never" || !terminal.out_is_tty) return false;
  // Read before any thread is started.
  const char* no_color = std::getenv("NO_COLOR");  // NOLINT(concurrency-mt-unsafe)
  const char* term = std::getenv("TERM");          // NOLINT(concurrency-mt-unsafe)
  return (no_color == nullptr || *no_color == '\0') && term != nullptr &&
         std::string_view(term) != "dumb";
}

Result<Options> read_options(const OptionValues& values, const Terminal& terminal) {
  Options options;
  const std::string output = text_option(values, "output");
  if (!output.empty() && output != "table" && output != "json") {
    return fail(Errc::invalid_argument, "--output takes table or json, not '{}'", output);
  }
  const std::string color = text_option(values, "color");
  if (!color.empty() && color != "auto" && color != "always" && color != "never") {
    return fail(Errc::invalid_argument, "--color takes auto, always or never, not '{}'", color);
  }
  options.json = output == "json";
  options.color = !options.json && wants_color(color, terminal);
  options.dry_run = values.count("dry-run") > 0;
  options.yes = values.count("yes") > 0;
  options.quiet = values.count("quiet") > 0;
  if (const std::string text = text_option(values, "timeout"); !text.empty()) {
    const auto timeout_ms = parse_duration_ms(text);
    if (!timeout_ms)
      return fail(Errc::invalid_argument, "--timeout: {}", timeout_ms.error().message);
    if (*timeout_ms < 1) return fail(Errc::invalid_argument, "--timeout must be more than 0");
    options.timeout_ms = *timeout_ms;
  }
  return options;
}

/// --timeout is a query's, but a whole wait's where a command waits.
Timeouts query_timeouts(const Options& options, bool waits) {
  Timeouts timeouts;
  timeouts.answer_ms = query_ms_default;
  if (options.timeout_ms > 0 && (!waits || options.timeout_ms < query_ms_default)) {
    timeouts.answer_ms =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(options.timeout_ms, 3'600'000));
  }
  timeouts.connect_ms = std::min(timeouts.answer_ms, connect_ms_max);
  return timeouts;
}

Status run_command(const Command& command, const OptionValues& values, Terminal& terminal) {
  auto arguments = take_arguments(values, command);
  if (!arguments) return tl::unexpected(arguments.error());
  const auto options = read_options(values, terminal);
  if (!options) return tl::unexpected(options.error());
  auto hosts = load_hosts(text_option(values, "hosts"), text_option(values, "hosts-file"));
  if (!hosts) return tl::unexpected(hosts.error());
  const bool waits =
      command.run == run_wait || command.run == run_verify || values.count("wait") > 0;
  Cluster cluster(std::move(*hosts), query_timeouts(*options, waits));
  // It has to work when no daemon does.
  if (command.run != run_detach) RD_TRY(cluster.discover());
  Context context(terminal, *options, std::move(cluster), std::move(*arguments));
  return command.run(context, values);
}

Status dispatch(const std::vector<std::string>& words, Terminal& terminal) {
  const std::size_t at = find_command_word(words);
  const Command* command = at < words.size() ? find_command(words[at]) : nullptr;
  std::vector<std::string> rest = words;
  if (at < words.size()) rest.erase(rest.begin() + static_cast<std::ptrdiff_t>(at));
  if (at < words.size() && command == nullptr) {
    return with_hint(fail(Errc::invalid_argument, "there is no command '{}'", words[at]),
                     "replicactl --help lists them");
  }
  const auto values = parse_words(rest, command);
  if (!values) return tl::unexpected(values.error());
  if (values->count("help") > 0) {
    terminal.out << (command == nullptr ? usage_text() : help_text(*command)) << std::flush;
    return {};
  }
  if (values->count("version") > 0) {
    terminal.out << "replicactl " REPLICAD_VERSION "\n" << std::flush;
    return {};
  }
  if (command == nullptr) {
    terminal.err << usage_text();
    return fail(Errc::invalid_argument, "no command given");
  }
  return run_command(*command, *values, terminal);
}

}  // namespace

int run_replicactl(const std::vector<std::string>& arguments, Terminal& terminal) {
  try {
    Status status = dispatch(arguments, terminal);
    if (status && !terminal.out.flush()) {
      status = fail(Errc::io_error, "the answer could not be written");
    }
    if (status) return exit_ok;
    print_error(terminal, wants_json(arguments), status.error());
    return exit_code(status.error().code);
  } catch (const std::exception& error) {
    // Memory, threads: nothing of ours throws on purpose.
    print_error(terminal, wants_json(arguments), Error{Errc::io_error, 0, error.what(), {}});
    return exit_failed;
  }
}

}  // namespace replicad::ctl
