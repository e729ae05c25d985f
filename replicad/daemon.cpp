#include "replicad/daemon.h"

#include <cerrno>
#include <mutex>
#include <thread>

#include <unistd.h>

#include "core/base/log.h"
#include "io/file.h"
#include "io/net.h"
#include "replicad/control_server.h"
#include "replicad/reactor_call.h"
#include "replicad/role_keeper.h"
#include "replicad/stability_keeper.h"
#include "replicad/state_dir.h"
#include "replicad/vote_driver.h"

namespace replicad {

namespace {

constexpr unsigned daemon_directory_mode = 0750;
constexpr Duration housekeeping_interval = std::chrono::seconds(1);
constexpr unsigned save_every_intervals = 10;
constexpr auto listen_patience = std::chrono::seconds(2);
constexpr Duration stop_timeout = std::chrono::seconds(60);
constexpr Duration settle_timeout = std::chrono::seconds(10);

Status prepare_directories(const Options& options) {
  for (const std::string& directory :
       {options.state_dir, options.state_dir + "/volumes", options.image_dir, options.run_dir}) {
    if (Status made = make_directories(directory, daemon_directory_mode); !made) return made;
    if (::access(directory.c_str(), R_OK | W_OK | X_OK) != 0) {
      return fail_errno(errno, "no access to the directory {}", directory);
    }
  }
  return {};
}

/// "host:port" as others reach it, with the real port.
Result<std::string> stream_address_of(const Options& options, const Fd& listening) {
  if (!options.advertise.empty()) return options.advertise;
  auto bound = bound_address(listening.get());
  if (!bound) return bound;
  const auto port = split_host_port(*bound);
  const auto listen = split_host_port(options.listen);
  if (!port || !listen) return bound;
  const bool v6 = listen->host.find(':') != std::string::npos;
  return v6 ? fmt::format("[{}]:{}", listen->host, port->port)
            : fmt::format("{}:{}", listen->host, port->port);
}

class RunningDaemon final : public Daemon {
 public:
  RunningDaemon(const Options& options, GivenSockets given)
      : options_(options), given_(std::move(given)), stability_(options.state_dir) {}
  RunningDaemon(const RunningDaemon&) = delete;
  RunningDaemon& operator=(const RunningDaemon&) = delete;
  ~RunningDaemon() override { stop(); }

  Status begin();
  void stop() override;
  [[nodiscard]] const std::string& stream_address() const override { return stream_address_; }
  [[nodiscard]] const std::string& control_address() const override { return control_address_; }

 private:
  Status bind_all();
  Status start_volumes();
  void housekeep();
  void stop_volumes();
  void wait_until_settled();

  Options options_;
  GivenSockets given_;
  std::string stream_address_;
  std::string control_address_;
  Fd lock_;
  StabilityKeeper stability_;
  bool marked_ = false;
  bool agent_bound_ = false;
  std::unique_ptr<Worker> worker_;
  std::unique_ptr<Worker> background_;
  std::unique_ptr<Reactor> reactor_;
  std::thread reactor_thread_;
  std::unique_ptr<VolumeEnvironment> environment_;
  std::unique_ptr<VolumeRegistry> registry_;
  std::unique_ptr<ControlContext> context_;
  Fd stream_socket_;
  Fd agent_socket_;
  std::unique_ptr<ControlServer> unix_server_;
  std::unique_ptr<ControlServer> tcp_server_;
  std::unique_ptr<VoteDriver> votes_;
  std::mutex keeper_mutex_;  ///< guards keeper_ against being woken while it begins or ends
  std::unique_ptr<RoleKeeper> keeper_;
  unsigned housekeeping_count_ = 0;
  bool stopped_ = false;
};

Status RunningDaemon::begin() {
  RD_TRY(prepare_directories(options_));
  auto lock = lock_state_dir(options_.state_dir);
  if (!lock) return tl::unexpected(lock.error());
  lock_ = std::move(*lock);
  auto reactor = Reactor::create();
  if (!reactor) return tl::unexpected(reactor.error());
  reactor_ = std::move(*reactor);
  RD_TRY(bind_all());
  RD_TRY(stability_.start());
  marked_ = true;
  worker_ = Worker::create();
  background_ = Worker::create();
  environment_ = std::make_unique<VolumeEnvironment>(
      VolumeEnvironment{*reactor_, *worker_, *background_, options_, [this](HostTrouble trouble) {
                          if (trouble == HostTrouble::link_loss) stability_.count_link_loss();
                          if (trouble == HostTrouble::disk_error) stability_.count_disk_error();
                        }});
  votes_ = std::make_unique<VoteDriver>(*environment_);
  environment_->votes = votes_.get();
  environment_->given_sockets = std::move(given_);
  environment_->wake_keeper = [this] {
    const std::lock_guard guard(keeper_mutex_);
    if (keeper_) keeper_->wake();
  };
  registry_ = std::make_unique<VolumeRegistry>(*environment_);
  context_.reset(new ControlContext{*reactor_,
                                    *environment_,
                                    *registry_,
                                    options_,
                                    [this] { return stability_.current(); },
                                    stream_address_,
                                    control_address_,
                                    {},
                                    {}});
  reactor_thread_ = std::thread([this] { reactor_->run(); });
  RD_TRY(start_volumes());
  unix_server_->serve(*context_);
  if (tcp_server_) tcp_server_->serve(*context_);
  {
    auto keeper = std::make_unique<RoleKeeper>(*context_);
    const std::lock_guard guard(keeper_mutex_);
    keeper_ = std::move(keeper);
  }
  log(LogLevel::info,
      "started",
      "host={} version={} stream={} control={} socket={}",
      options_.host,
      REPLICAD_VERSION,
      stream_address_,
      control_address_.empty() ? "-" : control_address_,
      options_.control_socket());
  return {};
}

/// After a kill the kernel takes a moment to let go of the sockets that io_uring was waiting on.
Result<Fd> listen_patiently(const std::string& address) {
  const auto end = std::chrono::steady_clock::now() + listen_patience;
  while (true) {
    auto socket = listen_on(address);
    const bool in_use = !socket && socket.error().code == Errc::busy;
    if (!in_use || std::chrono::steady_clock::now() >= end) return socket;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

/// The agent socket first: it tells whether another replicad lives in this run directory.
Status RunningDaemon::bind_all() {
  auto agents = listen_patiently("unix:" + options_.agent_socket());
  if (!agents) {
    return with_hint(tl::unexpected(agents.error()), "does another replicad use the same run-dir?");
  }
  agent_socket_ = std::move(*agents);
  agent_bound_ = true;
  auto stream = listen_patiently(options_.listen);
  if (!stream) return tl::unexpected(stream.error());
  stream_socket_ = std::move(*stream);
  auto address = stream_address_of(options_, stream_socket_);
  if (!address) return tl::unexpected(address.error());
  stream_address_ = *address;
  auto unix_server = ControlServer::bind("unix:" + options_.control_socket());
  if (!unix_server) return tl::unexpected(unix_server.error());
  unix_server_ = std::move(*unix_server);
  if (options_.control.empty()) return {};
  auto tcp_server = ControlServer::bind(options_.control);
  if (!tcp_server) return tl::unexpected(tcp_server.error());
  tcp_server_ = std::move(*tcp_server);
  control_address_ = tcp_server_->address();
  return {};
}

Status RunningDaemon::start_volumes() {
  return run_on_reactor(*reactor_, [this]() -> Status {
    RD_TRY(registry_->load_all());
    registry_->serve_agents(std::move(agent_socket_));
    registry_->serve_stream(std::move(stream_socket_));
    housekeep();
    return {};
  });
}

void RunningDaemon::housekeep() {
  if (environment_->stopping) return;
  for (const auto& volume : registry_->all())
    volume->tend();
  if (++housekeeping_count_ % save_every_intervals == 0) {
    worker_->post([this] { stability_.save(); });
  }
  reactor_->add_timer(housekeeping_interval, [this] { housekeep(); });
}

void RunningDaemon::stop_volumes() {
  const auto volumes = run_on_reactor(*reactor_, [this] { return registry_->all(); });
  for (const auto& volume : volumes) {
    // A claim that has not led to an export yet is undone rather than left as an unclean end.
    static_cast<void>(call_reactor<void>(
        *reactor_,
        [volume](auto done) { volume->abandon_claim([done] { done({}); }); },
        stop_timeout));
  }
  run_on_reactor(*reactor_, [this] {
    environment_->stopping = true;
    registry_->stop_serving();
  });
  for (const auto& volume : volumes) {
    const Status released = call_reactor<void>(
        *reactor_,
        [volume](auto done) { volume->release(false, [done] { done({}); }); },
        stop_timeout);
    if (!released) {
      log(LogLevel::error,
          "volume_not_stopped",
          "volume={} error={}",
          volume->name(),
          log_value(released.error().message));
    }
  }
}

/// Changes that nobody waits for, such as the mark of an export that was lost.
void RunningDaemon::wait_until_settled() {
  const auto end = std::chrono::steady_clock::now() + settle_timeout;
  const auto settled = [this] {
    for (const auto& volume : registry_->all()) {
      if (!volume->is_settled()) return false;
    }
    return true;
  };
  while (!run_on_reactor(*reactor_, settled) && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

void RunningDaemon::stop() {
  if (std::exchange(stopped_, true)) return;
  if (context_) context_->stopping = true;
  if (votes_) votes_->stop();
  std::unique_ptr<RoleKeeper> keeper;
  {
    const std::lock_guard guard(keeper_mutex_);
    keeper = std::move(keeper_);
  }
  keeper.reset();
  if (tcp_server_) tcp_server_->stop();
  if (unix_server_) unix_server_->stop();
  if (reactor_thread_.joinable()) {
    stop_volumes();
    votes_->wait_idle();
    wait_until_settled();
    // Volumes end on the reactor thread, in functions that are posted when their last reference
    // goes.
    run_on_reactor(*reactor_, [this] { registry_->clear(); });
    run_on_reactor(*reactor_, [] {});
    reactor_->stop();
    reactor_thread_.join();
  }
  worker_.reset();
  if (marked_) stability_.end();
  if (agent_bound_) ::unlink(options_.agent_socket().c_str());
}

}  // namespace

Result<std::unique_ptr<Daemon>> Daemon::start(const Options& options, GivenSockets given) {
  auto daemon = std::make_unique<RunningDaemon>(options, std::move(given));
  if (const Status begun = daemon->begin(); !begun) return tl::unexpected(begun.error());
  return std::unique_ptr<Daemon>(std::move(daemon));
}

}  // namespace replicad
