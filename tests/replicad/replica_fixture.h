#pragma once
// A replica on a real reactor, and a primary that the test plays over a socketpair.

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <functional>
#include <future>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "core/repl/replica.h"
#include "io/file.h"
#include "io/frame_connection.h"
#include "io/reactor.h"
#include "io/worker.h"
#include "replicad/replica_volume.h"
#include "replicad/state_store.h"

namespace replicad {

constexpr auto test_deadline = std::chrono::seconds(60);

class TempDirectory {
 public:
  explicit TempDirectory(const std::string& parent = std::filesystem::temp_directory_path()) {
    std::string pattern = parent + "/replicad-test-XXXXXX";
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;
  ~TempDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline std::mt19937_64 seeded_random() {
  const char* given = std::getenv("RD_SEED");
  const std::uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::cout << "RD_SEED=" << seed << std::endl;
  return std::mt19937_64(seed);
}

/// The reactor in a thread of its own.
class ReactorThread {
 public:
  ReactorThread() : ReactorThread(make()) {}
  explicit ReactorThread(std::unique_ptr<Reactor> reactor) : reactor_(std::move(reactor)) {
    thread_ = std::thread([this] { reactor_->run(); });
  }
  ReactorThread(const ReactorThread&) = delete;
  ReactorThread& operator=(const ReactorThread&) = delete;
  ~ReactorThread() {
    reactor_->stop();
    thread_.join();
  }
  Reactor& operator*() { return *reactor_; }
  Reactor* operator->() { return reactor_.get(); }

  /// Runs `function` on the reactor's thread and waits for its result.
  template <typename Function>
  auto call(Function function) -> decltype(function()) {
    auto task = std::make_shared<std::packaged_task<decltype(function())()>>(std::move(function));
    auto result = task->get_future();
    reactor_->post([task] { (*task)(); });
    return result.get();
  }

 private:
  static std::unique_ptr<Reactor> make() {
    auto reactor = Reactor::create();
    REQUIRE(reactor.has_value());
    return std::move(*reactor);
  }

  std::unique_ptr<Reactor> reactor_;
  std::thread thread_;
};

inline bool wait_until(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + test_deadline;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

/// One host with a replica: images, log directory, and a state "file" in memory that survives kill(), or a real one
/// (keep_state_file).
class ReplicaHost {
 public:
  ReplicaHost(ReactorThread& reactor, std::string directory, std::vector<std::uint64_t> disk_bytes)
      : reactor_(reactor), directory_(std::move(directory)) {
    state_.name = "vm1";
    state_.uuid = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9";
    for (std::size_t i = 0; i < disk_bytes.size(); ++i) {
      const std::string path = fmt::format("{}/disk{}.raw", directory_, i);
      REQUIRE(create_image(path, disk_bytes[i]).has_value());
      state_.disks.push_back(
          {fmt::format("vd{}", static_cast<char>('a' + i)), disk_bytes[i], path, false});
    }
    state_.members = {{"a", "", ""}, {"b", "", ""}};
    state_.primary = "a";
    state_.epoch = {1, 77};
    state_.settings.segment_bytes = segment_bytes_min;
    state_.settings.log_bytes = 16 * segment_bytes_min;
  }
  /// What a host finds in `directory`, with the state that was read there.
  ReplicaHost(ReactorThread& reactor, std::string directory, VolumeState state)
      : reactor_(reactor), directory_(std::move(directory)), state_(std::move(state)) {}
  ReplicaHost(const ReplicaHost&) = delete;
  ReplicaHost& operator=(const ReplicaHost&) = delete;
  ~ReplicaHost() {
    kill();
    reactor_.call([this] { store_.reset(); });
  }

  Status open() {
    return reactor_.call([this]() -> Status {
      ReplicaVolume::Hooks hooks;
      hooks.state = [this]() -> const VolumeState& { return state_; };
      hooks.update_state = [this](std::function<void(VolumeState&)> change,
                                  std::function<void(Status)> done) {
        update(std::move(change), std::move(done));
      };
      hooks.on_link_lost = [this] { ++links_lost; };
      hooks.on_disk_error = [this] { ++disk_errors; };
      auto volume = ReplicaVolume::open(*reactor_, "b", log_dir(), std::move(hooks));
      if (!volume) return tl::unexpected(volume.error());
      volume_ = std::move(*volume);
      return {};
    });
  }
  /// open(), as soon as what an earlier kill() left in flight has ended.
  void reopen() {
    Status status;
    REQUIRE(wait_until([&] {
      status = open();
      return status.has_value() || status.error().code != Errc::busy;
    }));
    INFO("open: ", status ? "" : status.error().message);
    REQUIRE(status.has_value());
  }
  /// Like the end of the process: nothing is finished, nothing recorded.
  void kill() {
    reactor_.call([this] {
      volume_.reset();
      held_updates_.clear();
    });
    // An update that was posted between that call and its turn has been made behind this one.
    reactor_.call([] {});
    // What was on its way to the state file is there or lost when a process has ended, never later.
    if (store_)
      REQUIRE(wait_until([this] { return reactor_.call([this] { return store_->is_idle(); }); }));
  }
  void shutdown(bool discard_log) {
    auto ended = std::make_shared<std::promise<void>>();
    reactor_.call([&] { volume_->shutdown(discard_log, [ended] { ended->set_value(); }); });
    REQUIRE(ended->get_future().wait_for(test_deadline) == std::future_status::ready);
    reactor_.call([this] { volume_.reset(); });
  }
  std::future<Status> begin_promotion(const Epoch& epoch, const HistoryPoint& point) {
    auto result = std::make_shared<std::promise<Status>>();
    reactor_.call([&] {
      volume_->prepare_promotion(
          epoch, point, [result](Status status) { result->set_value(std::move(status)); });
    });
    return result->get_future();
  }
  Status promote(const Epoch& epoch, const HistoryPoint& point) {
    auto future = begin_promotion(epoch, point);
    REQUIRE(future.wait_for(test_deadline) == std::future_status::ready);
    return future.get();
  }

  /// The primary's end of a new connection.
  Fd connect() {
    int ends[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    Fd primary(ends[0]);
    reactor_.call([this, end = ends[1]] {
      auto connection = FrameConnection::create(*reactor_, Fd(end), 4 * mib);
      auto* raw = connection.get();
      waiting_[raw] = connection;
      connection->start(
          {.on_frame = [this, raw](const FrameView& frame) -> Status {
             auto message = decode_attach(frame.payload);
             if (!message) return tl::unexpected(message.error());
             auto mine = waiting_.at(raw);
             waiting_.erase(raw);
             volume_->attach(std::move(mine), *message);
             return {};
           },
           .on_batch_end = {},
           .on_closed = [this, raw](const Error& /*error*/) { waiting_.erase(raw); }});
    });
    return primary;
  }

  ReplicaStatus status() {
    return reactor_.call([this] { return volume_->status(); });
  }
  VolumeState state() {
    return reactor_.call([this] { return state_; });
  }
  void change_state(const std::function<void(VolumeState&)>& change) {
    reactor_.call([&] { change(state_); });
  }
  /// While held, changes of the state are not made.
  void hold_updates(bool hold) {
    reactor_.call([&] {
      hold_updates_ = hold;
      if (hold) return;
      for (auto& run : std::exchange(held_updates_, {}))
        run();
    });
  }
  /// Makes the oldest held change, and goes on holding others.
  void make_one_update() {
    reactor_.call([&] {
      const auto run = std::move(held_updates_.front());
      held_updates_.pop_front();
      run();
    });
  }
  std::size_t held_updates() {
    return reactor_.call([this] { return held_updates_.size(); });
  }
  void fail_updates(std::optional<Error> error) {
    reactor_.call([&] { update_error_ = std::move(error); });
  }

  /// From now on changes of the state go through a StateStore.
  void keep_state_file() {
    worker_ = Worker::create();
    REQUIRE(write_file_durably(state_path(), encode_volume_state(state_)).has_value());
    reactor_.call([this] {
      store_ = std::make_unique<StateStore>(*reactor_, *worker_, state_path(), state_);
    });
  }
  [[nodiscard]] std::string state_path() const { return directory_ + "/state"; }
  [[nodiscard]] std::string log_dir() const { return directory_ + "/log"; }
  [[nodiscard]] std::string image_path(std::size_t disk) const { return state_.disks[disk].path; }
  [[nodiscard]] std::vector<std::byte> image(std::size_t disk) const {
    std::vector<std::byte> bytes(state_.disks[disk].bytes);
    const Fd fd(::open(image_path(disk).c_str(), O_RDONLY | O_CLOEXEC));
    REQUIRE(fd.valid());
    REQUIRE(read_all_at(fd.get(), bytes, 0).has_value());
    return bytes;
  }
  [[nodiscard]] std::vector<std::string> log_files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(log_dir())) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  int links_lost = 0;
  int disk_errors = 0;

 private:
  void update(std::function<void(VolumeState&)> change, std::function<void(Status)> done) {
    auto run = [this, change = std::move(change), done = std::move(done)] {
      if (store_) {
        store_->update(
            [change](VolumeState& state) -> Status {
              change(state);
              return {};
            },
            [this, done](const Status& status) {
              state_ = store_->state();
              done(status);
            });
        return;
      }
      if (update_error_) {
        done(tl::unexpected(*update_error_));
        return;
      }
      change(state_);
      // As the real store: what cannot be read back is not written.
      REQUIRE(decode_volume_state(encode_volume_state(state_)).has_value());
      done({});
    };
    if (hold_updates_) {
      held_updates_.push_back(std::move(run));
    } else {
      reactor_->post(std::move(run));
    }
  }

  ReactorThread& reactor_;
  std::string directory_;
  VolumeState state_;
  std::unique_ptr<ReplicaVolume> volume_;
  std::map<FrameConnection*, std::shared_ptr<FrameConnection>> waiting_;
  bool hold_updates_ = false;
  std::deque<std::function<void()>> held_updates_;
  std::optional<Error> update_error_;
  std::unique_ptr<Worker> worker_;
  std::unique_ptr<StateStore> store_;
};

struct OwnedFrame {
  FrameHeader header;
  std::vector<std::byte> payload;
};

/// A primary with its own copy of the images, which every change it makes goes to as well.
class FakePrimary {
 public:
  explicit FakePrimary(const std::vector<std::uint64_t>& disk_bytes) {
    for (const std::uint64_t bytes : disk_bytes)
      images.emplace_back(bytes);
  }

  Epoch epoch{1, 77};
  HistoryPoint point;
  std::vector<std::vector<std::byte>> images;
  /// Every numbered frame so far; sequence n is at n-1.
  std::vector<std::vector<std::byte>> history;
  std::vector<HistoryPoint> points{HistoryPoint{}};

  // --- frames

  std::vector<std::byte> frame(FrameType type,
                               const Range& range,
                               std::span<const std::byte> data,
                               std::uint16_t flags = 0) const {
    FrameHeader header;
    header.type = type;
    header.flags = flags;
    header.payload_bytes = static_cast<std::uint32_t>(data.size());
    header.payload_crc32c = crc32c(data);
    header.range = range;
    if (is_numbered(type)) {
      header.epoch = epoch;
      header.sequence = point.sequence + 1;
    }
    std::vector<std::byte> bytes(frame_header_bytes + data.size());
    encode_header(header,
                  std::span<std::byte, frame_header_bytes>(bytes.data(), frame_header_bytes));
    std::copy(data.begin(), data.end(), bytes.begin() + frame_header_bytes);
    return bytes;
  }
  const std::vector<std::byte>& number(FrameType type,
                                       const Range& range,
                                       std::span<const std::byte> data,
                                       std::uint16_t flags = 0) {
    history.push_back(frame(type, range, data, flags));
    const auto header = decode_header(
        std::span<const std::byte, frame_header_bytes>(history.back().data(), frame_header_bytes));
    REQUIRE(header.has_value());
    point = advance(point, *header);
    points.push_back(point);
    auto at = images[range.disk].begin() + static_cast<std::ptrdiff_t>(range.offset_bytes);
    if (type == FrameType::write) {
      std::copy(data.begin(), data.end(), at);
    } else {
      std::fill_n(at, range.length_bytes, std::byte{0});
    }
    return history.back();
  }
  const std::vector<std::byte>& write(DiskIndex disk,
                                      std::uint64_t offset,
                                      std::span<const std::byte> data,
                                      std::uint16_t flags = 0) {
    return number(FrameType::write, {disk, offset, data.size()}, data, flags);
  }
  const std::vector<std::byte>& write_pattern(DiskIndex disk,
                                              std::uint64_t offset,
                                              std::size_t length,
                                              std::uint64_t value,
                                              std::uint16_t flags = 0) {
    std::vector<std::byte> data(length);
    std::mt19937_64 random(value);
    for (std::byte& byte : data)
      byte = static_cast<std::byte>(random());
    return write(disk, offset, data, flags);
  }
  const std::vector<std::byte>& zero(DiskIndex disk,
                                     std::uint64_t offset,
                                     std::uint64_t length,
                                     bool may_trim) {
    return number(FrameType::zero, {disk, offset, length}, {}, may_trim ? frame_flag_may_trim : 0);
  }
  const std::vector<std::byte>& trim(DiskIndex disk, std::uint64_t offset, std::uint64_t length) {
    return number(FrameType::trim, {disk, offset, length}, {});
  }
  const std::vector<std::byte>& flush() { return number(FrameType::flush, {}, {}); }

  // --- the connection

  void use(Fd fd) {
    fd_ = std::move(fd);
    reader_ = std::make_unique<FrameReader>(4 * mib);
    marks = {};
  }
  void disconnect() { fd_.reset(); }
  /// Ends a copy, and waits until the replica has it for good.
  void finish_copy() {
    send(encode_copy_end({point}));
    receive_copy_done();
  }
  void receive_copy_done() {
    for (;;) {
      const auto frame = receive();
      REQUIRE(frame.has_value());
      if (frame->header.type == FrameType::watermarks) continue;
      REQUIRE(frame->header.type == FrameType::copy_done);
      CHECK(decode_copy_done(frame->payload)->point == point);
      return;
    }
  }
  void send(std::span<const std::byte> bytes) {
    const auto deadline = std::chrono::steady_clock::now() + test_deadline;
    while (!bytes.empty()) {
      REQUIRE(std::chrono::steady_clock::now() < deadline);
      const std::size_t sent = send_some(bytes, 100);
      bytes = bytes.subspan(sent);
    }
  }
  /// What fits within `timeout_ms`.
  std::size_t send_some(std::span<const std::byte> bytes, int timeout_ms) {
    pollfd waiting{fd_.get(), POLLOUT, 0};
    if (::poll(&waiting, 1, timeout_ms) <= 0) return 0;
    const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    return sent < 0 ? 0 : static_cast<std::size_t>(sent);
  }
  /// The next frame; nullopt at the end of the connection.
  std::optional<OwnedFrame> receive() {
    const auto deadline = std::chrono::steady_clock::now() + test_deadline;
    for (;;) {
      auto frame = reader_->next();
      REQUIRE(frame.has_value());
      if (*frame) {
        return OwnedFrame{(*frame)->header, {(*frame)->payload.begin(), (*frame)->payload.end()}};
      }
      reader_->compact();
      REQUIRE(std::chrono::steady_clock::now() < deadline);
      pollfd waiting{fd_.get(), POLLIN, 0};
      if (::poll(&waiting, 1, 1000) <= 0) continue;
      const auto room = reader_->writable();
      const ssize_t count = ::recv(fd_.get(), room.data(), room.size(), MSG_DONTWAIT);
      if (count <= 0) return std::nullopt;
      reader_->commit(static_cast<std::size_t>(count));
    }
  }
  [[nodiscard]] AttachMessage attach_message() const {
    AttachMessage message;
    message.features = features;
    message.volume = "vm1";
    message.volume_uuid = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9";
    message.primary = "a";
    message.replica = "b";
    message.epoch = epoch;
    for (const auto& image : images)
      message.disk_bytes.push_back(image.size());
    return message;
  }
  /// Connects and attaches; fails the test if refused.
  AttachedMessage attach(ReplicaHost& host) {
    use(host.connect());
    send(encode_attach(attach_message()));
    const auto answer = receive();
    REQUIRE(answer.has_value());
    if (answer->header.type == FrameType::refuse) {
      const auto refused = decode_refuse(answer->payload);
      FAIL("refused: ", refused ? refused->message : std::string("?"));
    }
    REQUIRE(answer->header.type == FrameType::attached);
    const auto attached = decode_attached(answer->payload);
    REQUIRE(attached.has_value());
    return *attached;
  }
  RefuseMessage attach_refused(ReplicaHost& host, const AttachMessage& message) {
    use(host.connect());
    send(encode_attach(message));
    return expect_refuse();
  }
  RefuseMessage expect_refuse() {
    for (;;) {
      const auto frame = receive();
      REQUIRE(frame.has_value());
      if (frame->header.type == FrameType::watermarks) continue;
      REQUIRE(frame->header.type == FrameType::refuse);
      const auto message = decode_refuse(frame->payload);
      REQUIRE(message.has_value());
      return *message;
    }
  }
  /// Attaches and goes on after what the replica has.
  AttachedMessage resume(ReplicaHost& host) {
    AttachedMessage attached = attach(host);
    REQUIRE(attached.consistent);
    REQUIRE(attached.logged.sequence < points.size());
    REQUIRE(attached.logged == points[attached.logged.sequence]);
    send(encode_start({.copy = false, .after = attached.logged.sequence}));
    for (Sequence next = attached.logged.sequence; next < history.size(); ++next)
      send(history[next]);
    return attached;
  }
  /// Asks and waits until `reached(marks)`; checks that no watermark falls and that digests are right.
  void wait_marks(const std::function<bool(const Watermarks&)>& reached) {
    const auto deadline = std::chrono::steady_clock::now() + test_deadline;
    while (!reached(marks)) {
      REQUIRE(std::chrono::steady_clock::now() < deadline);
      send(encode_empty(FrameType::heartbeat));
      const auto frame = receive();
      REQUIRE(frame.has_value());
      take(*frame);
    }
  }
  void take(const OwnedFrame& frame) {
    REQUIRE(frame.header.type == FrameType::watermarks);
    const auto next = decode_watermarks(frame.payload);
    REQUIRE(next.has_value());
    CHECK(next->received >= marks.received);
    CHECK(next->logged >= marks.logged);
    CHECK(next->durable >= marks.durable);
    CHECK(next->applied >= marks.applied);
    REQUIRE(next->received < points.size());
    CHECK(next->logged_digest == points[next->logged].digest);
    CHECK(next->applied_digest == points[next->applied].digest);
    marks = *next;
  }
  void wait_applied() {
    wait_marks([this](const Watermarks& at) { return at.applied == point.sequence; });
  }
  void check_images(const ReplicaHost& host) const {
    for (std::size_t disk = 0; disk < images.size(); ++disk) {
      CAPTURE(disk);
      CHECK((host.image(disk) == images[disk]));
    }
  }

  Watermarks marks;
  std::vector<std::string> features = {std::string(feature_go_on)};  ///< that it says it knows

 private:
  Fd fd_;
  std::unique_ptr<FrameReader> reader_;
};

}  // namespace replicad
