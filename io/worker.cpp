#include "io/worker.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

namespace replicad {

namespace {

class ThreadWorker final : public Worker {
 public:
  ThreadWorker() : thread_([this] { work(); }) {}
  ThreadWorker(const ThreadWorker&) = delete;
  ThreadWorker& operator=(const ThreadWorker&) = delete;
  ThreadWorker(ThreadWorker&&) = delete;
  ThreadWorker& operator=(ThreadWorker&&) = delete;

  ~ThreadWorker() override {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

  void post(std::function<void()> function) override {
    {
      const std::lock_guard lock(mutex_);
      functions_.push_back(std::move(function));
    }
    changed_.notify_one();
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return ending_ || !functions_.empty(); });
      if (functions_.empty()) return;
      auto function = std::move(functions_.front());
      functions_.pop_front();
      lock.unlock();
      function();
      function = nullptr;
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> functions_;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Worker> Worker::create() {
  return std::make_unique<ThreadWorker>();
}

}  // namespace replicad
