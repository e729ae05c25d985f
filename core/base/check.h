#pragma once
// RD_CHECK: a broken invariant of our own ends the process, in every build type. It is never used
// on bytes that come from a peer, a disk or a user: those give an Error (result.h).

namespace replicad {

/// Prints the failed condition with its place to stderr and aborts. Any thread.
[[noreturn]] void check_failed(const char* condition, const char* file, int line);

}  // namespace replicad

#define RD_CHECK(condition)                                     \
  do {                                                          \
    if (!(condition)) [[unlikely]] {                            \
      ::replicad::check_failed(#condition, __FILE__, __LINE__); \
    }                                                           \
  } while (false)
