// Connections to the replicas and copies (declared in plugin.h).

#include <algorithm>

#include "core/base/check.h"
#include "tests/sim/cluster.h"
#include "tests/sim/plugin.h"

namespace replicad::sim {

namespace {

constexpr auto initiator = Connection::Side::initiator;
constexpr Duration delay_min = std::chrono::milliseconds(20);
constexpr Duration delay_max = std::chrono::milliseconds(1000);
constexpr std::uint64_t window_bytes_max = 16 * kib;
constexpr std::uint64_t piece_blocks_max = 24;
constexpr std::size_t compares_max = 3;

}  // namespace

PeerLink::PeerLink(Plugin& plugin, PeerIndex peer, HostIndex host)
    : plugin_(plugin), peer_(peer), host_(host), delay_(delay_min) {}

bool PeerLink::is_connected() const {
  return connection_ && connection_->is_open(initiator);
}

void PeerLink::connect() {
  plugin_.cluster().network.connect(
      plugin_.host(),
      host_,
      plugin_.life().guard([self = shared_from_this()](const std::shared_ptr<Connection>& made) {
        if (made) {
          self->adopt(made);
        } else {
          self->retry(Error{Errc::unreachable, 111, "connection refused", {}});
        }
      }));
}

void PeerLink::retry(const Error& error) {
  plugin_.step(primary_event::PeerLost{peer_, error});
  if (plugin_.cluster().options.planted == Planted::no_second_connection) return;
  plugin_.machine().after(delay_,
                          plugin_.life().guard([self = shared_from_this()] { self->connect(); }));
  delay_ = std::min<Duration>(delay_ * 2, delay_max);
}

void PeerLink::adopt(const std::shared_ptr<Connection>& connection) {
  connection_ = connection;
  ++connection_serial_;
  attached_ = false;
  window_in_flight_ = piece_in_flight_ = false;
  last_heard_ = plugin_.machine().clock();
  const auto self = shared_from_this();
  connection_->start(
      initiator,
      {.on_frame = [self, life = plugin_.life()](const FrameView& frame) -> Status {
         return life.is_alive() ? self->on_frame(frame) : Status();
       },
       .on_closed = plugin_.life().guard([self](const Error& error) { self->on_closed(error); })});
  AttachMessage attach;
  attach.features = {std::string(feature_go_on), std::string(feature_trail)};
  attach.history = plugin_.core().past_terms();
  attach.volume = "v";
  attach.volume_uuid = volume_uuid;
  attach.primary = plugin_.machine().name;
  attach.replica = host_name(host_);
  attach.epoch = epoch_ = plugin_.core().epoch();
  attached_at_ = plugin_.machine().clock();
  heartbeats_.clear();
  attach.disk_bytes.assign(plugin_.cluster().options.disks,
                           plugin_.cluster().options.blocks * block_bytes);
  connection_->send(initiator, encode_attach(attach));
}

Status PeerLink::on_frame(const FrameView& frame) {
  last_heard_ = plugin_.machine().clock();
  switch (frame.header.type) {
    case FrameType::attached: {
      const auto message = decode_attached(frame.payload);
      if (!message) return tl::unexpected(message.error());
      if (attached_) return fail(Errc::protocol, "attached twice");
      attached_ = true;
      outdated_ = false;
      delay_ = delay_min;
      digest_sent_ = 0;
      plugin_.step(primary_event::VoterHeard{host_name(host_), attached_at_, epoch_});
      plugin_.step(primary_event::PeerAttached{peer_, *message});
      return {};
    }
    case FrameType::refuse: {
      const auto refusal = decode_refuse(frame.payload);
      if (!refusal) return tl::unexpected(refusal.error());
      delay_ = std::max<Duration>(delay_, std::chrono::milliseconds(100));
      outdated_ = refusal->code == Errc::stale_epoch;
      if (outdated_) plugin_.step(primary_event::LaterEpoch{epoch_});
      connection_->close(initiator, Error{refusal->code, 0, refusal->message, refusal->hint});
      return {};
    }
    case FrameType::watermarks: {
      const auto marks = decode_watermarks(frame.payload);
      if (!marks) return tl::unexpected(marks.error());
      if (!attached_) return {};
      note_answered(frame.header.sequence);
      plugin_.step(primary_event::PeerMarks{peer_, *marks});
      return {};
    }
    case FrameType::copy_done: {
      const auto done = decode_copy_done(frame.payload);
      if (!done) return tl::unexpected(done.error());
      if (!copy_end_ || *copy_end_ != done->point) {
        return fail(Errc::protocol, "copy_done for a copy that was not sent");
      }
      drop_copy();
      plugin_.world().reached("full copy completed");
      plugin_.step(primary_event::CopyDone{peer_, done->point});
      return {};
    }
    case FrameType::block_diffs:
      return on_diffs(frame);
    default:
      return fail(Errc::protocol, "unexpected frame type from a replica");
  }
}

void PeerLink::on_closed(const Error& error) {
  drop_copy();
  connection_.reset();
  attached_ = false;
  retry(error);
}

void PeerLink::close(const Error& error) {
  if (is_connected()) {
    connection_->close(initiator, error);
  } else if (!connection_) {
    plugin_.step(primary_event::PeerLost{peer_, error});
  }
}

void PeerLink::abandon() {
  if (connection_) connection_->abandon(initiator);
}

void PeerLink::send_start(const StartMessage& message) {
  if (is_connected()) connection_->send(initiator, encode_start(message));
}

void PeerLink::request_sync() {
  if (is_connected()) connection_->send(initiator, encode_empty(FrameType::sync_request));
}

void PeerLink::ping() {
  if (!is_connected()) return;
  heartbeats_[++heartbeat_] = plugin_.machine().clock();
  connection_->send(initiator, encode_heartbeat(heartbeat_));
}

void PeerLink::note_answered(std::uint64_t heartbeat) {
  const auto asked = heartbeats_.find(heartbeat);
  if (asked == heartbeats_.end()) return;
  plugin_.step(primary_event::VoterHeard{host_name(host_), asked->second, epoch_});
  heartbeats_.erase(heartbeats_.begin(), std::next(asked));
}

/// A finished piece of a copy goes before ring bytes: writes sealed after its lock follow it.
void PeerLink::kick() {
  if (!is_connected() || !attached_) return;
  const auto self = shared_from_this();
  const auto serial = connection_serial_;
  if (!piece_.empty() && !piece_in_flight_) {
    piece_in_flight_ = true;
    connection_->send_later(
        initiator,
        [self] { return self->piece_; },
        plugin_.life().guard([self, serial, copy = copy_serial_] {
          if (self->connection_serial_ != serial || self->copy_serial_ != copy) return;
          self->piece_in_flight_ = false;
          self->piece_.clear();
          self->piece_under_way_ = false;
          self->next_piece();
        }));
  }
  end_copy();
  if (window_in_flight_) return;
  World& world = plugin_.world();
  const std::uint64_t most = 1 + world.random.below(window_bytes_max);
  const Primary::SendWindow window = plugin_.take(peer_, most);
  const std::uint64_t bytes = window.end_bytes - window.begin_bytes;
  if (bytes == 0) return;
  window_in_flight_ = true;
  connection_->send_later(
      initiator,
      [self, window] {
        auto taken = self->plugin_.ring_bytes(window);
        if (self->plugin_.cluster().options.planted == Planted::cut_frame) taken.pop_back();
        return taken;
      },
      plugin_.life().guard([self, serial, bytes] {
        if (self->connection_serial_ != serial) return;
        self->window_in_flight_ = false;
        self->plugin_.step(primary_event::PeerSent{self->peer_, bytes});
        self->kick();
      }));
}

void PeerLink::on_second() {
  if (!is_connected()) return;
  end_copy();
  const Duration silence_max =
      std::max<Duration>(2 * plugin_.cluster().options.ack_timeout, std::chrono::seconds(5));
  if (plugin_.machine().clock() - last_heard_ > silence_max) {
    close(Error{Errc::timeout, 0, "silent", {}});
    return;
  }
  if (!attached_) return;
  const bool streams =
      plugin_.core().view(peer_, plugin_.machine().clock()).phase == PeerPhase::streaming;
  const HistoryPoint point = plugin_.core().taken_point(peer_);
  if (streams && point.sequence > digest_sent_) {
    digest_sent_ = point.sequence;
    connection_->send(initiator, encode_digest(point));
  }
  ping();
}

// --- copies

void PeerLink::run_copy(const ResyncPlan& plan) {
  if (!is_connected()) return;
  drop_copy();
  copying_ = true;
  copy_sent_ = false;
  copy_left_ = plan.send;
  compare_ = plan.compare;
  if (!compare_.empty()) plugin_.world().reached("blocks compared for a copy");
  piece_under_way_ = false;
  plugin_.cluster().copy_begins(plugin_.host(), host_);
  plugin_.world().note("{} copies to {}", plugin_.machine().name, host_name(host_));
  next_piece();
}

void PeerLink::drop_copy() {
  if (copying_ && !copy_end_) plugin_.world().reached("copy interrupted");
  copying_ = false;
  ++copy_serial_;
  copy_end_.reset();
  unanswered_.clear();
  // A piece that waits for the kernel dies with its connection.
  piece_.clear();
}

void PeerLink::next_piece() {
  if (!copying_ || !is_connected() || copy_sent_) return;
  compare_next();
  if (piece_under_way_) return;
  const std::uint64_t most =
      replicad::block_bytes * (1 + plugin_.world().random.below(piece_blocks_max));
  const auto range = copy_left_.next(0, 0, most);
  if (!range) {
    if (!has_compared()) return;
    copy_sent_ = true;
    end_copy();
    return;
  }
  piece_under_way_ = true;
  copy_range_ = *range;
  plugin_.step(primary_event::CopyLock{peer_, copy_range_});
}

/// Read without a lock: what is written meanwhile follows in the stream.
void PeerLink::compare_next() {
  while (unanswered_.size() < compares_max) {
    const auto range = compare_.next(
        0, 0, replicad::block_bytes * (1 + plugin_.world().random.below(piece_blocks_max)));
    if (!range) return;
    compare_.clear(*range);
    unanswered_.push_back(*range);
    plugin_.machine().io(
        [] {},
        plugin_.life().guard(
            [self = shared_from_this(), copy = copy_serial_, range = *range](int error) {
              if (self->copy_serial_ != copy || !self->is_connected()) return;
              if (error != 0) {
                self->close(errno_to_error(error, "read to compare"));
                return;
              }
              self->send_sums(range);
            }),
        false,
        Program::plugin);
  }
}

void PeerLink::send_sums(const Range& range) {
  const Blocks& blocks = plugin_.machine().images[range.disk].blocks();
  connection_->send(initiator, encode_block_sums(range, sums_of(blocks, range)));
}

Status PeerLink::on_diffs(const FrameView& frame) {
  const Range& range = frame.header.range;
  const auto asked = std::ranges::find(unanswered_, range);
  if (asked == unanswered_.end()) return fail(Errc::protocol, "block_diffs for nothing asked");
  unanswered_.erase(asked);
  const auto different = decode_block_diffs(range, frame.payload);
  if (different.empty()) plugin_.world().reached("compared blocks are equal");
  for (const Range& each : different)
    copy_left_.mark(each);
  plugin_.step_later(primary_event::CopyProgress{peer_});
  next_piece();
  return {};
}

/// The core waits until every write that a piece may hold was taken: the copy's end is a point of the
/// history.
void PeerLink::end_copy() {
  if (!copying_ || !copy_sent_ || copy_end_) return;
  plugin_.step(primary_event::CopyEnding{peer_});
  if (!copying_) return;
  copy_end_ = plugin_.core().copy_end(peer_);
  if (!copy_end_) {
    plugin_.world().reached("end of a copy waits for writes");
    return;
  }
  connection_->send(initiator, encode_copy_end({*copy_end_}));
}

void PeerLink::copy_locked() {
  if (!copying_) return;
  plugin_.machine().io(
      [] {}, plugin_.life().guard([self = shared_from_this(), copy = copy_serial_](int error) {
        if (self->copy_serial_ != copy) return;
        if (error != 0) {
          self->close(errno_to_error(error, "read for a copy"));
          return;
        }
        self->finish_piece(copy);
      }));
}

void PeerLink::finish_piece(std::uint64_t serial) {
  if (!copying_ || copy_serial_ != serial) return;
  const Blocks& blocks = plugin_.machine().images[copy_range_.disk].blocks();
  const auto first = static_cast<std::ptrdiff_t>(copy_range_.offset_bytes / block_bytes);
  const auto count = static_cast<std::ptrdiff_t>(copy_range_.length_bytes / block_bytes);
  const Blocks content(blocks.begin() + first, blocks.begin() + first + count);
  const bool zero = std::ranges::all_of(content, [](Stamp stamp) { return stamp == 0; });
  FrameHeader header;
  header.type = zero ? FrameType::copy_zero : FrameType::copy_data;
  header.range = copy_range_;
  if (!zero) header.payload_bytes = static_cast<std::uint32_t>(copy_range_.length_bytes);
  piece_.assign(frame_header_bytes + header.payload_bytes, std::byte{0});
  if (!zero) {
    put_stamps(content, std::span(piece_).subspan(frame_header_bytes));
    header.payload_crc32c = crc32c(std::span<const std::byte>(piece_).subspan(frame_header_bytes));
  }
  encode_header(header, std::span(piece_).first<frame_header_bytes>());
  copy_left_.clear(copy_range_);
  kick();
  plugin_.step(primary_event::CopyUnlock{peer_});
}

}  // namespace replicad::sim
