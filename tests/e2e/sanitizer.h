#pragma once
// End-to-end tests of a build with sanitizers: every process of a cluster writes its reports to
// files of their own, so that none is lost with a log that is truncated or never looked at. In
// other builds nothing here does anything.

#include <string>

namespace replicad::e2e {

/// nbdkit, or a wrapper that preloads the sanitizer's library for a plugin that needs it.
std::string nbdkit_program();

/// From now on the processes that this one starts write their reports below `directory`.
void collect_sanitizer_reports(const std::string& directory);
/// What was reported since, or "".
std::string sanitizer_reports(const std::string& directory);

/// How much longer than usual a test may take.
extern const int sanitizer_slowdown;

}  // namespace replicad::e2e
