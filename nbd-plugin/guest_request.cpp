#include "nbd-plugin/guest_request.h"

#include <ctime>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace replicad {

namespace {

constexpr std::uint32_t sleeping_bit = 1U << 31;
constexpr long poll_interval_ns = 100'000'000;

long futex(std::atomic<std::uint32_t>& word,
           int operation,
           std::uint32_t value,
           const timespec* timeout) {
  static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t));
  return ::syscall(SYS_futex, &word, operation | FUTEX_PRIVATE_FLAG, value, timeout, nullptr, 0);
}

}  // namespace

GuestRequest& GuestRequest::of_this_thread() {
  thread_local GuestRequest request;
  request.word_.store(static_cast<std::uint32_t>(State::arrived));
  return request;
}

bool GuestRequest::set(State state) {
  return (word_.exchange(static_cast<std::uint32_t>(state)) & sleeping_bit) != 0;
}

void GuestRequest::wake() {
  futex(word_, FUTEX_WAKE, 1, nullptr);
}

GuestRequest::State GuestRequest::state() const {
  return static_cast<State>(word_.load() & ~sleeping_bit);
}

bool GuestRequest::wait_while(State from, const std::function<bool()>& give_up) {
  const auto value = static_cast<std::uint32_t>(from);
  while (true) {
    std::uint32_t seen = value;
    if (!word_.compare_exchange_strong(seen, value | sleeping_bit) &&
        seen != (value | sleeping_bit))
      return true;
    const timespec timeout{0, poll_interval_ns};
    futex(word_, FUTEX_WAIT, value | sleeping_bit, &timeout);
    if (state() != from) return true;
    if (give_up()) return false;
  }
}

}  // namespace replicad
