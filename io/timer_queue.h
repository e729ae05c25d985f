#pragma once
// Timers in order of their time; equal times in the order of add(). Not thread-safe.

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>

#include "core/base/time.h"

namespace replicad {

class TimerQueue {
 public:
  using Id = std::uint64_t;

  Id add(Instant when, std::function<void()> function) {
    const Id id = ++last_id_;
    const auto place = timers_.emplace(when, Timer{id, std::move(function)});
    by_id_.emplace(id, place);
    return id;
  }
  /// Unknown ids are ignored.
  void cancel(Id id) {
    const auto found = by_id_.find(id);
    if (found == by_id_.end()) return;
    timers_.erase(found->second);
    by_id_.erase(found);
  }
  void clear() {
    by_id_.clear();
    timers_.clear();
  }
  [[nodiscard]] std::optional<Instant> first() const {
    if (timers_.empty()) return std::nullopt;
    return timers_.begin()->first;
  }
  /// Runs what is due at `now`, one after the other; each may add and cancel.
  void run_due(Instant now) {
    while (!timers_.empty() && timers_.begin()->first <= now) {
      const auto place = timers_.begin();
      const Timer timer = std::move(place->second);
      by_id_.erase(timer.id);
      timers_.erase(place);
      timer.function();
    }
  }

 private:
  struct Timer {
    Id id;
    std::function<void()> function;
  };
  using Timers = std::multimap<Instant, Timer>;

  Timers timers_;
  std::unordered_map<Id, Timers::iterator> by_id_;
  Id last_id_ = 0;
};

}  // namespace replicad
