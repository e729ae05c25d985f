#pragma once
// What a loss of power may leave of the files that a DiskRecord is about.
//
// The fault model. Power fails at a moment between two events of the record.
//  - A write, a change of a file's length or a punched hole is there for certain if a sync of its file began after it
//    had ended, and has ended itself. Otherwise any part of it may be there, in units of 512-byte sectors, whatever was
//    written later; nothing of it needs to be.
//  - A file's name (made, renamed, removed) is as certain as a sync of its directory makes it. Otherwise either a first
//    part of the changes is there (a journalling file system), or any of them that do not need a lost one.
//  - A disk that says it has synced and has not is outside.

#include <functional>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/power/disk_recorder.h"

namespace replicad {

/// True: the sync counts as never made (a planted bug).
using IgnoredSync = std::function<bool(const DiskRecord& record, const DiskOperation& sync)>;

/// How what is not certain fares.
enum class CrashKind : std::uint8_t {
  nothing,     ///< nothing of it is there
  everything,  ///< all of it
  names_only,  ///< the directories' changes, no data
  data_only,   ///< data without names
  subset,      ///< any operation, whole or not at all
  torn,        ///< any sector of any write
};
constexpr int crash_kinds = 6;

struct CrashState {
  Moment at = 0;
  CrashKind kind = CrashKind::nothing;
  std::map<std::string, FileId> names;
  std::map<FileId, std::vector<std::byte>> contents;
  std::set<std::string> directories;

  /// Makes these files below `root`, which is an empty directory.
  void write_to(const std::string& root) const;
};

[[nodiscard]] CrashState make_crash_state(const DiskRecord& record,
                                          Moment at,
                                          CrashKind kind,
                                          const IgnoredSync& ignored,
                                          std::mt19937_64& random);

[[nodiscard]] const char* to_text(CrashKind kind);

}  // namespace replicad
