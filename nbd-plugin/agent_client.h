#pragma once
// The plugin's end of the agent socket: one blocking claim before nbdkit forks, then requests both ways on the
// reactor. A lost connection (replicad restarts) is made again with `rejoin`; requests not answered yet are
// sent again.

#include <functional>
#include <map>
#include <memory>
#include <string>

#include <nlohmann/json.hpp>

#include "io/frame_connection.h"
#include "nbd-plugin/settings.h"

namespace replicad {

class AgentClient : public std::enable_shared_from_this<AgentClient> {
 public:
  using Reply = std::function<void(Result<nlohmann::json> result)>;
  struct Handlers {
    /// A request of replicad; `reply` is called once, now or later (never after `release`).
    std::function<void(const std::string& op, const nlohmann::json& fields, Reply reply)>
        on_request;
    /// Fields to send with `rejoin` (volume, pid, epoch, reserved).
    std::function<nlohmann::json()> rejoin_fields;
    /// replicad says this plugin's term is over.
    std::function<void(const Error&)> on_fenced;
  };

  /// `socket_path`: agent.sock of the local replicad. Connects and claims `volume`, blocking, at most 10 s.
  /// The connection is kept. Errors: Errc::unreachable with a hint, or replicad's refusal.
  [[nodiscard]] static Result<std::shared_ptr<AgentClient>> claim(const std::string& socket_path,
                                                                  const std::string& volume,
                                                                  Grant& grant);

  /// The process at the other end. Before start().
  [[nodiscard]] pid_t daemon_pid() const;
  /// From here on the reactor owns the connection. Before Reactor::run() or on its thread.
  void start(Reactor& reactor, Handlers handlers);
  /// Sends a request; `reply` gets replicad's answer, however long and over however many connections it takes.
  void request(const std::string& op, nlohmann::json fields, Reply reply);
  /// Fire and forget; dropped while there is no connection.
  void send_event(const std::string& op, nlohmann::json fields);
  void stop();

 private:
  AgentClient(std::string socket_path, Fd socket)
      : socket_path_(std::move(socket_path)), socket_(std::move(socket)) {}

  struct Pending {
    std::string op;
    nlohmann::json fields;
    Reply reply;
  };

  void adopt(Fd socket);
  void reconnect_later();
  void reconnect();
  void rejoin();
  void on_reply(const nlohmann::json& message);
  Status on_frame(const FrameView& frame);
  void send_request(std::uint64_t id, const Pending& pending);

  std::string socket_path_;
  Fd socket_;
  Reactor* reactor_ = nullptr;
  Handlers handlers_;
  std::shared_ptr<FrameConnection> connection_;
  std::map<std::uint64_t, Pending> pending_;
  std::uint64_t next_id_ = 1;
  std::uint64_t rejoin_id_ = 0;
  bool joined_ = true;  ///< this connection speaks for the claim
  bool stopped_ = false;
};

/// One request to replicad on a connection of its own. Blocking, any thread. `give_up`: asked every few milliseconds of
/// waiting. Errors: Errc::unreachable, Errc::timeout when it has given up, or replicad's refusal.
[[nodiscard]] Result<nlohmann::json> ask_agent(const std::string& socket_path,
                                               nlohmann::json request,
                                               const std::function<bool()>& give_up);

}  // namespace replicad
