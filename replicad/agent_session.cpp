#include "replicad/agent_session.h"

#include <sys/socket.h>

#include "core/wire/messages.h"
#include "replicad/json_fields.h"
#include "replicad/volume_json.h"

namespace replicad {

using nlohmann::json;

namespace {

constexpr std::size_t reader_bytes = 2 * mib;
constexpr std::uint64_t id_max = ~std::uint64_t{0};

pid_t pid_of_peer(int fd) {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return 0;
  return credentials.pid;
}

std::vector<std::byte> frame_of(FrameType type, const json& message) {
  return encode_json_frame(type, message.dump(-1, ' ', false, json::error_handler_t::replace));
}

Error error_from(const json& message) {
  FieldReader outer(message);
  FieldReader fields(outer.object("error"), "error");
  Error error;
  error.code = errc_from_name(fields.text("code", 64));
  error.message = fields.text("message", 4096);
  error.hint = fields.optional_text("hint", 4096).value_or("");
  if (const Status status = fields.finish_allow_unknown(); !status) {
    return Error{Errc::protocol, 0, "the plugin refused without a reason that can be read", {}};
  }
  return error;
}

}  // namespace

std::shared_ptr<AgentSession> AgentSession::start(Reactor& reactor, Fd socket, Handlers handlers) {
  std::shared_ptr<AgentSession> session(new AgentSession(reactor));
  session->peer_pid_ = pid_of_peer(socket.get());
  session->handlers_ = std::move(handlers);
  session->connection_ = FrameConnection::create(reactor, std::move(socket), reader_bytes);
  FrameConnection::Handlers frames;
  // The session lives until on_closed: whoever started it may not keep it.
  frames.on_frame = [session](const FrameView& frame) { return session->on_frame(frame); };
  frames.on_closed = [session](const Error& error) { session->on_closed(error); };
  session->connection_->start(std::move(frames));
  return session;
}

Status AgentSession::on_frame(const FrameView& frame) {
  const std::string_view text(reinterpret_cast<const char*>(frame.payload.data()),
                              frame.payload.size());
  if (frame.header.type != FrameType::agent_request &&
      frame.header.type != FrameType::agent_reply && frame.header.type != FrameType::agent_event) {
    return fail(Errc::protocol,
                "frame type {} does not belong on the agent socket",
                static_cast<int>(frame.header.type));
  }
  const auto message = parse_json_object(text, Errc::protocol);
  if (!message) return tl::unexpected(message.error());
  if (frame.header.type == FrameType::agent_reply) return on_reply(*message);
  // A handler may replace the handlers: call a copy.
  const Handlers handlers = handlers_;
  if (frame.header.type == FrameType::agent_event) {
    if (handlers.on_event) handlers.on_event(*message);
    return {};
  }
  FieldReader fields(*message);
  const std::uint64_t id = fields.number("id", 0, id_max);
  const std::string op = fields.text("op", 64);
  if (const Status status = fields.finish_allow_unknown(); !status) {
    return fail(Errc::protocol, "bad agent request: {}", status.error().message);
  }
  if (handlers.on_request) handlers.on_request(op, id, *message);
  return {};
}

Status AgentSession::on_reply(const json& message) {
  FieldReader fields(message);
  const std::uint64_t id = fields.number("id", 0, id_max);
  const bool ok = fields.boolean("ok");
  const json* result = fields.optional_object("result");
  if (const Status status = fields.finish_allow_unknown(); !status) {
    return fail(Errc::protocol, "bad agent reply: {}", status.error().message);
  }
  if (!ok) {
    finish(id, tl::unexpected(error_from(message)));
  } else {
    finish(id, result == nullptr ? json::object() : *result);
  }
  return {};
}

void AgentSession::finish(std::uint64_t id, Result<json> result) {
  const auto found = waiting_.find(id);
  if (found == waiting_.end()) return;  // it came after its timeout
  reactor_.cancel_timer(found->second.timer);
  const Answer answer = std::move(found->second.answer);
  waiting_.erase(found);
  answer(std::move(result));
}

void AgentSession::on_closed(const Error& error) {
  if (!open_) return;
  open_ = false;
  const auto self = shared_from_this();
  while (!waiting_.empty()) {
    finish(waiting_.begin()->first,
           fail(Errc::unreachable, "the export's process ended: {}", error.message));
  }
  const Handlers handlers = std::exchange(handlers_, {});
  if (handlers.on_closed) handlers.on_closed(error);
}

void AgentSession::reply(std::uint64_t id, const Result<json>& result) {
  if (!open_) return;
  json message = {{"id", id}, {"ok", result.has_value()}};
  if (result) {
    message["result"] = *result;
  } else {
    message["error"] = to_json(result.error());
  }
  connection_->send(frame_of(FrameType::agent_reply, message));
}

void AgentSession::request(const std::string& op, json fields, Duration timeout, Answer answer) {
  if (!open_) {
    answer(fail(Errc::unreachable, "the export's process has ended"));
    return;
  }
  const std::uint64_t id = next_id_++;
  fields["id"] = id;
  fields["op"] = op;
  Waiting& waiting = waiting_[id];
  waiting.answer = std::move(answer);
  waiting.timer = reactor_.add_timer(timeout, [self = weak_from_this(), id, op] {
    if (const auto session = self.lock()) {
      session->finish(
          id, fail(Errc::timeout, "the export's process did not answer \"{}\" in time", op));
    }
  });
  connection_->send(frame_of(FrameType::agent_request, fields));
}

void AgentSession::notify(const std::string& op, json fields) {
  if (!open_) return;
  fields["id"] = next_id_++;
  fields["op"] = op;
  connection_->send(frame_of(FrameType::agent_request, fields));
}

void AgentSession::close(Error error) {
  if (open_) connection_->close_after_send(std::move(error));
}

}  // namespace replicad
