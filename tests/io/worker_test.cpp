#include "io/worker.h"

#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "tests/io/io_fixture.h"

namespace replicad {
namespace {

TEST_CASE(
    "worker: runs every function in order on another thread, and all of them before it ends") {
  std::vector<int> order;
  std::thread::id id;
  {
    const auto worker = Worker::create();
    for (int i = 0; i < 1000; ++i)
      worker->post([&, i] { order.push_back(i); });
    worker->post([&] {
      id = std::this_thread::get_id();
      worker->post([&] { order.push_back(1000); });
    });
  }
  REQUIRE(order.size() == 1001);
  for (int i = 0; i <= 1000; ++i)
    CHECK(order[static_cast<std::size_t>(i)] == i);
  CHECK(id != std::this_thread::get_id());
}

TEST_CASE("worker: lets go of a function once it ran") {
  const auto worker = Worker::create();
  auto object = std::make_shared<int>(1);
  const std::weak_ptr<int> observer = object;
  worker->post([held = std::move(object)] {});
  Signal done;
  worker->post([&] { done.set(); });
  REQUIRE(done.wait());
  CHECK(observer.expired());
}

}  // namespace
}  // namespace replicad
