#include "ctl/executor.h"

#include <chrono>
#include <optional>

#include <unistd.h>

#include "core/control/text.h"

namespace replicad::ctl {

namespace {

constexpr useconds_t busy_retry_us = 100'000;

struct Outcome {
  const char* state = "not run";  ///< planned, done, failed, undone, not undone, not run
  std::optional<Error> error;
};

class Execution {
 public:
  Execution(Context& context, const Plan& plan, const StepDone& on_done)
      : context_(context), plan_(plan), on_done_(on_done), outcomes_(plan.steps.size()) {}

  Status run() {
    for (const std::string& note : plan_.notes)
      context_.say("note: " + note);
    if (context_.options().dry_run) {
      show_steps();
    } else {
      run_steps();
    }
    report_skipped();
    if (context_.options().json) print_record();
    if (first_error_) return tl::unexpected(*first_error_);
    return {};
  }

 private:
  void show_steps() {
    for (std::size_t i = 0; i < plan_.steps.size(); ++i) {
      const Step& step = plan_.steps[i];
      outcomes_[i].state = "planned";
      context_.say(fmt::format("would: {}: {}  ({} {})",
                               printable(step.host),
                               step.text,
                               step.request.method,
                               printable(step.request.path)));
    }
    if (plan_.steps.empty()) context_.say("nothing to do");
  }

  void run_steps() {
    for (std::size_t i = 0; i < plan_.steps.size(); ++i) {
      if (run_step(i)) continue;
      if (!plan_.steps[i].required) continue;
      undo_before(i);
      return;
    }
  }

  static ApiAnswer ask(const Step& step, const Timeouts& timeouts) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(step.busy_ms);
    while (true) {
      ApiAnswer answer = call_api(step.address, step.request, timeouts);
      const bool busy = !answer.body && answer.body.error().code == Errc::busy;
      if (!busy || std::chrono::steady_clock::now() >= end) return answer;
      ::usleep(busy_retry_us);
    }
  }

  bool run_step(std::size_t index) {
    const Step& step = plan_.steps[index];
    Outcome& outcome = outcomes_[index];
    Timeouts timeouts = context_.cluster().timeouts();
    timeouts.answer_ms = std::max(timeouts.answer_ms, step.answer_ms);
    const ApiAnswer answer = ask(step, timeouts);
    Status status;
    if (!answer.body) {
      status = tl::unexpected(answer.body.error());
    } else if (on_done_) {
      status = on_done_(step, *answer.body, result_);
    }
    if (status) {
      outcome.state = "done";
      context_.say(fmt::format("{}: {}: done", printable(step.host), step.text));
      return true;
    }
    outcome.state = "failed";
    outcome.error = status.error();
    maybe_done_ = answer.maybe_done;
    context_.say(fmt::format(
        "{}: {}: {}", printable(step.host), step.text, context_.paint("failed", Tone::bad)));
    keep_error(step, status.error());
    return false;
  }

  void keep_error(const Step& step, const Error& error) {
    if (first_error_) {
      first_error_->message += fmt::format("; {}: {}", step.host, error.message);
      return;
    }
    first_error_ = error;
    first_error_->message = fmt::format("{}: {}", step.host, error.message);
    if (!step.required) {
      first_error_->hint =
          fmt::format("the primary has the change; give the same command again for {}{}{}",
                      step.host,
                      error.hint.empty() ? "" : "; ",
                      error.hint);
    }
  }

  /// Takes back the steps done before `failed`, the last one first, and `failed` itself if it may
  /// have been done.
  void undo_before(std::size_t failed) {
    const bool unknown = maybe_done_ && !plan_.steps[failed].undo;
    if (unknown) {
      first_error_->message += "; whether it was carried out there is not known";
      first_error_->hint =
          fmt::format("`replicactl status {}` shows where it stands", plan_.volume);
      return;
    }
    std::vector<std::string> undone;
    std::vector<std::string> left;
    for (std::size_t i = failed + 1; i-- > 0;) {
      const Step& step = plan_.steps[i];
      const bool was_done = i < failed ? outcomes_[i].error == std::nullopt : maybe_done_;
      if (!was_done || !step.undo) continue;
      Timeouts timeouts = context_.cluster().timeouts();
      timeouts.answer_ms = std::max(timeouts.answer_ms, step.answer_ms);
      const ApiAnswer answer = call_api(step.address, *step.undo, timeouts);
      const bool gone = answer.body || answer.body.error().code == Errc::not_found;
      (gone ? undone : left).push_back(step.host);
      outcomes_[i].state = gone ? "undone" : "not undone";
      context_.say(
          fmt::format("{}: {}: {}",
                      printable(step.host),
                      step.text,
                      gone ? "taken back" : context_.paint("could not be taken back", Tone::bad)));
    }
    if (!undone.empty())
      first_error_->message += fmt::format("; taken back on {}", format_list(undone));
    if (!left.empty()) {
      first_error_->message += fmt::format("; NOT taken back on {}", format_list(left));
      first_error_->hint =
          fmt::format("`replicactl delete {} --force` removes what is left there", plan_.volume);
    }
  }

  void report_skipped() {
    if (plan_.skipped.empty()) return;
    std::string text;
    for (const SkippedHost& host : plan_.skipped) {
      text += fmt::format(
          "{}{} was not reached ({})", text.empty() ? "" : "; ", host.host, host.reason);
    }
    if (first_error_) {
      first_error_->message += "; " + text;
    } else if (context_.options().dry_run) {
      context_.say("note: " + printable(text));
    } else {
      first_error_ = Error{Errc::unreachable, 0, text, plan_.skipped_hint};
    }
  }

  void print_record() {
    nlohmann::json record = result_.result;
    record["volume"] = plan_.volume;
    record["dry_run"] = context_.options().dry_run;
    record["notes"] = plan_.notes;
    record["steps"] = nlohmann::json::array();
    for (std::size_t i = 0; i < plan_.steps.size(); ++i) {
      const Step& step = plan_.steps[i];
      const Outcome& outcome = outcomes_[i];
      record["steps"].push_back(
          {{"host", step.host},
           {"action", step.text},
           {"method", step.request.method},
           {"path", step.request.path},
           {"body", step.request.body},
           {"state", outcome.state},
           {"error", outcome.error ? error_json(*outcome.error) : nlohmann::json()}});
    }
    record["skipped"] = nlohmann::json::array();
    for (const SkippedHost& host : plan_.skipped) {
      record["skipped"].push_back({{"host", host.host}, {"reason", host.reason}});
    }
    context_.print_json(std::move(record));
  }

  Context& context_;
  const Plan& plan_;
  const StepDone& on_done_;
  std::vector<Outcome> outcomes_;
  PlanResult result_;
  std::optional<Error> first_error_;
  bool maybe_done_ = false;
};

}  // namespace

Status run_plan(Context& context, const Plan& plan, const StepDone& on_done) {
  return Execution(context, plan, on_done).run();
}

}  // namespace replicad::ctl
