#pragma once
// One plugin's connection to the agent socket: requests and replies both ways, matched by id, and
// events (docs/protocol.md, "The agent socket"). Knows nothing of volumes. Reactor thread only.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include <nlohmann/json.hpp>
#include <sys/types.h>

#include "io/frame_connection.h"

namespace replicad {

class AgentSession : public std::enable_shared_from_this<AgentSession> {
 public:
  struct Handlers {
    /// Answer it, now or later, with reply(id, ...).
    std::function<void(const std::string& op, std::uint64_t id, const nlohmann::json& request)>
        on_request;
    std::function<void(const nlohmann::json& event)> on_event;
    /// Once, when the connection is over.
    std::function<void(const Error&)> on_closed;
  };
  using Answer = std::function<void(Result<nlohmann::json>)>;

  /// Begins to receive. `peer_pid`: of the process that connected.
  static std::shared_ptr<AgentSession> start(Reactor& reactor, Fd socket, Handlers handlers);

  /// Replaces the handlers, also from within one of them.
  void set_handlers(Handlers handlers) { handlers_ = std::move(handlers); }
  void reply(std::uint64_t id, const Result<nlohmann::json>& result);
  /// Sends a request; `answer` comes exactly once: the result, the plugin's error, Errc::timeout,
  /// or Errc::unreachable when the connection ends first.
  void request(const std::string& op, nlohmann::json fields, Duration timeout, Answer answer);
  /// Sends a request that has no answer.
  void notify(const std::string& op, nlohmann::json fields = nlohmann::json::object());
  void close(Error error);
  [[nodiscard]] bool is_open() const { return open_; }
  [[nodiscard]] pid_t peer_pid() const { return peer_pid_; }

 private:
  struct Waiting {
    Reactor::TimerId timer = 0;
    Answer answer;
  };

  explicit AgentSession(Reactor& reactor) : reactor_(reactor) {}
  Status on_frame(const FrameView& frame);
  Status on_reply(const nlohmann::json& message);
  void on_closed(const Error& error);
  void finish(std::uint64_t id, Result<nlohmann::json> result);

  Reactor& reactor_;
  std::shared_ptr<FrameConnection> connection_;
  Handlers handlers_;
  std::map<std::uint64_t, Waiting> waiting_;
  std::uint64_t next_id_ = 1;
  pid_t peer_pid_ = 0;
  bool open_ = true;
};

}  // namespace replicad
