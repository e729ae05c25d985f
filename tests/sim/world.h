#pragma once
// Virtual time, the events that wait for it, the trace and the counters of one simulated run. One thread; nothing here
// or above reads a real clock, so a seed replays exactly.

#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "core/base/time.h"
#include "tests/sim/random.h"
#include "tests/sim/task.h"

namespace replicad::sim {

/// A broken promise. `text` begins with the checker's name.
struct Violation {
  std::string text;
};

/// What holds up the actions of a machine's programs.
struct Gate {
  std::uint64_t boot = 1;  ///< actions of an earlier one are dropped
  Instant paused_until{};
};

/// How often something happened, by name.
using Counters = std::map<std::string_view, std::uint64_t>;

/// Every name that World::reached() may get: a campaign's report says which of them were never reached. Sorted.
extern const std::span<const std::string_view> branches_known;

class World {
 public:
  using Action = Task;

  /// `traced`: every note is also written to stdout.
  World(std::uint64_t seed, bool traced) : random(seed), traced_(traced) {}

  Random random;
  Counters faults;
  Counters branches;  ///< rare places that a run has come to
  Counters counts;

  [[nodiscard]] Instant now() const { return now_; }
  /// Runs `action` `delay` from now, after what was asked for earlier for the same instant.
  template <typename Function>
  void after(Duration delay, Function&& function) {
    put(delay, std::forward<Function>(function), nullptr);
  }
  /// The same for a program: waits while `gate` is paused. `gate` lasts as long as this world runs.
  template <typename Function>
  void after(Duration delay, Function&& function, const Gate& gate) {
    put(delay, std::forward<Function>(function), &gate);
  }
  /// Runs the next event; false if there is none.
  bool step();

  /// Part of the trace: its hash is taken of every run, its text only of traced ones. Arguments are numbers or strings.
  template <typename... Args>
  void note(fmt::format_string<const Args&...> format, const Args&... args) {
    const fmt::string_view text = format;
    mix(std::string_view{text.data(), text.size()});
    mix(static_cast<std::uint64_t>(now_.time_since_epoch().count()));
    (mix(args), ...);
    if (traced_) print(fmt::format(format, args...));
  }
  /// A rare place of the world's programs; named in `branches_known`.
  void reached(std::string_view branch);
  [[noreturn]] void violate(std::string text) const;
  template <typename... Args>
  void require(bool condition, fmt::format_string<const Args&...> format, const Args&... args) {
    if (!condition) violate(fmt::format(format, args...));
  }
  [[nodiscard]] std::uint64_t trace_hash() const { return hash_; }
  [[nodiscard]] Duration elapsed() const { return now_ - start; }
  [[nodiscard]] std::uint64_t events_run() const {
    return serial_ - (events_.size() + due_.size());
  }

  static constexpr Instant start{std::chrono::hours(1)};

 private:
  struct Event {
    std::uint64_t at = 0;     ///< nanoseconds
    std::uint64_t order = 0;  ///< serial number, then the slot of what waits
  };
  static constexpr unsigned slot_bits = 20;
  struct Later {
    // As one number: what comes first is not to be guessed, so branches cost more than the comparison.
    __extension__ using Key = unsigned __int128;
    static Key key(const Event& event) { return Key{event.at} << 64 | event.order; }
    bool operator()(const Event& a, const Event& b) const { return key(a) > key(b); }
  };
  struct Waiting {
    Action action;
    const Gate* gate = nullptr;
    std::uint64_t boot = 0;
    bool held = false;  ///< until the end of a pause
  };
  template <typename Function>
  void put(Duration delay, Function&& function, const Gate* gate) {
    const std::size_t slot = waiting_.take();
    Waiting& waiting = waiting_[slot];
    waiting.action = std::forward<Function>(function);
    waiting.gate = gate;
    waiting.boot = gate == nullptr ? 0 : gate->boot;
    waiting.held = false;
    schedule(delay, slot);
  }
  void end(std::size_t slot) {
    waiting_[slot].action.clear();
    waiting_.give_back(slot);
  }
  void schedule(Duration delay, std::size_t slot);
  [[nodiscard]] Event take_next();
  void mix(std::string_view text) {
    for (const char c : text)
      hash_ = (hash_ ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  }
  void mix(const std::string& text) { mix(std::string_view{text}); }
  void mix(const char* text) { mix(std::string_view(text)); }
  template <typename Number>
  requires std::is_arithmetic_v<Number>
  void mix(Number number) {
    hash_ = (hash_ ^ static_cast<std::uint64_t>(number)) * 0x9fb21c651e98df25U;
    hash_ ^= hash_ >> 29;
  }
  void print(const std::string& line) const;

  bool traced_;
  Instant now_ = start;
  std::uint64_t serial_ = 0;
  std::uint64_t hash_ = 0xcbf29ce484222325U;
  std::vector<Event> events_;  ///< heap
  std::deque<Event> due_;      ///< asked for at this very instant, in that order
  Slots<Waiting> waiting_;
};

}  // namespace replicad::sim
