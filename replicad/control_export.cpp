// Starting and stopping the NBD export: activate, deactivate, and what a promotion needs of them.

#include <cerrno>
#include <csignal>

#include <unistd.h>

#include "core/base/log.h"
#include "replicad/control_api.h"
#include "replicad/reactor_call.h"

namespace replicad {

using nlohmann::json;

namespace {

constexpr auto start_deadline = std::chrono::seconds(10);
constexpr auto plugin_settle_timeout = std::chrono::seconds(5);
constexpr auto stop_patience = std::chrono::seconds(15);
constexpr auto kill_grace = std::chrono::seconds(5);
constexpr auto exit_poll_interval = std::chrono::milliseconds(10);

Error early_end(const ExportCommand& command) {
  const std::string output = last_output(command);
  return Error{
      Errc::io_error,
      0,
      output.empty()
          ? fmt::format("nbdkit ended before it served volume {}", command.volume)
          : fmt::format("nbdkit ended before it served volume {}: {}", command.volume, output),
      fmt::format("its messages are in {}", command.log_file())};
}

/// Until the plugin has said `serving`. Errors: nbdkit has ended, or Errc::timeout.
Status wait_until_serving(ControlContext& context,
                          const std::shared_ptr<Volume>& volume,
                          const std::shared_ptr<ExportProcess>& process,
                          std::chrono::steady_clock::time_point deadline) {
  while (!run_on_reactor(context.reactor, [volume] { return volume->is_serving(); })) {
    if (process->wait_exit(exit_poll_interval))
      return tl::unexpected(early_end(volume->export_command()));
    if (std::chrono::steady_clock::now() >= deadline) {
      return fail(Errc::timeout, "nbdkit did not serve volume {} within 10 s", volume->name());
    }
  }
  return {};
}

/// Until an NBD client is greeted.
Status wait_until_greeting(const ExportCommand& command,
                           const std::shared_ptr<ExportProcess>& process,
                           std::chrono::steady_clock::time_point deadline) {
  while (true) {
    Status greeted = probe_nbd(command.socket(), std::chrono::milliseconds(2000));
    if (greeted || std::chrono::steady_clock::now() >= deadline) return greeted;
    if (process->wait_exit(exit_poll_interval)) return tl::unexpected(early_end(command));
  }
}

/// A duplicate of the volume's listening socket, which is opened if it is not there yet.
Result<Fd> endpoint_of(ControlContext& context, const std::shared_ptr<Volume>& volume) {
  const auto duplicate = [&] {
    return run_on_reactor(context.reactor, [&]() -> std::optional<Result<Fd>> {
      volume->endpoint().take_given(context.environment.given_sockets);
      if (!volume->endpoint().is_open()) return std::nullopt;
      return volume->endpoint().duplicate();
    });
  };
  if (auto held = duplicate()) return std::move(*held);
  auto opened = Endpoint::open_socket(volume->export_command(), context.options.socket_group);
  if (!opened) return opened;
  const auto socket = std::make_shared<Fd>(std::move(*opened));
  run_on_reactor(context.reactor,
                 [volume, socket] { volume->endpoint().hold(std::move(*socket)); });
  return std::move(*duplicate());
}

Result<ExportInfo> run_start(ControlContext& context,
                             const std::shared_ptr<Volume>& volume,
                             bool& served) {
  const ExportCommand command = volume->export_command();
  const auto listening = endpoint_of(context, volume);
  if (!listening) return tl::unexpected(listening.error());
  if (::unlink(command.pid_file().c_str()) != 0 && errno != ENOENT)
    return fail_errno(errno, "remove {}", command.pid_file());
  const auto deadline = std::chrono::steady_clock::now() + start_deadline;
  auto process = ExportProcess::spawn(command, *listening);
  if (!process) return tl::unexpected(process.error());
  run_on_reactor(context.reactor, [volume, process] { volume->set_export_process(*process); });
  Status status = wait_until_serving(context, volume, *process, deadline);
  if (!status) {
    run_on_reactor(context.reactor, [volume] { volume->abandon_export(); });
    // Killed, so that it cannot end cleanly after all; what it had said by then is heard before its
    // hanging up.
    (*process)->kill(SIGKILL);
    static_cast<void>((*process)->wait_exit(plugin_settle_timeout));
    static_cast<void>(wait_for(
        context, [volume] { return !volume->has_plugin(); }, plugin_settle_timeout));
    served = run_on_reactor(context.reactor, [volume] { return volume->has_served(); });
    return tl::unexpected(status.error());
  }
  served = true;
  status = wait_until_greeting(command, *process, deadline);
  if (!status) return tl::unexpected(status.error());
  return ExportInfo{(*process)->pid(), command.socket()};
}

json export_answer(const std::optional<ExportInfo>& info, const VolumeState& state) {
  json answer = {{"schema", 1}};
  answer.update(export_json(info.value_or(ExportInfo{}), state));
  return answer;
}

}  // namespace

Status start_standby(ControlContext& context,
                     const std::shared_ptr<Volume>& volume,
                     std::uint32_t id) {
  const ExportCommand command = volume->export_command();
  const auto listening = endpoint_of(context, volume);
  if (!listening) return tl::unexpected(listening.error());
  ::unlink(command.pid_file().c_str());
  run_on_reactor(context.reactor, [volume, id] { volume->set_standby(id, nullptr); });
  const auto process = ExportProcess::spawn(command, *listening);
  if (!process) return tl::unexpected(process.error());
  run_on_reactor(context.reactor, [volume, id, process] { volume->set_standby(id, *process); });
  RD_TRY(wait_until_greeting(command, *process, std::chrono::steady_clock::now() + start_deadline));
  run_on_reactor(context.reactor, [volume] { volume->note_standby(true); });
  log(LogLevel::info, "standby_started", "volume={} id={}", volume->name(), id);
  return {};
}

void end_standby(ControlContext& context, const std::shared_ptr<Volume>& volume) {
  const auto process =
      run_on_reactor(context.reactor, [volume]() -> std::shared_ptr<ExportProcess> {
        volume->note_standby(false);
        return volume->take_standby();
      });
  if (!process) return;
  // Without an answer to what it holds.
  process->kill(SIGKILL);
  static_cast<void>(process->wait_exit(kill_grace));
  log(LogLevel::info, "standby_ended", "volume={}", volume->name());
}

Result<ExportInfo> start_export(ControlContext& context,
                                const std::shared_ptr<Volume>& volume,
                                bool* served) {
  end_standby(context, volume);
  RD_TRY(run_on_reactor(context.reactor, [volume] { return volume->prepare_export(); }));
  bool was_served = false;
  auto info = run_start(context, volume, was_served);
  run_on_reactor(context.reactor, [volume] { volume->end_export_start(); });
  if (served != nullptr) *served = was_served;
  if (!info) {
    log(LogLevel::error,
        "export_failed",
        "volume={} error={}",
        volume->name(),
        log_value(info.error().message));
  }
  return info;
}

bool end_export_process(ControlContext& context,
                        const std::shared_ptr<Volume>& volume,
                        std::chrono::milliseconds patience) {
  const auto process =
      run_on_reactor(context.reactor, [volume] { return volume->export_process(); });
  const bool gone = !process || process->wait_exit(patience) || process->terminate(kill_grace);
  // The connection's end comes through the reactor a moment later.
  return gone && wait_for(
                     context, [volume] { return !volume->has_plugin(); }, plugin_settle_timeout);
}

namespace {

Result<ExportInfo> activate_export(ControlContext& context, const std::shared_ptr<Volume>& volume) {
  bool served = false;
  auto started = start_export(context, volume, &served);
  if (!started) {
    if (served)
      static_cast<void>(end_export_process(context, volume, std::chrono::milliseconds(0)));
  }
  return started;
}

Status note_active(ControlContext& context, const std::shared_ptr<Volume>& volume) {
  return update_volume(context, volume, [](VolumeState& state) -> Status {
    state.active = true;
    return {};
  });
}

/// A clean stop, waited for; true if it was one. Errors: Errc::timeout when the process does not end.
Result<bool> stop_export(ControlContext& context, const std::shared_ptr<Volume>& volume) {
  const auto answer = ask_plugin(context, volume, "shutdown", json::object(), stop_patience);
  // The connection may end before the answer is read.
  const bool stopping = answer || answer.error().code == Errc::unreachable;
  if (!stopping) {
    log(LogLevel::warn,
        "stop_refused",
        "volume={} error={}",
        volume->name(),
        log_value(answer.error().message));
  }
  if (!end_export_process(context, volume, stopping ? stop_patience : std::chrono::seconds(0)))
    return fail(Errc::timeout, "the export of volume {} does not end", volume->name());
  return run_on_reactor(context.reactor, [volume] { return volume->state().clean; });
}

/// While it lives, a clean stop of the export is the first half of a restart.
class RestartMark {
 public:
  RestartMark(ControlContext& context, std::shared_ptr<Volume> volume)
      : context_(context), volume_(std::move(volume)) {
    set(true);
  }
  RestartMark(const RestartMark&) = delete;
  RestartMark& operator=(const RestartMark&) = delete;
  ~RestartMark() { set(false); }

 private:
  void set(bool restarting) {
    run_on_reactor(context_.reactor, [this, restarting] { volume_->set_restarting(restarting); });
  }

  ControlContext& context_;
  std::shared_ptr<Volume> volume_;
};

}  // namespace

ControlApi::Answer ControlApi::activate(const std::string& name) {
  const auto operation = OperationGuard::begin(context_, name, "activate");
  if (!operation) return tl::unexpected(operation.error());
  const auto& volume = operation->volume();
  RD_TRY(require_primary(context_, volume));
  auto info = run_on_reactor(context_.reactor, [volume] { return volume->export_info(); });
  if (!info) {
    const auto started = activate_export(context_, volume);
    if (!started) return tl::unexpected(started.error());
    info = *started;
  }
  RD_TRY(note_active(context_, volume));
  return run_on_reactor(context_.reactor,
                        [volume, info] { return export_answer(info, volume->state()); });
}

ControlApi::Answer ControlApi::restart(const std::string& name) {
  const auto operation = OperationGuard::begin(context_, name, "restart");
  if (!operation) return tl::unexpected(operation.error());
  const auto& volume = operation->volume();
  RD_TRY(require_primary(context_, volume));
  RD_TRY(require_no_handover(context_, volume));
  if (!run_on_reactor(context_.reactor, [volume] { return volume->is_serving(); })) {
    return with_hint(fail(Errc::refused, "volume {} is not being served", name),
                     fmt::format("`replicactl activate {}` starts its export", name));
  }
  const RestartMark mark(context_, volume);
  const auto clean = stop_export(context_, volume);
  if (!clean) return tl::unexpected(clean.error());
  const auto started = activate_export(context_, volume);
  if (!started) return tl::unexpected(started.error());
  RD_TRY(note_active(context_, volume));
  return run_on_reactor(context_.reactor, [volume, info = *started, clean = *clean] {
    json answer = export_answer(info, volume->state());
    answer["clean"] = clean;
    return answer;
  });
}

ControlApi::Answer ControlApi::deactivate(const std::string& name) {
  const auto operation = OperationGuard::begin(context_, name, "deactivate");
  if (!operation) return tl::unexpected(operation.error());
  const auto& volume = operation->volume();
  RD_TRY(require_primary(context_, volume));
  RD_TRY(require_no_handover(context_, volume));
  const bool serving = run_on_reactor(context_.reactor, [volume] { return volume->has_plugin(); });
  bool clean = true;
  if (serving) {
    const auto stopped = stop_export(context_, volume);
    if (!stopped) return tl::unexpected(stopped.error());
    clean = *stopped;
  }
  RD_TRY(update_volume(context_, volume, [](VolumeState& state) -> Status {
    state.active = false;
    return {};
  }));
  run_on_reactor(context_.reactor, [volume] { volume->endpoint().drop(); });
  if (!clean) {
    return with_hint(
        fail(Errc::io_error,
             "the export of volume {} ended, but not cleanly; its last words: {}",
             name,
             last_output(volume->export_command())),
        "activate starts a new epoch, and replicas are compared where they may differ");
  }
  return describe_volume(context_, volume);
}

}  // namespace replicad
