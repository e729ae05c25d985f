#include "tests/sim/campaign.h"

#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <set>
#include <sstream>
#include <utility>

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

/// Counters do not own their names.
std::string_view kept_name(const std::string& name) {
  static std::set<std::string> names;
  return *names.insert(name).first;
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
  if (result.violation) ++totals->failed;
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
    std::signal(SIGABRT, SIG_DFL);
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
  std::string text = fmt::format("{} seeds, {} of them counted, {:.1f} virtual hours, {} failed\n",
                                 totals.seeds,
                                 totals.counted,
                                 hours,
                                 totals.failed);
  const auto list = [&text](const char* title, const Counters& counters) {
    text += fmt::format("{}:\n", title);
    for (const auto& [name, count] : counters)
      text += fmt::format("  {:>12}  {}\n", count, name);
  };
  list("faults injected", totals.faults);
  list("branches reached", totals.branches);
  std::string never;
  for (const std::string_view branch : branches_known) {
    if (!totals.branches.contains(branch)) never += fmt::format("  {:>12}  {}\n", 0, branch);
  }
  text += "branches never reached:\n" + (never.empty() ? "  none\n" : never);
  list("counts", totals.counts);
  return text;
}

std::string encode_totals(const Totals& totals) {
  std::string text = fmt::format(
      "replicad-sim 1\nseeds\t\t{}\ncounted\t\t{}\nfailed\t\t{}\nvirtual_us\t\t{}\n",
      totals.seeds,
      totals.counted,
      totals.failed,
      std::chrono::duration_cast<std::chrono::microseconds>(totals.virtual_time).count());
  for (const auto& [kind, counters] : {std::pair{"fault", &totals.faults},
                                       std::pair{"branch", &totals.branches},
                                       std::pair{"count", &totals.counts}}) {
    for (const auto& [name, count] : *counters)
      text += fmt::format("{}\t{}\t{}\n", kind, name, count);
  }
  return text;
}

bool add_totals(const std::string& text, Totals& totals) {
  std::istringstream lines(text);
  std::string line;
  if (!std::getline(lines, line) || line != "replicad-sim 1") return false;
  while (std::getline(lines, line)) {
    const auto first = line.find('\t');
    const auto second = line.find('\t', first + 1);
    if (first == std::string::npos || second == std::string::npos) return false;
    const std::string kind = line.substr(0, first);
    const std::string_view name = kept_name(line.substr(first + 1, second - first - 1));
    const std::uint64_t value = std::stoull(line.substr(second + 1));
    if (kind == "seeds") totals.seeds += value;
    if (kind == "counted") totals.counted += value;
    if (kind == "failed") totals.failed += value;
    if (kind == "virtual_us") totals.virtual_time += std::chrono::microseconds(value);
    if (kind == "fault") totals.faults[name] += value;
    if (kind == "branch") totals.branches[name] += value;
    if (kind == "count") totals.counts[name] += value;
  }
  return true;
}

}  // namespace replicad::sim
