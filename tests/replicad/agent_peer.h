#pragma once
// A plugin's end of the agent socket for tests: blocking, one thread, no reactor.

#include <chrono>
#include <deque>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/wire/frame_reader.h"
#include "core/wire/messages.h"
#include "io/fd.h"
#include "io/net.h"

namespace replicad {

class AgentPeer {
 public:
  using json = nlohmann::json;

  explicit AgentPeer(Fd socket) : socket_(std::move(socket)), reader_(2 * mib) {}

  static Result<AgentPeer> connect(const std::string& path) {
    auto socket = connect_blocking("unix:" + path, 2000);
    if (!socket) return tl::unexpected(socket.error());
    return AgentPeer(std::move(*socket));
  }

  [[nodiscard]] int fd() const { return socket_.get(); }
  [[nodiscard]] bool open() const { return socket_.valid() && !ended_; }
  void close() { socket_.reset(); }

  void send_bytes(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) {
        ended_ = true;
        return;
      }
      bytes = bytes.subspan(static_cast<std::size_t>(sent));
    }
  }
  void send(FrameType type, const json& message) {
    send_bytes(encode_json_frame(type, message.dump()));
  }

  struct Received {
    FrameType type{};
    json message;
  };

  /// The next frame, or nullopt after `timeout` or at the end of the connection.
  std::optional<Received> receive(std::chrono::milliseconds timeout) {
    if (!kept_.empty()) {
      Received first = std::move(kept_.front());
      kept_.pop_front();
      return first;
    }
    return read_frame(timeout);
  }

  /// Sends a request and waits for its answer: the whole reply, or an empty object if none comes.
  json request(const std::string& op,
               json fields,
               std::chrono::milliseconds timeout = std::chrono::seconds(10)) {
    const std::uint64_t id = next_id_++;
    fields["id"] = id;
    fields["op"] = op;
    send(FrameType::agent_request, fields);
    const auto end = std::chrono::steady_clock::now() + timeout;
    while (std::chrono::steady_clock::now() < end && !ended_) {
      auto received = read_frame(std::chrono::milliseconds(50));
      if (!received) continue;
      if (received->type == FrameType::agent_reply &&
          received->message.value("id", std::uint64_t{0}) == id) {
        return received->message;
      }
      kept_.push_back(std::move(*received));
    }
    return json::object();
  }

  void reply(const json& request, const json& result) {
    send(FrameType::agent_reply, {{"id", request.at("id")}, {"ok", true}, {"result", result}});
  }
  void refuse(const json& request, const std::string& code, const std::string& message) {
    send(FrameType::agent_reply,
         {{"id", request.at("id")},
          {"ok", false},
          {"error", {{"code", code}, {"message", message}, {"hint", ""}}}});
  }

  /// Waits until the other side has closed. False after `timeout`.
  bool wait_closed(std::chrono::milliseconds timeout) {
    const auto end = std::chrono::steady_clock::now() + timeout;
    while (std::chrono::steady_clock::now() < end && !ended_) {
      auto received = read_frame(std::chrono::milliseconds(20));
      if (received) kept_.push_back(std::move(*received));
    }
    return ended_;
  }

 private:
  std::optional<Received> read_frame(std::chrono::milliseconds timeout) {
    const auto end = std::chrono::steady_clock::now() + timeout;
    while (true) {
      const auto frame = reader_.next();
      if (!frame) {
        ended_ = true;
        return std::nullopt;
      }
      if (*frame) {
        const auto* text = reinterpret_cast<const char*>((*frame)->payload.data());
        Received received{(*frame)->header.type,
                          json::parse(text, text + (*frame)->payload.size(), nullptr, false)};
        reader_.compact();
        return received;
      }
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          end - std::chrono::steady_clock::now());
      pollfd waiting{socket_.get(), POLLIN, 0};
      if (::poll(&waiting, 1, static_cast<int>(std::max<std::int64_t>(0, left.count()))) <= 0)
        return std::nullopt;
      const auto room = reader_.writable();
      const ssize_t got = ::recv(socket_.get(), room.data(), room.size(), 0);
      if (got <= 0) {
        ended_ = true;
        return std::nullopt;
      }
      reader_.commit(static_cast<std::size_t>(got));
    }
  }

  Fd socket_;
  FrameReader reader_;
  std::deque<Received> kept_;
  std::uint64_t next_id_ = 1;
  bool ended_ = false;
};

}  // namespace replicad
