#pragma once
// Connections between simulated hosts: streams of bytes with delay, cut anywhere, that break, stall when a direction is
// blocked and are reordered against each other, never within themselves. The receiving side runs the real FrameReader.
// A program that dies leaves what its kernel has taken; a host that loses power leaves nothing.

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "core/wire/frame_reader.h"
#include "tests/sim/machine.h"

namespace replicad::sim {

class Network;

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  enum class Side : std::uint8_t { initiator, acceptor };
  struct Hooks {
    std::function<Status(const FrameView&)> on_frame;
    std::function<void(const Error&)> on_closed;  ///< once, never from inside a call
  };

  Connection(Network& network, Machine& from, Machine& to);
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection();

  void start(Side side, Hooks hooks);
  void send(Side side, std::vector<std::byte> bytes);
  /// `read` gives the bytes when the kernel takes them; then `on_sent`.
  void send_later(Side side, std::function<std::vector<std::byte>()> read, Task on_sent);
  /// Whether everything handed over has been taken by the kernel.
  [[nodiscard]] bool is_drained(Side side) const { return end(side).queue.empty(); }
  void pause(Side side) { end(side).paused = true; }
  void resume(Side side);
  [[nodiscard]] bool is_open(Side side) const { return end(side).open; }
  /// Drops what the kernel has not taken; on_closed follows.
  void close(Side side, const Error& error);
  void close_after_send(Side side, const Error& error);
  /// The program of this side is dead: no hook is called any more.
  void abandon(Side side);
  /// Breaks both directions; each side learns of it on its own.
  void reset(const char* why);
  /// A host is without power: its side is gone, the other one knows nothing.
  void vanish(Side side);
  /// The run is over: lets go of everything that holds it, or a program.
  void drop();

  [[nodiscard]] HostIndex host(Side side) const { return end(side).machine->index; }
  /// Both kernels have forgotten it.
  [[nodiscard]] bool is_over() const { return !ends_[0].open && !ends_[1].open; }

 private:
  struct Outgoing {
    std::function<std::vector<std::byte>()> read;  ///< null: `bytes` it is
    std::vector<std::byte> bytes;
    Task on_sent;
  };
  /// On its way to an end.
  struct Transit {
    Instant at;
    Instant sent_at;
    Task arrived;
  };
  struct End {
    Machine* machine = nullptr;
    std::shared_ptr<const Hooks> hooks = no_hooks();  ///< may be replaced while one runs
    bool open = true;                                 ///< for its program
    bool started = false;                             ///< has hooks
    bool paused = false;
    bool closing = false;  ///< after what is queued
    bool taking = false;   ///< a take by the kernel is scheduled
    bool delivering = false;
    Error close_error;
    std::deque<Outgoing> queue;
    std::deque<std::vector<std::byte>> arrived;  ///< not yet seen by the program
    bool ends = false;                           ///< the other side's end has arrived
    std::deque<Transit> transit;
    bool moving = false;  ///< the first of `transit` is scheduled
    std::unique_ptr<FrameReader> reader;
  };

  static const std::shared_ptr<const Hooks>& no_hooks();
  static Side other(Side side) {
    return side == Side::initiator ? Side::acceptor : Side::initiator;
  }
  [[nodiscard]] End& end(Side side) { return ends_[static_cast<std::size_t>(side)]; }
  [[nodiscard]] const End& end(Side side) const { return ends_[static_cast<std::size_t>(side)]; }
  void enqueue(Side side, Outgoing outgoing);
  void take_later(Side side);
  void take(Side side);
  void transmit(Side side, std::vector<std::byte> bytes);
  /// Runs `action` when something that `side` sends now has arrived, unless it breaks before.
  void arrive(Side side, Task action);
  void move_later(Side side);
  void move(Side side);
  void send_end(Side side);
  void deliver(Side side);
  void deliver_later(Side side);
  void finish(Side side, const Error& error);

  Network& network_;
  std::array<End, 2> ends_;
  bool broken_ = false;  ///< nothing arrives any more
};

class Network {
 public:
  using Accept = std::function<void(const std::shared_ptr<Connection>&)>;

  Network(World& world, const Options& options, std::vector<std::unique_ptr<Machine>>& machines);
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;
  ~Network();

  [[nodiscard]] World& world() { return world_; }
  [[nodiscard]] const Options& options() const { return options_; }
  /// The program that accepts connections on a host; nullptr: none does.
  void listen(HostIndex host, Accept accept) { listeners_[host] = std::move(accept); }
  /// `done` gets nullptr when it cannot be made. The initiator's program must be alive then.
  void connect(HostIndex from, HostIndex to, std::function<void(std::shared_ptr<Connection>)> done);
  /// A message without a stream, for control requests: arrives once or never. `arrived` runs on the host `to`.
  void message(HostIndex from, HostIndex to, Task arrived);

  [[nodiscard]] bool is_blocked(HostIndex from, HostIndex to) const;
  void block(HostIndex from, HostIndex to, Duration length);
  void slow(HostIndex from, HostIndex to, Duration length);
  void reset_links(HostIndex a, HostIndex b);
  void host_lost(HostIndex host);
  /// The program on that side of its connections is dead.
  void program_died(HostIndex host, Connection::Side side);
  void heal();
  [[nodiscard]] Duration draw_latency(HostIndex from, HostIndex to);
  /// Readers have large buffers: they are used again.
  [[nodiscard]] std::unique_ptr<FrameReader> take_reader();
  void give_back(std::unique_ptr<FrameReader> reader);

 private:
  [[nodiscard]] Instant& until(std::vector<Instant>& table, HostIndex from, HostIndex to) {
    return table[from * machines_.size() + to];
  }
  void forget_old();

  World& world_;
  const Options& options_;
  std::vector<std::unique_ptr<Machine>>& machines_;
  std::vector<Accept> listeners_;
  std::vector<Instant> blocked_until_;
  std::vector<Instant> slow_until_;
  std::vector<std::shared_ptr<Connection>> connections_;
  std::vector<std::unique_ptr<FrameReader>> readers_;
  std::vector<std::weak_ptr<Connection>> all_;  ///< also those that both kernels have forgotten
};

}  // namespace replicad::sim
