#pragma once
// The replication modes of a volume and their names (design: docs/architecture.md, "What an
// acknowledgement means").

#include <cstdint>
#include <optional>
#include <string_view>

namespace replicad {

enum class Mode : std::uint8_t { async, semi_sync, sync };

[[nodiscard]] constexpr std::string_view mode_name(Mode mode) {
  switch (mode) {
    case Mode::async:
      return "async";
    case Mode::semi_sync:
      return "semi-sync";
    case Mode::sync:
      return "sync";
  }
  return "?";
}

[[nodiscard]] constexpr std::optional<Mode> mode_from_name(std::string_view name) {
  if (name == "async") return Mode::async;
  if (name == "semi-sync") return Mode::semi_sync;
  if (name == "sync") return Mode::sync;
  return std::nullopt;
}

/// What happens when a replica cannot keep up with the ring: slow the guest down, or let the
/// replica go.
enum class Congestion : std::uint8_t { throttle, detach };

[[nodiscard]] constexpr std::string_view congestion_name(Congestion congestion) {
  return congestion == Congestion::throttle ? "throttle" : "detach";
}

[[nodiscard]] constexpr std::optional<Congestion> congestion_from_name(std::string_view name) {
  if (name == "throttle") return Congestion::throttle;
  if (name == "detach") return Congestion::detach;
  return std::nullopt;
}

/// What happens to the guest's requests when the primary's own image fails: they wait until it works
/// again (or another member takes over), or they are answered with the error.
enum class OnLocalError : std::uint8_t { hold, fail };

[[nodiscard]] constexpr std::string_view on_local_error_name(OnLocalError policy) {
  return policy == OnLocalError::hold ? "hold" : "fail";
}

[[nodiscard]] constexpr std::optional<OnLocalError> on_local_error_from_name(
    std::string_view name) {
  if (name == "hold") return OnLocalError::hold;
  if (name == "fail") return OnLocalError::fail;
  return std::nullopt;
}

}  // namespace replicad
