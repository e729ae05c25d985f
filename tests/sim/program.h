#pragma once
// What simulated programs share: they may die at any moment, and then nothing of theirs runs any more.

#include <functional>
#include <memory>
#include <utility>

#include "tests/sim/machine.h"

namespace replicad::sim {

/// Lives as long as its program; copies are kept by what waits for something.
class Life {
 public:
  Life() : alive_(std::make_shared<bool>(true)) {}
  void end() { *alive_ = false; }
  [[nodiscard]] bool is_alive() const { return *alive_; }

  /// `function`, which does nothing once the program is dead.
  template <typename Function>
  [[nodiscard]] auto guard(Function function) const {
    return [alive = alive_, function = std::move(function)](auto&&... arguments) mutable {
      if (*alive) function(std::forward<decltype(arguments)>(arguments)...);
    };
  }

 private:
  std::shared_ptr<bool> alive_;
};

}  // namespace replicad::sim
