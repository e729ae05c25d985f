// The simulator's program: runs seeds, prints what it reached; a failing seed is printed, shrunk and traced.
// Exit code 1: a promise was broken.

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>

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

struct Campaign {
  std::uint64_t first = 1;
  std::uint64_t count = 1;
  bool keep_going = false;
  bool shrinks = true;
  std::string report_path;
};

/// A campaign that is ended half-way has said what it found.
void write_report(const std::string& path, const Totals& totals) {
  if (path.empty()) return;
  const std::string next = path + ".new";
  std::ofstream(next) << encode_totals(totals);
  if (std::rename(next.c_str(), path.c_str()) != 0) {
    std::cerr << "cannot write " << path << '\n';
  }
}

int run_campaign(const Campaign& campaign) {
  Totals totals;
  for (std::uint64_t seed = campaign.first; seed < campaign.first + campaign.count; ++seed) {
    current_seed = seed;
    if (totals.seeds % 1000 == 999) write_report(campaign.report_path, totals);
    const RunResult result = run_options(Options::draw(seed), false, &totals);
    if (!result.violation) continue;
    fmt::print("seed {}: {}\n", seed, *result.violation);
    std::fflush(stdout);
    if (campaign.keep_going) continue;
    write_report(campaign.report_path, totals);
    if (campaign.shrinks) print_shrunk(seed);
    return 1;
  }
  write_report(campaign.report_path, totals);
  fmt::print("{}", report(totals));
  return totals.failed == 0 ? 0 : 1;
}

/// The sum of what several processes have reported.
int merge(const std::vector<std::string>& paths) {
  Totals totals;
  for (const std::string& path : paths) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    if (add_totals(text.str(), totals)) continue;
    std::cerr << path << " is no report of a campaign\n";
    return 2;
  }
  fmt::print("{}", report(totals));
  return totals.failed == 0 ? 0 : 1;
}

int run(int argc, char** argv) {
  Campaign campaign;
  std::vector<std::string> reports;
  po::options_description description("usage: sim [options]");
  auto add = description.add_options();
  add("help", "this text");
  add("seed", po::value(&campaign.first), "first seed (1)");
  add("seeds", po::value(&campaign.count), "how many (1)");
  add("trace", "print the run of one seed");
  add("shrink", "shrink one seed and print the run of that");
  add("keep-going", "do not end at the first failing seed");
  add("no-shrink", "nor shrink it");
  add("report", po::value(&campaign.report_path), "write the figures to this file too");
  add("merge", po::value(&reports)->multitoken(), "print the sum of such files");
  po::variables_map chosen;
  po::store(po::parse_command_line(argc, argv, description), chosen);
  po::notify(chosen);
  if (chosen.contains("help")) {
    std::cout << description;
    return 0;
  }
  if (chosen.contains("merge")) return merge(reports);
  campaign.keep_going = chosen.contains("keep-going");
  campaign.shrinks = !chosen.contains("no-shrink");
  std::signal(SIGABRT, on_abort);
  if (chosen.contains("shrink")) {
    print_shrunk(campaign.first);
    return 0;
  }
  const bool is_one = campaign.count == 1 && campaign.report_path.empty();
  if (chosen.contains("trace") || is_one) return replay(campaign.first, chosen.contains("trace"));
  return run_campaign(campaign);
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
