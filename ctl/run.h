#pragma once
// The command line of replicactl, from words to exit code. One call at a time.

#include <string>
#include <vector>

#include "ctl/context.h"

namespace replicad::ctl {

/// `arguments`: without the program's name. Prints to `terminal`. Returns the exit code.
[[nodiscard]] int run_replicactl(const std::vector<std::string>& arguments, Terminal& terminal);

}  // namespace replicad::ctl
