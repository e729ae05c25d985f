#pragma once
// The disks of simulated hosts. Fault model: what was written is in the page cache; a sync that was begun after a
// write ended makes it stable. When power is lost each sector that was written and not synced is, by itself, as it
// was before, as it was written, or garbage; names go back to some prefix of what was done since the directory was
// synced. A sync that fails leaves what it should have made stable "clean": it can be read until power is lost, and
// later syncs do not write it (log files and images of replicas). Synced sectors are never lost. Images hold one
// number per block of 512 bytes, log files hold bytes.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/range.h"
#include "core/store/log_recovery.h"
#include "tests/sim/random.h"

namespace replicad::sim {

constexpr std::uint64_t block_bytes = 512;
/// The content of a block: the number of the write and of the block within it; 0: zeroes.
using Stamp = std::uint64_t;
using Blocks = std::vector<Stamp>;
/// All disks of a volume.
using Images = std::vector<Blocks>;

/// The bytes of `stamps`, one block each.
void put_stamps(std::span<const Stamp> stamps, std::span<std::byte> to);
/// The reverse; `bytes` is a multiple of block_bytes long.
[[nodiscard]] Blocks stamps_of(std::span<const std::byte> bytes);

/// The checksums of the blocks that are compared (4 KiB) in `range` of an image.
[[nodiscard]] std::vector<Digest> sums_of(const Blocks& image, const Range& range);

class Image {
 public:
  explicit Image(std::size_t blocks) : cache_(blocks), stable_(blocks) {}
  explicit Image(const Blocks& content) : cache_(content), stable_(content) {}

  [[nodiscard]] const Blocks& blocks() const { return cache_; }
  [[nodiscard]] const Blocks& stable() const { return stable_; }
  void write(std::size_t first, std::span<const Stamp> stamps);
  void write_through(std::size_t first, std::span<const Stamp> stamps);
  [[nodiscard]] std::uint64_t begin_sync() const { return last_id_; }
  void end_sync(std::uint64_t begun);
  /// A failed sync: what it was to write is believed to be clean.
  void lose_sync(std::uint64_t begun);
  /// Everything is synced, then read from the disk again.
  void drop_cache();
  void lose_power(Random& random, bool garbage);

 private:
  struct Pending {
    std::uint64_t id;
    std::size_t block;
    Stamp stamp;
  };
  Blocks cache_;
  Blocks stable_;
  std::vector<Pending> pending_;
  std::uint64_t last_id_ = 0;
};

class File {
 public:
  explicit File(std::size_t bytes) : cache_(bytes), stable_(bytes) {}

  [[nodiscard]] std::span<const std::byte> bytes() const { return cache_; }
  [[nodiscard]] std::span<const std::byte> stable() const { return stable_; }
  [[nodiscard]] std::size_t size() const { return cache_.size(); }
  void write(std::size_t offset, std::span<const std::byte> data);
  void zero_tail(std::size_t offset);
  [[nodiscard]] std::uint64_t begin_sync() const { return last_id_; }
  void end_sync(std::uint64_t begun);
  void lose_sync(std::uint64_t begun);
  void lose_power(Random& random, bool garbage);

 private:
  struct Dirty {
    std::uint64_t id;
    std::size_t begin;
    std::size_t end;
  };
  std::vector<std::byte> cache_;
  std::vector<std::byte> stable_;
  std::vector<Dirty> dirty_;
  std::uint64_t last_id_ = 0;
};

/// A directory of log files.
class Directory {
 public:
  using Names = std::map<std::string, std::shared_ptr<File>>;

  [[nodiscard]] const Names& names() const { return cache_; }
  [[nodiscard]] std::shared_ptr<File> find(const std::string& name) const;
  void create(const std::string& name, std::shared_ptr<File> file);
  void rename(const std::string& from, const std::string& to);
  void remove(const std::string& name);
  [[nodiscard]] std::size_t begin_sync() const { return done_ + pending_.size(); }
  void end_sync(std::size_t begun);
  void lose_power(Random& random, bool garbage);

 private:
  struct Change {
    std::string from;  ///< empty: created
    std::string to;    ///< empty: removed
    std::shared_ptr<File> file;
  };
  static void apply(const Change& change, Names& names);
  void add(Change change);

  Names cache_;
  Names stable_;
  std::vector<Change> pending_;
  std::size_t done_ = 0;  ///< changes that are stable
};

/// The directory as the log's recovery sees it. `fails`: asked before each operation, whether it ends with EIO.
class RecoveryFiles : public LogDirectory {
 public:
  RecoveryFiles(Directory& directory, std::function<bool()> fails)
      : directory_(directory), fails_(std::move(fails)) {}

  Result<std::vector<std::string>> list() override;
  Result<std::uint64_t> open(const std::string& name) override;
  Status read(const std::string& name, std::span<std::byte> to, std::uint64_t offset) override;
  Status read_medium(const std::string& name,
                     std::span<std::byte> to,
                     std::uint64_t offset) override;
  Status write(const std::string& name,
               std::span<const std::byte> from,
               std::uint64_t offset) override;
  Status zero_tail(const std::string& name, std::uint64_t offset) override;
  Status remove(const std::string& name) override;
  Status sync_file(const std::string& name) override;
  Status sync_names() override;

 private:
  [[nodiscard]] Status attempt(const std::string& name) const;

  Directory& directory_;
  std::function<bool()> fails_;
};

}  // namespace replicad::sim
