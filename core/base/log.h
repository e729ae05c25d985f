#pragma once
// One line per event in logfmt. The core does not log; runtimes do, through the sink they set once
// at start.

#include <string>
#include <string_view>

#include <fmt/format.h>

namespace replicad {

enum class LogLevel { error, warn, info, debug };

/// Receives a finished line without newline. Called from any thread.
using LogSink = void (*)(LogLevel level, std::string_view line);

/// Sets where lines go (default: stderr) and the least severe level that is written (default:
/// info). Call before threads start.
void set_log_sink(LogSink sink);
void set_log_level(LogLevel level);
[[nodiscard]] bool log_enabled(LogLevel level);
void write_log(LogLevel level, std::string_view line);

/// `event` is a snake_case word; `format` gives `key=value` pairs: log(LogLevel::warn, "peer_lost",
/// "peer={}", name).
template <typename... Args>
void log(LogLevel level,
         std::string_view event,
         fmt::format_string<Args...> format,
         Args&&... args) {
  if (!log_enabled(level)) return;
  write_log(level,
            fmt::format("event={} {}", event, fmt::format(format, std::forward<Args>(args)...)));
}

/// `text` as a logfmt value: quoted and escaped if it has spaces, quotes or control characters.
[[nodiscard]] std::string log_value(std::string_view text);

}  // namespace replicad
