// Five hosts of real processes under random kills, pauses, partitions and full disks, with a guest that
// writes all the time. RD_SEED replays the faults drawn (not their timing); RD_CHAOS_MINUTES, RD_CHAOS_MODE.
#include <cstdlib>

#include <doctest/doctest.h>

#include "tests/chaos/chaos_run.h"

namespace replicad::e2e {
namespace {

TEST_CASE("chaos: whatever happens, nothing that was answered is lost, and all become equal") {
  ChaosOptions options;
  options.seed = test_seed();
  if (const char* minutes = std::getenv("RD_CHAOS_MINUTES"); minutes != nullptr)
    options.length = std::chrono::seconds(static_cast<long>(std::strtod(minutes, nullptr) * 60));
  if (const char* mode = std::getenv("RD_CHAOS_MODE"); mode != nullptr) options.mode = mode;
  MESSAGE("RD_SEED=" << options.seed << " mode " << options.mode << ", " << options.length.count()
                     << " s");
  ChaosRun chaos(options);
  try {
    chaos.run();
  } catch (const HarnessError& error) {
    FAIL_CHECK("RD_SEED=" << options.seed << ": " << error.what());
  }
  MESSAGE("RD_SEED=" << options.seed << ": " << chaos.counts());
}

}  // namespace
}  // namespace replicad::e2e
