#include "nbd-plugin/agent_client.h"

#include <cerrno>

#include <poll.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/wire/messages.h"
#include "io/clock.h"
#include "io/net.h"

namespace replicad {

namespace {

using nlohmann::json;

constexpr std::size_t reader_bytes = frame_header_bytes + data_payload_bytes_max;
constexpr auto claim_deadline = std::chrono::seconds(10);
constexpr auto reconnect_delay = std::chrono::milliseconds(200);
constexpr int wait_slice_ms = 5;

Result<json> parse(std::span<const std::byte> payload) {
  const auto* text = reinterpret_cast<const char*>(payload.data());
  json value = json::parse(text, text + payload.size(), nullptr, false);
  if (!value.is_object()) return fail(Errc::protocol, "an agent frame is not a JSON object");
  return value;
}

/// Of bytes that are no UTF-8, which may come from anywhere, what can be said.
std::string text_of(const json& message) {
  return message.dump(-1, ' ', false, json::error_handler_t::replace);
}

Error error_from(const json& message) {
  const auto found_error = message.find("error");
  const json error = found_error != message.end() ? *found_error : json();
  if (!error.is_object())
    return Error{Errc::protocol, 0, "replicad answered with an error it did not describe", {}};
  const auto text = [&](const char* key) {
    const auto found = error.find(key);
    return found != error.end() && found->is_string() ? found->get<std::string>() : std::string();
  };
  return Error{errc_from_name(text("code")), 0, text("message"), text("hint")};
}

/// The result of a reply frame, or its error.
Result<json> result_of(const json& message) {
  const auto ok = message.find("ok");
  if (ok == message.end() || *ok != json(true)) return tl::unexpected(error_from(message));
  const auto result = message.find("result");
  return result != message.end() ? *result : json::object();
}

Status write_fully(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return fail_errno(errno, "send to replicad");
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return {};
}

/// Waits for one frame, blocking.
Result<json> read_reply(int fd, const std::function<bool()>& give_up) {
  FrameReader reader(reader_bytes);
  while (true) {
    auto frame = reader.next();
    if (!frame) return tl::unexpected(frame.error());
    if (*frame) return parse((*frame)->payload);
    pollfd poll_fd{fd, POLLIN, 0};
    if (::poll(&poll_fd, 1, wait_slice_ms) <= 0) {
      if (give_up()) return fail(Errc::timeout, "replicad did not answer in time");
      continue;
    }
    const auto room = reader.writable();
    const ssize_t count = ::recv(fd, room.data(), room.size(), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return fail_errno(errno, "receive from replicad");
    if (count == 0)
      return fail(Errc::unreachable, "replicad closed the connection without an answer");
    reader.commit(static_cast<std::size_t>(count));
  }
}

}  // namespace

Result<std::shared_ptr<AgentClient>> AgentClient::claim(const std::string& socket_path,
                                                        const std::string& volume,
                                                        Grant& grant) {
  auto socket = connect_blocking("unix:" + socket_path, 5000);
  if (!socket) {
    return tl::unexpected(
        Error{socket.error().code,
              socket.error().sys_errno,
              fmt::format("cannot reach this host's replicad: {}", socket.error().message),
              "start replicad, or give agent=PATH of its agent.sock"});
  }
  const json request{{"id", 1},
                     {"op", "claim"},
                     {"volume", volume},
                     {"pid", ::getpid()},
                     {"version", REPLICAD_VERSION}};
  const Instant asked_at = boot_time_now();
  RD_TRY(write_fully(socket->get(), encode_json_frame(FrameType::agent_request, text_of(request))));
  const Instant deadline = boot_time_now() + claim_deadline;
  auto reply = read_reply(socket->get(), [&] { return boot_time_now() >= deadline; });
  if (!reply && reply.error().code == Errc::timeout)
    return fail(Errc::timeout, "replicad did not answer the claim within 10 s");
  if (!reply) return tl::unexpected(reply.error());
  const auto result = result_of(*reply);
  if (!result) return tl::unexpected(result.error());
  auto decoded = decode_grant(*result);
  if (!decoded) return tl::unexpected(decoded.error());
  grant = std::move(*decoded);
  grant.asked_at = asked_at;
  auto client = std::shared_ptr<AgentClient>(new AgentClient(socket_path, std::move(*socket)));
  client->next_id_ = 2;
  return client;
}

Result<json> ask_agent(const std::string& socket_path,
                       json request,
                       const std::function<bool()>& give_up) {
  auto socket = connect_blocking("unix:" + socket_path, 1000);
  if (!socket) return tl::unexpected(socket.error());
  request["id"] = 1;
  RD_TRY(write_fully(socket->get(), encode_json_frame(FrameType::agent_request, text_of(request))));
  const auto reply = read_reply(socket->get(), give_up);
  if (!reply) return tl::unexpected(reply.error());
  return result_of(*reply);
}

pid_t AgentClient::daemon_pid() const {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (::getsockopt(socket_.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return 0;
  return credentials.pid;
}

void AgentClient::start(Reactor& reactor, Handlers handlers) {
  reactor_ = &reactor;
  handlers_ = std::move(handlers);
  adopt(std::move(socket_));
}

void AgentClient::adopt(Fd socket) {
  connection_ = FrameConnection::create(*reactor_, std::move(socket), reader_bytes);
  const std::weak_ptr<AgentClient> weak = weak_from_this();
  connection_->start({.on_frame = [weak](const FrameView& frame) -> Status {
                        const auto self = weak.lock();
                        return self ? self->on_frame(frame) : Status{};
                      },
                      .on_batch_end = [] {},
                      .on_closed =
                          [weak](const Error& error) {
                            const auto self = weak.lock();
                            if (!self) return;
                            self->connection_.reset();
                            if (self->stopped_) return;
                            log(LogLevel::warn, "agent_lost", "error={}", log_value(error.message));
                            self->reconnect_later();
                          }});
}

void AgentClient::reconnect_later() {
  joined_ = false;
  rejoin_id_ = 0;
  connection_.reset();
  const std::weak_ptr<AgentClient> weak = weak_from_this();
  reactor_->add_timer(reconnect_delay, [weak] {
    const auto self = weak.lock();
    if (self && !self->stopped_) self->reconnect();
  });
}

void AgentClient::reconnect() {
  // A unix socket connects at once or not at all.
  auto socket = connect_blocking("unix:" + socket_path_, 100);
  if (!socket) {
    reconnect_later();
    return;
  }
  adopt(std::move(*socket));
  rejoin();
}

void AgentClient::rejoin() {
  rejoin_id_ = next_id_++;
  json fields = handlers_.rejoin_fields();
  fields["id"] = rejoin_id_;
  fields["op"] = "rejoin";
  connection_->send(encode_json_frame(FrameType::agent_request, text_of(fields)));
}

void AgentClient::request(const std::string& op, json fields, Reply reply) {
  const std::uint64_t id = next_id_++;
  const auto [entry, inserted] =
      pending_.emplace(id, Pending{op, std::move(fields), std::move(reply)});
  if (joined_ && connection_) send_request(id, entry->second);
}

void AgentClient::send_request(std::uint64_t id, const Pending& pending) {
  json message = pending.fields;
  message["id"] = id;
  message["op"] = pending.op;
  connection_->send(encode_json_frame(FrameType::agent_request, text_of(message)));
}

void AgentClient::send_event(const std::string& op, json fields) {
  if (!joined_ || !connection_) return;
  fields["op"] = op;
  connection_->send(encode_json_frame(FrameType::agent_event, text_of(fields)));
}

void AgentClient::on_reply(const json& message) {
  const auto id_field = message.find("id");
  if (id_field == message.end() || !id_field->is_number_unsigned()) return;
  const auto id = id_field->get<std::uint64_t>();
  auto result = result_of(message);
  if (id == rejoin_id_) {
    rejoin_id_ = 0;
    if (!result) {
      handlers_.on_fenced(result.error());
      return;
    }
    joined_ = true;
    log(LogLevel::info, "agent_rejoined", "pending={}", pending_.size());
    for (const auto& [pending_id, pending] : pending_)
      send_request(pending_id, pending);
    return;
  }
  const auto found = pending_.find(id);
  if (found == pending_.end()) return;
  const Reply reply = std::move(found->second.reply);
  pending_.erase(found);
  reply(std::move(result));
}

Status AgentClient::on_frame(const FrameView& frame) {
  const auto message = parse(frame.payload);
  if (!message) return tl::unexpected(message.error());
  if (frame.header.type == FrameType::agent_reply) {
    on_reply(*message);
    return {};
  }
  if (frame.header.type != FrameType::agent_request) {
    return fail(Errc::protocol,
                "unexpected frame type {} on the agent socket",
                static_cast<unsigned>(frame.header.type));
  }
  const auto op = message->find("op");
  const auto id = message->find("id");
  if (op == message->end() || !op->is_string() || id == message->end() ||
      !id->is_number_unsigned()) {
    return fail(Errc::protocol, "an agent request without id or op");
  }
  const std::weak_ptr<FrameConnection> weak = connection_;
  const auto request_id = id->get<std::uint64_t>();
  handlers_.on_request(op->get<std::string>(), *message, [weak, request_id](Result<json> result) {
    const auto connection = weak.lock();
    if (!connection || !connection->is_open()) return;
    json reply{{"id", request_id}, {"ok", result.has_value()}};
    if (result) {
      reply["result"] = std::move(*result);
    } else {
      reply["error"] = error_json(result.error());
    }
    connection->send(encode_json_frame(FrameType::agent_reply, text_of(reply)));
  });
  return {};
}

void AgentClient::stop() {
  stopped_ = true;
  if (connection_) connection_->close(Error{Errc::refused, 0, "the plugin stops", {}});
}

}  // namespace replicad
