#pragma once
// An Error with a formatted message, for the state machines.

#include <utility>

#include "core/base/result.h"

namespace replicad {

template <typename... Args>
[[nodiscard]] Error make_error(Errc code, fmt::format_string<Args...> format, Args&&... args) {
  return fail(code, format, std::forward<Args>(args)...).value();
}

}  // namespace replicad
