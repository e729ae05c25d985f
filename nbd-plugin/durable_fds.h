#pragma once
// Descriptors of one image for operations whose success says that data is on stable storage. The kernel tells each
// open file once that a write-back failed, whoever asks first; what that one learns another, which asks at the same
// time, would not. So each operation has a descriptor to itself, all were opened before any write, and one failure
// is the end of all: nothing is durable behind it. Any thread.

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/base/result.h"
#include "io/fd.h"

namespace replicad {

class DurableFds {
 public:
  /// Opens `path`'s file, which `fd` has locked, again and again. `mark_path`: a file that is made, durably, when
  /// an operation has failed; empty: none.
  [[nodiscard]] static Result<std::unique_ptr<DurableFds>> open(int fd,
                                                                std::string path,
                                                                std::string mark_path);

  /// Runs `operation` with a descriptor of its own. Result: what it returned, 0 or an errno. After a failure every
  /// later call, and those under way, return EIO, without a try. With `may_be_full`, ENOSPC and EDQUOT are told and
  /// change nothing: a write found no room, and no earlier one was lost.
  [[nodiscard]] int run(bool may_be_full, const std::function<int(int fd)>& operation);
  [[nodiscard]] bool has_failed() const;

 private:
  DurableFds(std::string path, std::string mark_path)
      : path_(std::move(path)), mark_path_(std::move(mark_path)) {}
  void mark(int error) const;

  std::string path_;
  std::string mark_path_;
  std::vector<Fd> fds_;
  mutable std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<int> free_;  ///< guarded by mutex_, like what follows
  bool failed_ = false;
};

}  // namespace replicad
