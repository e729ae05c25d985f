#pragma once
// A function that is called once or never, as the simulated world keeps them by the thousand: what it captures lies
// within it up to a size that most need (std::function asks for memory beyond two words). And a place to keep them.

#include <concepts>
#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace replicad::sim {

class Task {
 public:
  Task() noexcept : kind_(nullptr) {}  // defaulted, Task{} would clear the space first
  /// A null std::function becomes an empty task.
  template <typename Function>
  requires(!std::same_as<std::remove_cvref_t<Function>, Task> &&
           std::invocable<std::remove_cvref_t<Function>&>)
      // NOLINTNEXTLINE(google-explicit-constructor,bugprone-forwarding-reference-overload)
      Task(Function&& function)
      : kind_(nullptr) {
    hold(std::forward<Function>(function));
  }
  Task(std::nullptr_t) noexcept : kind_(nullptr) {}  // NOLINT(google-explicit-constructor)
  Task(Task&& other) noexcept : kind_(std::exchange(other.kind_, nullptr)) {
    if (kind_ != nullptr) kind_->move(other.space_, space_);
  }
  template <typename Function>
  requires(!std::same_as<std::remove_cvref_t<Function>, Task> &&
           std::invocable<std::remove_cvref_t<Function>&>) Task&
  operator=(Function&& function) {
    clear();
    hold(std::forward<Function>(function));
    return *this;
  }
  Task& operator=(Task&& other) noexcept {
    if (this == &other) return *this;
    clear();
    kind_ = std::exchange(other.kind_, nullptr);
    if (kind_ != nullptr) kind_->move(other.space_, space_);
    return *this;
  }
  ~Task() { clear(); }

  void operator()() { kind_->call(space_); }
  /// What it captured ends.
  void clear() {
    if (kind_ != nullptr) std::exchange(kind_, nullptr)->end(space_);
  }
  explicit operator bool() const { return kind_ != nullptr; }

 private:
  static constexpr std::size_t space_bytes = 72;
  struct Kind {
    void (*call)(std::byte* space);
    void (*move)(std::byte* from, std::byte* to);  ///< and ends what was there
    void (*end)(std::byte* space);
  };
  template <typename Held>
  static constexpr bool fits =
      sizeof(Held) <= space_bytes &&
      alignof(Held) <= alignof(std::max_align_t) && std::is_nothrow_move_constructible_v<Held>;
  template <typename Held>
  static Held* in(std::byte* space) {
    return std::launder(reinterpret_cast<Held*>(space));
  }
  template <typename Held>
  Held* at() {
    return reinterpret_cast<Held*>(space_);
  }
  template <typename Held>
  static constexpr Kind kind_within{[](std::byte* space) { (*in<Held>(space))(); },
                                    [](std::byte* from, std::byte* to) {
                                      std::construct_at(reinterpret_cast<Held*>(to),
                                                        std::move(*in<Held>(from)));
                                      std::destroy_at(in<Held>(from));
                                    },
                                    [](std::byte* space) { std::destroy_at(in<Held>(space)); }};
  template <typename Held>
  static constexpr Kind kind_apart{[](std::byte* space) { (**in<Held*>(space))(); },
                                   [](std::byte* from, std::byte* to) {
                                     std::construct_at(reinterpret_cast<Held**>(to),
                                                       *in<Held*>(from));
                                   },
                                   [](std::byte* space) { delete *in<Held*>(space); }};
  template <typename Function>
  void hold(Function&& function) {
    using Held = std::remove_cvref_t<Function>;
    if constexpr (std::constructible_from<bool, const Held&>) {
      if (!static_cast<bool>(function)) return;
    }
    if constexpr (fits<Held>) {
      std::construct_at(at<Held>(), std::forward<Function>(function));
      kind_ = &kind_within<Held>;
    } else {
      std::construct_at(at<Held*>(), new Held(std::forward<Function>(function)));
      kind_ = &kind_apart<Held>;
    }
  }

  const Kind* kind_;
  alignas(std::max_align_t) std::byte space_[space_bytes];
};

/// Keeps values under small numbers that are used again. They stay where they are: one may be used while others come.
template <typename Value>
class Slots {
 public:
  /// The number of a value: a new one, or as it was when it was given back.
  std::size_t take() {
    if (free_.empty()) grow();
    const std::size_t slot = free_.back();
    free_.pop_back();
    return slot;
  }
  [[nodiscard]] Value& operator[](std::size_t slot) {
    return chunks_[slot / chunk_slots][slot % chunk_slots];
  }
  void give_back(std::size_t slot) { free_.push_back(slot); }

 private:
  static constexpr std::size_t chunk_slots = 64;
  void grow() {
    const std::size_t first = chunks_.size() * chunk_slots;
    chunks_.push_back(std::make_unique<Value[]>(chunk_slots));
    for (std::size_t slot = first + chunk_slots; slot-- > first;)
      free_.push_back(slot);
  }
  std::vector<std::unique_ptr<Value[]>> chunks_;
  std::vector<std::size_t> free_;
};

}  // namespace replicad::sim
