#pragma once
// The files of lost writes of one volume on this host: what its images held that the history they were rewound
// to lacks (docs/disk-format.md, "Lost writes"). Blocking; any thread, one at a time per object.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/repl/block_map.h"
#include "core/store/lost_writes_file.h"
#include "io/fd.h"

namespace replicad {

/// Where the files of a volume are.
[[nodiscard]] std::string lost_directory(const std::string& volume_dir);
/// Their numbers, ascending. A directory that does not exist has none.
[[nodiscard]] Result<std::vector<std::uint64_t>> list_lost_files(const std::string& directory);
/// Bytes of all of them, for a status: their content is not looked at.
struct LostTotals {
  std::uint64_t files = 0;
  std::uint64_t bytes = 0;
};
[[nodiscard]] LostTotals lost_totals(const std::string& directory);

/// Walks through one file, record by record.
class LostFileReader {
 public:
  struct Record {
    Range range;
    bool is_zero = false;
    bool is_damaged = false;         ///< the content's checksum is wrong; only with content
    std::vector<std::byte> content;  ///< with content, unless it is_zero
  };

  /// Errors: Errc::not_found, Errc::corrupt, Errc::version_mismatch, with the path.
  [[nodiscard]] static Result<LostFileReader> open(const std::string& directory,
                                                   std::uint64_t number);
  [[nodiscard]] const LostHeader& header() const { return header_; }
  [[nodiscard]] std::uint64_t file_bytes() const { return file_bytes_; }
  /// Goes on at byte `offset`, which an earlier offset() told.
  void seek(std::uint64_t offset) { offset_ = offset; }
  [[nodiscard]] std::uint64_t offset() const { return offset_; }
  /// nullopt at the end. Errors: Errc::corrupt where no record follows: a torn end, or damage; nothing behind
  /// it can be read.
  [[nodiscard]] Result<std::optional<Record>> next(bool with_content);

 private:
  LostFileReader(Fd file, std::string path) : file_(std::move(file)), path_(std::move(path)) {}

  Fd file_;
  std::string path_;
  LostHeader header_;
  std::uint64_t file_bytes_ = 0;
  std::uint64_t offset_ = lost_header_bytes;
};

/// Appends to a new file. Nothing of an earlier file is ever changed.
class LostFileWriter {
 public:
  /// Makes the next file of the directory, and the directory; both are durable, with room for the first records
  /// set aside, on return. Errors: Errc::no_space with what is free.
  [[nodiscard]] static Result<std::unique_ptr<LostFileWriter>> create(const std::string& directory,
                                                                      const LostHeader& header);
  LostFileWriter(const LostFileWriter&) = delete;
  LostFileWriter& operator=(const LostFileWriter&) = delete;
  /// Gives back what was set aside; a file without a record is removed.
  ~LostFileWriter();

  [[nodiscard]] std::uint64_t number() const { return number_; }
  [[nodiscard]] std::uint64_t records() const { return records_; }
  /// Not durable before sync(). Errors: Errc::no_space, others; then the writer is of no use any more.
  [[nodiscard]] Status append(const Range& range, std::span<const std::byte> content);
  [[nodiscard]] Status sync();

 private:
  LostFileWriter(std::string directory, std::uint64_t number);
  [[nodiscard]] Status set_aside(std::uint64_t bytes);
  [[nodiscard]] Status write(std::span<const std::byte> bytes);
  [[nodiscard]] Status with_space_hint(Status status) const;

  std::string directory_;
  std::string path_;
  std::uint64_t number_;
  Fd file_;
  std::uint64_t bytes_ = 0;
  std::uint64_t set_aside_bytes_ = 0;
  std::uint64_t records_ = 0;
  bool dirty_ = false;
};

/// Removes the files from number `first` on that hold no record: a crash has left them.
void remove_empty_lost_files(const std::string& directory, std::uint64_t first);
/// Marks in `saved` what the files from number `first` on hold, with its checksum right, and durably. Files that
/// cannot be read hold nothing.
[[nodiscard]] Status mark_saved(const std::string& directory, std::uint64_t first, BlockMap& saved);

}  // namespace replicad
