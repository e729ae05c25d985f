// Each checker is shown to see: a bug is planted into the world, and seeds are run until one breaks a promise.

#include <string>
#include <string_view>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/sim/campaign.h"

namespace replicad::sim {
namespace {

constexpr std::uint64_t seeds_max = 400;

struct Bug {
  Planted planted;
  std::string_view promise;  ///< that it breaks
};

void weigh(Options& options, Fault fault) {
  options.fault_weights[static_cast<std::size_t>(fault)] = 10;
}

/// Some bugs need faults to meet that seldom do.
void provoke(Options& options) {
  if (options.planted == Planted::trusted_cache) {
    options.fault_weights.fill(0);
    for (const Fault fault : {Fault::disk_error, Fault::daemon_crash, Fault::power_loss})
      weigh(options, fault);
    // Two faults have to meet: what else a world may be like only thins them out.
    options.cleaned_percent = options.copy_cut_percent = 0;
    options.guest_moves = false;
  } else if (options.planted == Planted::unwatched_term) {
    options.mode = Mode::async;
    options.ack_timeout = std::chrono::milliseconds(300);
    options.operator_percent = 80;
    options.fault_interval = std::chrono::milliseconds(100);
    options.faults_max = 60;
    options.fault_weights.fill(0);
    weigh(options, Fault::partition);
  } else if (options.planted == Planted::unrecognised_images) {
    weigh(options, Fault::disk_swap);
  } else if (options.planted == Planted::unlaid_stage) {
    options.cleaned_percent = 50;
    options.copy_cut_percent = 50;
  } else if (options.planted == Planted::forgotten_heat) {
    // A primary that dies with hot regions, another one in its place, and the guest at work elsewhere there.
    options.guest_moves = true;
    options.operator_percent = 50;
    options.fault_weights.fill(0);
    for (const Fault fault : {Fault::plugin_crash, Fault::power_loss})
      weigh(options, fault);
  }
}

/// Says of the first seed that breaks the promise how; of others that break one, which that was.
std::string find(const Bug& bug) {
  std::string others;
  for (std::uint64_t seed = 1; seed <= seeds_max; ++seed) {
    Options options = Options::draw(seed);
    options.planted = bug.planted;
    provoke(options);
    const bool aborts = bug.planted == Planted::unasked_answer;
    std::string text = aborts ? run_in_child(options, false)
                              : run_options(options, false, nullptr).violation.value_or("");
    if (text.starts_with(bug.promise)) return text;
    if (!text.empty()) others += fmt::format("seed {}: {}\n", seed, text);
  }
  return "not found. " + others;
}

TEST_CASE("planted: a checker sees each bug") {
  for (const Bug& bug : {Bug{Planted::sync_without_effect, "P1"},
                         Bug{Planted::trusted_cache, "P1"},
                         Bug{Planted::mark_without_effect, "P2"},
                         Bug{Planted::unrecognised_images, "P2"},
                         Bug{Planted::unlaid_stage, "P6"},
                         Bug{Planted::forgotten_heat, "P2"},
                         Bug{Planted::forgotten_promise, "P3"},
                         Bug{Planted::shared_term, "P3"},
                         Bug{Planted::unwatched_term, "P3 async"},
                         Bug{Planted::flush_without_effect, "P4"},
                         Bug{Planted::overtaking_writes, "P5"},
                         Bug{Planted::stale_read, "P5"},
                         Bug{Planted::no_second_connection, "P6"},
                         Bug{Planted::unmarked_writes, "P7"},
                         Bug{Planted::cold_too_early, "P7"},
                         Bug{Planted::untold_trail, "P7"},
                         Bug{Planted::cut_frame, "P8"},
                         Bug{Planted::unasked_answer, "P8"}}) {
    const std::string text = find(bug);
    CAPTURE(bug.promise);
    CAPTURE(text);
    CHECK(text.starts_with(bug.promise));
  }
}

TEST_CASE("campaign: reports of several processes add up") {
  Totals one;
  for (std::uint64_t seed = 1; seed <= 5; ++seed)
    (void)run_options(Options::draw(seed), false, &one);
  Totals sum;
  REQUIRE(add_totals(encode_totals(one), sum));
  CHECK(report(sum) == report(one));
  REQUIRE(add_totals(encode_totals(one), sum));
  CHECK(sum.seeds == 10);
  CHECK(sum.counts["guest writes"] == 2 * one.counts["guest writes"]);
  CHECK_FALSE(add_totals("seeds 5", sum));
}

}  // namespace
}  // namespace replicad::sim
