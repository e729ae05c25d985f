#pragma once
// What the files with an entry for each region of a disk have in common, the activity file and the trail
// (docs/disk-format.md): headers that hold JSON behind a checksum, and pages. Pure functions, any thread.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/wire/messages.h"

namespace replicad {

constexpr std::size_t region_page_bytes = 4096;
constexpr std::size_t region_page_at_entries =
    16;  ///< within a page; what is before belongs to these functions

struct RegionFileFormat {
  std::uint32_t header_magic;
  std::uint32_t page_magic;
  std::uint32_t version;
  std::size_t header_bytes;
  std::string_view name;  ///< as in "the header of NAME"
};

/// What is wrong with the body of a header; decode_region_header() makes an Error of it.
struct RegionFileError {
  std::string what;
};

[[nodiscard]] std::vector<std::byte> encode_region_header(const RegionFileFormat& format,
                                                          std::uint64_t generation,
                                                          const nlohmann::json& body);
/// Result: the generation. Errors: Errc::corrupt, Errc::version_mismatch (a later format). Any bytes are safe.
/// `take` gets the body, and may throw json::exception and RegionFileError.
[[nodiscard]] Result<std::uint64_t> decode_region_header(
    const RegionFileFormat& format,
    std::span<const std::byte> from,
    const std::function<void(const nlohmann::json& body)>& take);

/// Completes a page whose entries are in place.
void seal_region_page(const RegionFileFormat& format,
                      DiskIndex disk,
                      std::uint32_t page,
                      std::span<std::byte, region_page_bytes> to);
/// False: it was never written. Errors: Errc::corrupt. Any bytes are safe.
[[nodiscard]] Result<bool> is_region_page(const RegionFileFormat& format,
                                          DiskIndex disk,
                                          std::uint32_t page,
                                          std::span<const std::byte, region_page_bytes> from);

// Of a body. They throw json::exception and RegionFileError.

[[nodiscard]] std::uint64_t region_counter(const nlohmann::json& object, const char* name);
[[nodiscard]] Epoch region_epoch(const nlohmann::json& object);
[[nodiscard]] HistoryPoint region_point(const nlohmann::json& object);
[[nodiscard]] std::vector<std::uint64_t> region_disk_bytes(const nlohmann::json& body);
[[nodiscard]] nlohmann::json region_json(const Epoch& epoch);
[[nodiscard]] nlohmann::json region_json(const HistoryPoint& point);

}  // namespace replicad
