#include "core/base/checksum.h"

#include <array>

#include <fmt/format.h>
#include <isa-l/crc.h>
#include <xxhash.h>

#include "core/base/endian.h"

namespace replicad {

std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t previous) {
  // isa-l wants a non-const pointer and an int length, and leaves both inversions to the caller.
  std::uint32_t crc = ~previous;
  constexpr std::size_t step_bytes_max = std::size_t{1} << 30;
  while (!data.empty()) {
    const auto step = data.first(data.size() < step_bytes_max ? data.size() : step_bytes_max);
    auto* bytes = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(step.data()));
    crc = crc32_iscsi(bytes, static_cast<int>(step.size()), crc);
    data = data.subspan(step.size());
  }
  return ~crc;
}

Digest extend_digest(const Digest& before, const DigestItem& item) {
  std::array<std::byte, 64> bytes{};
  store_le(bytes.data(), before.low);
  store_le(bytes.data() + 8, before.high);
  store_le(bytes.data() + 16, item.epoch.number);
  store_le(bytes.data() + 24, item.sequence);
  store_le(bytes.data() + 32, item.offset_bytes);
  store_le(bytes.data() + 40, item.range_bytes);
  store_le(bytes.data() + 48, item.epoch.tag);
  store_le(bytes.data() + 52, item.payload_crc32c);
  store_le(bytes.data() + 56, item.disk);
  bytes[58] = std::byte{item.kind};
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return Digest{hash.low64, hash.high64};
}

Digest block_sum(std::span<const std::byte> block) {
  const XXH128_hash_t hash = XXH3_128bits(block.data(), block.size());
  return Digest{hash.low64, hash.high64};
}

std::string to_hex(const Digest& digest) {
  return fmt::format("{:016x}{:016x}", digest.high, digest.low);
}

std::optional<Digest> digest_from_hex(std::string_view hex) {
  if (hex.size() != 32) return std::nullopt;
  std::array<std::uint64_t, 2> halves{};
  for (std::size_t i = 0; i < hex.size(); ++i) {
    const char c = hex[i];
    unsigned nibble = 0;
    if (c >= '0' && c <= '9') {
      nibble = static_cast<unsigned>(c - '0');
    } else if (c >= 'a' && c <= 'f') {
      nibble = static_cast<unsigned>(c - 'a') + 10;
    } else {
      return std::nullopt;
    }
    halves[i / 16] = (halves[i / 16] << 4) | nibble;
  }
  return Digest{halves[1], halves[0]};
}

}  // namespace replicad
