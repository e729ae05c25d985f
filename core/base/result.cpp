#include "core/base/result.h"

#include <array>
#include <cerrno>
#include <cstring>

namespace replicad {

namespace {

struct NamedErrc {
  Errc code;
  std::string_view name;
};

constexpr std::array<NamedErrc, 17> errc_names{{
    {Errc::invalid_argument, "invalid_argument"},
    {Errc::protocol, "protocol"},
    {Errc::version_mismatch, "version_mismatch"},
    {Errc::corrupt, "corrupt"},
    {Errc::not_found, "not_found"},
    {Errc::exists, "exists"},
    {Errc::refused, "refused"},
    {Errc::stale_epoch, "stale_epoch"},
    {Errc::diverged, "diverged"},
    {Errc::inconsistent, "inconsistent"},
    {Errc::too_far_behind, "too_far_behind"},
    {Errc::busy, "busy"},
    {Errc::no_space, "no_space"},
    {Errc::io_error, "io_error"},
    {Errc::unreachable, "unreachable"},
    {Errc::timeout, "timeout"},
    {Errc::not_supported, "not_supported"},
}};

Errc errc_from_errno(int sys_errno) {
  switch (sys_errno) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
      return Errc::not_found;
    case EEXIST:
      return Errc::exists;
    case ENOSPC:
    case EDQUOT:
      return Errc::no_space;
    case EADDRINUSE:
    case EBUSY:
    case EAGAIN:
    case ETXTBSY:
      return Errc::busy;
    case ECONNREFUSED:
    case ECONNRESET:
    case EPIPE:
    case EHOSTUNREACH:
    case ENETUNREACH:
      return Errc::unreachable;
    case ETIMEDOUT:
    case ETIME:
      return Errc::timeout;
    case EOPNOTSUPP:
    case ENOSYS:
      return Errc::not_supported;
    case EINVAL:
    case ENAMETOOLONG:
      return Errc::invalid_argument;
    default:
      return Errc::io_error;
  }
}

}  // namespace

std::string_view errc_name(Errc code) {
  for (const NamedErrc& entry : errc_names) {
    if (entry.code == code) return entry.name;
  }
  return "unknown";
}

Errc errc_from_name(std::string_view name) {
  for (const NamedErrc& entry : errc_names) {
    if (entry.name == name) return entry.code;
  }
  return Errc::protocol;
}

Error errno_to_error(int sys_errno, std::string_view context) {
  // Untranslated, and without the locks of translations: several threads report errors while nbdkit ends.
  const char* known = ::strerrordesc_np(sys_errno);
  const std::string text = known != nullptr ? known : fmt::format("errno {}", sys_errno);
  return Error{errc_from_errno(sys_errno), sys_errno, fmt::format("{}: {}", context, text), {}};
}

tl::unexpected<Error> with_hint(tl::unexpected<Error> error, std::string_view hint) {
  Error changed = std::move(error.value());
  changed.hint = hint;
  return tl::unexpected<Error>(std::move(changed));
}

}  // namespace replicad
