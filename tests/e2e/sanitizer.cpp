#include "tests/e2e/sanitizer.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include <fmt/format.h>
#include <sys/stat.h>

#include "tests/e2e/process.h"

namespace replicad::e2e {

namespace fs = std::filesystem;

namespace {

// Empty without a sanitizer. NOLINTNEXTLINE(readability-redundant-string-init)
constexpr std::string_view library = RD_SANITIZER_LIBRARY;
constexpr std::string_view report_prefix = "sanitizer-report";

std::string make_wrapper() {
  static const TempDir dir;
  std::string path = dir.path() + "/nbdkit";
  std::ofstream(path) << "#!/bin/sh\nLD_PRELOAD=" << library << " exec nbdkit \"$@\"\n";
  ::chmod(path.c_str(), 0755);
  return path;
}

/// nbdkit is not instrumented, and does not free all of its own when it ends with connections open. A suppression that
/// named it would pass over what our plugin leaks in its threads too: of those only the reports go in which nbdkit
/// itself has allocated everything.
bool is_about_nbdkit_alone(const std::string& report) {
  if (report.find("ERROR: LeakSanitizer") == std::string::npos) return false;
  for (std::size_t at = 0; (at = report.find("    #0 ", at)) != std::string::npos; ++at) {
    const std::size_t caller = report.find("    #1 ", at);
    if (caller == std::string::npos) return false;
    const std::string frame = report.substr(caller, report.find('\n', caller) - caller);
    if (frame.find("(/usr/bin/nbdkit+") == std::string::npos &&
        frame.find("(/usr/sbin/nbdkit+") == std::string::npos) {
      return false;
    }
  }
  return true;
}

/// As the tests found it when they began.
std::string given_options(const std::string& variable) {
  static std::map<std::string, std::string> given;
  const auto [entry, added] = given.try_emplace(variable);
  if (added) {
    // NOLINTNEXTLINE(concurrency-mt-unsafe): before the test starts threads
    const char* value = std::getenv(variable.c_str());
    if (value != nullptr) entry->second = std::string(value) + ":";
  }
  return entry->second;
}

}  // namespace

const int sanitizer_slowdown = library.empty() ? 1 : 4;

std::string nbdkit_program() {
  static const std::string program = library.empty() ? std::string("nbdkit") : make_wrapper();
  return program;
}

void collect_sanitizer_reports(const std::string& directory) {
  if (library.empty()) return;
  const std::string log_path = fmt::format("log_path={}/{}", directory, report_prefix);
  for (const char* variable : {"ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS"}) {
    // NOLINTNEXTLINE(concurrency-mt-unsafe): likewise
    ::setenv(variable, (given_options(variable) + log_path).c_str(), 1);
  }
}

std::string sanitizer_reports(const std::string& directory) {
  std::string reports;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(directory, ignored)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(report_prefix)) continue;
    const std::string report = read_text(entry.path().string());
    if (!is_about_nbdkit_alone(report)) reports += report;
  }
  return reports;
}

}  // namespace replicad::e2e
