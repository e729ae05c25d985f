#include "tests/sim/world.h"

#include <algorithm>

namespace replicad::sim {

void World::after(Duration delay, Action action) {
  events_.push_back({now_ + delay, ++serial_, actions_.put(std::move(action))});
  std::push_heap(events_.begin(), events_.end(), Later{});
}

bool World::step() {
  if (events_.empty()) return false;
  std::pop_heap(events_.begin(), events_.end(), Later{});
  const Event event = events_.back();
  events_.pop_back();
  now_ = event.at;
  Action action = actions_.take(event.slot);
  action();
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
