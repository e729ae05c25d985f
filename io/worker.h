#pragma once
// A thread for blocking work (durable state files, fsync of directories), so that no reactor waits for a disk.

#include <functional>
#include <memory>

namespace replicad {

class Worker {
 public:
  /// Starts the thread.
  static std::unique_ptr<Worker> create();
  /// Runs what was posted, then ends the thread.
  virtual ~Worker() = default;
  /// Any thread. Functions run one after the other, in the order of the calls.
  virtual void post(std::function<void()> function) = 0;
};

}  // namespace replicad
