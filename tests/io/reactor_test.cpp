#include "io/reactor.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <vector>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <netinet/in.h>

#include "io/clock.h"
#include "io/file.h"
#include "io/net.h"
#include "tests/io/io_fixture.h"

namespace replicad {
namespace {

std::vector<std::byte> pattern(std::size_t bytes, unsigned start) {
  std::vector<std::byte> data(bytes);
  for (std::size_t i = 0; i < bytes; ++i)
    data[i] = static_cast<std::byte>((i * 31 + start) & 0xff);
  return data;
}

TEST_CASE("reactor: file operations move bytes and report errors") {
  const TemporaryDirectory directory;
  ReactorThread reactor;
  REQUIRE(create_image(directory.file("image"), 1 << 20).has_value());
  const Fd fd(::open(directory.file("image").c_str(), O_RDWR | O_CLOEXEC));
  auto data = pattern(10'000, 7);
  auto more = pattern(5000, 9);
  const std::array<iovec, 2> vectors{{{data.data(), 100}, {more.data(), more.size()}}};

  CHECK(reactor.result_of([&](Reactor& r, Reactor::Done done) {
    r.write(fd.get(), data, 4096, std::move(done));
  }) == 10'000);
  CHECK(reactor.result_of([&](Reactor& r, Reactor::Done done) {
    r.writev(fd.get(), vectors.data(), 2, 100'000, 8192, std::move(done));
  }) == 5100);
  CHECK(reactor.result_of(
            [&](Reactor& r, Reactor::Done done) { r.fdatasync(fd.get(), std::move(done)); }) == 0);
  std::vector<std::byte> back(10'000);
  CHECK(reactor.result_of([&](Reactor& r, Reactor::Done done) {
    r.read(fd.get(), back, 4096, std::move(done));
  }) == 10'000);
  CHECK(back == data);
  back.resize(5000);
  CHECK(reactor.result_of([&](Reactor& r, Reactor::Done done) {
    r.read(fd.get(), back, 100'100, std::move(done));
  }) == 5000);
  CHECK(back == more);
  CHECK(reactor.result_of([&](Reactor& r, Reactor::Done done) {
    r.fallocate(fd.get(), 0, 2 << 20, 4096, std::move(done));
  }) == 0);
  CHECK(image_bytes(fd.get()).value() == (2U << 20) + 4096);
  CHECK(reactor.result_of([&](Reactor& r, Reactor::Done done) {
    r.read(-1, back, 0, std::move(done));
  }) == -EBADF);
}

TEST_CASE("reactor: accepts, connects, sends and receives over TCP") {
  ReactorThread reactor;
  const auto listener = listen_on("127.0.0.1:0");
  REQUIRE(listener.has_value());
  SocketAddress address;
  address.length = sizeof address.storage;
  REQUIRE(::getsockname(listener->get(),
                        reinterpret_cast<sockaddr*>(&address.storage),
                        &address.length) == 0);
  CHECK(address.is_local());
  const auto client = make_socket(address);
  REQUIRE(client.has_value());
  std::promise<int> accepted;
  reactor.call([&] {
    reactor->accept(listener->get(), [&](int result) { accepted.set_value(result); });
    SocketAddress gone = address;  // the reactor keeps its own copy
    reactor->connect(
        client->get(), gone.get(), gone.length, [](int result) { CHECK(result == 0); });
    gone = SocketAddress{};
  });
  auto future = accepted.get_future();
  REQUIRE(future.wait_for(test_deadline) == std::future_status::ready);
  const Fd server(future.get());
  REQUIRE(server.valid());
  CHECK((::fcntl(server.get(), F_GETFD) & FD_CLOEXEC) != 0);
  tune_socket(server.get());

  auto data = pattern(3000, 1);
  std::vector<std::byte> back(3000);
  std::array<iovec, 2> vectors{{{data.data(), 1000}, {data.data() + 1000, 2000}}};
  msghdr message{};
  message.msg_iov = vectors.data();
  message.msg_iovlen = vectors.size();
  CHECK(reactor.result_of([&](Reactor& r, Reactor::Done done) {
    r.sendmsg(client->get(), &message, std::move(done));
  }) == 3000);
  std::size_t received = 0;
  while (received < back.size()) {
    const int count = reactor.result_of([&](Reactor& r, Reactor::Done done) {
      r.recv(server.get(), std::span(back).subspan(received), std::move(done));
    });
    REQUIRE(count > 0);
    received += static_cast<std::size_t>(count);
  }
  CHECK(back == data);
}

TEST_CASE("reactor: many more operations at once than the queue has room for all end") {
  const TemporaryDirectory directory;
  auto small = Reactor::create(8);
  REQUIRE(small.has_value());
  ReactorThread reactor(std::move(*small));
  REQUIRE(create_image(directory.file("image"), 1 << 20).has_value());
  const Fd fd(::open(directory.file("image").c_str(), O_RDWR | O_CLOEXEC));
  constexpr std::size_t count = 5000;
  std::vector<std::byte> data(count, std::byte{5});
  std::atomic<std::size_t> good{0};
  Signal all;
  reactor.call([&] {
    for (std::size_t i = 0; i < count; ++i) {
      reactor->write(fd.get(), std::span(data).subspan(i, 1), i, [&](int result) {
        if (result == 1 && ++good == count) all.set();
      });
    }
  });
  CHECK(all.wait());
  std::vector<std::byte> back(count);
  REQUIRE(read_all_at(fd.get(), back, 0).has_value());
  CHECK(back == data);
}

TEST_CASE("reactor: operations and timers queued before run() start with it") {
  auto created = Reactor::create();
  REQUIRE(created.has_value());
  auto left_pair = socket_pair();
  Fd& left = left_pair.first;
  Fd& right = left_pair.second;
  std::array<std::byte, 4> buffer{};
  Signal received;
  Signal fired;
  Signal cancelled;
  auto idle_pair = socket_pair();
  Fd& idle = idle_pair.first;
  std::array<std::byte, 4> idle_buffer{};
  (*created)->recv(left.get(), buffer, [&](int result) {
    CHECK(result == 2);
    received.set();
  });
  (*created)->recv(idle.get(), idle_buffer, [&](int result) {
    CHECK(result == -ECANCELED);
    cancelled.set();
  });
  (*created)->cancel_fd(idle.get());
  (*created)->add_timer(std::chrono::milliseconds(1), [&] { fired.set(); });
  ReactorThread reactor(std::move(*created));
  REQUIRE(::write(right.get(), "ab", 2) == 2);
  CHECK(received.wait());
  CHECK(fired.wait());
  CHECK(cancelled.wait());
}

TEST_CASE("reactor: timers fire in order of time, not before it, and not after cancel_timer") {
  ReactorThread reactor;
  std::vector<int> order;
  Instant start;
  Instant end;
  Signal last;
  reactor.call([&] {
    start = boot_time_now();
    reactor->add_timer(std::chrono::milliseconds(40), [&] {
      order.push_back(3);
      end = boot_time_now();
      last.set();
    });
    const auto never =
        reactor->add_timer(std::chrono::milliseconds(20), [&] { order.push_back(9); });
    reactor->add_timer(std::chrono::milliseconds(10), [&] { order.push_back(1); });
    reactor->add_timer(std::chrono::milliseconds(10), [&] { order.push_back(2); });
    reactor->add_timer(std::chrono::nanoseconds(0), [&] { order.push_back(0); });
    reactor->cancel_timer(never);
    reactor->cancel_timer(never);
    reactor->cancel_timer(12345);
  });
  REQUIRE(last.wait());
  CHECK(order == std::vector<int>{0, 1, 2, 3});
  CHECK(end - start >= std::chrono::milliseconds(40));
}

TEST_CASE("reactor: a timer that cancels another one due in the same turn keeps it from firing") {
  ReactorThread reactor;
  int fired = 0;
  Signal done;
  Reactor::TimerId second = 0;
  reactor.call([&] {
    reactor->add_timer(std::chrono::nanoseconds(0), [&] {
      reactor->cancel_timer(second);
      reactor->add_timer(std::chrono::milliseconds(5), [&] { done.set(); });
    });
    second = reactor->add_timer(std::chrono::nanoseconds(0), [&] { ++fired; });
  });
  REQUIRE(done.wait());
  CHECK(fired == 0);
}

TEST_CASE("reactor: posted functions run once each, in the order of each thread's calls") {
  ReactorThread reactor;
  constexpr int threads = 4;
  constexpr int each = 20'000;
  std::array<int, threads> next{};
  int wrong = 0;
  std::vector<std::thread> posters;
  for (int t = 0; t < threads; ++t) {
    posters.emplace_back([&, t] {
      for (int i = 0; i < each; ++i) {
        reactor->post([&, t, i] {
          if (next[static_cast<std::size_t>(t)]++ != i) ++wrong;
        });
      }
    });
  }
  for (auto& poster : posters)
    poster.join();
  reactor.call([&] {
    for (const int count : next)
      CHECK(count == each);
    CHECK(wrong == 0);
  });
}

TEST_CASE("reactor: no wake-up is lost, whenever it comes") {
  ReactorThread reactor;
  // The reactor has no timer and no traffic: a lost wake-up is a hang. Lock-step hits the edge of sleeping.
  std::atomic<int> asked{0};
  std::atomic<int> answered{0};
  reactor.call([&] { reactor->set_turn_hook([&] { answered = asked.load(); }); });
  const auto deadline = std::chrono::steady_clock::now() + test_deadline;
  for (int i = 1; i <= 20'000; ++i) {
    asked = i;
    reactor->wake();
    while (answered != i && std::chrono::steady_clock::now() < deadline)
      std::this_thread::yield();
    REQUIRE(answered == i);
  }
  reactor.call([&] { reactor->set_turn_hook(nullptr); });
}

TEST_CASE("reactor: wake-ups of several threads all lead to a turn, while operations run") {
  ReactorThread reactor;
  auto left_pair = socket_pair();
  Fd& left = left_pair.first;
  Fd& right = left_pair.second;
  std::array<std::atomic<int>, 3> asked{};
  std::array<std::atomic<int>, 3> answered{};
  std::array<std::byte, 256> buffer{};
  std::function<void(int)> again = [&](int result) {
    if (result > 0) reactor->recv(left.get(), buffer, again);
  };
  reactor.call([&] {
    reactor->set_turn_hook([&] {
      for (std::size_t i = 0; i < asked.size(); ++i)
        answered[i] = asked[i].load();
    });
    reactor->recv(left.get(), buffer, again);
  });
  std::atomic<bool> ending{false};
  std::thread traffic([&] {
    while (!ending)
      CHECK(::write(right.get(), "x", 1) == 1);
  });
  std::atomic<int> lost{0};
  std::vector<std::thread> wakers;
  for (std::size_t t = 0; t < asked.size(); ++t) {
    wakers.emplace_back([&, t] {
      const auto deadline = std::chrono::steady_clock::now() + test_deadline;
      for (int i = 1; i <= 3000; ++i) {
        asked[t] = i;
        reactor->wake();
        while (answered[t] != i && std::chrono::steady_clock::now() < deadline) {
          std::this_thread::yield();
        }
        if (answered[t] != i) ++lost;
      }
    });
  }
  for (auto& waker : wakers)
    waker.join();
  ending = true;
  traffic.join();
  CHECK(lost == 0);
  reactor.call([&] { reactor->set_turn_hook(nullptr); });
  right.reset();
  reactor.stop();
}

TEST_CASE("reactor: cancel_fd ends what waits on that descriptor only") {
  ReactorThread reactor;
  auto left_pair = socket_pair();
  Fd& left = left_pair.first;
  auto other_pair = socket_pair();
  Fd& other = other_pair.first;
  Fd& other_peer = other_pair.second;
  std::array<std::byte, 8> buffer{};
  std::array<std::byte, 8> other_buffer{};
  std::promise<int> first;
  std::promise<int> second;
  reactor.call([&] {
    reactor->recv(left.get(), buffer, [&](int result) { first.set_value(result); });
    reactor->recv(other.get(), other_buffer, [&](int result) { second.set_value(result); });
  });
  reactor.call([&] {
    reactor->cancel_fd(left.get());
    left.reset();
  });
  CHECK(first.get_future().get() == -ECANCELED);
  auto future = second.get_future();
  REQUIRE(::write(other_peer.get(), "abc", 3) == 3);
  REQUIRE(future.wait_for(test_deadline) == std::future_status::ready);
  CHECK(future.get() == 3);
}

TEST_CASE("reactor: a descriptor may be closed right after cancel_fd, in the turn it was used in") {
  ReactorThread reactor;
  std::promise<int> result;
  std::array<std::byte, 8> buffer{};
  int number = -1;
  Fd replacement_peer;
  Fd replacement;
  auto left_pair = socket_pair();
  Fd& left = left_pair.first;
  reactor.call([&] {
    number = left.get();
    reactor->recv(number, buffer, [&](int value) { result.set_value(value); });
    reactor->cancel_fd(number);
    left.reset();
    auto a_pair = socket_pair();
    Fd& a = a_pair.first;
    Fd& b = a_pair.second;  // takes the same number
    REQUIRE(a.get() == number);
    CHECK(::write(b.get(), "wrong", 5) == 5);
    replacement = std::move(a);
    replacement_peer = std::move(b);
  });
  CHECK(result.get_future().get() == -ECANCELED);
}

TEST_CASE("reactor: stop() cancels what is in flight, runs its callbacks and refuses more") {
  auto left_pair = socket_pair();
  Fd& left = left_pair.first;
  std::array<std::byte, 8> buffer{};
  int cancelled = 0;
  int refused = 0;
  bool posted = false;
  {
    ReactorThread reactor;
    reactor.call([&] {
      for (int i = 0; i < 100; ++i) {
        reactor->recv(left.get(), buffer, [&](int result) {
          if (result == -ECANCELED) ++cancelled;
          reactor->recv(left.get(), buffer, [&](int again) {
            if (again == -ECANCELED) ++refused;
          });
          reactor->post([&] { posted = true; });
        });
      }
      reactor->add_timer(std::chrono::hours(1), [] { FAIL("a timer ran after stop()"); });
    });
    reactor.stop();
  }
  CHECK(cancelled == 100);
  CHECK(refused == 100);
  CHECK(posted);
}

TEST_CASE("reactor: stop() before run() lets run() return at once") {
  auto created = Reactor::create();
  REQUIRE(created.has_value());
  (*created)->stop();
  (*created)->run();
}

TEST_CASE(
    "reactor: at_turn_end runs once, after the callbacks of the turn, also what it adds itself") {
  ReactorThread reactor;
  std::vector<int> order;
  Signal done;
  reactor.call([&] {
    reactor->at_turn_end([&] {
      order.push_back(2);
      reactor->at_turn_end([&] {
        order.push_back(3);
        done.set();
      });
    });
    order.push_back(1);
  });
  REQUIRE(done.wait());
  CHECK(order == std::vector<int>{1, 2, 3});
}

}  // namespace
}  // namespace replicad
