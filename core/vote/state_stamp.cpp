#include "core/vote/state_stamp.h"

#include <algorithm>

#include "core/base/limits.h"

namespace replicad {

std::uint64_t first_generation(std::uint64_t version) {
  return std::min(version, counter_max / forgotten_max - 1) * forgotten_max;
}

bool knows_of(const StateStamp& own, const StateStamp& heard) {
  return own.start == heard.start || own.loaded >= heard.generation;
}

void remember(StateStamps& known, const std::string& host, const StateStamp& heard) {
  const auto [at, is_new] = known.try_emplace(host, heard);
  if (is_new) return;
  if (knows_of(heard, at->second) && heard.generation >= at->second.generation) at->second = heard;
}

void remember(StateStamps& known, const StateStamps& heard) {
  for (const auto& [host, stamp] : heard)
    remember(known, host, stamp);
}

}  // namespace replicad
