#pragma once
// Values as people type them: sizes, times, lists, key=value pairs. Pure, any thread.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/base/result.h"

namespace replicad::ctl {

/// Bytes: "4096", "64K", "20G", "1.5T", "20GiB"; K, M, G, T are powers of 1024. Errors:
/// Errc::invalid_argument.
[[nodiscard]] Result<std::uint64_t> parse_size(std::string_view text);
/// Milliseconds: "500ms", "30s", "2m", "1h"; a bare number is seconds. Errors:
/// Errc::invalid_argument.
[[nodiscard]] Result<std::uint64_t> parse_duration_ms(std::string_view text);
/// Parts between commas; none for an empty text. Errors: Errc::invalid_argument for an empty part.
[[nodiscard]] Result<std::vector<std::string>> split_list(std::string_view text);
/// `pairs` ("mode=sync", "ring-bytes=64M", "ack-timeout=5s") as the settings of the control API. A
/// key may be given with dashes, and without its unit. Errors: Errc::invalid_argument naming the
/// key and what it takes.
[[nodiscard]] Result<nlohmann::json> parse_settings(const std::vector<std::string>& pairs);
/// "vda", "vdb", ... for the first 16 disks.
[[nodiscard]] std::string default_disk_name(std::size_t index);

}  // namespace replicad::ctl
