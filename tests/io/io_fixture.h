#pragma once
// What the io tests share: a reactor on a thread of its own, temporary directories, seeds.

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>

#include <doctest/doctest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io/fd.h"
#include "io/reactor.h"

namespace replicad {

constexpr std::chrono::seconds test_deadline{30};

/// A fresh directory that goes away with its content, also when the test fails.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "replicad-io-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  TemporaryDirectory(TemporaryDirectory&&) = delete;
  TemporaryDirectory& operator=(TemporaryDirectory&&) = delete;
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] std::string file(const std::string& name) const { return (path_ / name).string(); }
  [[nodiscard]] std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

/// RD_SEED from the environment, else a new one; printed, so that a failure can be run again.
inline std::uint64_t test_seed() {
  // NOLINTNEXTLINE(concurrency-mt-unsafe): nothing sets the environment
  const char* given = std::getenv("RD_SEED");
  const std::uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::printf("RD_SEED=%llu\n", static_cast<unsigned long long>(seed));
  return seed;
}

inline std::pair<Fd, Fd> socket_pair() {
  std::array<int, 2> fds{};
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) == 0);
  return {Fd(fds[0]), Fd(fds[1])};
}

/// A condition that any thread sets and the test waits for.
class Signal {
 public:
  void set() {
    const std::lock_guard lock(mutex_);
    set_ = true;
    changed_.notify_all();
  }
  [[nodiscard]] bool wait(std::chrono::milliseconds limit = test_deadline) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, limit, [this] { return set_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool set_ = false;
};

/// Runs a reactor on its own thread and stops it at the end.
class ReactorThread {
 public:
  explicit ReactorThread(std::unique_ptr<Reactor> reactor = nullptr)
      : reactor_(std::move(reactor)) {
    if (!reactor_) {
      auto created = Reactor::create();
      REQUIRE(created.has_value());
      reactor_ = std::move(*created);
    }
    thread_ = std::thread([this] { reactor_->run(); });
  }
  ReactorThread(const ReactorThread&) = delete;
  ReactorThread& operator=(const ReactorThread&) = delete;
  ReactorThread(ReactorThread&&) = delete;
  ReactorThread& operator=(ReactorThread&&) = delete;
  ~ReactorThread() { stop(); }

  void stop() {
    if (!thread_.joinable()) return;
    reactor_->stop();
    thread_.join();
  }
  Reactor& operator*() { return *reactor_; }
  Reactor* operator->() { return reactor_.get(); }

  /// Runs `function` on the reactor's thread and waits for it.
  void call(const std::function<void()>& function) {
    std::promise<void> done;
    reactor_->post([&] {
      function();
      done.set_value();
    });
    REQUIRE(done.get_future().wait_for(test_deadline) == std::future_status::ready);
  }

  /// Starts an operation on the reactor's thread, waits for its result.
  int result_of(const std::function<void(Reactor&, Reactor::Done)>& start) {
    std::promise<int> result;
    auto future = result.get_future();
    reactor_->post([&] { start(*reactor_, [&](int value) { result.set_value(value); }); });
    REQUIRE(future.wait_for(test_deadline) == std::future_status::ready);
    return future.get();
  }

 private:
  std::unique_ptr<Reactor> reactor_;
  std::thread thread_;
};

}  // namespace replicad
