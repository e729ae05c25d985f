#include "replicad/replica_log_files.h"

#include <filesystem>
#include <map>

#include <fcntl.h>
#include <sys/stat.h>

#include "core/base/check.h"
#include "io/file.h"
#include "replicad/resync_stage.h"

namespace replicad {

namespace {

Result<std::shared_ptr<LogFile>> open_log_file(const std::string& directory,
                                               const std::string& name) {
  const std::string path = directory + "/" + name;
  auto file = std::make_shared<LogFile>();
  file->fd.reset(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!file->fd.valid()) return fail_errno(errno, "open log file {}", path);
  struct stat status {};
  if (::fstat(file->fd.get(), &status) != 0) return fail_errno(errno, "fstat {}", path);
  if (!S_ISREG(status.st_mode)) return fail(Errc::corrupt, "{} is not a regular file", path);
  file->name = name;
  file->bytes = static_cast<std::uint64_t>(status.st_size);
  return file;
}

/// Files that are opened stay open.
class LogFiles : public LogDirectory {
 public:
  explicit LogFiles(std::string directory, std::vector<Fd>* kept = nullptr)
      : directory_(std::move(directory)), kept_(kept) {}

  [[nodiscard]] std::shared_ptr<LogFile> file(const std::string& name) const {
    return files_.at(name);
  }

  Result<std::vector<std::string>> list() override;
  Result<std::uint64_t> open(const std::string& name) override;
  Status read(const std::string& name,
              std::span<std::byte> to,
              std::uint64_t offset_bytes) override {
    return read_all_at(fd(name), to, offset_bytes);
  }
  Status read_medium(const std::string& name,
                     std::span<std::byte> to,
                     std::uint64_t offset_bytes) override {
    return read_medium_at(path(name), to, offset_bytes);
  }
  Status write(const std::string& name,
               std::span<const std::byte> from,
               std::uint64_t offset_bytes) override {
    return write_all_at(fd(name), from, offset_bytes);
  }
  Status zero_tail(const std::string& name, std::uint64_t offset_bytes) override;
  Status remove(const std::string& name) override;
  Status sync_file(const std::string& name) override;
  Status sync_names() override { return sync_directory(directory_); }

 private:
  [[nodiscard]] std::string path(const std::string& name) const { return directory_ + "/" + name; }
  [[nodiscard]] int fd(const std::string& name) const { return files_.at(name)->fd.get(); }

  std::string directory_;
  std::vector<Fd>* kept_;  ///< of removed files
  std::map<std::string, std::shared_ptr<LogFile>> files_;
};

Result<std::vector<std::string>> LogFiles::list() {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory_, error), end; !error && entry != end;
       entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  if (error) return fail_errno(error.value(), "list log directory {}", directory_);
  return names;
}

Result<std::uint64_t> LogFiles::open(const std::string& name) {
  auto file = open_log_file(directory_, name);
  if (!file) return tl::unexpected(file.error());
  files_[name] = *file;
  return (*file)->bytes;
}

Status LogFiles::zero_tail(const std::string& name, std::uint64_t offset_bytes) {
  const LogFile& file = *files_.at(name);
  RD_CHECK(offset_bytes <= file.bytes);
  const auto end = static_cast<off_t>(offset_bytes);
  const auto length = static_cast<off_t>(file.bytes - offset_bytes);
  if (::fallocate(file.fd.get(), FALLOC_FL_ZERO_RANGE, end, length) == 0) return {};
  // No such operation here: let the blocks go and take them again.
  if (::ftruncate(file.fd.get(), end) != 0) return fail_errno(errno, "cut {}", path(name));
  if (::fallocate(file.fd.get(), 0, end, length) == 0) return {};
  if (errno != EOPNOTSUPP || ::ftruncate(file.fd.get(), end + length) != 0) {
    return fail_errno(errno, "preallocate {}", path(name));
  }
  return {};
}

Status LogFiles::remove(const std::string& name) {
  if (kept_ != nullptr)
    kept_->emplace_back(::open(path(name).c_str(), O_PATH | O_CLOEXEC | O_NOFOLLOW));
  if (::unlink(path(name).c_str()) != 0 && errno != ENOENT) {
    return fail_errno(errno, "remove {}", path(name));
  }
  return {};
}

Status LogFiles::sync_file(const std::string& name) {
  if (::fdatasync(fd(name)) != 0) return fail_errno(errno, "fdatasync {}", path(name));
  return {};
}

}  // namespace

Result<RecoveredLog> recover_log(const LogRecoveryOptions& options) {
  LogFiles files(options.directory);
  auto found = find_log(files, options);
  if (!found) return tl::unexpected(std::move(found).error());
  RecoveredLog log;
  for (const FoundSegment& part : found->segments) {
    auto segment = std::make_shared<LogSegment>();
    segment->file = files.file(part.name);
    segment->before = part.before;
    segment->end_bytes = part.end_bytes;
    log.segments.push_back(std::move(segment));
  }
  for (const std::string& name : found->spares)
    log.spares.push_back(files.file(name));
  log.logged = found->logged;
  log.apply_segment = found->apply_segment;
  log.apply_offset = found->apply_offset;
  log.backlog_bytes = found->backlog_bytes;
  log.cut = std::move(found->cut);
  log.next_spare = found->next_spare;
  log.touched = std::move(found->touched);
  return log;
}

Result<std::vector<LoggedChanges>> count_log_files(const std::string& directory,
                                                   const std::string& volume_uuid,
                                                   Sequence after,
                                                   Sequence until) {
  LogFiles files(directory);
  return count_log(files, volume_uuid, after, until);
}

Status remove_log(const std::string& directory, std::vector<Fd>* kept) {
  LogFiles files(directory, kept);
  Status removed = remove_log_files(files);
  if (!removed && removed.error().code == Errc::not_found) return {};
  RD_TRY(removed);
  return remove_stage(directory);
}

Result<std::shared_ptr<LogFile>> create_log_file(const std::string& directory,
                                                 const std::string& name,
                                                 std::uint64_t bytes) {
  const std::string path = directory + "/" + name;
  auto file = std::make_shared<LogFile>();
  file->name = name;
  file->bytes = bytes;
  file->fd.reset(
      ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR | S_IRGRP));
  if (!file->fd.valid()) return fail_errno(errno, "create log file {}", path);
  int result = ::fallocate(file->fd.get(), 0, 0, static_cast<off_t>(bytes));
  if (result != 0 && errno == EOPNOTSUPP) {
    result = ::ftruncate(file->fd.get(), static_cast<off_t>(bytes));
  }
  if (result != 0) {
    const int sys_errno = errno;
    ::unlink(path.c_str());
    return fail_errno(sys_errno, "preallocate {} bytes for log file {}", bytes, path);
  }
  return file;
}

}  // namespace replicad
