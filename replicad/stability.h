#pragma once
// How steady a host has been: three counters that fade with a half-life of one week. The arithmetic
// is pure; the owner keeps the file. Any thread, not shared.

#include <cstdint>
#include <string>
#include <string_view>

#include "core/base/result.h"

namespace replicad {

struct Stability {
  double unclean_restarts = 0;
  double link_losses = 0;
  double disk_errors = 0;
  std::int64_t updated_seconds =
      0;  ///< wall clock, seconds since 1970, to which the counters have faded

  friend bool operator==(const Stability&, const Stability&) = default;
};

constexpr std::int64_t stability_half_life_seconds = std::int64_t{7} * 24 * 3600;

/// The counters as they are at `now_seconds`. A clock that went back fades nothing.
[[nodiscard]] Stability fade(const Stability& stability, std::int64_t now_seconds);

[[nodiscard]] std::string encode_stability(const Stability& stability);
/// Errors: Errc::corrupt. Any bytes are safe.
[[nodiscard]] Result<Stability> decode_stability(std::string_view content);

}  // namespace replicad
