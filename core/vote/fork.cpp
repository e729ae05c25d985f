#include "core/vote/fork.h"

namespace replicad {

Meeting meet(const Record& own, const Record& base, const Record& other) {
  if (own.fork == other.fork) return Meeting::same;
  const bool is_part = other.fork == base.fork && other.version <= base.version;
  return is_part ? Meeting::part_of : Meeting::split;
}

std::string describe_history(const Record& record) {
  return fmt::format("history {:08x}, {}", record.fork, describe(record));
}

}  // namespace replicad
