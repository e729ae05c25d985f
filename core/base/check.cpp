#include "core/base/check.h"

#include <cstdio>
#include <cstdlib>

namespace replicad {

void check_failed(const char* condition, const char* file, int line) {
  std::fprintf(
      stderr, "level=error event=check_failed condition=\"%s\" at=%s:%d\n", condition, file, line);
  std::abort();
}

}  // namespace replicad
