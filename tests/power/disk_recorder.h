#pragma once
// Records what the code under test does to the files below one directory: the calls of io/file.h and of the log's files
// (the linker's --wrap puts the recorder in between, see CMakeLists.txt) and the operations of a Ring. From the record,
// crash_state.h makes what a loss of power may leave. Any thread.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "io/ring.h"

namespace replicad {

/// A file, whatever its name is; never used twice.
using FileId = std::uint32_t;
/// Moments are counted: one for each begin, end and mark.
using Moment = std::uint64_t;

struct DiskOperation {
  enum class Kind : std::uint8_t {
    write,   ///< `bytes` at `offset`
    zero,    ///< `length` zeroes at `offset`; `extends`: the file grows to there
    resize,  ///< to `length`
    create,
    rename,  ///< `name` to `target`
    unlink,
    make_directory,
    sync_file,
    sync_directory,  ///< `directory`
  };
  Kind kind = Kind::write;
  Moment begin = 0;
  Moment end = 0;  ///< 0: never, or it failed
  FileId file = 0;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  bool extends = false;
  std::vector<std::byte> bytes = {};
  std::string directory = {};  ///< of name and target, relative to the root
  std::string name = {};       ///< relative to the root
  std::string target = {};     ///< likewise
};

[[nodiscard]] bool is_directory_change(DiskOperation::Kind kind);

/// Everything that happened, and what was there before.
struct DiskRecord {
  struct Mark {
    Moment at = 0;
    std::string what;
    std::uint64_t value = 0;
  };
  std::map<std::string, FileId> names;                ///< at the beginning
  std::map<FileId, std::vector<std::byte>> contents;  ///< likewise
  std::set<std::string> directories;                  ///< likewise
  std::vector<DiskOperation> operations;
  std::vector<Mark> marks;
  Moment last = 0;

  /// Greatest value that was marked for `what` before `at`; 0 if none was.
  [[nodiscard]] std::uint64_t marked(const std::string& what, Moment at) const;
  [[nodiscard]] std::size_t count(DiskOperation::Kind kind) const;
};

/// Records from construction to finish(). One at a time in a process.
class DiskRecorder {
 public:
  /// What is below `root` now counts as durable.
  explicit DiskRecorder(std::string root);
  DiskRecorder(const DiskRecorder&) = delete;
  DiskRecorder& operator=(const DiskRecorder&) = delete;
  DiskRecorder(DiskRecorder&&) = delete;
  DiskRecorder& operator=(DiskRecorder&&) = delete;
  ~DiskRecorder();

  /// Something that was promised to somebody, e.g. a watermark that was received.
  void mark(const std::string& what, std::uint64_t value);
  [[nodiscard]] DiskRecord finish();

  // --- for the wrapped calls and the ring

  static DiskRecorder* active();
  [[nodiscard]] std::mutex& mutex() { return mutex_; }
  /// Relative to the root; nullopt: not below it.
  [[nodiscard]] std::optional<std::string> relative(const char* path) const;
  void opened(int fd, const std::string& path, int flags);
  void forget(int fd);
  [[nodiscard]] bool knows(int fd) const { return files_.contains(fd); }
  /// A call that has returned. `operation.file` is found by `fd` if that is >= 0.
  void done(DiskOperation operation, int fd);
  /// An operation of the ring; nullopt: not on a file of ours.
  std::optional<std::size_t> begin(DiskOperation operation, int fd);
  /// `result`: as in the completion.
  void end(std::size_t index, int result);

 private:
  void take_directory(const std::string& path);
  [[nodiscard]] FileId new_file() { return next_file_++; }

  std::string root_;
  std::mutex mutex_;
  DiskRecord record_;
  std::map<std::string, FileId> names_;  ///< now
  std::map<int, FileId> files_;          ///< by descriptor
  std::map<int, std::string> directories_;
  FileId next_file_ = 1;
};

/// Hands everything on to `ring`, and to the recorder that is active at that time.
[[nodiscard]] std::unique_ptr<Ring> create_recording_ring(std::unique_ptr<Ring> ring);

}  // namespace replicad
