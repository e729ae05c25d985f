#include "nbd-plugin/durable_fds.h"

#include <cerrno>

#include <fcntl.h>

#include "core/base/log.h"
#include "io/file.h"

namespace replicad {

namespace {

/// As many as threads may want at once: nbdkit's, and two of ours. More wait.
constexpr std::size_t durable_fds = 18;

bool is_about_space(int error) {
  return error == ENOSPC || error == EDQUOT;
}

}  // namespace

Result<std::unique_ptr<DurableFds>> DurableFds::open(int fd,
                                                     std::string path,
                                                     std::string mark_path) {
  std::unique_ptr<DurableFds> pool(new DurableFds(std::move(path), std::move(mark_path)));
  // By the descriptor, not by the name: that may be another file by now.
  const std::string name = fmt::format("/proc/self/fd/{}", fd);
  while (pool->fds_.size() < durable_fds) {
    Fd again(::open(name.c_str(), O_RDWR | O_CLOEXEC));
    if (!again.valid()) return fail_errno(errno, "open {} again", pool->path_);
    pool->free_.push_back(again.get());
    pool->fds_.push_back(std::move(again));
  }
  return pool;
}

int DurableFds::run(bool may_be_full, const std::function<int(int fd)>& operation) {
  int fd = -1;
  {
    std::unique_lock lock(mutex_);
    freed_.wait(lock, [this] { return failed_ || !free_.empty(); });
    if (failed_) return EIO;
    fd = free_.back();
    free_.pop_back();
  }
  int error = operation(fd);
  const std::lock_guard lock(mutex_);
  // It may have been told what this one was not.
  if (failed_) error = EIO;
  if (error != 0 && !(may_be_full && is_about_space(error)) && !failed_) {
    failed_ = true;
    mark(error);
  }
  free_.push_back(fd);
  if (failed_) {
    freed_.notify_all();
  } else {
    freed_.notify_one();
  }
  return error;
}

bool DurableFds::has_failed() const {
  const std::lock_guard lock(mutex_);
  return failed_;
}

void DurableFds::mark(int error) const {
  log(LogLevel::error, "durability_lost", "image={} errno={}", path_, error);
  if (mark_path_.empty()) return;
  const Status marked = write_file_durably(mark_path_, path_ + "\n");
  if (!marked)
    log(LogLevel::error, "mark_not_written", "error={}", log_value(marked.error().message));
}

}  // namespace replicad
