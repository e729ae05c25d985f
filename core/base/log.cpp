#include "core/base/log.h"

#include <atomic>
#include <cstdio>

namespace replicad {

namespace {

std::string_view level_name(LogLevel level) {
  switch (level) {
    case LogLevel::error:
      return "error";
    case LogLevel::warn:
      return "warn";
    case LogLevel::info:
      return "info";
    case LogLevel::debug:
      return "debug";
  }
  return "?";
}

void write_to_stderr(LogLevel /*level*/, std::string_view line) {
  std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
}

std::atomic<LogSink> sink{&write_to_stderr};
std::atomic<LogLevel> least_severe{LogLevel::info};

}  // namespace

void set_log_sink(LogSink new_sink) {
  sink = new_sink;
}
void set_log_level(LogLevel level) {
  least_severe = level;
}
bool log_enabled(LogLevel level) {
  return level <= least_severe.load(std::memory_order_relaxed);
}

void write_log(LogLevel level, std::string_view line) {
  sink.load()(level, fmt::format("level={} {}", level_name(level), line));
}

std::string log_value(std::string_view text) {
  bool plain = !text.empty();
  for (const char c : text) {
    if (static_cast<unsigned char>(c) <= ' ' || c == '"' || c == '\\' || c == '=' || c == 0x7f)
      plain = false;
  }
  if (plain) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) {
      quoted += fmt::format("\\x{:02x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

}  // namespace replicad
