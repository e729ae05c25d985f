#include "core/control/text.h"

#include <array>
#include <cmath>

#include <fmt/format.h>

namespace replicad {

namespace {

/// Bytes of the well-formed UTF-8 sequence at the head of `text` (1..4), 0 if there is none.
std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t at) { return static_cast<unsigned char>(text[at]); };
  const auto tail = [&](std::size_t at) { return at < text.size() && (byte(at) & 0xc0U) == 0x80U; };
  const unsigned char head = byte(0);
  if (head < 0x80) return 1;
  if (head >= 0xc2 && head <= 0xdf) return tail(1) ? 2 : 0;
  if (head >= 0xe0 && head <= 0xef) {
    if (!tail(1) || !tail(2)) return 0;
    if (head == 0xe0 && byte(1) < 0xa0) return 0;
    if (head == 0xed && byte(1) > 0x9f) return 0;
    return 3;
  }
  if (head >= 0xf0 && head <= 0xf4) {
    if (!tail(1) || !tail(2) || !tail(3)) return 0;
    if (head == 0xf0 && byte(1) < 0x90) return 0;
    if (head == 0xf4 && byte(1) > 0x8f) return 0;
    return 4;
  }
  return 0;
}

bool is_control(std::string_view sequence) {
  const auto head = static_cast<unsigned char>(sequence[0]);
  if (sequence.size() == 1) return head < 0x20 || head == 0x7f;
  // U+0080..U+009F are C2 80..C2 9F.
  return sequence.size() == 2 && head == 0xc2 && static_cast<unsigned char>(sequence[1]) < 0xa0;
}

}  // namespace

std::string format_bytes(std::uint64_t bytes) {
  static constexpr std::array<const char*, 7> units{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  // 1023.95 would print as 1024.0 of the smaller unit.
  while (value >= 1023.95 && unit + 1 < units.size()) {
    value /= 1024;
    ++unit;
  }
  std::string number = fmt::format("{:.1f}", value);
  if (number.ends_with(".0")) number.resize(number.size() - 2);
  return fmt::format("{} {}", number, units[unit]);
}

std::string format_seconds(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  if (seconds < 9.95) return fmt::format("{:.1f} s", seconds);
  if (seconds > 1e12) return "for ever";
  const auto whole = static_cast<std::uint64_t>(std::llround(seconds));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} m {} s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{} h {} m", whole / 3600, whole % 3600 / 60);
  return fmt::format("{} d {} h", whole / 86400, whole % 86400 / 3600);
}

std::string format_list(const std::vector<std::string>& items) {
  if (items.empty()) return "none";
  std::string text;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (i > 0) text += i + 1 == items.size() ? " and " : ", ";
    text += items[i];
  }
  return text;
}

std::string printable(std::string_view text) {
  std::string safe;
  safe.reserve(text.size());
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    const std::string_view sequence = text.substr(0, length == 0 ? 1 : length);
    if (length == 0 || is_control(sequence)) {
      for (const char byte : sequence)
        safe += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
    } else {
      safe += sequence;
    }
    text.remove_prefix(sequence.size());
  }
  return safe;
}

}  // namespace replicad
