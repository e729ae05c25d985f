#pragma once
// CRC32C guards frames and disk structures against transport and media faults; Digest (XXH3-128) is
// what decides that two histories are equal. Pure functions, any thread.

#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/base/ids.h"

namespace replicad {

/// CRC32C (Castagnoli, initial value and final xor all ones) of `data`; `previous` continues an
/// earlier one.
[[nodiscard]] std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t previous = 0);

/// 128-bit running digest of a stream. All zero = the digest of an empty history.
struct Digest {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  friend auto operator<=>(const Digest&, const Digest&) = default;
};

/// What of a numbered frame enters the digest.
struct DigestItem {
  Epoch epoch{};
  Sequence sequence = 0;
  std::uint64_t offset_bytes = 0;
  std::uint64_t range_bytes = 0;
  DiskIndex disk = 0;
  std::uint8_t kind = 0;  ///< wire FrameType
  std::uint32_t payload_crc32c = 0;
};

/// The digest after `item`, given the digest before it (docs/protocol.md, "Digest").
[[nodiscard]] Digest extend_digest(const Digest& before, const DigestItem& item);

/// XXH3-128 of a block's content: what decides that two blocks are equal.
[[nodiscard]] Digest block_sum(std::span<const std::byte> block);

/// 32 lower-case hexadecimal digits, high half first.
[[nodiscard]] std::string to_hex(const Digest& digest);
[[nodiscard]] std::optional<Digest> digest_from_hex(std::string_view hex);

}  // namespace replicad
