#include "ctl/context.h"

#include "core/control/text.h"

namespace replicad::ctl {

ExitCode exit_code(Errc code) {
  switch (code) {
    case Errc::invalid_argument:
      return exit_usage;
    case Errc::not_found:
      return exit_not_found;
    case Errc::unreachable:
      return exit_unreachable;
    case Errc::timeout:
      return exit_timeout;
    case Errc::exists:
    case Errc::refused:
    case Errc::stale_epoch:
    case Errc::diverged:
    case Errc::inconsistent:
    case Errc::too_far_behind:
    case Errc::busy:
    case Errc::version_mismatch:
      return exit_refused;
    case Errc::protocol:
    case Errc::corrupt:
    case Errc::no_space:
    case Errc::io_error:
    case Errc::not_supported:
      return exit_failed;
  }
  return exit_failed;
}

std::string dump_json(const nlohmann::json& json) {
  return json.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

nlohmann::json error_json(const Error& error) {
  return {{"code", errc_name(error.code)}, {"message", error.message}, {"hint", error.hint}};
}

void print_error(Terminal& terminal, bool json, const Error& error) {
  if (json) {
    nlohmann::json object = error_json(error);
    object["schema"] = 1;
    terminal.err << dump_json(object) << '\n' << std::flush;
    return;
  }
  // A message may have lines of its own (the list of what a delete loses); each is made safe.
  std::string_view rest = error.message;
  const char* head = "replicactl: ";
  while (true) {
    const std::size_t end = rest.find('\n');
    terminal.err << head << printable(rest.substr(0, end)) << '\n';
    if (end == std::string_view::npos) break;
    rest.remove_prefix(end + 1);
    head = "";
  }
  if (!error.hint.empty()) terminal.err << "  hint: " << printable(error.hint) << '\n';
  terminal.err << std::flush;
}

void Context::say(const std::string& line) {
  if (options_.json || options_.quiet) return;
  terminal_.out << line << '\n' << std::flush;
}

void Context::print_json(nlohmann::json json) {
  json["schema"] = 1;
  terminal_.out << dump_json(json) << '\n' << std::flush;
}

std::string Context::paint(const std::string& text, Tone tone) const {
  if (!options_.color) return text;
  const char* code = "";
  switch (tone) {
    case Tone::plain:
      return text;
    case Tone::good:
      code = "32";
      break;
    case Tone::warn:
      code = "33";
      break;
    case Tone::bad:
      code = "31";
      break;
    case Tone::strong:
      code = "1";
      break;
  }
  return fmt::format("\x1b[{}m{}\x1b[0m", code, text);
}

Status Context::confirm(const std::string& question) {
  if (options_.yes || options_.dry_run || !terminal_.in_is_tty) return {};
  terminal_.err << question << " [y/N] " << std::flush;
  std::string answer;
  std::getline(terminal_.in, answer);
  if (answer == "y" || answer == "Y" || answer == "yes") return {};
  return fail(Errc::refused, "not confirmed, nothing was done");
}

}  // namespace replicad::ctl
