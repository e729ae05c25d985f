#pragma once
// The files of a replica's log: segments and spares on disk, and the recovery (core/store/log_recovery.h) of what
// they hold. Format and crash orders: docs/disk-format.md. Blocking calls, any thread.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/store/log_count.h"
#include "core/store/log_recovery.h"
#include "core/store/trail.h"
#include "io/fd.h"

namespace replicad {

/// A preallocated file of the log, in use as a segment or waiting to become one.
struct LogFile {
  Fd fd;
  std::string name;  ///< within the log directory
  std::uint64_t bytes = 0;
};

/// A segment that is part of the log. Operations in flight share it.
struct LogSegment {
  std::shared_ptr<LogFile> file;
  HistoryPoint before;
  std::uint64_t end_bytes = segment_header_bytes;  ///< header and whole frames that the file holds
  bool dirty = false;                              ///< something was written since the last sync

  [[nodiscard]] Sequence first() const { return before.sequence + 1; }
};

/// What the log proves. Everything in it is on stable storage.
struct RecoveredLog {
  std::vector<std::shared_ptr<LogSegment>> segments;  ///< in order; may be empty
  std::vector<std::shared_ptr<LogFile>> spares;
  HistoryPoint logged;  ///< last frame, or the checkpoint
  std::size_t apply_segment =
      0;  ///< index of the segment with the first frame behind the checkpoint
  std::uint64_t apply_offset = segment_header_bytes;
  std::uint64_t backlog_bytes = 0;       ///< of the frames behind the checkpoint
  std::string cut;                       ///< why the log ends where it does; empty: it ends cleanly
  std::uint64_t next_spare = 1;          ///< number for the next spare file
  std::optional<Epoch> parked = {};      ///< term of a stage that may be gone on with
  std::optional<TrailFound> trail = {};  ///< of the images at the checkpoint, if it is known
  std::vector<bool> touched = {};  ///< which watched ranges the frames behind the checkpoint change
};

/// find_log() with these files.
[[nodiscard]] Result<RecoveredLog> recover_log(const LogRecoveryOptions& options);

/// count_log() of the segments in `directory`, which may be in use.
[[nodiscard]] Result<std::vector<LoggedChanges>> count_log_files(const std::string& directory,
                                                                 const std::string& volume_uuid,
                                                                 Sequence after,
                                                                 Sequence until);

/// Removes every segment and spare, and the stage, durably. A directory that is not there is fine. `kept`: gets what
/// keeps the space of segments and spares; to free it takes milliseconds for each, on the thread that closes them.
[[nodiscard]] Status remove_log(const std::string& directory, std::vector<Fd>* kept = nullptr);

/// Makes a preallocated file. Errors: Errc::no_space, Errc::io_error; nothing is left behind.
[[nodiscard]] Result<std::shared_ptr<LogFile>> create_log_file(const std::string& directory,
                                                               const std::string& name,
                                                               std::uint64_t bytes);

}  // namespace replicad
