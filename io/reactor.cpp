#include "io/reactor.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/base/check.h"
#include "io/clock.h"
#include "io/fd.h"
#include "io/poll_policy.h"
#include "io/ring.h"
#include "io/timer_queue.h"

namespace replicad {

namespace {

constexpr std::uint64_t cancel_tag = ~std::uint64_t{0};
constexpr std::size_t transfer_bytes_max = 0x7ffff000;  // what one system call moves at most

std::uint32_t transfer_length(std::size_t bytes) {
  return static_cast<std::uint32_t>(std::min(bytes, transfer_bytes_max));
}

/// Whether an operation that a signal interrupted did nothing and can be started again.
bool restartable(RingOpcode opcode) {
  return opcode != RingOpcode::connect;
}

class RingReactor final : public Reactor {
 public:
  explicit RingReactor(std::unique_ptr<Ring> ring)
      : now_(boot_time_now()), wake_fd_(::eventfd(0, EFD_CLOEXEC)), ring_(std::move(ring)) {
    RD_CHECK(wake_fd_.valid());
  }

  void run() override;
  void stop() override {
    stop_requested_ = true;
    wake();
  }
  void post(std::function<void()> function) override {
    {
      const std::lock_guard lock(posts_mutex_);
      posts_.push_back(std::move(function));
    }
    wake();
  }
  void wake() override {
    // Whoever turned the flag on sees to the waking. Both flags are sequentially consistent: either this thread
    // sees `sleeping_`, or the loop sees `work_pending_` before it sleeps.
    if (work_pending_.exchange(true)) return;
    if (sleeping_.exchange(false)) signal_wake_fd();
  }
  void set_turn_hook(std::function<void()> hook) override { hook_ = std::move(hook); }
  void at_turn_end(std::function<void()> function) override {
    check_thread();
    turn_end_.push_back(std::move(function));
  }
  [[nodiscard]] Instant now() const override { return now_; }

  TimerId add_timer(Duration delay, std::function<void()> function) override {
    check_thread();
    return timers_.add(boot_time_now() + delay, std::move(function));
  }
  void cancel_timer(TimerId id) override {
    check_thread();
    timers_.cancel(id);
  }

  void accept(int fd, Done done) override {
    start({.opcode = RingOpcode::accept, .fd = fd}, std::move(done));
  }
  void connect(int fd, const sockaddr* address, socklen_t length, Done done) override;
  void recv(int fd, std::span<std::byte> buffer, Done done) override {
    RD_CHECK(!buffer.empty());
    start({.opcode = RingOpcode::recv,
           .fd = fd,
           .address = buffer.data(),
           .length = transfer_length(buffer.size())},
          std::move(done));
  }
  void sendmsg(int fd, const msghdr* message, Done done) override {
    start({.opcode = RingOpcode::sendmsg, .fd = fd, .address = const_cast<msghdr*>(message)},
          std::move(done));
  }
  void read(int fd, std::span<std::byte> buffer, std::uint64_t offset, Done done) override {
    start({.opcode = RingOpcode::read,
           .fd = fd,
           .address = buffer.data(),
           .length = transfer_length(buffer.size()),
           .offset_bytes = offset},
          std::move(done));
  }
  void write(int fd, std::span<const std::byte> buffer, std::uint64_t offset, Done done) override {
    start({.opcode = RingOpcode::write,
           .fd = fd,
           .address = const_cast<std::byte*>(buffer.data()),
           .length = transfer_length(buffer.size()),
           .offset_bytes = offset},
          std::move(done));
  }
  void writev(int fd,
              const iovec* vectors,
              unsigned count,
              std::uint64_t offset,
              std::size_t piece_bytes,
              Done done) override {
    start({.opcode = RingOpcode::writev,
           .fd = fd,
           .address = const_cast<iovec*>(vectors),
           .length = count,
           .offset_bytes = offset,
           .piece_bytes = piece_bytes},
          std::move(done));
  }
  void fdatasync(int fd, Done done) override {
    start({.opcode = RingOpcode::fdatasync, .fd = fd}, std::move(done));
  }
  void fallocate(int fd, int mode, std::uint64_t offset, std::uint64_t length, Done done) override {
    start({.opcode = RingOpcode::fallocate,
           .fd = fd,
           .offset_bytes = offset,
           .range_bytes = length,
           .mode = mode},
          std::move(done));
  }
  void cancel_fd(int fd) override;

 private:
  using SlotIndex = std::uint32_t;
  enum class SlotState : std::uint8_t { free, waiting, in_flight };

  /// Slots are reused and never move; an operation's user_data is its slot's index.
  struct Slot {
    RingOperation operation;
    Done done;
    std::unique_ptr<sockaddr_storage> address;  // connect only
    SlotState state = SlotState::free;
    bool cancelled = false;
  };

  void check_thread() const {
    const std::thread::id owner = owner_.load(std::memory_order_relaxed);
    RD_CHECK(owner == std::thread::id() || owner == std::this_thread::get_id());
  }
  void signal_wake_fd() const {
    const std::uint64_t one = 1;
    while (::write(wake_fd_.get(), &one, sizeof one) < 0)
      RD_CHECK(errno == EINTR);
  }

  SlotIndex start(const RingOperation& operation, Done done);
  SlotIndex take_slot();
  void release_slot(SlotIndex index);
  void enqueue(SlotIndex index);
  [[nodiscard]] bool prepare(const RingOperation& operation);
  void enqueue_waiting();
  void cancel_slot(SlotIndex index);
  void cancel_all();

  void turn();
  void reap();
  void finish(SlotIndex index, int result);
  void run_ended();
  void run_posts();
  void run_turn_end();
  void submit_and_sleep();
  /// Looks for work for a moment, within `limit`; whether there is some. What was queued is with the kernel.
  [[nodiscard]] bool poll(std::optional<Duration> limit);
  [[nodiscard]] std::optional<Duration> sleep_limit() const;
  [[nodiscard]] bool has_work();
  void arm_wake_read();

  std::atomic<bool> stop_requested_{false};
  std::atomic<bool> work_pending_{false};
  std::atomic<bool> sleeping_{false};
  std::atomic<std::thread::id> owner_{};
  std::mutex posts_mutex_;
  std::vector<std::function<void()>> posts_;

  Instant now_;
  PollPolicy polling_;
  bool enabled_ = false;
  bool ending_ = false;
  std::function<void()> hook_;
  std::vector<std::function<void()>> turn_end_;
  TimerQueue timers_;

  std::deque<Slot> slots_;
  std::vector<SlotIndex> free_slots_;
  std::size_t in_flight_ = 0;
  std::deque<SlotIndex> waiting_;              // not yet in the submission queue
  std::deque<std::uint64_t> waiting_cancels_;  // user_data to cancel
  std::vector<SlotIndex> ended_;               // end with -ECANCELED in the next turn

  Fd wake_fd_;
  std::uint64_t wake_count_ = 0;
  SlotIndex wake_slot_ = 0;
  bool wake_armed_ = false;
  std::unique_ptr<Ring> ring_;  // goes first: the kernel lets go of the buffers above
};

void RingReactor::run() {
  RD_CHECK(!enabled_);
  owner_ = std::this_thread::get_id();
  const Status enabled = ring_->enable();
  RD_CHECK(enabled.has_value());
  enabled_ = true;
  arm_wake_read();
  while (!stop_requested_)
    turn();
  ending_ = true;
  timers_.clear();
  cancel_all();
  while (in_flight_ > (wake_armed_ ? 1U : 0U) || has_work())
    turn();
  if (wake_armed_) cancel_slot(wake_slot_);
  while (in_flight_ > 0)
    turn();
  owner_ = std::thread::id();
}

void RingReactor::connect(int fd, const sockaddr* address, socklen_t length, Done done) {
  RD_CHECK(length <= sizeof(sockaddr_storage));
  auto copy = std::make_unique<sockaddr_storage>();
  std::memcpy(copy.get(), address, length);
  const RingOperation operation{
      .opcode = RingOpcode::connect, .fd = fd, .address = copy.get(), .length = length};
  slots_[start(operation, std::move(done))].address = std::move(copy);
}

RingReactor::SlotIndex RingReactor::start(const RingOperation& operation, Done done) {
  check_thread();
  const SlotIndex index = take_slot();
  Slot& slot = slots_[index];
  slot.operation = operation;
  slot.operation.user_data = index;
  slot.done = std::move(done);
  slot.cancelled = false;
  ++in_flight_;
  if (ending_) {
    slot.state = SlotState::waiting;
    slot.cancelled = true;
    ended_.push_back(index);
  } else {
    enqueue(index);
  }
  return index;
}

RingReactor::SlotIndex RingReactor::take_slot() {
  if (free_slots_.empty()) {
    slots_.emplace_back();
    return static_cast<SlotIndex>(slots_.size() - 1);
  }
  const SlotIndex index = free_slots_.back();
  free_slots_.pop_back();
  return index;
}

void RingReactor::release_slot(SlotIndex index) {
  Slot& slot = slots_[index];
  slot.state = SlotState::free;
  slot.done = nullptr;
  slot.address.reset();
  free_slots_.push_back(index);
  --in_flight_;
}

bool RingReactor::prepare(const RingOperation& operation) {
  if (!enabled_) return false;
  if (ring_->prepare(operation)) return true;
  ring_->submit();
  return ring_->prepare(operation);
}

void RingReactor::enqueue(SlotIndex index) {
  Slot& slot = slots_[index];
  if (waiting_.empty() && waiting_cancels_.empty() && prepare(slot.operation)) {
    slot.state = SlotState::in_flight;
    return;
  }
  slot.state = SlotState::waiting;
  waiting_.push_back(index);
}

void RingReactor::enqueue_waiting() {
  while (!waiting_cancels_.empty()) {
    if (!prepare({.opcode = RingOpcode::cancel,
                  .cancel_user_data = waiting_cancels_.front(),
                  .user_data = cancel_tag})) {
      return;
    }
    waiting_cancels_.pop_front();
  }
  while (!waiting_.empty()) {
    Slot& slot = slots_[waiting_.front()];
    if (!prepare(slot.operation)) return;
    slot.state = SlotState::in_flight;
    waiting_.pop_front();
  }
}

void RingReactor::cancel_slot(SlotIndex index) {
  Slot& slot = slots_[index];
  if (slot.state == SlotState::free || slot.cancelled) return;
  slot.cancelled = true;
  if (slot.state == SlotState::waiting) {
    std::erase(waiting_, index);
    ended_.push_back(index);
  } else {
    waiting_cancels_.push_back(index);
  }
}

void RingReactor::cancel_fd(int fd) {
  check_thread();
  for (SlotIndex index = 0; index < slots_.size(); ++index) {
    if (slots_[index].operation.fd == fd) cancel_slot(index);
  }
  if (!enabled_) return;
  // The kernel takes its own reference to the file when it takes the operation: from then on the caller may
  // close the descriptor, and its number may come back for another file.
  enqueue_waiting();
  ring_->submit();
}

void RingReactor::cancel_all() {
  for (SlotIndex index = 0; index < slots_.size(); ++index) {
    if (!wake_armed_ || index != wake_slot_) cancel_slot(index);
  }
}

void RingReactor::turn() {
  now_ = boot_time_now();
  work_pending_.exchange(false);
  reap();
  run_ended();
  if (!ending_) timers_.run_due(now_);
  run_posts();
  if (!ending_ && hook_) hook_();
  run_turn_end();
  submit_and_sleep();
}

void RingReactor::reap() {
  std::array<RingCompletion, 64> completions;
  // Bounded, so that timers and posted functions get their turn.
  for (int round = 0; round < 16; ++round) {
    const std::size_t count = ring_->reap(completions);
    for (std::size_t i = 0; i < count; ++i) {
      if (completions[i].user_data == cancel_tag) continue;
      finish(static_cast<SlotIndex>(completions[i].user_data), completions[i].result);
    }
    if (count < completions.size()) return;
  }
}

void RingReactor::finish(SlotIndex index, int result) {
  RD_CHECK(index < slots_.size());
  Slot& slot = slots_[index];
  RD_CHECK(slot.state == SlotState::in_flight || slot.cancelled);
  if (result == -EINTR && restartable(slot.operation.opcode)) {
    if (!slot.cancelled) {
      enqueue(index);
      return;
    }
    result = -ECANCELED;
  }
  const Done done = std::move(slot.done);
  release_slot(index);
  if (done) done(result);
}

void RingReactor::run_ended() {
  const auto ended = std::exchange(ended_, {});
  for (const SlotIndex index : ended)
    finish(index, -ECANCELED);
}

void RingReactor::run_posts() {
  std::vector<std::function<void()>> posts;
  {
    const std::lock_guard lock(posts_mutex_);
    posts.swap(posts_);
  }
  for (auto& function : posts) {
    function();
    function = nullptr;
  }
}

void RingReactor::run_turn_end() {
  // What such a function adds still belongs to this turn; the bound keeps a mistake from blocking the loop.
  for (int round = 0; round < 8 && !turn_end_.empty(); ++round) {
    auto functions = std::exchange(turn_end_, {});
    for (auto& function : functions) {
      function();
      function = nullptr;
    }
  }
}

bool RingReactor::has_work() {
  if (!ended_.empty() || !turn_end_.empty() || !waiting_.empty() || !waiting_cancels_.empty()) {
    return true;
  }
  const std::lock_guard lock(posts_mutex_);
  return !posts_.empty();
}

std::optional<Duration> RingReactor::sleep_limit() const {
  if (!ended_.empty() || !turn_end_.empty() || !waiting_.empty() || !waiting_cancels_.empty()) {
    return Duration::zero();
  }
  const auto first = timers_.first();
  if (!first || ending_) return std::nullopt;
  return std::max(*first - boot_time_now(), Duration::zero());
}

void RingReactor::submit_and_sleep() {
  if (!wake_armed_ && !ending_) arm_wake_read();
  enqueue_waiting();
  std::optional<Duration> limit = sleep_limit();
  // At the end the loop must not wait for its own wake-up read, unless that is being cancelled.
  const std::size_t own = wake_armed_ && !slots_[wake_slot_].cancelled ? 1 : 0;
  if (ending_ && in_flight_ <= own) limit = Duration::zero();
  Instant begin;
  if (limit != Duration::zero()) {
    begin = boot_time_now();
    if (!ending_ && polling_.pays(begin) && poll(limit)) {
      polling_.waited(boot_time_now() - begin);
      return;
    }
    sleeping_ = true;
    if (work_pending_ || (stop_requested_ && !ending_)) limit = Duration::zero();
  }
  const int result = ring_->submit_and_wait(limit);
  sleeping_ = false;
  if (limit != Duration::zero()) polling_.waited(boot_time_now() - begin);
  RD_CHECK(result >= 0 || result == -ETIME || result == -EINTR || result == -EBUSY ||
           result == -EAGAIN);
}

bool RingReactor::poll(std::optional<Duration> limit) {
  (void)ring_->submit_and_wait(Duration::zero());
  const Instant end =
      boot_time_now() + std::min(limit.value_or(PollPolicy::look_time), PollPolicy::look_time);
  Instant now = boot_time_now();
  do {
    if (work_pending_ || ring_->ready()) return true;
    const Instant begin = now;
    ::sched_yield();
    now = boot_time_now();
    if (!polling_.looked(begin, now)) break;
  } while (now < end);
  return work_pending_ || ring_->ready();
}

void RingReactor::arm_wake_read() {
  wake_armed_ = true;
  wake_slot_ = start({.opcode = RingOpcode::read,
                      .fd = wake_fd_.get(),
                      .address = &wake_count_,
                      .length = sizeof wake_count_},
                     [this](int /*result*/) { wake_armed_ = false; });
}

}  // namespace

std::unique_ptr<Reactor> create_reactor(std::unique_ptr<Ring> ring) {
  return std::make_unique<RingReactor>(std::move(ring));
}

Result<std::unique_ptr<Reactor>> Reactor::create(unsigned entries) {
  auto ring = create_uring_ring(entries);
  if (!ring) return tl::unexpected(std::move(ring).error());
  return create_reactor(std::move(*ring));
}

}  // namespace replicad
