#pragma once
// What a replica's log holds after whatever happened: which segments continue the history from the checkpoint, where
// it was torn, and what proves that it was damaged instead. Rules: docs/disk-format.md, "Recovery". The files are
// reached through LogDirectory, so that production, tests and simulator follow the same rules. Any thread.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/store/log_segment.h"

namespace replicad {

/// The files of one log directory, by name. Blocking.
class LogDirectory {
 public:
  LogDirectory() = default;
  LogDirectory(const LogDirectory&) = delete;
  LogDirectory& operator=(const LogDirectory&) = delete;
  LogDirectory(LogDirectory&&) = delete;
  LogDirectory& operator=(LogDirectory&&) = delete;
  virtual ~LogDirectory() = default;

  [[nodiscard]] virtual Result<std::vector<std::string>> list() = 0;
  /// Opens a file for the calls below and returns its size.
  [[nodiscard]] virtual Result<std::uint64_t> open(const std::string& name) = 0;
  /// Fills `to`; Errc::corrupt if the file ends before.
  [[nodiscard]] virtual Status read(const std::string& name,
                                    std::span<std::byte> to,
                                    std::uint64_t offset_bytes) = 0;
  /// Fills `to` with what the disk itself has, past whatever the kernel holds in memory; requires sync_file() before.
  /// Errc::not_supported where a file system cannot tell that of any file.
  [[nodiscard]] virtual Status read_medium(const std::string& name,
                                           std::span<std::byte> to,
                                           std::uint64_t offset_bytes) = 0;
  [[nodiscard]] virtual Status write(const std::string& name,
                                     std::span<const std::byte> from,
                                     std::uint64_t offset_bytes) = 0;
  /// From `offset_bytes` to its end the file reads as zeroes; its size and its space stay.
  [[nodiscard]] virtual Status zero_tail(const std::string& name, std::uint64_t offset_bytes) = 0;
  /// A file that is not there is fine.
  [[nodiscard]] virtual Status remove(const std::string& name) = 0;
  [[nodiscard]] virtual Status sync_file(const std::string& name) = 0;
  /// Makes names durable: what was created, renamed or removed.
  [[nodiscard]] virtual Status sync_names() = 0;
};

struct LogRecoveryOptions {
  std::string directory;  ///< for messages
  std::string volume_uuid;
  HistoryPoint checkpoint;  ///< the image durably holds everything up to here
  /// Whoever wrote it last ended with all of it synced. Otherwise a sync may have failed, and the kernel take pages for
  /// clean that never reached the disk: what is behind the checkpoint is compared with the medium, and written again
  /// where that lacks it.
  bool is_synced = false;
  std::vector<Range> watched = {};  ///< FoundLog::touched tells of these
  bool look_only = false;  ///< nothing is cut, removed or synced: only what would be proven is told
};

struct FoundSegment {
  std::string name;
  HistoryPoint before;
  std::uint64_t end_bytes = segment_header_bytes;  ///< header and whole frames that the file holds
};

/// What the log proves. Everything in it is on stable storage, unless look_only was asked for.
struct FoundLog {
  std::vector<FoundSegment> segments;  ///< in order; may be empty
  std::vector<std::string> spares;     ///< opened, as the segments are
  HistoryPoint logged;                 ///< last frame, or the checkpoint
  std::size_t apply_segment =
      0;  ///< index of the segment with the first frame behind the checkpoint
  std::uint64_t apply_offset = segment_header_bytes;
  std::uint64_t backlog_bytes = 0;  ///< of the frames behind the checkpoint
  std::string cut;                  ///< why the log ends where it does; empty: it ends cleanly
  std::uint64_t next_spare = 1;     ///< number for the next spare file
  std::vector<bool> touched = {};  ///< which watched ranges the frames behind the checkpoint change
};

/// Finds the segments, follows the history from the checkpoint, cuts the torn tail (files behind it are removed, and
/// those that the checkpoint makes needless) and brings the rest to stable storage. The result is a strict prefix of
/// what was appended.
/// Errors: Errc::corrupt (names file and offset) when something is missing or damaged that was on stable
/// storage: behind the checkpoint, or before what a later segment knows to be durable; those of `files`.
/// On error no file was changed, except that needless files may be gone and a torn tail cut already.
[[nodiscard]] Result<FoundLog> find_log(LogDirectory& files, const LogRecoveryOptions& options);

/// Removes every segment and spare, durably.
[[nodiscard]] Status remove_log_files(LogDirectory& files);

[[nodiscard]] std::string spare_file_name(std::uint64_t number);

}  // namespace replicad
