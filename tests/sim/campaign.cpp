#include "tests/sim/campaign.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include <sys/wait.h>
#include <unistd.h>

#include "tests/sim/cluster.h"

namespace replicad::sim {

namespace {

void add(Counters& sum, const Counters& one) {
  for (const auto& [name, count] : one)
    sum[name] += count;
}

/// What identifies a broken promise: its text up to the first number or host.
std::string kind_of(const std::string& violation) {
  return violation.substr(0, violation.find(':'));
}

/// Tries smaller and smaller values of one knob.
template <typename Knob>
void reduce(Options& best,
            Knob knob,
            unsigned least,
            const std::function<bool(const Options&)>& fails) {
  for (unsigned value = knob(best) / 2; value >= least && value < knob(best);) {
    Options smaller = best;
    knob(smaller) = value;
    if (fails(smaller)) {
      best = smaller;
      value = knob(best) / 2;
    } else {
      value += (knob(best) - value + 1) / 2;
    }
  }
}

}  // namespace

RunResult run_options(const Options& options, bool traced, Totals* totals) {
  Cluster cluster(options, traced);
  RunResult result;
  try {
    cluster.run();
  } catch (const Violation& violation) {
    result.violation = violation.text;
  }
  result.trace_hash = cluster.world.trace_hash();
  result.counts = options.hosts + options.witnesses >= 3 && cluster.guest.written() >= 200 &&
                  cluster.faults_injected() >= 3;
  if (totals == nullptr) return result;
  ++totals->seeds;
  if (result.counts) ++totals->counted;
  totals->virtual_time += cluster.world.elapsed();
  add(totals->faults, cluster.world.faults);
  add(totals->branches, cluster.world.branches);
  add(totals->counts, cluster.world.counts);
  totals->counts["events"] += cluster.world.events_run();
  return result;
}

std::string run_in_child(const Options& options, bool traced) {
  std::array<int, 2> ends{};
  if (::pipe(ends.data()) != 0) return "pipe failed";
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(ends[0]);
    if (!traced && std::freopen("/dev/null", "w", stderr) == nullptr) ::_exit(2);
    const std::string text = run_options(options, traced, nullptr).violation.value_or("");
    std::fflush(nullptr);
    const bool told = ::write(ends[1], text.data(), text.size()) >= 0;
    ::_exit(told ? 0 : 2);
  }
  ::close(ends[1]);
  std::string text;
  std::array<char, 4096> buffer{};
  for (ssize_t got = 0; (got = ::read(ends[0], buffer.data(), buffer.size())) > 0;)
    text.append(buffer.data(), static_cast<std::size_t>(got));
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) return fmt::format("P8 aborted: signal {}", WTERMSIG(status));
  return text;
}

Options shrink(const Options& options) {
  const std::string kind = kind_of(run_in_child(options, false));
  const auto fails = [&kind](const Options& tried) {
    return kind_of(run_in_child(tried, false)) == kind;
  };
  Options best = options;
  reduce(
      best, [](auto& o) -> auto& { return o.faults_max; }, 0, fails);
  for (unsigned fault = best.faults_max; fault-- > 0;) {
    Options smaller = best;
    smaller.skipped_faults.insert(fault);
    if (fails(smaller)) best = smaller;
  }
  reduce(
      best, [](auto& o) -> auto& { return o.hosts; }, 2, fails);
  reduce(
      best, [](auto& o) -> auto& { return o.writes; }, 1, fails);
  reduce(
      best, [](auto& o) -> auto& { return o.depth; }, 1, fails);
  reduce(
      best, [](auto& o) -> auto& { return o.disks; }, 1, fails);
  reduce(
      best, [](auto& o) -> auto& { return o.write_blocks_max; }, 1, fails);
  return best;
}

std::string report(const Totals& totals) {
  const double hours = std::chrono::duration<double>(totals.virtual_time).count() / 3600;
  std::string text = fmt::format(
      "{} seeds, {} of them counted, {:.1f} virtual hours\n", totals.seeds, totals.counted, hours);
  const auto list = [&text](const char* title, const Counters& counters) {
    text += fmt::format("{}:\n", title);
    for (const auto& [name, count] : counters)
      text += fmt::format("  {:>12}  {}\n", count, name);
  };
  list("faults injected", totals.faults);
  list("branches reached", totals.branches);
  list("counts", totals.counts);
  return text;
}

}  // namespace replicad::sim
