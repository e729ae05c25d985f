#pragma once
// Load and capacity of this host, read from /proc and the file system of the images when asked. Any
// thread; the parsers are pure.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "core/base/result.h"

namespace replicad {

struct HostMetrics {
  unsigned cpus = 1;
  double load_1m = 0;
  std::optional<double>
      cpu_pressure_percent;  ///< "some", 60-second average; absent where the kernel has none
  std::optional<double> io_pressure_percent;
  std::uint64_t memory_bytes = 0;
  std::uint64_t memory_free_bytes = 0;  ///< available for new use
  std::uint64_t image_dir_bytes = 0;
  std::uint64_t image_dir_free_bytes = 0;
  double uptime_seconds = 0;
};

/// Reads everything. What cannot be read stays at zero.
[[nodiscard]] HostMetrics read_host_metrics(const std::string& image_dir);

/// Free bytes of the file system that holds `path`. Errors: from statvfs.
[[nodiscard]] Result<std::uint64_t> free_bytes(const std::string& path);

/// First figure of /proc/loadavg.
[[nodiscard]] std::optional<double> parse_load_average(std::string_view content);
/// avg60 of the line "some" of a file below /proc/pressure.
[[nodiscard]] std::optional<double> parse_pressure(std::string_view content);
/// Bytes of the field `name` of /proc/meminfo.
[[nodiscard]] std::optional<std::uint64_t> parse_memory(std::string_view content,
                                                        std::string_view name);

}  // namespace replicad
