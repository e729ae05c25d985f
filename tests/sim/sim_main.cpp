// The simulator's program: runs seeds, prints what it reached; a failing seed is printed, shrunk and traced.
// Exit code 1: a promise was broken.

#include <csignal>
#include <cstdlib>
#include <iostream>

#include <boost/program_options.hpp>
#include <unistd.h>

#include "core/base/check.h"
#include "tests/sim/campaign.h"

namespace replicad::sim {
namespace {

namespace po = boost::program_options;

volatile std::uint64_t current_seed = 0;

/// An invariant of the code under test is broken: its text is out, the seed is missing.
void on_abort(int /*signal*/) {
  std::array<char, 96> text{};
  const auto end = fmt::format_to_n(text.begin(),
                                    text.size(),
                                    "P8 aborted: replay with --seed {}\n",
                                    std::uint64_t{current_seed});
  if (::write(STDERR_FILENO, text.data(), end.size) < 0) ::_exit(2);
  ::_exit(1);
}

int replay(std::uint64_t seed, bool traced) {
  current_seed = seed;
  const RunResult result = run_options(Options::draw(seed), traced, nullptr);
  fmt::print("seed {}: trace {:016x}, {}\n",
             seed,
             result.trace_hash,
             result.violation.value_or("nothing is wrong"));
  return result.violation ? 1 : 0;
}

void print_shrunk(std::uint64_t seed) {
  const Options smallest = shrink(Options::draw(seed));
  fmt::print("shrunk to {}\n", smallest.describe());
  const std::string text = run_in_child(smallest, true);
  fmt::print("seed {}, shrunk: {}\n", seed, text);
}

int run_campaign(std::uint64_t first, std::uint64_t count, bool keep_going, bool shrinks) {
  Totals totals;
  std::uint64_t failed = 0;
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    current_seed = seed;
    const RunResult result = run_options(Options::draw(seed), false, &totals);
    if (!result.violation) continue;
    ++failed;
    fmt::print("seed {}: {}\n", seed, *result.violation);
    if (keep_going) continue;
    if (shrinks) print_shrunk(seed);
    return 1;
  }
  fmt::print("{}{} failed\n", report(totals), failed);
  return failed == 0 ? 0 : 1;
}

int run(int argc, char** argv) {
  std::uint64_t seed = 1;
  std::uint64_t seeds = 1;
  po::options_description description("usage: sim [options]");
  description.add_options()("help", "this text")("seed", po::value(&seed), "first seed (1)")(
      "seeds", po::value(&seeds), "how many (1)")("trace", "print the run of one seed")(
      "shrink", "shrink one seed and print the run of that")(
      "keep-going", "do not end at the first failing seed")("no-shrink", "nor shrink it");
  po::variables_map chosen;
  po::store(po::parse_command_line(argc, argv, description), chosen);
  po::notify(chosen);
  if (chosen.contains("help")) {
    std::cout << description;
    return 0;
  }
  std::signal(SIGABRT, on_abort);
  if (chosen.contains("shrink")) {
    print_shrunk(seed);
    return 0;
  }
  if (chosen.contains("trace") || seeds == 1) return replay(seed, chosen.contains("trace"));
  return run_campaign(seed, seeds, chosen.contains("keep-going"), !chosen.contains("no-shrink"));
}

}  // namespace
}  // namespace replicad::sim

int main(int argc, char** argv) {
  try {
    return replicad::sim::run(argc, argv);
  } catch (const boost::program_options::error& error) {
    std::cerr << error.what() << '\n';
    return 2;
  }
}
