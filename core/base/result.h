#pragma once
// Result<T>: what every operation that can fail for reasons outside the program returns.
// Error text says what happened, to what; `hint` says what to do next. Broken invariants use
// RD_CHECK.

#include <string>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <tl/expected.hpp>

namespace replicad {

/// Kinds of failure. The names (errc_name) are stable: they appear in JSON errors and in REFUSE
/// frames.
enum class Errc {
  invalid_argument,  ///< bad input from a user or a peer's control message
  protocol,          ///< bytes from a peer break docs/protocol.md
  version_mismatch,  ///< no common protocol version
  corrupt,           ///< a checksum or structure on disk is wrong
  not_found,         ///< volume, disk, host or file does not exist
  exists,            ///< it exists already
  refused,           ///< a rule forbids it (the message names the rule)
  stale_epoch,       ///< the sender's epoch is lower than one promised here
  diverged,          ///< histories differ: digest or position is not on the primary's history
  inconsistent,      ///< this member's image is no prefix of any history
  too_far_behind,    ///< the ring no longer holds what the member lacks
  busy,              ///< in use: locked image, served volume, port in use
  no_space,          ///< ENOSPC, or a log budget is exhausted
  io_error,          ///< any other failed system call on a file or socket
  unreachable,       ///< a peer or daemon does not answer
  timeout,           ///< a deadline passed
  not_supported,     ///< this build or kernel cannot do it
};

/// The stable lower-case name of `code`, e.g. "stale_epoch".
[[nodiscard]] std::string_view errc_name(Errc code);
/// The code whose errc_name is `name`; Errc::protocol if there is none.
[[nodiscard]] Errc errc_from_name(std::string_view name);

/// A failure: kind, errno (0 = none), text for a person, and what to do next (may be empty).
struct Error {
  Errc code = Errc::io_error;
  int sys_errno = 0;
  std::string message;
  std::string hint;
};

template <typename T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

/// An Error without errno. Usage: `return fail(Errc::corrupt, "segment {} ...", name);`
template <typename... Args>
[[nodiscard]] tl::unexpected<Error> fail(Errc code,
                                         fmt::format_string<Args...> format,
                                         Args&&... args) {
  return tl::unexpected<Error>(
      Error{code, 0, fmt::format(format, std::forward<Args>(args)...), {}});
}

/// The one place that maps errno to Errc. `context` says what was being done to what.
[[nodiscard]] Error errno_to_error(int sys_errno, std::string_view context);

/// An Error from errno. Usage: `return fail_errno(errno, "open {}", path);`
template <typename... Args>
[[nodiscard]] tl::unexpected<Error> fail_errno(int sys_errno,
                                               fmt::format_string<Args...> format,
                                               Args&&... args) {
  return tl::unexpected<Error>(
      errno_to_error(sys_errno, fmt::format(format, std::forward<Args>(args)...)));
}

/// Adds what to do next.
[[nodiscard]] tl::unexpected<Error> with_hint(tl::unexpected<Error> error, std::string_view hint);

}  // namespace replicad

/// Returns the Error of a failed Result or Status from the enclosing function.
#define RD_TRY(expression)                                      \
  do {                                                          \
    auto rd_try_result_ = (expression);                         \
    if (!rd_try_result_) {                                      \
      return tl::unexpected(std::move(rd_try_result_).error()); \
    }                                                           \
  } while (false)
