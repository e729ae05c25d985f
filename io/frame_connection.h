#pragma once
// A stream socket that carries frames, both ways, on a reactor. Reactor thread only. Used by the plugin's peer
// links, the replica's sessions and both ends of the agent socket.
//
// Callbacks come from the reactor's loop, never from within a call to the connection. Letting go of the last
// reference, also inside a callback, closes the connection without any further callback; what
// close_after_send() queued before still goes out. The reactor outlives the connection.

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include <sys/uio.h>

#include "core/wire/frame_reader.h"
#include "io/fd.h"
#include "io/reactor.h"

namespace replicad {

class FrameConnection : public std::enable_shared_from_this<FrameConnection> {
 public:
  struct Handlers {
    /// One complete, verified frame; the view is valid until on_batch_end returned, longer under hold_buffer().
    /// An error closes the connection (a `refuse` frame is sent first).
    std::function<Status(const FrameView&)> on_frame;
    /// After all complete frames of one receive.
    std::function<void()> on_batch_end;
    /// Once, when the connection is over, for whatever reason, close() included: no operation is in flight any
    /// more, bulk memory is the caller's again, and no callback follows.
    std::function<void(const Error&)> on_closed;
  };
  /// Supplies bulk bytes when no control frame waits: appends up to `vectors_max` iovecs and returns how many.
  /// The memory stays valid until `on_sent(bytes)` says so; on_sent may come in several parts.
  struct BulkSource {
    std::function<std::size_t(iovec* vectors, std::size_t vectors_max)> fill;
    std::function<void(std::size_t bytes)> on_sent;
  };

  /// `socket`: connected. `reader_bytes`: capacity of the receive buffer.
  static std::shared_ptr<FrameConnection> create(Reactor& reactor,
                                                 Fd socket,
                                                 std::size_t reader_bytes);
  virtual ~FrameConnection() = default;

  /// More bytes queued by send() than this: the peer does not read, the connection closes.
  static constexpr std::size_t queued_bytes_max = std::size_t{64} << 20;

  /// Begins to receive, or, called again (also from within on_frame), replaces the handlers: frames already
  /// received and not yet delivered go to the new ones.
  virtual void start(Handlers handlers) = 0;
  virtual void set_bulk_source(BulkSource source) = 0;
  /// Queues a whole frame; frames leave in the order of the calls, between bulk fills, never inside a frame as
  /// long as each bulk fill ends at a frame boundary.
  virtual void send(std::vector<std::byte> frame) = 0;
  /// There may be bulk bytes to send.
  virtual void kick() = 0;
  /// While a count of hold_buffer() is open, FrameViews stay valid and the buffer is not compacted; receiving
  /// goes on while there is room.
  virtual void hold_buffer() = 0;
  virtual void release_buffer() = 0;
  /// Stops receiving (back-pressure on the peer) until resume(); no further on_frame until then either.
  virtual void pause() = 0;
  virtual void resume() = 0;
  /// Sends what is queued, then closes; takes at most 5 s. No further on_frame. `error` reaches on_closed.
  virtual void close_after_send(Error error) = 0;
  virtual void close(Error error) = 0;
  /// False as soon as a close began.
  [[nodiscard]] virtual bool is_open() const = 0;
  [[nodiscard]] virtual int fd() const = 0;
};

}  // namespace replicad
