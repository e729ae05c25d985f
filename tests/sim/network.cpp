#include "tests/sim/network.h"

#include <algorithm>
#include <cstring>

namespace replicad::sim {

namespace {

constexpr Duration poll_interval = std::chrono::milliseconds(50);
/// After so long without getting through, the kernel gives a connection up.
constexpr Duration give_up_after = std::chrono::seconds(15);
constexpr Duration connect_timeout = std::chrono::seconds(3);
constexpr std::size_t reader_bytes = frame_header_bytes + data_payload_bytes_max;

Error link_error(const char* why) {
  return Error{Errc::unreachable, 104, why, {}};
}

}  // namespace

// --- connections

Connection::Connection(Network& network, Machine& from, Machine& to) : network_(network) {
  ends_[0].machine = &from;
  ends_[1].machine = &to;
  for (End& one : ends_)
    one.reader = network_.take_reader();
}

Connection::~Connection() {
  for (End& one : ends_) {
    if (one.reader) network_.give_back(std::move(one.reader));  // else the network is gone
  }
}

const std::shared_ptr<const Connection::Hooks>& Connection::no_hooks() {
  static const auto none = std::make_shared<const Hooks>();
  return none;
}

void Connection::start(Side side, Hooks hooks) {
  end(side).hooks = std::make_shared<const Hooks>(std::move(hooks));
  end(side).started = true;
  deliver_later(side);
}

void Connection::send(Side side, std::vector<std::byte> bytes) {
  enqueue(side, {nullptr, std::move(bytes), nullptr});
}

void Connection::send_later(Side side, std::function<std::vector<std::byte>()> read, Task on_sent) {
  enqueue(side, {std::move(read), {}, std::move(on_sent)});
}

void Connection::enqueue(Side side, Outgoing outgoing) {
  End& from = end(side);
  if (!from.open || from.closing) return;
  from.queue.push_back(std::move(outgoing));
  take_later(side);
}

void Connection::take_later(Side side) {
  End& from = end(side);
  if (from.taking) return;
  from.taking = true;
  World& world = network_.world();
  from.machine->after(world.random.delay(network_.options().latency_max / 4),
                      [self = shared_from_this(), side] { self->take(side); });
}

void Connection::take(Side side) {
  End& from = end(side);
  from.taking = false;
  if (!from.open) return;
  if (from.queue.empty()) {
    if (from.closing) close(side, from.close_error);
    return;
  }
  Outgoing first = std::move(from.queue.front());
  from.queue.pop_front();
  transmit(side, first.read ? first.read() : std::move(first.bytes));
  if (first.on_sent) first.on_sent();
  if (!from.queue.empty() || from.closing) take_later(side);
}

void Connection::transmit(Side side, std::vector<std::byte> bytes) {
  Random& random = network_.world().random;
  // The stream has no message boundaries: what is sent at once may arrive in pieces.
  if (bytes.size() > 1 && random.chance(10)) {
    const auto cut = static_cast<std::ptrdiff_t>(1 + random.below(bytes.size() - 1));
    std::vector<std::byte> rest(bytes.begin() + cut, bytes.end());
    bytes.resize(static_cast<std::size_t>(cut));
    transmit(side, std::move(bytes));
    bytes = std::move(rest);
  }
  arrive(side, [this, side, bytes = std::move(bytes)]() mutable {
    End& to = end(other(side));
    if (!to.open) return;
    to.arrived.push_back(std::move(bytes));
    deliver(other(side));
  });
}

void Connection::arrive(Side side, Task action) {
  const Instant now = network_.world().now();
  const Instant at = now + network_.draw_latency(host(side), host(other(side)));
  end(other(side)).transit.push_back({at, now, std::move(action)});
  move_later(side);
}

/// One after the other: a stream is never reordered within itself.
void Connection::move_later(Side side) {
  End& to = end(other(side));
  if (to.moving || to.transit.empty()) return;
  to.moving = true;
  World& world = network_.world();
  const Duration wait = std::max(Duration{}, to.transit.front().at - world.now());
  world.after(wait, [self = shared_from_this(), side] { self->move(side); });
}

void Connection::move(Side side) {
  End& to = end(other(side));
  to.moving = false;
  const Instant now = network_.world().now();
  if (broken_) {
    to.transit.clear();
    return;
  }
  if (network_.is_blocked(host(side), host(other(side)))) {
    if (now - to.transit.front().sent_at > give_up_after) {
      reset("connection timed out");
      return;
    }
    to.transit.front().at = now + poll_interval;
  } else {
    Transit first = std::move(to.transit.front());
    to.transit.pop_front();
    first.arrived();
  }
  move_later(side);
}

void Connection::deliver_later(Side side) {
  End& to = end(side);
  if (to.delivering) return;
  to.delivering = true;
  to.machine->after(Duration{}, [self = shared_from_this(), side] {
    self->end(side).delivering = false;
    self->deliver(side);
  });
}

void Connection::deliver(Side side) {
  End& to = end(side);
  if (!to.started || !to.open || to.delivering) return;
  if (to.machine->is_paused()) return deliver_later(side);
  const auto self = shared_from_this();
  while (to.open && !to.paused) {
    const auto frame = to.reader->next();
    if (!frame) {
      network_.world().violate("P8 wire: a receiver cannot read what was sent: " +
                               frame.error().message);
    }
    if (*frame) {
      const auto hooks = to.hooks;
      if (const Status taken = hooks->on_frame(**frame); !taken) close(side, taken.error());
      continue;
    }
    to.reader->compact();
    if (to.arrived.empty()) break;
    const std::vector<std::byte> bytes = std::move(to.arrived.front());
    to.arrived.pop_front();
    const auto space = to.reader->writable();
    if (space.size() < bytes.size()) network_.world().violate("P8 wire: a frame is too long");
    std::memcpy(space.data(), bytes.data(), bytes.size());
    to.reader->commit(bytes.size());
  }
  if (to.open && !to.paused && to.ends && to.arrived.empty()) {
    finish(side, link_error("connection closed by the other side"));
  }
}

void Connection::resume(Side side) {
  End& to = end(side);
  if (!to.paused) return;
  to.paused = false;
  deliver_later(side);
}

void Connection::send_end(Side side) {
  arrive(side, [this, side] {
    end(other(side)).ends = true;
    deliver(other(side));
  });
}

void Connection::finish(Side side, const Error& error) {
  End& one = end(side);
  if (!one.open) return;
  one.open = false;
  one.queue.clear();
  one.machine->after(Duration{}, [self = shared_from_this(), side, error] {
    End& closed = self->end(side);
    if (const auto hooks = closed.hooks; hooks->on_closed) hooks->on_closed(error);
    closed.hooks = no_hooks();
  });
}

void Connection::close(Side side, const Error& error) {
  if (!end(side).open) return;
  finish(side, error);
  send_end(side);
}

void Connection::close_after_send(Side side, const Error& error) {
  End& one = end(side);
  if (!one.open || one.closing) return;
  one.closing = true;
  one.close_error = error;
  take_later(side);
}

void Connection::abandon(Side side) {
  End& one = end(side);
  one.hooks = no_hooks();
  if (!one.open) return;
  one.open = false;
  one.queue.clear();
  send_end(side);
}

void Connection::reset(const char* why) {
  if (broken_) return;
  broken_ = true;
  for (const Side side : {Side::initiator, Side::acceptor}) {
    if (!end(side).open) continue;
    if (end(side).reader->unread_bytes() > 0 || !end(side).arrived.empty()) {
      network_.world().reached("a connection ends in the middle of a frame");
    }
    end(side).arrived.clear();
    network_.world().after(
        network_.world().random.delay(network_.options().latency_max),
        [self = shared_from_this(), side, why] { self->finish(side, link_error(why)); });
  }
}

void Connection::vanish(Side side) {
  End& one = end(side);
  one.open = false;
  one.hooks = no_hooks();
  one.queue.clear();
  broken_ = true;
  // The other side hears of it when something it sends is not confirmed for long, or the host is back.
  network_.world().after(network_.world().random.delay(give_up_after),
                         [self = shared_from_this(), side] {
                           self->finish(other(side), link_error("connection timed out"));
                         });
}

void Connection::drop() {
  for (End& one : ends_) {
    one.hooks = no_hooks();
    one.queue.clear();
    one.transit.clear();
    network_.give_back(std::move(one.reader));
  }
}

// --- the network

Network::Network(World& world,
                 const Options& options,
                 std::vector<std::unique_ptr<Machine>>& machines)
    : world_(world),
      options_(options),
      machines_(machines),
      listeners_(machines.size()),
      blocked_until_(machines.size() * machines.size()),
      slow_until_(machines.size() * machines.size()) {}

Network::~Network() {
  for (const auto& connection : all_) {
    if (const auto left = connection.lock()) left->drop();
  }
}

bool Network::is_blocked(HostIndex from, HostIndex to) const {
  return world_.now() < blocked_until_[from * machines_.size() + to];
}

void Network::block(HostIndex from, HostIndex to, Duration length) {
  until(blocked_until_, from, to) = world_.now() + length;
}

void Network::slow(HostIndex from, HostIndex to, Duration length) {
  until(slow_until_, from, to) = world_.now() + length;
}

std::unique_ptr<FrameReader> Network::take_reader() {
  if (readers_.empty()) return std::make_unique<FrameReader>(reader_bytes);
  auto reader = std::move(readers_.back());
  readers_.pop_back();
  reader->clear();
  return reader;
}

void Network::give_back(std::unique_ptr<FrameReader> reader) {
  readers_.push_back(std::move(reader));
}

Duration Network::draw_latency(HostIndex from, HostIndex to) {
  Duration latency = world_.random.delay(options_.latency_max);
  if (world_.now() < until(slow_until_, from, to)) {
    latency += world_.random.delay(options_.ack_timeout);
  }
  return latency;
}

void Network::connect(HostIndex from,
                      HostIndex to,
                      std::function<void(std::shared_ptr<Connection>)> done) {
  const bool reachable =
      !is_blocked(from, to) && !is_blocked(to, from) && machines_[to]->is_powered();
  const Duration wait = reachable ? draw_latency(from, to) : connect_timeout;
  machines_[from]->after(wait, [this, from, to, reachable, done = std::move(done)] {
    const bool accepted = reachable && machines_[to]->is_powered() && listeners_[to];
    if (!accepted) {
      done(nullptr);
      return;
    }
    forget_old();
    auto connection = std::make_shared<Connection>(*this, *machines_[from], *machines_[to]);
    connections_.push_back(connection);
    all_.push_back(connection);
    machines_[to]->after(draw_latency(from, to), [this, to, connection] {
      if (listeners_[to]) {
        listeners_[to](connection);
      } else {
        connection->abandon(Connection::Side::acceptor);
      }
    });
    done(connection);
  });
}

void Network::message(HostIndex from, HostIndex to, Task arrived) {
  if (is_blocked(from, to)) return;
  world_.after(draw_latency(from, to), [this, to, arrived = std::move(arrived)]() mutable {
    if (machines_[to]->is_powered()) machines_[to]->after(Duration{}, std::move(arrived));
  });
}

void Network::forget_old() {
  std::erase_if(connections_, [](const auto& connection) { return connection->is_over(); });
  std::erase_if(all_, [](const auto& connection) { return connection.expired(); });
}

void Network::reset_links(HostIndex a, HostIndex b) {
  const auto connections = connections_;
  for (const auto& connection : connections) {
    const HostIndex from = connection->host(Connection::Side::initiator);
    const HostIndex to = connection->host(Connection::Side::acceptor);
    if ((from == a && to == b) || (from == b && to == a)) connection->reset("connection reset");
  }
}

void Network::host_lost(HostIndex host) {
  listeners_[host] = nullptr;
  const auto connections = connections_;
  for (const auto& connection : connections) {
    for (const auto side : {Connection::Side::initiator, Connection::Side::acceptor}) {
      if (connection->host(side) == host) connection->vanish(side);
    }
  }
  forget_old();
}

void Network::program_died(HostIndex host, Connection::Side side) {
  const auto connections = connections_;
  for (const auto& connection : connections) {
    if (connection->host(side) == host) connection->abandon(side);
  }
}

void Network::heal() {
  std::ranges::fill(blocked_until_, Instant{});
  std::ranges::fill(slow_until_, Instant{});
}

}  // namespace replicad::sim
