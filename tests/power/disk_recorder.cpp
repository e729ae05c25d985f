#include "tests/power/disk_recorder.h"

#include <algorithm>
#include <cstdarg>
#include <filesystem>
#include <fstream>

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "core/base/check.h"

namespace replicad {

namespace {

std::atomic<DiskRecorder*> active_recorder{nullptr};

std::string parent_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

std::vector<std::byte> content_of(const std::filesystem::path& path) {
  std::vector<std::byte> bytes(std::filesystem::file_size(path));
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  return bytes;
}

}  // namespace

bool is_directory_change(DiskOperation::Kind kind) {
  using Kind = DiskOperation::Kind;
  return kind == Kind::create || kind == Kind::rename || kind == Kind::unlink ||
         kind == Kind::make_directory;
}

std::uint64_t DiskRecord::marked(const std::string& what, Moment at) const {
  std::uint64_t value = 0;
  for (const Mark& mark : marks) {
    if (mark.what == what && mark.at < at) value = std::max(value, mark.value);
  }
  return value;
}

std::size_t DiskRecord::count(DiskOperation::Kind kind) const {
  return static_cast<std::size_t>(
      std::count_if(operations.begin(), operations.end(), [&](const DiskOperation& operation) {
        return operation.kind == kind;
      }));
}

DiskRecorder::DiskRecorder(std::string root) : root_(std::move(root)) {
  record_.directories.insert(".");
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root_)) {
    const std::string path = std::filesystem::relative(entry.path(), root_).string();
    if (entry.is_directory()) {
      record_.directories.insert(path);
      continue;
    }
    const FileId file = new_file();
    names_[path] = file;
    record_.contents[file] = content_of(entry.path());
  }
  record_.names = names_;
  RD_CHECK(active_recorder == nullptr);
  active_recorder = this;
}

DiskRecorder::~DiskRecorder() {
  active_recorder = nullptr;
}

DiskRecorder* DiskRecorder::active() {
  return active_recorder;
}

void DiskRecorder::mark(const std::string& what, std::uint64_t value) {
  const std::scoped_lock lock(mutex_);
  record_.marks.push_back({++record_.last, what, value});
}

DiskRecord DiskRecorder::finish() {
  const std::scoped_lock lock(mutex_);
  active_recorder = nullptr;
  ++record_.last;
  return std::move(record_);
}

std::optional<std::string> DiskRecorder::relative(const char* path) const {
  const std::string text(path);
  if (text == root_) return ".";
  if (!text.starts_with(root_ + "/")) return std::nullopt;
  return text.substr(root_.size() + 1);
}

void DiskRecorder::opened(int fd, const std::string& path, int flags) {
  forget(fd);
  if ((flags & O_DIRECTORY) != 0) {
    directories_[fd] = path;
    return;
  }
  const auto found = names_.find(path);
  if (found != names_.end()) {
    files_[fd] = found->second;
    if ((flags & O_TRUNC) != 0) done({.kind = DiskOperation::Kind::resize}, fd);
    return;
  }
  const FileId file = new_file();
  names_[path] = files_[fd] = file;
  done({.kind = DiskOperation::Kind::create, .file = file, .name = path}, -1);
}

void DiskRecorder::forget(int fd) {
  files_.erase(fd);
  directories_.erase(fd);
}

void DiskRecorder::done(DiskOperation operation, int fd) {
  using Kind = DiskOperation::Kind;
  if (fd >= 0 && directories_.contains(fd)) {
    operation.kind = Kind::sync_directory;
    operation.directory = directories_[fd];
  } else if (fd >= 0) {
    if (!files_.contains(fd)) return;
    operation.file = files_[fd];
  }
  if (operation.kind == Kind::rename) {
    operation.file = names_.at(operation.name);
    names_.erase(operation.name);
    names_[operation.target] = operation.file;
  } else if (operation.kind == Kind::unlink) {
    operation.file = names_.at(operation.name);
    names_.erase(operation.name);
  }
  if (is_directory_change(operation.kind)) operation.directory = parent_of(operation.name);
  operation.begin = ++record_.last;
  operation.end = ++record_.last;
  record_.operations.push_back(std::move(operation));
}

std::optional<std::size_t> DiskRecorder::begin(DiskOperation operation, int fd) {
  const auto found = files_.find(fd);
  if (found == files_.end()) return std::nullopt;
  operation.file = found->second;
  operation.begin = ++record_.last;
  record_.operations.push_back(std::move(operation));
  return record_.operations.size() - 1;
}

void DiskRecorder::end(std::size_t index, int result) {
  DiskOperation& operation = record_.operations[index];
  if (result < 0) return;
  if (operation.kind == DiskOperation::Kind::write)
    operation.bytes.resize(std::min(operation.bytes.size(), static_cast<std::size_t>(result)));
  operation.end = ++record_.last;
}

// --- the ring

namespace {

class RecordingRing final : public Ring {
 public:
  explicit RecordingRing(std::unique_ptr<Ring> ring) : ring_(std::move(ring)) {}

  [[nodiscard]] Status enable() override { return ring_->enable(); }
  int submit() override { return ring_->submit(); }
  int submit_and_wait(std::optional<Duration> timeout) override {
    return ring_->submit_and_wait(timeout);
  }
  [[nodiscard]] bool ready() const override { return ring_->ready(); }
  [[nodiscard]] bool prepare(const RingOperation& operation) override {
    if (!ring_->prepare(operation)) return false;
    DiskRecorder* recorder = DiskRecorder::active();
    auto recorded = operation_of(operation);
    if (recorder == nullptr || !recorded) return true;
    const std::scoped_lock lock(recorder->mutex());
    if (const auto index = recorder->begin(std::move(*recorded), operation.fd))
      in_flight_[operation.user_data] = {recorder, *index};
    return true;
  }
  [[nodiscard]] std::size_t reap(std::span<RingCompletion> completions) override {
    const std::size_t count = ring_->reap(completions);
    for (const RingCompletion& completion : completions.first(count)) {
      const auto found = in_flight_.find(completion.user_data);
      if (found == in_flight_.end()) continue;
      DiskRecorder* recorder = DiskRecorder::active();
      if (recorder == found->second.recorder) {
        const std::scoped_lock lock(recorder->mutex());
        recorder->end(found->second.index, completion.result);
      }
      in_flight_.erase(found);
    }
    return count;
  }

 private:
  struct InFlight {
    DiskRecorder* recorder = nullptr;
    std::size_t index = 0;
  };

  static std::optional<DiskOperation> operation_of(const RingOperation& operation) {
    DiskOperation result;
    result.offset = operation.offset_bytes;
    switch (operation.opcode) {
      case RingOpcode::write: {
        const auto* from = static_cast<const std::byte*>(operation.address);
        result.bytes.assign(from, from + operation.length);
        return result;
      }
      case RingOpcode::writev: {
        const auto* vectors = static_cast<const iovec*>(operation.address);
        for (std::uint32_t i = 0; i < operation.length; ++i) {
          const auto* from = static_cast<const std::byte*>(vectors[i].iov_base);
          result.bytes.insert(result.bytes.end(), from, from + vectors[i].iov_len);
        }
        return result;
      }
      case RingOpcode::fdatasync:
        result.kind = DiskOperation::Kind::sync_file;
        return result;
      case RingOpcode::fallocate:
        result.kind = DiskOperation::Kind::zero;
        result.length = operation.range_bytes;
        result.extends = (operation.mode & FALLOC_FL_KEEP_SIZE) == 0;
        return result;
      case RingOpcode::accept:
      case RingOpcode::connect:
      case RingOpcode::recv:
      case RingOpcode::sendmsg:
      case RingOpcode::read:
      case RingOpcode::cancel:
        break;
    }
    return std::nullopt;
  }

  std::unique_ptr<Ring> ring_;
  std::map<std::uint64_t, InFlight> in_flight_;
};

}  // namespace

std::unique_ptr<Ring> create_recording_ring(std::unique_ptr<Ring> ring) {
  return std::make_unique<RecordingRing>(std::move(ring));
}

}  // namespace replicad

// --- the wrapped calls (ld --wrap): the real one runs under the recorder's lock, so that the order of the record is
// the order of the calls.

namespace {

using replicad::DiskOperation;
using replicad::DiskRecorder;
using Kind = DiskOperation::Kind;

/// Runs `call`; if it succeeded, `record(recorder)`.
template <typename Call, typename Record>
auto recorded(Call call, Record record) -> decltype(call()) {
  DiskRecorder* recorder = DiskRecorder::active();
  if (recorder == nullptr) return call();
  const std::scoped_lock lock(recorder->mutex());
  const auto result = call();
  if (result >= 0) {
    const int saved = errno;
    record(*recorder, result);
    errno = saved;
  }
  return result;
}

}  // namespace

// NOLINTBEGIN(bugprone-reserved-identifier,readability-identifier-naming): names of the linker
extern "C" {

int __real_open(const char* path, int flags, ...);
ssize_t __real_pwrite(int fd, const void* data, size_t count, off_t offset);
int __real_fsync(int fd);
int __real_fdatasync(int fd);
int __real_rename(const char* from, const char* to);
int __real_unlink(const char* path);
int __real_ftruncate(int fd, off_t length);
int __real_fallocate(int fd, int mode, off_t offset, off_t length);
int __real_mkdir(const char* path, mode_t mode);

int __wrap_open(const char* path, int flags, ...) {
  mode_t mode = 0;
  if ((flags & O_CREAT) != 0) {
    va_list arguments;
    va_start(arguments, flags);
    mode = va_arg(arguments, mode_t);
    va_end(arguments);
  }
  return recorded([&] { return __real_open(path, flags, mode); },
                  [&](DiskRecorder& recorder, int fd) {
                    if (const auto name = recorder.relative(path)) {
                      recorder.opened(fd, *name, flags);
                    } else {
                      recorder.forget(fd);
                    }
                  });
}

ssize_t __wrap_pwrite(int fd, const void* data, size_t count, off_t offset) {
  return recorded(
      [&] { return __real_pwrite(fd, data, count, offset); },
      [&](DiskRecorder& recorder, ssize_t written) {
        if (!recorder.knows(fd)) return;
        const auto* from = static_cast<const std::byte*>(data);
        recorder.done(
            {.offset = static_cast<std::uint64_t>(offset), .bytes = {from, from + written}}, fd);
      });
}

int __wrap_fsync(int fd) {
  return recorded(
      [&] { return __real_fsync(fd); },
      [&](DiskRecorder& recorder, int) { recorder.done({.kind = Kind::sync_file}, fd); });
}

int __wrap_fdatasync(int fd) {
  return recorded(
      [&] { return __real_fdatasync(fd); },
      [&](DiskRecorder& recorder, int) { recorder.done({.kind = Kind::sync_file}, fd); });
}

int __wrap_rename(const char* from, const char* to) {
  return recorded([&] { return __real_rename(from, to); },
                  [&](DiskRecorder& recorder, int) {
                    const auto name = recorder.relative(from);
                    const auto target = recorder.relative(to);
                    if (name && target)
                      recorder.done({.kind = Kind::rename, .name = *name, .target = *target}, -1);
                  });
}

int __wrap_unlink(const char* path) {
  return recorded([&] { return __real_unlink(path); },
                  [&](DiskRecorder& recorder, int) {
                    if (const auto name = recorder.relative(path))
                      recorder.done({.kind = Kind::unlink, .name = *name}, -1);
                  });
}

int __wrap_ftruncate(int fd, off_t length) {
  return recorded([&] { return __real_ftruncate(fd, length); },
                  [&](DiskRecorder& recorder, int) {
                    recorder.done(
                        {.kind = Kind::resize, .length = static_cast<std::uint64_t>(length)}, fd);
                  });
}

int __wrap_fallocate(int fd, int mode, off_t offset, off_t length) {
  return recorded([&] { return __real_fallocate(fd, mode, offset, length); },
                  [&](DiskRecorder& recorder, int) {
                    // Without a mode it only makes room: what is there stays.
                    const auto end = static_cast<std::uint64_t>(offset + length);
                    if (mode == 0) {
                      recorder.done({.kind = Kind::zero, .offset = end, .extends = true}, fd);
                      return;
                    }
                    recorder.done({.kind = Kind::zero,
                                   .offset = static_cast<std::uint64_t>(offset),
                                   .length = static_cast<std::uint64_t>(length),
                                   .extends = (mode & FALLOC_FL_KEEP_SIZE) == 0},
                                  fd);
                  });
}

int __wrap_mkdir(const char* path, mode_t mode) {
  return recorded([&] { return __real_mkdir(path, mode); },
                  [&](DiskRecorder& recorder, int) {
                    if (const auto name = recorder.relative(path))
                      recorder.done({.kind = Kind::make_directory, .name = *name}, -1);
                  });
}

}  // extern "C"
// NOLINTEND(bugprone-reserved-identifier,readability-identifier-naming)
