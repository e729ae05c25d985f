#include "nbd-plugin/peer_link.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/log.h"
#include "core/wire/messages.h"

namespace replicad {

namespace {

constexpr std::size_t peer_reader_bytes = frame_header_bytes + data_payload_bytes_max;
constexpr std::uint64_t window_bytes_max = 4 * mib;
constexpr auto delay_min = std::chrono::milliseconds(20);
constexpr auto delay_max = std::chrono::milliseconds(1000);

}  // namespace

PeerLink::PeerLink(const LinkContext& context, PeerIndex peer, MemberGrant member)
    : context_(context), peer_(peer), member_(std::move(member)), delay_(delay_min) {}

void PeerLink::start() {
  connect();
}

void PeerLink::stop() {
  stopped_ = true;
  drop_copy();
  drop_verify(Error{Errc::refused, 0, fmt::format("{} was removed from the volume", host()), {}});
  if (connecting_.valid()) context_.reactor.cancel_fd(connecting_.get());
  if (connection_) connection_->close(Error{Errc::refused, 0, "the plugin stops", {}});
}

void PeerLink::connect() {
  if (stopped_) return;
  const auto self = shared_from_this();
  context_.resolver.post([self] {
    auto address = resolve(self->member_.stream);
    self->context_.reactor.post(
        [self, address = std::move(address)] { self->connect_to(address); });
  });
}

void PeerLink::connect_to(Result<SocketAddress> address) {
  if (stopped_) return;
  if (!address) {
    retry(address.error());
    return;
  }
  address_ = *address;
  auto socket = make_socket(address_);
  if (!socket) {
    retry(socket.error());
    return;
  }
  connecting_ = std::move(*socket);
  const auto self = shared_from_this();
  context_.reactor.connect(connecting_.get(), address_.get(), address_.length, [self](int result) {
    Fd socket_fd = std::move(self->connecting_);
    if (self->stopped_) return;
    if (result < 0) {
      self->retry(errno_to_error(
          -result, fmt::format("connect to {} at {}", self->member_.host, self->member_.stream)));
      return;
    }
    self->adopt(std::move(socket_fd));
  });
}

void PeerLink::retry(const Error& error) {
  if (stopped_) return;
  if (!last_error_ || last_error_->message != error.message) {
    log(LogLevel::warn,
        "peer_unreachable",
        "peer={} error={}",
        member_.host,
        log_value(error.message));
  }
  last_error_ = error;
  context_.bridge.step(primary_event::PeerLost{peer_, error});
  const auto self = shared_from_this();
  context_.reactor.add_timer(delay_, [self] { self->connect(); });
  delay_ = std::min<Duration>(delay_ * 2, delay_max);
}

void PeerLink::adopt(Fd socket) {
  connection_ = FrameConnection::create(context_.reactor, std::move(socket), peer_reader_bytes);
  attached_ = false;
  refused_ = false;
  in_flight_.clear();
  last_heard_ = context_.reactor.now();
  const std::weak_ptr<PeerLink> weak = weak_from_this();
  connection_->start({.on_frame = [weak](const FrameView& frame) -> Status {
                        const auto self = weak.lock();
                        return self ? self->on_frame(frame) : Status{};
                      },
                      .on_batch_end = [] {},
                      .on_closed =
                          [weak](const Error& error) {
                            if (const auto self = weak.lock()) self->on_closed(error);
                          }});
  AttachMessage attach;
  attach.features = {
      std::string(feature_go_on), std::string(feature_trail), std::string(feature_verify)};
  attach.history =
      context_.bridge.look([](const Primary& primary) { return primary.past_terms(); });
  attach.volume = context_.volume;
  attach.volume_uuid = context_.uuid;
  attach.primary = context_.host;
  attach.replica = member_.host;
  attach.epoch = context_.bridge.look([](const Primary& primary) { return primary.epoch(); });
  epoch_ = attach.epoch;
  attached_at_ = context_.reactor.now();
  heartbeats_.clear();
  for (const DiskImage& image : context_.images)
    attach.disk_bytes.push_back(image.bytes());
  connection_->send(encode_attach(attach));
}

Status PeerLink::on_frame(const FrameView& frame) {
  last_heard_ = context_.reactor.now();
  switch (frame.header.type) {
    case FrameType::attached:
      return on_attached(frame);
    case FrameType::refuse:
      on_refuse(frame);
      return {};
    case FrameType::watermarks: {
      const auto marks = decode_watermarks(frame.payload);
      if (!marks) return tl::unexpected(marks.error());
      if (!attached_) return {};
      note_answered(frame.header.sequence);
      context_.bridge.step(primary_event::PeerMarks{peer_, *marks});
      return {};
    }
    case FrameType::block_diffs: {
      if (!copy_ && verify_) return verify_->on_diffs(frame.header.range, frame.payload);
      if (!copy_) return fail(Errc::protocol, "block_diffs without a copy");
      RD_TRY(copy_->on_diffs(frame.header.range, frame.payload));
      context_.bridge.step(primary_event::CopyProgress{peer_});
      return {};
    }
    case FrameType::copy_done: {
      const auto done = decode_copy_done(frame.payload);
      if (!done) return tl::unexpected(done.error());
      if (!copy_end_ || *copy_end_ != done->point)
        return fail(Errc::protocol, "copy_done for a copy that was not sent");
      drop_copy();
      log(LogLevel::info, "copy_done", "peer={} sequence={}", member_.host, done->point.sequence);
      context_.bridge.step(primary_event::CopyDone{peer_, done->point});
      return {};
    }
    default:
      return fail(Errc::protocol,
                  "unexpected frame type {} from a replica",
                  static_cast<unsigned>(frame.header.type));
  }
}

Status PeerLink::on_attached(const FrameView& frame) {
  const auto message = decode_attached(frame.payload);
  if (!message) return tl::unexpected(message.error());
  if (attached_) return fail(Errc::protocol, "attached twice");
  if (message->protocol < protocol_version_min || message->protocol > protocol_version_max) {
    return fail(Errc::version_mismatch,
                "the replica chose protocol {}, this side speaks {} to {}",
                message->protocol,
                protocol_version_min,
                protocol_version_max);
  }
  attached_ = true;
  knows_verify_ = has_feature(message->features, feature_verify);
  delay_ = delay_min;
  last_error_.reset();
  digest_sent_ = 0;
  install_source(nullptr);
  log(LogLevel::info,
      "peer_attached",
      "peer={} logged={} durable={} consistent={}",
      member_.host,
      message->logged.sequence,
      message->durable,
      message->consistent);
  context_.bridge.step(primary_event::VoterHeard{member_.host, attached_at_, epoch_});
  context_.bridge.step(primary_event::PeerAttached{peer_, *message});
  return {};
}

void PeerLink::install_source(std::shared_ptr<CopyJob> keep_alive) {
  const std::weak_ptr<PeerLink> weak = weak_from_this();
  connection_->set_bulk_source(
      {.fill = [weak, keep_alive = std::move(keep_alive)](iovec* vectors,
                                                          std::size_t vectors_max) -> std::size_t {
         const auto self = weak.lock();
         return self ? self->fill(vectors, vectors_max) : 0;
       },
       .on_sent =
           [weak](std::size_t bytes) {
             if (const auto self = weak.lock()) self->on_sent(bytes);
           }});
}

void PeerLink::on_refuse(const FrameView& frame) {
  auto refusal = decode_refuse(frame.payload);
  const Error error =
      refusal ? Error{refusal->code, 0, refusal->message, refusal->hint} : refusal.error();
  refused_ = true;
  if (error.code == Errc::stale_epoch) context_.bridge.step(primary_event::LaterEpoch{epoch_});
  delay_ = std::max<Duration>(delay_, std::chrono::milliseconds(100));
  connection_->close(error);
}

void PeerLink::on_closed(const Error& error) {
  drop_copy();
  connection_.reset();
  attached_ = false;
  retry(error);
  drop_verify(error);  // its lock is gone now
}

void PeerLink::send_start(const StartMessage& message) {
  if (connection_) connection_->send(encode_start(message));
}

void PeerLink::run_copy(std::shared_ptr<const ResyncPlan> plan) {
  if (!connection_) return;
  drop_copy();
  const std::weak_ptr<PeerLink> weak = weak_from_this();
  copy_ =
      std::make_shared<CopyJob>(context_.reactor,
                                context_.bridge,
                                context_.images,
                                peer_,
                                std::move(plan),
                                CopyJob::Hooks{.on_piece =
                                                   [weak] {
                                                     if (const auto self = weak.lock())
                                                       self->kick();
                                                   },
                                               .on_compare =
                                                   [weak](std::vector<std::byte> frame) {
                                                     const auto self = weak.lock();
                                                     if (self && self->connection_)
                                                       self->connection_->send(std::move(frame));
                                                   },
                                               .on_end =
                                                   [weak] {
                                                     const auto self = weak.lock();
                                                     if (!self || !self->connection_) return;
                                                     self->copy_ending_ = true;
                                                     self->end_copy();
                                                   },
                                               .on_error =
                                                   [weak](const Error& error) {
                                                     if (const auto self = weak.lock())
                                                       self->close(error);
                                                   }});
  install_source(copy_);
  log(LogLevel::info,
      "copy_started",
      "peer={} bytes={}",
      member_.host,
      copy_->progress().total_bytes);
  copy_->start();
}

/// Sends copy_end, now or when what is on its way has left.
void PeerLink::end_copy() {
  if (!copy_ending_ || copy_end_ || !connection_) return;
  context_.bridge.step(primary_event::CopyEnding{peer_});
  copy_end_ =
      context_.bridge.look([this](const Primary& primary) { return primary.copy_end(peer_); });
  if (copy_end_) connection_->send(encode_copy_end({*copy_end_}));
}

void PeerLink::copy_locked() {
  if (copy_) {
    copy_->on_locked();
  } else if (verify_) {
    verify_->on_locked();
  }
}

void PeerLink::send_sums(std::vector<std::byte> frame) {
  if (connection_) connection_->send(std::move(frame));
}

void PeerLink::drop_verify(const Error& error) {
  if (const auto job = std::exchange(verify_, nullptr)) job->lost(error);
}

void PeerLink::drop_copy() {
  if (copy_) {
    copied_bytes_ += copy_->progress().sent_bytes;
    copy_->stop();
  }
  copy_.reset();
  copy_ending_ = false;
  copy_end_.reset();
}

void PeerLink::close(const Error& error) {
  if (connection_) {
    connection_->close(error);
  } else {
    context_.bridge.step(primary_event::PeerLost{peer_, error});
  }
}

void PeerLink::kick() {
  if (connection_) connection_->kick();
}

std::size_t PeerLink::fill(iovec* vectors, std::size_t vectors_max) {
  RD_CHECK(vectors_max >= 2);
  std::size_t count = 0;
  const bool piece_on_its_way = std::ranges::any_of(in_flight_, &Sent::is_copy);
  if (copy_ && !copy_->piece().empty() && !piece_on_its_way) {
    const auto piece = copy_->piece();
    vectors[count++] = {const_cast<std::byte*>(piece.data()), piece.size()};
    in_flight_.push_back({true, piece.size()});
  }
  const Primary::SendWindow window = context_.bridge.take(peer_, window_bytes_max);
  if (window.end_bytes > window.begin_bytes) {
    const auto bytes = context_.bridge.ring_bytes(window);
    vectors[count++] = {const_cast<std::byte*>(bytes.data()), bytes.size()};
    in_flight_.push_back({false, bytes.size()});
  }
  return count;
}

void PeerLink::on_sent(std::uint64_t bytes) {
  std::uint64_t ring_bytes = 0;
  bool piece_sent = false;
  while (bytes > 0) {
    RD_CHECK(!in_flight_.empty());
    Sent& first = in_flight_.front();
    const std::uint64_t part = std::min(first.bytes, bytes);
    first.bytes -= part;
    bytes -= part;
    if (!first.is_copy) ring_bytes += part;
    if (first.bytes > 0) continue;
    if (first.is_copy) piece_sent = true;
    in_flight_.pop_front();
  }
  if (ring_bytes > 0) context_.bridge.step(primary_event::PeerSent{peer_, ring_bytes});
  if (piece_sent && copy_) copy_->piece_sent();
  end_copy();
}

void PeerLink::request_sync() {
  if (connection_) connection_->send(encode_empty(FrameType::sync_request));
}

void PeerLink::ping() {
  if (!connection_) return;
  heartbeats_[++heartbeat_] = context_.reactor.now();
  connection_->send(encode_heartbeat(heartbeat_));
}

/// What a member says may have been long on its way: what counts is when it was asked.
void PeerLink::note_answered(std::uint64_t heartbeat) {
  const auto asked = heartbeats_.find(heartbeat);
  if (asked == heartbeats_.end()) return;
  context_.bridge.step(primary_event::VoterHeard{member_.host, asked->second, epoch_});
  heartbeats_.erase(heartbeats_.begin(), std::next(asked));
}

void PeerLink::on_second(Duration silence_max) {
  if (!connection_) return;
  end_copy();  // what it waits for may have been given up
  if (context_.reactor.now() - last_heard_ > silence_max) {
    close(Error{Errc::timeout, 0, fmt::format("{} has been silent", member_.host), {}});
    return;
  }
  if (!attached_) return;
  const auto point = context_.bridge.look([this](const Primary& primary) {
    const bool streams = primary.view(peer_, context_.reactor.now()).phase == PeerPhase::streaming;
    return streams ? std::optional(primary.taken_point(peer_)) : std::nullopt;
  });
  if (point && point->sequence > digest_sent_) {
    digest_sent_ = point->sequence;
    connection_->send(encode_digest(*point));
  }
  ping();
}

}  // namespace replicad
