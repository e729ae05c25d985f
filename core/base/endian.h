#pragma once
// Fixed little-endian loads and stores through memcpy (one mov each); also used by the digest. Any
// thread.

#include <bit>
#include <cstddef>
#include <cstring>
#include <type_traits>

namespace replicad {

static_assert(std::endian::native == std::endian::little, "big-endian hosts need byte swaps here");

/// Reads a little-endian unsigned integer from `from`, which holds at least sizeof(T) bytes.
template <typename T>
[[nodiscard]] T load_le(const std::byte* from) {
  static_assert(std::is_unsigned_v<T>);
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

/// Writes `value` little-endian to `to`, which has room for sizeof(T) bytes.
template <typename T>
void store_le(std::byte* to, T value) {
  static_assert(std::is_unsigned_v<T>);
  std::memcpy(to, &value, sizeof value);
}

}  // namespace replicad
