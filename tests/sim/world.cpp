#include "tests/sim/world.h"

#include <algorithm>

namespace replicad::sim {

void World::after(Duration delay, Action action) {
  events_.push_back({now_ + delay, ++serial_, std::move(action)});
  std::push_heap(events_.begin(), events_.end(), later);
}

bool World::step() {
  if (events_.empty()) return false;
  std::pop_heap(events_.begin(), events_.end(), later);
  const Event event = std::move(events_.back());
  events_.pop_back();
  now_ = event.at;
  ++counts["events"];
  event.action();
  return true;
}

void World::violate(std::string text) const {
  throw Violation{std::move(text)};
}

void World::print(const std::string& line) const {
  const double seconds = std::chrono::duration<double>(elapsed()).count();
  fmt::print("{:12.6f} {}\n", seconds, line);
}

}  // namespace replicad::sim
