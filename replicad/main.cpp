// replicad(8): options, signals, exit codes.

#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "core/base/log.h"
#include "core/store/volume_state.h"
#include "io/file.h"
#include "io/sudden_end.h"
#include "replicad/daemon.h"
#include "replicad/offline.h"
#include "replicad/service_manager.h"

namespace replicad {
namespace {

constexpr int exit_failed = 1;
constexpr int exit_usage = 2;

int report(const Error& error, int exit_code) {
  std::fprintf(stderr, "replicad: %s\n", error.message.c_str());
  if (!error.hint.empty()) std::fprintf(stderr, "replicad: hint: %s\n", error.hint.c_str());
  return exit_code;
}

/// Blocked in every thread, taken by main() alone.
sigset_t end_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

int run_command(ParsedOptions& parsed) {
  Options& options = parsed.options;
  if (const Status valid = check_offline_options(options); !valid)
    return report(valid.error(), exit_failed);
  set_log_level(options.log_level);
  Result<std::string> answer;
  if (parsed.action == ParsedOptions::Action::recover) {
    answer = recover_volume(options, parsed.volume, parsed.dry_run);
  } else if (parsed.action == ParsedOptions::Action::dump_state) {
    answer = dump_volume_state(options, parsed.volume);
  } else {
    const auto text = read_file(parsed.file, volume_state_bytes_max);
    if (!text) return report(text.error(), exit_failed);
    answer = restore_volume_state(options, parsed.volume, *text);
  }
  if (!answer) return report(answer.error(), exit_failed);
  std::fputs(answer->c_str(), stdout);
  return std::fflush(stdout) == 0 ? EXIT_SUCCESS : exit_failed;
}

int run(const std::vector<std::string>& arguments) {
  GivenSockets given = take_given_sockets();
  auto parsed = parse_options(arguments);
  if (!parsed) {
    const bool usage = parsed.error().code == Errc::invalid_argument;
    return report(parsed.error(), usage ? exit_usage : exit_failed);
  }
  switch (parsed->action) {
    case ParsedOptions::Action::help:
    case ParsedOptions::Action::version:
      std::fputs(parsed->text.c_str(), stdout);
      return EXIT_SUCCESS;
    case ParsedOptions::Action::recover:
    case ParsedOptions::Action::dump_state:
    case ParsedOptions::Action::restore_state:
      return run_command(*parsed);
    case ParsedOptions::Action::run:
      break;
  }
  if (const Status valid = check_options(parsed->options); !valid)
    return report(valid.error(), exit_failed);
  set_log_level(parsed->options.log_level);
  const sigset_t signals = end_signals();
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  // A limit on file sizes (ulimit -f) is an error of the write, not the end of the process.
  std::signal(SIGXFSZ, SIG_IGN);
  end_rather_than_guess();
  auto daemon = Daemon::start(parsed->options, std::move(given));
  if (!daemon) return report(daemon.error(), exit_failed);
  notify_service_manager("READY=1");
  int signal = 0;
  while (::sigwait(&signals, &signal) != 0) {
  }
  log(LogLevel::info, "stopping", "signal={}", signal);
  notify_service_manager("STOPPING=1");
  (*daemon)->stop();
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace replicad

int main(int argc, char** argv) {
  try {
    return replicad::run(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "replicad: %s\n", error.what());
    return replicad::exit_failed;
  }
}
