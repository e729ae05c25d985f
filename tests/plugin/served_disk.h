#pragma once
// A disk served by the plugin's Bridge, without nbdkit, reactor or replicas, and ways to break its image.

#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "io/clock.h"
#include "nbd-plugin/bridge.h"

namespace replicad {

constexpr auto test_deadline = std::chrono::seconds(60);
constexpr std::uint64_t image_size = 1 * mib;
constexpr std::uint64_t writable_size = 512 * kib;

inline bool eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + test_deadline;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

/// While it lives, files of this process cannot be written beyond half an image, or that many bytes: EFBIG.
class HalfDisk {
 public:
  explicit HalfDisk(std::uint64_t bytes = writable_size) {
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &before_) == 0);
    ::signal(SIGXFSZ, SIG_IGN);
    rlimit limited = before_;
    limited.rlim_cur = bytes;
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &limited) == 0);
  }
  HalfDisk(const HalfDisk&) = delete;
  HalfDisk& operator=(const HalfDisk&) = delete;
  ~HalfDisk() { mend(); }
  void mend() { REQUIRE(::setrlimit(RLIMIT_FSIZE, &before_) == 0); }

 private:
  rlimit before_{};
};

/// A served disk, by default of a volume without replicas. The test stands in for the reactor.
class ServedDisk {
 public:
  explicit ServedDisk(OnLocalError policy,
                      Mode mode = Mode::sync,
                      const std::vector<std::string>& replicas = {}) {
    std::string pattern = (std::filesystem::temp_directory_path() / "rd-bridge-XXXXXX").string();
    Fd file(::mkstemp(pattern.data()));
    REQUIRE(file.valid());
    path_ = pattern;
    REQUIRE(::ftruncate(file.get(), image_size) == 0);
    file.reset();
    auto image = DiskImage::open({.name = "vda", .bytes = image_size, .path = path_});
    REQUIRE(image.has_value());
    images_.push_back(std::move(*image));
    PrimaryConfig config;
    config.epoch = {1, 1};
    config.reserved = 100'000;
    config.disk_bytes = {image_size};
    config.in_sync = {"a"};
    config.peers = replicas;
    config.in_sync.insert(config.in_sync.end(), replicas.begin(), replicas.end());
    config.mode = mode;
    config.host = "a";
    config.on_local_error = policy;
    config.ring_bytes = ring_bytes_min;
    config.ack_timeout = std::chrono::seconds(5);
    auto ring = MirroredBuffer::create(config.ring_bytes);
    REQUIRE(ring.has_value());
    bridge_ = std::make_unique<Bridge>(config, std::move(*ring), images_);
    bridge_->set_hooks([this] { ++wakes; }, [this] { return stopping.load(); });
    open_activity();
  }
  ServedDisk(const ServedDisk&) = delete;
  ServedDisk& operator=(const ServedDisk&) = delete;
  ~ServedDisk() {
    std::filesystem::remove(path_);
    std::filesystem::remove(path_ + ".activity");
  }

  Bridge& bridge() { return *bridge_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const std::vector<DiskImage>& images() const { return images_; }
  std::future<int> write(std::uint64_t offset, char value, bool fua = false) {
    return std::async(std::launch::async, [this, offset, value, fua] {
      const std::vector<std::byte> data(4096, static_cast<std::byte>(value));
      return bridge_->write(0, data, offset, fua);
    });
  }
  char byte_at(std::uint64_t offset) {
    std::byte byte{};
    REQUIRE(images_[0].read({&byte, 1}, offset) == 0);
    return static_cast<char>(byte);
  }
  bool is_waited_for() {
    return eventually([this] { return bridge_->local_trouble().current().has_value(); });
  }
  std::optional<Error> failure() {
    return bridge_->look([](const Primary& primary) { return primary.failure(); });
  }
  void set_policy(OnLocalError policy) {
    bridge_->step(primary_event::SettingsChanged{
        Mode::sync, Congestion::throttle, std::chrono::seconds(5), policy});
    bridge_->local_trouble().set_policy(policy);
  }
  std::atomic<bool> stopping{false};
  std::atomic<int> wakes{0};  ///< of the reactor

 private:
  void open_activity() {
    ActivityLog::Known known;
    auto activity = ActivityLog::open({.path = path_ + ".activity",
                                       .volume_uuid = "uuid",
                                       .disk_bytes = {image_size},
                                       .members = {},
                                       .epoch = {1, 1},
                                       .history = {},
                                       .unclean = false},
                                      known);
    REQUIRE(activity.has_value());
    activity_ = std::move(*activity);
    bridge_->set_activity(activity_.get());
  }

  std::string path_;
  std::vector<DiskImage> images_;
  std::unique_ptr<ActivityLog> activity_;
  std::unique_ptr<Bridge> bridge_;
};

}  // namespace replicad
