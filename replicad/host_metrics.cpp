#include "replicad/host_metrics.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>

#include <sys/statvfs.h>

#include "core/base/limits.h"

namespace replicad {

namespace {

/// /proc files have no size: read what comes.
std::string read_proc(const char* path) {
  std::ifstream file(path);
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

std::optional<double> parse_real(std::string_view text) {
  double value = 0;
  const auto [after, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || !std::isfinite(value) || value < 0) return std::nullopt;
  return value;
}

/// The rest of the line that starts with `prefix`.
std::optional<std::string_view> line_after(std::string_view content, std::string_view prefix) {
  while (!content.empty()) {
    const auto end = content.find('\n');
    const std::string_view line = content.substr(0, end);
    if (line.starts_with(prefix)) return line.substr(prefix.size());
    content = end == std::string_view::npos ? std::string_view{} : content.substr(end + 1);
  }
  return std::nullopt;
}

}  // namespace

std::optional<double> parse_load_average(std::string_view content) {
  return parse_real(content);
}

std::optional<double> parse_pressure(std::string_view content) {
  const auto line = line_after(content, "some ");
  if (!line) return std::nullopt;
  constexpr std::string_view key = "avg60=";
  const auto at = line->find(key);
  if (at == std::string_view::npos) return std::nullopt;
  return parse_real(line->substr(at + key.size()));
}

std::optional<std::uint64_t> parse_memory(std::string_view content, std::string_view name) {
  const auto line = line_after(content, fmt::format("{}:", name));
  if (!line) return std::nullopt;
  const auto digits = line->find_first_not_of(' ');
  if (digits == std::string_view::npos) return std::nullopt;
  std::uint64_t value = 0;
  const auto [after, error] =
      std::from_chars(line->data() + digits, line->data() + line->size(), value);
  if (error != std::errc{} || value > ~std::uint64_t{0} / kib) return std::nullopt;
  return value * kib;
}

Result<std::uint64_t> free_bytes(const std::string& path) {
  struct statvfs info {};
  if (::statvfs(path.c_str(), &info) != 0) return fail_errno(errno, "statvfs {}", path);
  return std::uint64_t{info.f_bavail} * info.f_frsize;
}

HostMetrics read_host_metrics(const std::string& image_dir) {
  HostMetrics metrics;
  metrics.cpus = std::max(1U, std::thread::hardware_concurrency());
  metrics.load_1m = parse_load_average(read_proc("/proc/loadavg")).value_or(0);
  metrics.cpu_pressure_percent = parse_pressure(read_proc("/proc/pressure/cpu"));
  metrics.io_pressure_percent = parse_pressure(read_proc("/proc/pressure/io"));
  const std::string memory = read_proc("/proc/meminfo");
  metrics.memory_bytes = parse_memory(memory, "MemTotal").value_or(0);
  metrics.memory_free_bytes = parse_memory(memory, "MemAvailable").value_or(0);
  struct statvfs info {};
  if (::statvfs(image_dir.c_str(), &info) == 0) {
    metrics.image_dir_bytes = std::uint64_t{info.f_blocks} * info.f_frsize;
    metrics.image_dir_free_bytes = std::uint64_t{info.f_bavail} * info.f_frsize;
  }
  metrics.uptime_seconds = parse_real(read_proc("/proc/uptime")).value_or(0);
  return metrics;
}

}  // namespace replicad
