// Frame connections over a ring that cuts short, interrupts, delays and reorders: every frame arrives once,
// whole, in order, both ways, while buffers are held and receiving is paused at random.

#include <algorithm>
#include <cstring>
#include <deque>

#include <doctest/doctest.h>
#include <netinet/in.h>

#include "core/wire/messages.h"
#include "io/file.h"
#include "io/frame_connection.h"
#include "io/net.h"
#include "tests/io/faulty_ring.h"
#include "tests/io/io_fixture.h"

namespace replicad {
namespace {

constexpr DiskIndex queued_disk = 0;  // went through send()
constexpr DiskIndex bulk_disk = 1;    // went through the bulk source

/// The frame number `sequence` of a way: every byte follows from the arguments.
std::vector<std::byte> frame_of(unsigned way, DiskIndex disk, Sequence sequence) {
  std::mt19937_64 random((sequence << 8) + way * 16 + disk);
  const std::size_t kind = random() % 100;
  std::size_t bytes = 1 + random() % 600;
  if (kind < 3) bytes = 1 + random() % data_payload_bytes_max;
  if (kind >= 3 && kind < 30) bytes = 4096;
  std::vector<std::byte> frame(frame_header_bytes + bytes);
  const std::uint64_t word = random();
  constexpr std::size_t period = 7 * 256;
  const std::span<std::byte> payload = std::span(frame).subspan(frame_header_bytes);
  for (std::size_t i = 0; i < std::min(bytes, period); ++i)
    payload[i] = static_cast<std::byte>((word >> (i % 7 * 8)) + i);
  for (std::size_t at = period; at < bytes; at += period)
    std::memcpy(&payload[at], payload.data(), std::min(period, bytes - at));
  FrameHeader header;
  header.type = FrameType::write;
  header.epoch = {1, 2};
  header.sequence = sequence;
  header.range = {disk, sequence * 512, bytes};
  header.payload_bytes = static_cast<std::uint32_t>(bytes);
  header.payload_crc32c = crc32c(std::span<const std::byte>(frame).subspan(frame_header_bytes));
  encode_header(header, std::span(frame).first<frame_header_bytes>());
  return frame;
}

bool is_same(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

/// Bytes of whole frames, handed out in random portions; what was sent is overwritten at once, so that any later
/// use of it by the connection shows at the other end.
class BulkFrames {
 public:
  BulkFrames(unsigned way, Sequence count, std::uint64_t seed)
      : way_(way), count_(count), random_(seed) {}

  FrameConnection::BulkSource source() {
    return {.fill = [this](iovec* vectors, std::size_t room) { return fill(vectors, room); },
            .on_sent = [this](std::size_t bytes) { on_sent(bytes); }};
  }

 private:
  std::size_t fill(iovec* vectors, std::size_t room) {
    CHECK(unsent_ == 0);
    frames_.clear();
    std::size_t used = 0;
    const std::size_t wanted = 1 + random_() % 20;
    while (next_ <= count_ && frames_.size() < wanted && used + 3 <= room) {
      frames_.push_back(frame_of(way_, bulk_disk, next_++));
      auto& frame = frames_.back();
      const std::size_t cut = random_() % frame.size();  // may be 0: an empty vector is allowed
      vectors[used++] = {frame.data(), cut};
      vectors[used++] = {frame.data() + cut, frame.size() - cut};
      unsent_ += frame.size();
    }
    at_ = 0;
    return used;
  }

  void on_sent(std::size_t bytes) {
    REQUIRE(bytes <= unsent_);
    unsent_ -= bytes;
    while (bytes > 0) {
      auto& frame = frames_.front();
      const std::size_t step = std::min(bytes, frame.size() - at_);
      std::fill_n(frame.begin() + static_cast<std::ptrdiff_t>(at_), step, std::byte{0xdd});
      at_ += step;
      bytes -= step;
      if (at_ < frame.size()) return;
      frames_.pop_front();
      at_ = 0;
    }
  }

  unsigned way_;
  Sequence count_;
  std::mt19937_64 random_;
  Sequence next_ = 1;
  std::deque<std::vector<std::byte>> frames_;
  std::size_t at_ = 0;
  std::size_t unsent_ = 0;
};

/// One end: sends its way's frames, checks the other way's.
class Endpoint {
 public:
  Endpoint(Reactor& reactor, Fd socket, unsigned way, Sequence count, std::uint64_t seed)
      : reactor_(reactor),
        way_(way),
        count_(count),
        random_(seed),
        bulk_(way, count, seed + 1),
        connection_(FrameConnection::create(
            reactor,
            std::move(socket),
            frame_header_bytes + data_payload_bytes_max + random_() % 100'000)) {}

  void start(std::function<void()> on_complete) {
    on_complete_ = std::move(on_complete);
    connection_->set_bulk_source(bulk_.source());
    connection_->start({.on_frame = [this](const FrameView& frame) { return on_frame(frame); },
                        .on_batch_end = [this] { send_some(); },
                        .on_closed =
                            [this](const Error& error) {
                              if (!complete_) FAIL_CHECK("closed early: " << error.message);
                              check_held();
                            }});
    send_some();
  }
  void close() { connection_->close({Errc::refused, 0, "test over", {}}); }
  [[nodiscard]] bool is_complete() const { return complete_; }

 private:
  void send_some() {
    for (std::size_t i = random_() % 8; i > 0 && next_queued_ <= count_; --i) {
      connection_->send(frame_of(way_, queued_disk, next_queued_++));
    }
    connection_->kick();
    if (next_queued_ <= count_ && !send_timer_) {
      send_timer_ = true;
      reactor_.add_timer(std::chrono::microseconds(random_() % 500), [this] {
        send_timer_ = false;
        send_some();
      });
    }
  }

  Status on_frame(const FrameView& frame) {
    CHECK_FALSE(paused_);
    const DiskIndex disk = frame.header.range.disk;
    REQUIRE(disk <= bulk_disk);
    Sequence& last = last_received_[disk];
    CHECK(frame.header.sequence == last + 1);
    last = frame.header.sequence;
    const auto expected = frame_of(1 - way_, disk, last);
    const bool equal = is_same(frame.bytes, expected);
    CHECK(equal);
    if (random_() % 4 == 0) hold(frame);
    if (random_() % 50 == 0) pause();
    if (last_received_ == std::array<Sequence, 2>{count_, count_}) {
      complete_ = true;
      on_complete_();
    }
    return {};
  }

  void hold(const FrameView& frame) {
    connection_->hold_buffer();
    held_.emplace_back(frame, std::vector<std::byte>(frame.bytes.begin(), frame.bytes.end()));
    if (held_.size() > 1) return;
    reactor_.add_timer(std::chrono::microseconds(random_() % 300), [this] {
      check_held();
      const std::size_t count = held_.size();
      held_.clear();
      for (std::size_t i = 0; i < count; ++i)
        connection_->release_buffer();
    });
  }
  void check_held() {
    for (const auto& [view, copy] : held_) {
      const bool unchanged = is_same(view.bytes, copy);
      CHECK(unchanged);
    }
  }
  void pause() {
    paused_ = true;
    connection_->pause();
    reactor_.add_timer(std::chrono::microseconds(random_() % 300), [this] {
      paused_ = false;
      connection_->resume();
    });
  }

  Reactor& reactor_;
  unsigned way_;
  Sequence count_;
  std::mt19937_64 random_;
  BulkFrames bulk_;
  std::shared_ptr<FrameConnection> connection_;
  std::function<void()> on_complete_;
  Sequence next_queued_ = 1;
  bool send_timer_ = false;
  bool paused_ = false;
  bool complete_ = false;
  std::array<Sequence, 2> last_received_{};
  std::vector<std::pair<FrameView, std::vector<std::byte>>> held_;
};

std::pair<Fd, Fd> tcp_pair() {
  const auto listener = listen_on("127.0.0.1:0");
  REQUIRE(listener.has_value());
  SocketAddress address;
  address.length = sizeof address.storage;
  REQUIRE(::getsockname(listener->get(),
                        reinterpret_cast<sockaddr*>(&address.storage),
                        &address.length) == 0);
  auto client = make_socket(address);
  REQUIRE(client.has_value());
  REQUIRE(::connect(client->get(), address.get(), address.length) == 0);
  Fd server(::accept(listener->get(), nullptr, nullptr));
  REQUIRE(server.valid());
  tune_socket(server.get());
  return {std::move(*client), std::move(server)};
}

void exchange(std::uint64_t seed, FaultyRing::Faults faults, std::pair<Fd, Fd> sockets) {
  CAPTURE(seed);
  constexpr Sequence count = 1000;
  auto ring = create_uring_ring(32);
  REQUIRE(ring.has_value());
  auto faulty = std::make_unique<FaultyRing>(std::move(*ring), seed, faults);
  FaultyRing& observed = *faulty;
  auto reactor = create_reactor(std::move(faulty));
  Signal both;
  int complete = 0;
  auto left =
      std::make_unique<Endpoint>(*reactor, std::move(sockets.first), 0, count, seed * 2 + 1);
  auto right =
      std::make_unique<Endpoint>(*reactor, std::move(sockets.second), 1, count, seed * 2 + 2);
  {
    ReactorThread running(std::move(reactor));
    const auto on_complete = [&] {
      if (++complete == 2) both.set();
    };
    running.call([&] {
      left->start(on_complete);
      right->start(on_complete);
    });
    CHECK(both.wait(std::chrono::seconds(100)));
    running.call([&] {
      left->close();
      right->close();
    });
    running.stop();
    CHECK(left->is_complete());
    CHECK(right->is_complete());
    const bool has_faults = faults.late + faults.cut_short > 0;
    CHECK((observed.faults_done() > 10) == has_faults);
    left = nullptr;
    right = nullptr;
  }
}

TEST_CASE("faulty ring: frames arrive byte for byte, both ways, whatever the ring does") {
  const std::uint64_t seed = test_seed();
  for (std::uint64_t run = 0; run < 3; ++run) {
    exchange(seed + run,
             {.cut_short = 40, .interrupted = 10, .try_again = 10, .late = 30},
             socket_pair());
    exchange(
        seed + run, {.cut_short = 5, .interrupted = 1, .try_again = 1, .late = 10}, tcp_pair());
  }
  exchange(seed, {}, tcp_pair());
}

TEST_CASE("faulty ring: writes and reads of files end whole although each may be cut short") {
  const std::uint64_t seed = test_seed();
  CAPTURE(seed);
  const TemporaryDirectory directory;
  REQUIRE(create_image(directory.file("image"), 1 << 20).has_value());
  auto image = open_image_locked(directory.file("image"), 1 << 20);
  REQUIRE(image.has_value());
  auto ring = create_uring_ring(16);
  REQUIRE(ring.has_value());
  ReactorThread reactor(create_reactor(std::make_unique<FaultyRing>(
      std::move(*ring), seed, FaultyRing::Faults{.cut_short = 50, .interrupted = 20, .late = 50})));

  std::vector<std::byte> data(300'000);
  std::mt19937_64 random(seed);
  for (auto& byte : data)
    byte = static_cast<std::byte>(random());
  std::size_t done = 0;
  Signal written;
  std::function<void(int)> next = [&](int result) {
    REQUIRE(result > 0);
    done += static_cast<std::size_t>(result);
    if (done == data.size()) {
      written.set();
      return;
    }
    reactor->write(image->get(), std::span(data).subspan(done), done, next);
  };
  reactor.call([&] { reactor->write(image->get(), data, 0, next); });
  REQUIRE(written.wait());
  CHECK(reactor.result_of([&](Reactor& r, Reactor::Done finished) {
    r.fdatasync(image->get(), std::move(finished));
  }) == 0);
  std::vector<std::byte> back(data.size());
  REQUIRE(read_all_at(image->get(), back, 0).has_value());
  CHECK(back == data);
}

TEST_CASE("faulty ring: stop() ends whatever is held back") {
  const std::uint64_t seed = test_seed();
  for (std::uint64_t run = 0; run < 30; ++run) {
    CAPTURE(seed + run);
    auto ring = create_uring_ring(16);
    REQUIRE(ring.has_value());
    auto left_pair = socket_pair();
    Fd& left = left_pair.first;
    std::array<std::byte, 16> buffer{};
    int ended = 0;
    {
      ReactorThread reactor(create_reactor(std::make_unique<FaultyRing>(
          std::move(*ring), seed + run, FaultyRing::Faults{.interrupted = 40, .late = 60})));
      reactor.call([&] {
        for (int i = 0; i < 50; ++i) {
          reactor->recv(left.get(), buffer, [&](int result) {
            CHECK(result == -ECANCELED);
            ++ended;
          });
        }
      });
      reactor.stop();
    }
    CHECK(ended == 50);
  }
}

}  // namespace
}  // namespace replicad
