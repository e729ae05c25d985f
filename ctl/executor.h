#pragma once
// Carries out a plan, or shows it.

#include <functional>

#include "core/control/plan.h"
#include "ctl/context.h"

namespace replicad::ctl {

/// What a command makes of the answers.
struct PlanResult {
  nlohmann::json result = nlohmann::json::object();  ///< fields a command adds to the JSON answer
};
using StepDone =
    std::function<Status(const Step& step, const nlohmann::json& answer, PlanResult& result)>;

/// With --dry-run prints the steps and sends nothing. Otherwise runs them one after the other, says
/// what happened where, and undoes what can be undone when a required step fails. `on_done` gets
/// the answer of each step that was done, and shows the result to people (may be empty). With -o
/// json the record of the steps is printed, with `result` merged in if the command sets it. Errors:
/// that of the first failed step, or of a skipped host.
[[nodiscard]] Status run_plan(Context& context, const Plan& plan, const StepDone& on_done = {});

}  // namespace replicad::ctl
