#include "nbd-plugin/local_trouble.h"

#include <algorithm>

#include "core/base/log.h"

namespace replicad {

namespace {

constexpr auto rest_interval = std::chrono::milliseconds(100);
constexpr unsigned rests_max = 10;  ///< between two attempts

}  // namespace

void LocalTrouble::set_policy(OnLocalError policy) {
  const std::lock_guard lock(mutex_);
  policy_ = policy;
  ++policy_changes_;
  policy_set_.notify_all();
}

std::optional<Error> LocalTrouble::current() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

bool LocalTrouble::rest() {
  std::unique_lock lock(mutex_);
  return policy_set_.wait_for(
      lock, rest_interval, [this, before = policy_changes_] { return policy_changes_ != before; });
}

void LocalTrouble::begin_waiting(const Error& error) {
  const std::lock_guard lock(mutex_);
  if (waiting_++ == 0) {
    log(LogLevel::error, "local_error_held", "error={}", log_value(error.message));
  }
  error_ = error;
}

void LocalTrouble::end_waiting() {
  const std::lock_guard lock(mutex_);
  if (--waiting_ > 0) return;
  error_.reset();
  log(LogLevel::info, "local_error_over", "on_local_error={}", on_local_error_name(policy()));
}

int LocalTrouble::try_again(int error, const std::function<int()>& attempt, const Terms& terms) {
  if (policy() == OnLocalError::fail || terms.give_up(error)) return error;
  begin_waiting(terms.describe(error));
  unsigned rests = 1;
  while (error != 0) {
    bool gives_up = false;
    for (unsigned i = 0; i < rests && !gives_up; ++i) {
      const bool set = rest();
      gives_up = policy() == OnLocalError::fail || terms.give_up(error);
      if (set) break;
    }
    if (gives_up) break;
    error = attempt();
    rests = std::min(2 * rests, rests_max);
  }
  end_waiting();
  return error;
}

void LocalTrouble::wait_out(const std::function<bool()>& give_up) {
  while (policy() == OnLocalError::hold && !give_up())
    rest();
}

}  // namespace replicad
