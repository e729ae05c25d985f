#include "replicad/volume_registry.h"

#include <filesystem>

#include "core/base/log.h"

namespace replicad {

namespace {

constexpr std::size_t newcomers_max = 64;
constexpr Duration newcomer_timeout = std::chrono::seconds(5);
constexpr Duration refusal_log_interval = std::chrono::seconds(1);
/// Two largest frames: what is received is still in the processor's cache when it is checked and appended.
constexpr std::size_t stream_reader_bytes = 2 * (frame_header_bytes + data_payload_bytes_max);

}  // namespace

/// A connection to the stream port before its attach frame.
struct VolumeRegistry::Newcomer {
  std::shared_ptr<FrameConnection> connection;
  Reactor::TimerId timer = 0;
};

Status VolumeRegistry::load_all() {
  std::error_code error;
  std::filesystem::directory_iterator entries(environment_.volumes_dir(), error);
  if (error) return fail_errno(error.value(), "read {}", environment_.volumes_dir());
  for (const auto& entry : entries) {
    const std::string name = entry.path().filename().string();
    std::error_code ignored;
    if (!entry.is_directory(ignored) || !is_valid_name(name)) {
      log(LogLevel::warn, "not_a_volume", "path={}", log_value(entry.path().string()));
      continue;
    }
    if (!std::filesystem::exists(entry.path() / "state", ignored)) {
      log(LogLevel::warn, "volume_without_state", "path={}", log_value(entry.path().string()));
      continue;
    }
    const auto volume = Volume::load(environment_, name);
    add(volume);
    volume->take_role();
  }
  return {};
}

std::shared_ptr<Volume> VolumeRegistry::find(const std::string& name) const {
  const auto found = volumes_.find(name);
  return found == volumes_.end() ? nullptr : found->second;
}

std::vector<std::shared_ptr<Volume>> VolumeRegistry::all() const {
  std::vector<std::shared_ptr<Volume>> list;
  for (const auto& [name, volume] : volumes_)
    list.push_back(volume);
  return list;
}

Status VolumeRegistry::reserve(const std::string& name) {
  if (volumes_.count(name) != 0) {
    return fail(Errc::exists, "volume {} exists already on {}", name, environment_.options.host);
  }
  if (!reserved_.insert(name).second) {
    return fail(Errc::busy, "volume {} is being created on {}", name, environment_.options.host);
  }
  return {};
}

void VolumeRegistry::serve_stream(Fd listening) {
  stream_ =
      std::make_unique<Listener>(environment_.reactor, std::move(listening), [this](Fd socket) {
        on_stream_connection(std::move(socket));
      });
}

void VolumeRegistry::serve_agents(Fd listening) {
  agents_ =
      std::make_unique<Listener>(environment_.reactor, std::move(listening), [this](Fd socket) {
        on_agent_connection(std::move(socket));
      });
}

void VolumeRegistry::stop_serving() {
  stream_.reset();
  agents_.reset();
  const auto newcomers = newcomers_;
  for (const auto& newcomer : newcomers) {
    newcomer->connection->close(Error{Errc::unreachable, 0, "replicad is stopping", {}});
  }
}

/// At most one line a second: whoever sends garbage cannot fill the disk with log lines.
void VolumeRegistry::note_refusal(std::string_view what, const Error& error) {
  const Instant now = environment_.reactor.now();
  if (now - last_refusal_ < refusal_log_interval) {
    ++refusals_unlogged_;
    return;
  }
  last_refusal_ = now;
  log(LogLevel::warn,
      "refused",
      "what={} error={} unlogged={}",
      what,
      log_value(error.message),
      std::exchange(refusals_unlogged_, 0));
}

void VolumeRegistry::on_stream_connection(Fd socket) {
  if (newcomers_.size() >= newcomers_max) {
    note_refusal("stream",
                 Error{Errc::busy, 0, "too many connections without an attach frame", {}});
    return;
  }
  const auto newcomer = std::make_shared<Newcomer>();
  newcomer->connection =
      FrameConnection::create(environment_.reactor, std::move(socket), stream_reader_bytes);
  newcomers_.insert(newcomer);
  newcomer->timer = environment_.reactor.add_timer(newcomer_timeout, [newcomer] {
    newcomer->connection->close(Error{Errc::timeout, 0, "no attach frame within 5 s", {}});
  });
  FrameConnection::Handlers handlers;
  handlers.on_frame = [this, newcomer](const FrameView& frame) {
    return on_first_frame(newcomer, frame);
  };
  handlers.on_closed = [this, newcomer](const Error& error) {
    environment_.reactor.cancel_timer(newcomer->timer);
    newcomers_.erase(newcomer);
    note_refusal("stream", error);
  };
  newcomer->connection->start(std::move(handlers));
}

// An error closes the connection, after a refuse frame that carries it.
Status VolumeRegistry::on_first_frame(const std::shared_ptr<Newcomer>& newcomer,
                                      const FrameView& frame) {
  if (frame.header.type != FrameType::attach) {
    return fail(Errc::protocol,
                "the first frame is of type {}, not attach",
                static_cast<int>(frame.header.type));
  }
  const auto message = decode_attach(frame.payload);
  if (!message) return tl::unexpected(message.error());
  const auto volume = find(message->volume);
  if (!volume) {
    return fail(Errc::not_found,
                "{} has no part of a volume {}",
                environment_.options.host,
                log_value(message->volume.substr(0, volume_name_bytes_max)));
  }
  // The volume takes the connection over with handlers of its own.
  // NOLINTNEXTLINE(performance-unnecessary-copy-initialization): handlers held `newcomer`
  const std::shared_ptr<Newcomer> keep = newcomer;
  RD_TRY(volume->attach(keep->connection, *message));
  environment_.reactor.cancel_timer(keep->timer);
  newcomers_.erase(keep);
  return {};
}

void VolumeRegistry::on_agent_connection(Fd socket) {
  if (agent_newcomers_ >= newcomers_max) {
    note_refusal("agent", Error{Errc::busy, 0, "too many connections without a claim", {}});
    return;
  }
  ++agent_newcomers_;
  struct Pending {
    std::weak_ptr<AgentSession> session;
    Reactor::TimerId timer = 0;
    bool over = false;
  };
  const auto pending = std::make_shared<Pending>();
  const auto leave = [this, pending] {
    if (std::exchange(pending->over, true)) return;
    --agent_newcomers_;
    environment_.reactor.cancel_timer(pending->timer);
  };
  pending->timer = environment_.reactor.add_timer(newcomer_timeout, [pending] {
    const auto session = pending->session.lock();
    if (session) session->close(Error{Errc::timeout, 0, "no claim within 5 s", {}});
  });
  AgentSession::Handlers handlers;
  handlers.on_request = [this, pending, leave](const std::string& op,
                                               std::uint64_t id,
                                               const nlohmann::json& request) {
    const auto session = pending->session.lock();
    if (!session) return;
    FieldReader fields(request);
    const std::string name = fields.text("volume", volume_name_bytes_max);
    if (const Status valid = fields.finish_allow_unknown(); !valid) {
      return session->reply(id, tl::unexpected(valid.error()));
    }
    const auto volume = find(name);
    if (!volume && op == "rejoin") {
      // No answer: a refusal would end an export of a state directory that is not mounted yet.
      return session->close(Error{Errc::not_found, 0, "no such volume", {}});
    }
    if (!volume) {
      return session->reply(
          id,
          with_hint(fail(Errc::not_found,
                         "{} has no volume {}",
                         environment_.options.host,
                         log_value(name)),
                    "replicactl list shows the volumes; create one with replicactl create"));
    }
    leave();
    volume->on_first_request(session, op, id, request);
  };
  handlers.on_closed = [this, leave](const Error& error) {
    leave();
    note_refusal("agent", error);
  };
  pending->session =
      AgentSession::start(environment_.reactor, std::move(socket), std::move(handlers));
}

}  // namespace replicad
