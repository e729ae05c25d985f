#include "tests/sim/world.h"

#include <algorithm>

#include "core/base/check.h"

namespace replicad::sim {

void World::schedule(Duration delay, std::size_t slot) {
  RD_CHECK(slot >> slot_bits == 0);
  const auto at = static_cast<std::uint64_t>((now_ + delay).time_since_epoch().count());
  const Event event{at, ++serial_ << slot_bits | slot};
  if (delay == Duration{}) {
    due_.push_back(event);
    return;
  }
  events_.push_back(event);
  std::push_heap(events_.begin(), events_.end(), Later{});
}

World::Event World::take_next() {
  if (!due_.empty() && (events_.empty() || Later{}(events_.front(), due_.front()))) {
    const Event event = due_.front();
    due_.pop_front();
    return event;
  }
  std::pop_heap(events_.begin(), events_.end(), Later{});
  const Event event = events_.back();
  events_.pop_back();
  return event;
}

bool World::step() {
  if (events_.empty() && due_.empty()) return false;
  const Event event = take_next();
  now_ = Instant(Duration(static_cast<Duration::rep>(event.at)));
  const std::size_t slot = event.order & ((std::size_t{1} << slot_bits) - 1);
  Waiting& waiting = waiting_[slot];
  if (const Gate* const gate = waiting.gate) {
    if (waiting.boot != gate->boot) {
      end(slot);
      return true;
    }
    // What a pause holds up comes behind what its end brings first.
    const bool is_paused = now_ < gate->paused_until;
    if (waiting.held || is_paused) {
      schedule(waiting.held ? Duration{} : gate->paused_until - now_, slot);
      waiting.held = !waiting.held;
      return true;
    }
  }
  waiting.action();
  end(slot);
  return true;
}

void World::reached(std::string_view branch) {
  const auto [found, is_new] = branches.try_emplace(branch, 0);
  ++found->second;
  if (is_new) {
    require(std::ranges::binary_search(branches_known, branch), "unknown branch: {}", branch);
  }
}

void World::violate(std::string text) const {
  throw Violation{std::move(text)};
}

void World::print(const std::string& line) const {
  const double seconds = std::chrono::duration<double>(elapsed()).count();
  fmt::print("{:12.6f} {}\n", seconds, line);
}

}  // namespace replicad::sim
