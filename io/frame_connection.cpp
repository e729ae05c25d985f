#include "io/frame_connection.h"

#include <cerrno>
#include <optional>
#include <utility>

#include <fcntl.h>
#include <sys/socket.h>

#include "core/base/check.h"
#include "core/base/limits.h"
#include "core/wire/messages.h"
#include "io/send_batch.h"

namespace replicad {

namespace {

constexpr Duration close_after_send_limit = std::chrono::seconds(5);
constexpr Duration last_words_limit = std::chrono::seconds(1);
constexpr std::size_t discard_bytes = 16 * kib;

bool is_transient(int result) {
  return result == -EINTR || result == -EAGAIN;
}

/// Why nothing more comes, from the result of a receive.
Error end_of_stream(int result) {
  if (result == 0) return {Errc::unreachable, 0, "the peer closed the connection", {}};
  if (result == -ECANCELED) return {Errc::unreachable, ECANCELED, "this process stops", {}};
  return errno_to_error(-result, "receive");
}

/// The connection proper. Operations in flight hold it; the user holds it through a Handle, whose end silences it.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Reactor& reactor, Fd socket, std::size_t reader_bytes)
      : reactor_(reactor), socket_(std::move(socket)), reader_(reader_bytes) {}

  void start(FrameConnection::Handlers handlers);
  void set_bulk_source(FrameConnection::BulkSource source) {
    bulk_ = std::move(source);
    schedule_send();
  }
  void send(std::vector<std::byte> frame);
  void kick() { schedule_send(); }
  void hold_buffer() { ++holds_; }
  void release_buffer();
  void pause() { paused_ = true; }
  void resume();
  void close_after_send(Error error);
  void close(Error error);
  void abandon();
  [[nodiscard]] bool is_open() const { return state_ == State::open; }
  [[nodiscard]] int fd() const { return socket_.get(); }

 private:
  enum class State {
    open,
    flushing,  // sends what is queued, discards what comes
    draining,  // has sent its end, discards until the peer's end: a close before would reset the
               // connection, and the peer could lose our last frame
    closing,   // waits for operations in flight
    closed,
  };

  [[nodiscard]] bool is_lingering() const {
    return state_ == State::flushing || state_ == State::draining;
  }
  void schedule_deliver();
  void deliver();
  void refuse(const Error& error);
  void arm_recv();
  [[nodiscard]] std::span<std::byte> recv_buffer();
  void on_recv(int result);
  void schedule_send();
  void start_send();
  void fill_batch();
  void on_send(int result);
  void on_send_failed(int result);
  void begin_drain();
  void start_timer(Duration delay);
  void finish_close();
  void report_closed();

  Reactor& reactor_;
  Fd socket_;
  State state_ = State::open;
  std::shared_ptr<FrameConnection::Handlers> handlers_;
  Error error_;  // why it closes
  bool reported_ = false;
  std::optional<Reactor::TimerId> timer_;

  FrameReader reader_;
  std::size_t holds_ = 0;
  bool paused_ = false;
  bool delivering_ = false;
  bool deliver_scheduled_ = false;
  bool recv_in_flight_ = false;
  std::optional<Error> received_end_;  // nothing more comes
  std::vector<std::byte> discard_;

  FrameConnection::BulkSource bulk_;
  std::deque<std::vector<std::byte>> queue_;
  std::size_t queued_bytes_ = 0;
  SendBatch batch_;
  bool send_scheduled_ = false;
  bool send_in_flight_ = false;
  bool send_failed_ = false;
};

void Connection::start(FrameConnection::Handlers handlers) {
  handlers_ = std::make_shared<FrameConnection::Handlers>(std::move(handlers));
  if (state_ == State::closed) {
    reactor_.at_turn_end([self = shared_from_this()] { self->report_closed(); });
    return;
  }
  if (reader_.unread_bytes() > 0) schedule_deliver();
  arm_recv();
}

void Connection::send(std::vector<std::byte> frame) {
  if (state_ != State::open || send_failed_ || frame.empty()) return;
  queued_bytes_ += frame.size();
  queue_.push_back(std::move(frame));
  if (queued_bytes_ > FrameConnection::queued_bytes_max) {
    close({Errc::unreachable, 0, "the peer does not take what is sent to it", {}});
    return;
  }
  schedule_send();
}

void Connection::release_buffer() {
  RD_CHECK(holds_ > 0);
  if (--holds_ == 0) arm_recv();
}

void Connection::resume() {
  if (!paused_) return;
  paused_ = false;
  schedule_deliver();
}

void Connection::close_after_send(Error error) {
  if (state_ != State::open) return;
  if (send_failed_) {
    close(std::move(error));
    return;
  }
  error_ = std::move(error);
  state_ = State::flushing;
  start_timer(close_after_send_limit);
  schedule_send();
  arm_recv();
}

void Connection::close(Error error) {
  if (state_ == State::closing || state_ == State::closed) return;
  if (!is_lingering()) error_ = std::move(error);
  state_ = State::closing;
  queue_.clear();
  if (timer_) reactor_.cancel_timer(*timer_);
  (void)::shutdown(socket_.get(), SHUT_RDWR);
  if (recv_in_flight_ || send_in_flight_) reactor_.cancel_fd(socket_.get());
  reactor_.at_turn_end([self = shared_from_this()] { self->finish_close(); });
}

/// The user let go: no callback from here on. Last words on their way still go out, if their memory is ours.
void Connection::abandon() {
  reported_ = true;
  handlers_ = nullptr;
  bulk_ = {};
  if (!is_lingering() || batch_.has_bulk()) close(Error{});
}

void Connection::schedule_deliver() {
  if (deliver_scheduled_ || delivering_) return;
  deliver_scheduled_ = true;
  reactor_.at_turn_end([self = shared_from_this()] {
    self->deliver_scheduled_ = false;
    self->deliver();
  });
}

void Connection::deliver() {
  if (state_ != State::open || delivering_) return;
  delivering_ = true;
  bool any = false;
  while (state_ == State::open && !paused_ && handlers_) {
    const auto frame = reader_.next();
    if (!frame) {
      refuse(frame.error());
      break;
    }
    if (!*frame) break;
    any = true;
    // Kept here: the handler may replace the handlers, or let go of the connection.
    const auto handlers = handlers_;
    const Status status = handlers->on_frame(**frame);
    if (!status) refuse(status.error());
  }
  const auto handlers = handlers_;
  if (any && state_ == State::open && handlers && handlers->on_batch_end) handlers->on_batch_end();
  delivering_ = false;
  if (state_ == State::open && received_end_ && !paused_) close(*received_end_);
  arm_recv();
}

void Connection::refuse(const Error& error) {
  send(encode_refuse({error.code, error.message, error.hint}));
  close_after_send(error);
}

std::span<std::byte> Connection::recv_buffer() {
  if (is_lingering()) {
    if (discard_.empty()) discard_.resize(discard_bytes);
    return discard_;
  }
  if (state_ != State::open || paused_ || delivering_ || received_end_ || !handlers_) return {};
  if (holds_ == 0) {
    const bool free_of_charge = reader_.unread_bytes() == 0;
    const bool little_room = reader_.writable().size() < reader_.unread_bytes() + discard_bytes;
    if (free_of_charge || little_room) reader_.compact();
  }
  return reader_.writable();
}

void Connection::arm_recv() {
  if (recv_in_flight_) return;
  // Empty while held and full: release_buffer() comes back here.
  const std::span<std::byte> buffer = recv_buffer();
  if (buffer.empty()) return;
  recv_in_flight_ = true;
  reactor_.recv(
      socket_.get(), buffer, [self = shared_from_this()](int result) { self->on_recv(result); });
}

void Connection::on_recv(int result) {
  recv_in_flight_ = false;
  if (state_ == State::closing) {
    finish_close();
    return;
  }
  if (is_transient(result)) {
    arm_recv();
    return;
  }
  if (result <= 0) {
    received_end_ = end_of_stream(result);
  }
  if (is_lingering()) {
    if (!received_end_) arm_recv();
    if (received_end_ && state_ == State::draining) close(Error{});
    return;
  }
  if (result > 0) reader_.commit(static_cast<std::size_t>(result));
  deliver();
}

void Connection::schedule_send() {
  if (send_scheduled_ || send_in_flight_ || send_failed_) return;
  if (state_ != State::open && state_ != State::flushing) return;
  send_scheduled_ = true;
  reactor_.at_turn_end([self = shared_from_this()] {
    self->send_scheduled_ = false;
    self->start_send();
  });
}

void Connection::start_send() {
  if (send_in_flight_ || send_failed_) return;
  if (state_ != State::open && state_ != State::flushing) return;
  if (batch_.empty()) fill_batch();
  // fill() may have closed the connection.
  if (state_ != State::open && state_ != State::flushing) return;
  if (batch_.empty()) {
    if (state_ == State::flushing) begin_drain();
    return;
  }
  send_in_flight_ = true;
  reactor_.sendmsg(socket_.get(), batch_.message(), [self = shared_from_this()](int result) {
    self->on_send(result);
  });
}

void Connection::fill_batch() {
  batch_.clear();
  for (std::size_t i = 0; i < SendBatch::frames_max && !queue_.empty(); ++i) {
    queued_bytes_ -= queue_.front().size();
    batch_.add_frame(std::move(queue_.front()));
    queue_.pop_front();
  }
  if (state_ == State::open && queue_.empty() && bulk_.fill) batch_.add_bulk(bulk_.fill);
}

void Connection::on_send(int result) {
  send_in_flight_ = false;
  if (state_ == State::closing) {
    finish_close();
    return;
  }
  if (result <= 0 && !is_transient(result)) {
    on_send_failed(result);
    return;
  }
  const std::size_t bulk_bytes =
      result > 0 ? batch_.consume(static_cast<std::size_t>(result)) : std::size_t{0};
  if (bulk_bytes > 0 && bulk_.on_sent) bulk_.on_sent(bulk_bytes);
  if (!batch_.empty()) {
    start_send();
    return;
  }
  schedule_send();
}

/// The peer is gone or has closed. What it said last, such as `refuse`, may still be on the way up.
void Connection::on_send_failed(int result) {
  Error error = errno_to_error(-result, "send");
  send_failed_ = true;
  queue_.clear();
  if (state_ != State::open || !recv_in_flight_) {
    close(std::move(error));
    return;
  }
  error_ = std::move(error);
  start_timer(last_words_limit);
}

void Connection::begin_drain() {
  state_ = State::draining;
  (void)::shutdown(socket_.get(), SHUT_WR);
  if (received_end_) {
    close(Error{});
    return;
  }
  arm_recv();
}

void Connection::start_timer(Duration delay) {
  timer_ = reactor_.add_timer(delay, [self = shared_from_this()] {
    self->timer_.reset();
    self->close(self->error_);
  });
}

void Connection::finish_close() {
  if (state_ != State::closing || recv_in_flight_ || send_in_flight_) return;
  state_ = State::closed;
  socket_.reset();
  batch_.clear();
  bulk_ = {};
  report_closed();
}

void Connection::report_closed() {
  if (reported_ || !handlers_) return;
  reported_ = true;
  const auto handlers = std::exchange(handlers_, nullptr);
  if (handlers->on_closed) handlers->on_closed(error_);
}

class Handle final : public FrameConnection {
 public:
  explicit Handle(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}
  ~Handle() override { connection_->abandon(); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  Handle(Handle&&) = delete;
  Handle& operator=(Handle&&) = delete;

  void start(Handlers handlers) override { connection_->start(std::move(handlers)); }
  void set_bulk_source(BulkSource source) override {
    connection_->set_bulk_source(std::move(source));
  }
  void send(std::vector<std::byte> frame) override { connection_->send(std::move(frame)); }
  void kick() override { connection_->kick(); }
  void hold_buffer() override { connection_->hold_buffer(); }
  void release_buffer() override { connection_->release_buffer(); }
  void pause() override { connection_->pause(); }
  void resume() override { connection_->resume(); }
  void close_after_send(Error error) override { connection_->close_after_send(std::move(error)); }
  void close(Error error) override { connection_->close(std::move(error)); }
  [[nodiscard]] bool is_open() const override { return connection_->is_open(); }
  [[nodiscard]] int fd() const override { return connection_->fd(); }

 private:
  std::shared_ptr<Connection> connection_;
};

}  // namespace

std::shared_ptr<FrameConnection> FrameConnection::create(Reactor& reactor,
                                                         Fd socket,
                                                         std::size_t reader_bytes) {
  // A non-blocking socket would give EAGAIN instead of waiting in the ring.
  const int flags = ::fcntl(socket.get(), F_GETFL);
  if (flags >= 0) (void)::fcntl(socket.get(), F_SETFL, flags & ~O_NONBLOCK);
  return std::make_shared<Handle>(
      std::make_shared<Connection>(reactor, std::move(socket), reader_bytes));
}

}  // namespace replicad
