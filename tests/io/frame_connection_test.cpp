#include "io/frame_connection.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <string>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>

#include "core/wire/messages.h"
#include "io/file.h"
#include "io/net.h"
#include "tests/io/faulty_ring.h"
#include "tests/io/io_fixture.h"

namespace replicad {
namespace {

constexpr std::size_t reader_bytes = 2 << 20;

std::vector<std::byte> json_frame(const std::string& text) {
  return encode_json_frame(FrameType::agent_event, "\"" + text + "\"");
}

std::string text_of(const FrameView& frame) {
  std::string text(frame.payload.size(), ' ');
  std::memcpy(text.data(), frame.payload.data(), text.size());
  if (text.size() < 2) return text;
  return text.substr(1, text.size() - 2);
}

void write_all(int fd, std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t count = ::send(fd, data.data(), data.size(), MSG_NOSIGNAL);
    REQUIRE(count > 0);
    data = data.subspan(static_cast<std::size_t>(count));
  }
}

/// Everything until the peer's end; fails the test if that does not come.
std::vector<std::byte> read_until_end(int fd) {
  std::vector<std::byte> all;
  std::array<std::byte, 4096> part{};
  for (;;) {
    pollfd waiting{fd, POLLIN, 0};
    REQUIRE(::poll(&waiting, 1, 30'000) == 1);
    const ssize_t count = ::recv(fd, part.data(), part.size(), 0);
    REQUIRE(count >= 0);
    if (count == 0) return all;
    all.insert(all.end(), part.begin(), part.begin() + count);
  }
}

/// The refusal that `bytes`, whole frames, end with.
RefuseMessage last_refusal(std::span<const std::byte> bytes) {
  FrameReader reader(reader_bytes);
  REQUIRE(bytes.size() <= reader.writable().size());
  std::ranges::copy(bytes, reader.writable().begin());
  reader.commit(bytes.size());
  std::optional<RefuseMessage> refusal;
  for (;;) {
    const auto frame = reader.next();
    REQUIRE(frame.has_value());
    if (!*frame) break;
    if ((*frame)->header.type == FrameType::refuse) {
      refusal = decode_refuse((*frame)->payload).value();
    }
  }
  REQUIRE(reader.unread_bytes() == 0);
  REQUIRE(refusal.has_value());
  return *refusal;
}

/// One connection on a reactor, with a raw socket as its peer.
struct Rig {
  explicit Rig(std::unique_ptr<Reactor> own = nullptr) : reactor(std::move(own)) {
    auto left_pair = socket_pair();
    Fd& left = left_pair.first;
    Fd& right = left_pair.second;
    peer = std::move(right);
    reactor.call([&, &socket = left] {
      connection = FrameConnection::create(*reactor, std::move(socket), reader_bytes);
    });
  }
  Rig(const Rig&) = delete;
  Rig& operator=(const Rig&) = delete;
  Rig(Rig&&) = delete;
  Rig& operator=(Rig&&) = delete;
  ~Rig() {
    reactor.stop();
    connection = nullptr;
  }

  FrameConnection::Handlers handlers() {
    return {.on_frame = [this](const FrameView& frame) -> Status {
              texts.push_back(text_of(frame));
              received.set();
              return {};
            },
            .on_batch_end = [this] { ++batches; },
            .on_closed =
                [this](const Error& error) {
                  ++closed_count;
                  closed_error = error;
                  closed.set();
                }};
  }
  void start() {
    reactor.call([this] { connection->start(handlers()); });
  }

  Fd peer;
  std::vector<std::string> texts;
  int batches = 0;
  int closed_count = 0;
  Error closed_error;
  Signal received;
  Signal closed;
  std::shared_ptr<FrameConnection> connection;
  ReactorThread reactor;
};

TEST_CASE("frame connection: queued frames arrive whole and in order") {
  Rig rig;
  rig.start();
  std::vector<std::byte> expected;
  for (int i = 0; i < 3000; ++i) {
    const auto frame = json_frame(std::to_string(i));
    expected.insert(expected.end(), frame.begin(), frame.end());
  }
  rig.reactor.call([&] {
    for (int i = 0; i < 3000; ++i)
      rig.connection->send(json_frame(std::to_string(i)));
    rig.connection->close_after_send({Errc::refused, 0, "done", {}});
    CHECK_FALSE(rig.connection->is_open());
  });
  CHECK(read_until_end(rig.peer.get()) == expected);
  rig.peer.reset();
  REQUIRE(rig.closed.wait());
  CHECK(rig.closed_error.message == "done");
}

TEST_CASE("frame connection: garbage is answered with refuse, then the connection ends") {
  Rig rig;
  rig.start();
  write_all(rig.peer.get(), json_frame("good"));
  write_all(rig.peer.get(),
            std::as_bytes(
                std::span(std::string_view("GET / HTTP/1.1\r\n\r\n"
                                           "and more than a header"
                                           " of plain garbage bytes, so that it is looked at"))));
  const auto refusal = last_refusal(read_until_end(rig.peer.get()));
  CHECK(refusal.code == Errc::protocol);
  CHECK(refusal.message.find("not a replicad frame") != std::string::npos);
  rig.peer.reset();
  REQUIRE(rig.closed.wait());
  rig.reactor.stop();
  CHECK(rig.closed_count == 1);
  CHECK(rig.closed_error.code == Errc::protocol);
  CHECK(rig.texts == std::vector<std::string>{"good"});
}

TEST_CASE("frame connection: an error of on_frame reaches the peer with code, message and hint") {
  Rig rig;
  rig.reactor.call([&] {
    auto handlers = rig.handlers();
    handlers.on_frame = [](const FrameView&) -> Status {
      return with_hint(fail(Errc::stale_epoch, "epoch 3 is over"), "ask the new primary");
    };
    rig.connection->start(std::move(handlers));
  });
  write_all(rig.peer.get(), json_frame("hello"));
  const auto refusal = last_refusal(read_until_end(rig.peer.get()));
  CHECK(refusal.code == Errc::stale_epoch);
  CHECK(refusal.message == "epoch 3 is over");
  CHECK(refusal.hint == "ask the new primary");
  rig.peer.reset();
  REQUIRE(rig.closed.wait());
  CHECK(rig.closed_error.code == Errc::stale_epoch);
}

TEST_CASE("frame connection: the refusal reaches a TCP peer that was still sending") {
  ReactorThread reactor;
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
  Fd accepted(::accept(listener->get(), nullptr, nullptr));
  std::shared_ptr<FrameConnection> connection;
  Signal closed;
  reactor.call([&] {
    connection = FrameConnection::create(*reactor, std::move(accepted), reader_bytes);
    connection->start(
        {.on_frame = [](const FrameView&) -> Status { return fail(Errc::refused, "no"); },
         .on_batch_end = nullptr,
         .on_closed = [&](const Error&) { closed.set(); }});
  });
  // More than both socket buffers hold: without a lingering close the client's data would reset the connection.
  write_all(client->get(), json_frame("first"));
  const std::vector<std::byte> much(32 << 20, std::byte{1});
  write_all(client->get(), much);
  CHECK(last_refusal(read_until_end(client->get())).message == "no");
  client->reset();
  CHECK(closed.wait());
  reactor.call([&] { connection = nullptr; });
}

TEST_CASE("frame connection: the peer's end is reported once, after all its frames") {
  Rig rig;
  write_all(rig.peer.get(), json_frame("a"));
  write_all(rig.peer.get(), json_frame("b"));
  rig.peer.reset();
  rig.start();
  REQUIRE(rig.closed.wait());
  rig.reactor.call([&] { rig.connection->close({Errc::refused, 0, "late", {}}); });
  rig.reactor.stop();
  CHECK(rig.texts == std::vector<std::string>{"a", "b"});
  CHECK(rig.batches >= 1);
  CHECK(rig.closed_count == 1);
  CHECK(rig.closed_error.code == Errc::unreachable);
}

TEST_CASE("frame connection: close() reports its error, once, and not from within the call") {
  Rig rig;
  rig.start();
  rig.reactor.call([&] {
    rig.connection->close({Errc::timeout, 0, "first", {}});
    rig.connection->close({Errc::refused, 0, "second", {}});
    CHECK(rig.closed_count == 0);
    CHECK_FALSE(rig.connection->is_open());
    rig.connection->send(json_frame("never sent"));
  });
  REQUIRE(rig.closed.wait());
  CHECK(read_until_end(rig.peer.get()).empty());
  rig.reactor.stop();
  CHECK(rig.closed_count == 1);
  CHECK(rig.closed_error.message == "first");
}

TEST_CASE("frame connection: a connection closed before start() still reports it") {
  Rig rig;
  rig.reactor.call([&] { rig.connection->close({Errc::refused, 0, "early", {}}); });
  rig.reactor.call([] {});
  rig.start();
  REQUIRE(rig.closed.wait());
  CHECK(rig.closed_error.message == "early");
}

TEST_CASE("frame connection: the end of the reactor closes it") {
  Rig rig;
  rig.start();
  rig.reactor.stop();
  CHECK(rig.closed_count == 1);
}

TEST_CASE("frame connection: start() inside on_frame hands the rest to the new handlers") {
  Rig rig;
  std::vector<std::string> first;
  rig.reactor.call([&] {
    rig.connection->start({.on_frame = [&](const FrameView& frame) -> Status {
                             first.push_back(text_of(frame));
                             rig.connection->start(rig.handlers());
                             return {};
                           },
                           .on_batch_end = nullptr,
                           .on_closed = nullptr});
  });
  std::vector<std::byte> three;
  for (const char* text : {"1", "2", "3"}) {
    const auto frame = json_frame(text);
    three.insert(three.end(), frame.begin(), frame.end());
  }
  write_all(rig.peer.get(), three);
  rig.peer.reset();
  REQUIRE(rig.closed.wait());
  rig.reactor.stop();
  CHECK(first == std::vector<std::string>{"1"});
  CHECK(rig.texts == std::vector<std::string>{"2", "3"});
}

TEST_CASE(
    "frame connection: pause() inside on_frame keeps the rest until resume() or new handlers") {
  Rig rig;
  rig.reactor.call([&] {
    auto handlers = rig.handlers();
    handlers.on_frame = [&](const FrameView& frame) -> Status {
      rig.texts.push_back(text_of(frame));
      rig.connection->pause();
      rig.received.set();
      return {};
    };
    rig.connection->start(std::move(handlers));
  });
  auto both = json_frame("1");
  const auto second = json_frame("2");
  both.insert(both.end(), second.begin(), second.end());
  write_all(rig.peer.get(), both);
  rig.peer.reset();
  REQUIRE(rig.received.wait());
  for (int i = 0; i < 20; ++i)
    rig.reactor.call([] {});
  rig.reactor.call([&] {
    CHECK(rig.texts == std::vector<std::string>{"1"});
    CHECK(rig.closed_count == 0);
    rig.connection->start(rig.handlers());
    rig.connection->resume();
  });
  REQUIRE(rig.closed.wait());
  rig.reactor.stop();
  CHECK(rig.texts == std::vector<std::string>{"1", "2"});
}

TEST_CASE("frame connection: letting go of it inside a callback is safe and ends the callbacks") {
  Rig rig;
  std::atomic<int> calls{0};
  rig.reactor.call([&] {
    auto witness = std::make_shared<std::string>("alive while its handler runs");
    rig.connection->start({.on_frame = [&rig, &calls, witness](const FrameView&) -> Status {
                             ++calls;
                             rig.connection = nullptr;
                             CHECK(*witness == "alive while its handler runs");
                             return {};
                           },
                           .on_batch_end = [&calls] { ++calls; },
                           .on_closed = [&calls](const Error&) { ++calls; }});
  });
  auto both = json_frame("1");
  const auto second = json_frame("2");
  both.insert(both.end(), second.begin(), second.end());
  write_all(rig.peer.get(), both);
  CHECK(read_until_end(rig.peer.get()).empty());
  rig.reactor.stop();
  CHECK(calls == 1);
}

TEST_CASE("frame connection: letting go of it in on_closed is safe") {
  Rig rig;
  Signal gone;
  rig.reactor.call([&] {
    rig.connection->start({.on_frame = [](const FrameView&) -> Status { return {}; },
                           .on_batch_end = nullptr,
                           .on_closed =
                               [&](const Error&) {
                                 rig.connection = nullptr;
                                 gone.set();
                               }});
  });
  rig.peer.reset();
  CHECK(gone.wait());
}

TEST_CASE(
    "frame connection: what close_after_send() queued goes out although the last user let go") {
  Rig rig;
  rig.start();
  rig.reactor.call([&] {
    rig.connection->send(json_frame("farewell"));
    rig.connection->close_after_send({Errc::refused, 0, "bye", {}});
    rig.connection = nullptr;
  });
  CHECK(read_until_end(rig.peer.get()) == json_frame("farewell"));
}

TEST_CASE("frame connection: close_after_send() gives up on a peer that does not read") {
  Rig rig;
  rig.start();
  const auto start = std::chrono::steady_clock::now();
  rig.reactor.call([&] {
    for (int i = 0; i < 40; ++i) {
      rig.connection->send(json_frame(std::string(control_payload_bytes_max - 2, 'x')));
    }
    rig.connection->close_after_send({Errc::refused, 0, "bye", {}});
  });
  REQUIRE(rig.closed.wait());
  const auto spent = std::chrono::steady_clock::now() - start;
  CHECK(spent >= std::chrono::milliseconds(4900));
  CHECK(rig.closed_error.message == "bye");
}

TEST_CASE("frame connection: a peer that never reads cannot make the queue grow without bound") {
  Rig rig;
  rig.start();
  rig.reactor.call([&] {
    const auto frame = json_frame(std::string(control_payload_bytes_max - 2, 'x'));
    for (int i = 0; i < 400 && rig.connection->is_open(); ++i)
      rig.connection->send(frame);
    CHECK_FALSE(rig.connection->is_open());
  });
  REQUIRE(rig.closed.wait());
  CHECK(rig.closed_error.code == Errc::unreachable);
}

TEST_CASE(
    "frame connection: the last words of a peer that closed are read although sending fails") {
  const std::uint64_t seed = test_seed();
  // Which completion comes first, the received words or the failed send, is up to the ring.
  for (std::uint64_t run = 0; run < 40; ++run) {
    CAPTURE(seed + run);
    auto ring = create_uring_ring(16);
    REQUIRE(ring.has_value());
    Rig rig(create_reactor(std::make_unique<FaultyRing>(
        std::move(*ring), seed + run, FaultyRing::Faults{.late = 50})));
    write_all(rig.peer.get(), encode_refuse({Errc::refused, "not today", {}}));
    rig.peer.reset();
    std::vector<FrameType> types;
    rig.reactor.call([&] {
      auto handlers = rig.handlers();
      handlers.on_frame = [&](const FrameView& frame) -> Status {
        types.push_back(frame.header.type);
        return {};
      };
      rig.connection->start(std::move(handlers));
      rig.connection->send(json_frame("into the void"));
    });
    REQUIRE(rig.closed.wait());
    rig.reactor.stop();
    CHECK(types == std::vector<FrameType>{FrameType::refuse});
    CHECK(rig.closed_count == 1);
  }
}

TEST_CASE("frame connection: held frames stay valid, a full buffer stops receiving until release") {
  Rig rig;
  std::vector<FrameView> held;
  std::vector<std::vector<std::byte>> copies;
  rig.reactor.call([&] {
    auto handlers = rig.handlers();
    handlers.on_frame = [&](const FrameView& frame) -> Status {
      rig.connection->hold_buffer();
      held.push_back(frame);
      copies.emplace_back(frame.bytes.begin(), frame.bytes.end());
      return {};
    };
    rig.connection->start(std::move(handlers));
  });
  // Twice the buffer: the peer's writer must get stuck until the buffer is released.
  constexpr std::size_t payload_bytes = 200'000;
  constexpr std::size_t frames = 2 * reader_bytes / payload_bytes;
  Signal written;
  std::thread writer([&] {
    for (std::size_t i = 0; i < frames; ++i) {
      write_all(rig.peer.get(), json_frame(std::string(payload_bytes, static_cast<char>('a' + i))));
    }
    written.set();
  });
  const auto held_count = [&] {
    std::size_t count = 0;
    rig.reactor.call([&] { count = held.size(); });
    return count;
  };
  constexpr std::size_t fit = reader_bytes / (payload_bytes + 66);
  const auto deadline = std::chrono::steady_clock::now() + test_deadline;
  while (held_count() < fit && std::chrono::steady_clock::now() < deadline)
    std::this_thread::yield();
  CHECK_FALSE(written.wait(std::chrono::milliseconds(100)));
  CHECK(held_count() == fit);
  std::size_t seen = 0;
  while (seen < frames && std::chrono::steady_clock::now() < deadline) {
    rig.reactor.call([&] {
      for (std::size_t i = 0; i < held.size(); ++i) {
        CHECK(std::ranges::equal(held[i].bytes, copies[i]));
      }
      seen += held.size();
      const std::size_t releases = held.size();
      held.clear();
      copies.clear();
      for (std::size_t i = 0; i < releases; ++i)
        rig.connection->release_buffer();
    });
  }
  CHECK(seen == frames);
  writer.join();
}

TEST_CASE("frame connection: bulk memory is the caller's again when on_closed came") {
  Rig rig;
  std::vector<std::byte> bulk(64 << 20, std::byte{7});
  std::size_t filled = 0;
  std::size_t sent = 0;
  rig.reactor.call([&] {
    rig.connection->set_bulk_source({.fill =
                                         [&](iovec* vectors, std::size_t) {
                                           if (filled > 0) return std::size_t{0};
                                           filled = bulk.size();
                                           vectors[0] = {bulk.data(), bulk.size()};
                                           return std::size_t{1};
                                         },
                                     .on_sent = [&](std::size_t bytes) { sent += bytes; }});
    rig.connection->start(rig.handlers());
    rig.connection->kick();
  });
  std::array<std::byte, 4096> some{};
  REQUIRE(::recv(rig.peer.get(), some.data(), some.size(), 0) > 0);
  rig.reactor.call([&] { rig.connection->close({Errc::refused, 0, "enough", {}}); });
  REQUIRE(rig.closed.wait());
  CHECK(sent < bulk.size());
  // What the kernel took was copied: changing the memory now must not change the stream.
  std::ranges::fill(bulk, std::byte{9});
  for (const std::byte byte : read_until_end(rig.peer.get()))
    REQUIRE(byte == std::byte{7});
}

}  // namespace
}  // namespace replicad
