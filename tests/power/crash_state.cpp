#include "tests/power/crash_state.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include "core/base/check.h"
#include "core/base/limits.h"
#include "io/file.h"

namespace replicad {

namespace {

using Kind = DiskOperation::Kind;

constexpr std::uint64_t sector_bytes = 512;

class CrashMaker {
 public:
  CrashMaker(const DiskRecord& record, const IgnoredSync& ignored, std::mt19937_64& random)
      : record_(record), ignored_(ignored), random_(random) {}

  CrashState make(Moment at, CrashKind kind) {
    state_.at = at;
    state_.kind = kind;
    state_.names = record_.names;
    state_.contents = record_.contents;
    state_.directories = record_.directories;
    find_syncs();
    in_order_ = random_() % 2 == 0;
    for (const DiskOperation& operation : record_.operations) {
      if (operation.begin >= at) break;
      if (is_directory_change(operation.kind)) {
        take_name(operation);
      } else if (operation.kind != Kind::sync_file && operation.kind != Kind::sync_directory) {
        take_data(operation);
      }
    }
    return std::move(state_);
  }

 private:
  /// The begin of the last sync that has ended, for each file and directory.
  void find_syncs() {
    for (const DiskOperation& sync : record_.operations) {
      if (sync.end == 0 || sync.end >= state_.at) continue;
      const bool is_sync = sync.kind == Kind::sync_file || sync.kind == Kind::sync_directory;
      if (!is_sync || (ignored_ && ignored_(record_, sync))) continue;
      Moment& last = sync.kind == Kind::sync_file ? file_synced_[sync.file]
                                                  : directory_synced_[sync.directory];
      last = std::max(last, sync.begin);
    }
  }
  static bool covers(Moment sync_begin, const DiskOperation& operation) {
    return operation.end != 0 && operation.end < sync_begin;
  }
  bool flip() { return random_() % 2 == 0; }

  void take_name(const DiskOperation& operation) {
    if (!covers(directory_synced_[operation.directory], operation)) {
      if (!keeps_name(operation)) return lose_name(operation);
    }
    switch (operation.kind) {
      case Kind::create:
        state_.names[operation.name] = operation.file;
        state_.contents[operation.file];
        break;
      case Kind::rename:
        state_.names.erase(operation.name);
        state_.names[operation.target] = operation.file;
        break;
      case Kind::unlink:
        state_.names.erase(operation.name);
        break;
      case Kind::make_directory:
        state_.directories.insert(operation.name);
        break;
      default:
        RD_CHECK(false);
    }
  }
  bool keeps_name(const DiskOperation& operation) {
    const bool needs_lost =
        lost_files_.contains(operation.file) || lost_names_.contains(operation.name) ||
        lost_names_.contains(operation.target) || lost_names_.contains(operation.directory);
    if (needs_lost || (in_order_ && !lost_names_.empty())) return false;
    switch (state_.kind) {
      case CrashKind::nothing:
      case CrashKind::data_only:
        return false;
      case CrashKind::everything:
      case CrashKind::names_only:
        return true;
      case CrashKind::subset:
      case CrashKind::torn:
        return flip();
    }
    return false;
  }
  void lose_name(const DiskOperation& operation) {
    if (operation.file != 0) lost_files_.insert(operation.file);
    lost_names_.insert(operation.name);
    if (!operation.target.empty()) lost_names_.insert(operation.target);
  }

  void take_data(const DiskOperation& operation) {
    std::vector<std::byte>& content = state_.contents[operation.file];
    const bool certain = covers(file_synced_[operation.file], operation);
    if (operation.kind == Kind::resize) {
      if (certain || keeps_data()) content.resize(operation.length);
      return;
    }
    if (!certain && state_.kind == CrashKind::torn && flip()) return tear(operation, content);
    if (certain || keeps_data()) put(operation, 0, size_of(operation), content);
  }
  bool keeps_data() {
    switch (state_.kind) {
      case CrashKind::nothing:
      case CrashKind::names_only:
        return false;
      case CrashKind::everything:
      case CrashKind::data_only:
        return true;
      case CrashKind::subset:
      case CrashKind::torn:
        return flip();
    }
    return false;
  }
  static std::uint64_t size_of(const DiskOperation& operation) {
    return operation.kind == Kind::write ? operation.bytes.size() : operation.length;
  }
  /// The part [from, to) of a write or zeroing.
  static void put(const DiskOperation& operation,
                  std::uint64_t from,
                  std::uint64_t to,
                  std::vector<std::byte>& content) {
    const std::uint64_t begin = operation.offset + from;
    std::uint64_t end = operation.offset + to;
    if (operation.kind == Kind::write || operation.extends) {
      if (content.size() < end) content.resize(end);
    }
    end = std::min<std::uint64_t>(end, content.size());
    if (begin >= end) return;
    const auto at = content.begin() + static_cast<std::ptrdiff_t>(begin);
    if (operation.kind == Kind::write) {
      std::copy_n(operation.bytes.begin() + static_cast<std::ptrdiff_t>(from), end - begin, at);
    } else {
      std::fill_n(at, end - begin, std::byte{0});
    }
  }
  /// Few or many sectors, in runs.
  void tear(const DiskOperation& operation, std::vector<std::byte>& content) {
    const std::uint64_t size = size_of(operation);
    std::uint64_t at = 0;
    while (at < size) {
      const std::uint64_t into = (operation.offset + at) % sector_bytes;
      const std::uint64_t sectors = 1 + random_() % (flip() ? 2 : 200);
      const std::uint64_t next = std::min(size, at + sectors * sector_bytes - into);
      if (flip()) put(operation, at, next, content);
      at = next;
    }
  }

  const DiskRecord& record_;
  const IgnoredSync& ignored_;
  std::mt19937_64& random_;
  CrashState state_;
  bool in_order_ = true;  ///< of the directories' changes a first part survives
  std::map<FileId, Moment> file_synced_;
  std::map<std::string, Moment> directory_synced_;
  std::set<FileId> lost_files_;
  std::set<std::string> lost_names_;
};

Status write_sparse(int fd, const std::vector<std::byte>& content) {
  constexpr std::size_t piece_bytes = 64 * kib;
  static const std::vector<std::byte> zeroes(piece_bytes);
  for (std::size_t at = 0; at < content.size(); at += piece_bytes) {
    const auto piece = std::span(content).subspan(at, std::min(piece_bytes, content.size() - at));
    if (std::memcmp(piece.data(), zeroes.data(), piece.size()) == 0) continue;
    RD_TRY(write_all_at(fd, piece, at));
  }
  return {};
}

}  // namespace

void CrashState::write_to(const std::string& root) const {
  // Sorted: a directory comes before what is in it.
  for (const std::string& directory : directories) {
    std::filesystem::create_directories(std::filesystem::path(root) / directory);
  }
  for (const auto& [name, file] : names) {
    // Its directory's own name may be lost.
    if (name.find('/') != std::string::npos &&
        !directories.contains(name.substr(0, name.rfind('/'))))
      continue;
    const std::string path = fmt::format("{}/{}", root, name);
    const Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, S_IRUSR | S_IWUSR));
    RD_CHECK(fd.valid());
    const std::vector<std::byte>& content = contents.at(file);
    RD_CHECK(::ftruncate(fd.get(), static_cast<off_t>(content.size())) == 0);
    RD_CHECK(write_sparse(fd.get(), content).has_value());
  }
}

CrashState make_crash_state(const DiskRecord& record,
                            Moment at,
                            CrashKind kind,
                            const IgnoredSync& ignored,
                            std::mt19937_64& random) {
  return CrashMaker(record, ignored, random).make(at, kind);
}

const char* to_text(CrashKind kind) {
  switch (kind) {
    case CrashKind::nothing:
      return "nothing";
    case CrashKind::everything:
      return "everything";
    case CrashKind::names_only:
      return "names only";
    case CrashKind::data_only:
      return "data only";
    case CrashKind::subset:
      return "subset";
    case CrashKind::torn:
      return "torn";
  }
  return "?";
}

}  // namespace replicad
