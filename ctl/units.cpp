#include "ctl/units.h"

#include <array>
#include <charconv>
#include <cmath>

#include "core/base/limits.h"
#include "core/base/modes.h"
#include "core/control/text.h"

namespace replicad::ctl {

namespace {

struct Number {
  double value = 0;
  std::string_view unit;
};

/// Digits with at most one point, then the unit.
Result<Number> split_number(std::string_view text, const char* what) {
  const std::size_t end = text.find_first_not_of("0123456789.");
  const std::string_view digits = text.substr(0, end);
  Number number;
  const auto [stop, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), number.value);
  if (digits.empty() || error != std::errc() || stop != digits.data() + digits.size()) {
    return fail(Errc::invalid_argument, "'{}' is no {}", printable(text), what);
  }
  if (end != std::string_view::npos) number.unit = text.substr(end);
  return number;
}

/// One knob of a volume.
struct Setting {
  const char* name;   ///< in the API
  const char* alias;  ///< without the unit; may be null
  const char* takes;
  Result<nlohmann::json> (*parse)(const std::string& value);
};

Result<nlohmann::json> bytes_between(const std::string& text,
                                     std::uint64_t low,
                                     std::uint64_t high) {
  const auto bytes = parse_size(text);
  if (!bytes) return tl::unexpected(bytes.error());
  if (*bytes < low || *bytes > high) {
    return fail(Errc::invalid_argument,
                "{} is not between {} and {}",
                text,
                format_bytes(low),
                format_bytes(high));
  }
  return nlohmann::json(*bytes);
}

template <typename Parse>
Result<nlohmann::json> one_of(const std::string& text, Parse parse) {
  if (!parse(text)) return fail(Errc::invalid_argument, "'{}' is none of them", printable(text));
  return nlohmann::json(text);
}

Result<nlohmann::json> yes_or_no(const std::string& text) {
  if (text == "yes") return nlohmann::json(true);
  if (text == "no") return nlohmann::json(false);
  return fail(Errc::invalid_argument, "'{}' is neither", printable(text));
}

const std::array<Setting, 9>& all_settings() {
  static constexpr std::array<Setting, 9> settings{{
      {"mode",
       nullptr,
       "async, semi-sync or sync",
       [](const std::string& v) { return one_of(v, mode_from_name); }},
      {"congestion",
       nullptr,
       "throttle or detach",
       [](const std::string& v) { return one_of(v, congestion_from_name); }},
      {"on_local_error",
       nullptr,
       "hold or fail",
       [](const std::string& v) { return one_of(v, on_local_error_from_name); }},
      {"autostart", nullptr, "yes or no", yes_or_no},
      {"ring_bytes",
       "ring",
       "a size",
       [](const std::string& v) { return bytes_between(v, ring_bytes_min, ring_bytes_max); }},
      {"log_bytes",
       "log",
       "a size",
       [](const std::string& v) { return bytes_between(v, segment_bytes_min, disk_bytes_max); }},
      {"segment_bytes",
       "segment",
       "a size",
       [](const std::string& v) { return bytes_between(v, segment_bytes_min, segment_bytes_max); }},
      {"ack_timeout_ms",
       "ack_timeout",
       "a time such as 5s",
       [](const std::string& v) -> Result<nlohmann::json> {
         const bool bare = v.find_first_not_of("0123456789") == std::string::npos;
         const auto time_ms = parse_duration_ms(bare ? v + "ms" : v);
         if (!time_ms) return tl::unexpected(time_ms.error());
         if (*time_ms < ack_timeout_ms_min || *time_ms > ack_timeout_ms_max) {
           return fail(Errc::invalid_argument,
                       "{} is not between {} and {} ms",
                       v,
                       ack_timeout_ms_min,
                       ack_timeout_ms_max);
         }
         return nlohmann::json(*time_ms);
       }},
      {"quorum_timeout_ms",
       "quorum_timeout",
       "a time such as 30s, or 0",
       [](const std::string& v) -> Result<nlohmann::json> {
         const bool bare = v.find_first_not_of("0123456789") == std::string::npos;
         const auto time_ms = parse_duration_ms(bare ? v + "ms" : v);
         if (!time_ms) return tl::unexpected(time_ms.error());
         if (*time_ms > quorum_timeout_ms_max)
           return fail(Errc::invalid_argument, "{} is longer than a day", v);
         return nlohmann::json(*time_ms);
       }},
  }};
  return settings;
}

Status parse_setting(const std::string& pair, nlohmann::json& settings) {
  const std::size_t equals = pair.find('=');
  std::string key = pair.substr(0, equals);
  for (char& letter : key) {
    if (letter == '-') letter = '_';
  }
  std::vector<std::string> names;
  for (const Setting& setting : all_settings()) {
    names.emplace_back(setting.name);
    if (key != setting.name && (setting.alias == nullptr || key != setting.alias)) continue;
    if (equals == std::string::npos) {
      return fail(Errc::invalid_argument,
                  "'{}' has no value: {}={}",
                  printable(pair),
                  setting.name,
                  setting.takes);
    }
    auto value = setting.parse(pair.substr(equals + 1));
    if (!value) {
      return fail(Errc::invalid_argument,
                  "{} takes {}: {}",
                  setting.name,
                  setting.takes,
                  value.error().message);
    }
    if (settings.contains(setting.name))
      return fail(Errc::invalid_argument, "{} is given twice", setting.name);
    settings[setting.name] = std::move(*value);
    return {};
  }
  return fail(Errc::invalid_argument,
              "there is no setting '{}'; settings are {}",
              printable(key),
              format_list(names));
}

}  // namespace

Result<std::uint64_t> parse_size(std::string_view text) {
  const auto number = split_number(text, "size; sizes look like 4096, 64K, 20G or 1.5T");
  if (!number) return tl::unexpected(number.error());
  std::string unit(number->unit);
  for (char& letter : unit)
    letter = static_cast<char>(letter >= 'a' && letter <= 'z' ? letter - 'a' + 'A' : letter);
  if (unit.ends_with("IB")) unit.resize(unit.size() - 2);
  static constexpr std::string_view prefixes = "KMGT";
  double factor = 1;
  if (unit.size() == 1 && prefixes.find(unit) != std::string_view::npos) {
    factor = std::pow(1024.0, static_cast<double>(prefixes.find(unit) + 1));
  } else if (!unit.empty() && unit != "B") {
    return fail(Errc::invalid_argument,
                "'{}' is no size: the unit is one of K, M, G, T (powers of 1024)",
                printable(text));
  }
  const double bytes = number->value * factor;
  if (bytes > 9e15) return fail(Errc::invalid_argument, "'{}' is too large", printable(text));
  if (bytes != std::floor(bytes))
    return fail(Errc::invalid_argument, "'{}' is no whole number of bytes", printable(text));
  return static_cast<std::uint64_t>(bytes);
}

Result<std::uint64_t> parse_duration_ms(std::string_view text) {
  const auto number = split_number(text, "time; times look like 30s, 500ms or 2m");
  if (!number) return tl::unexpected(number.error());
  double factor = 0;
  if (number->unit == "ms") factor = 1;
  if (number->unit.empty() || number->unit == "s") factor = 1000;
  if (number->unit == "m") factor = 60'000;
  if (number->unit == "h") factor = 3'600'000;
  if (factor == 0) {
    return fail(
        Errc::invalid_argument, "'{}' is no time: the unit is one of ms, s, m, h", printable(text));
  }
  const double time_ms = number->value * factor;
  if (time_ms > 1e12) return fail(Errc::invalid_argument, "'{}' is too long", printable(text));
  return static_cast<std::uint64_t>(std::llround(time_ms));
}

Result<std::vector<std::string>> split_list(std::string_view text) {
  std::vector<std::string> parts;
  if (text.empty()) return parts;
  while (true) {
    const std::size_t comma = text.find(',');
    const std::string_view part = text.substr(0, comma);
    if (part.empty()) return fail(Errc::invalid_argument, "a part of the list is empty");
    parts.emplace_back(part);
    if (comma == std::string_view::npos) return parts;
    text.remove_prefix(comma + 1);
  }
}

Result<nlohmann::json> parse_settings(const std::vector<std::string>& pairs) {
  nlohmann::json settings = nlohmann::json::object();
  for (const std::string& pair : pairs)
    RD_TRY(parse_setting(pair, settings));
  return settings;
}

std::string default_disk_name(std::size_t index) {
  return std::string("vd") + static_cast<char>('a' + static_cast<char>(index));
}

}  // namespace replicad::ctl
