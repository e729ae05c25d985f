// The log in use, on a disk that is late or failing.

#include "replicad/log_store.h"

#include "tests/replicad/disk_fault_ring.h"
#include "tests/replicad/replica_fixture.h"

namespace replicad {
namespace {

/// A log without anything around it.
class OpenLog {
 public:
  OpenLog() : reactor(faulty_reactor(faults)), worker_(Worker::create()) {
    reactor.call([this] {
      store = std::make_shared<LogStore>(
          *reactor,
          *worker_,
          directory_.path(),
          "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9",
          LogStore::Hooks{.on_logged = [](Sequence) {},
                          .on_durable = {},
                          .on_full = {},
                          .on_error = [](const Error&) {},
                          .limits =
                              [] {
                                return LogStore::Limits{segment_bytes_min, 16 * segment_bytes_min};
                              }});
      store->adopt({});
    });
  }
  OpenLog(const OpenLog&) = delete;
  OpenLog& operator=(const OpenLog&) = delete;
  ~OpenLog() {
    std::promise<void> ended;
    reactor.call([&] { store->stop([&] { ended.set_value(); }); });
    ended.get_future().wait();
    reactor.call([this] { store.reset(); });
  }

  void append() {
    const auto& frame = primary_.write_pattern(0, 0, 4096, primary_.point.sequence);
    reactor.call([&] {
      store->append(frame, primary_.point, std::make_shared<std::vector<std::byte>>(frame));
    });
    REQUIRE(wait_until([&] { return logged() == primary_.point.sequence; }));
  }
  std::shared_ptr<std::optional<Result<Sequence>>> sync() {
    auto answer = std::make_shared<std::optional<Result<Sequence>>>();
    reactor.call(
        [&] { store->sync([answer](Result<Sequence> through) { *answer = std::move(through); }); });
    return answer;
  }
  bool is_answered(const std::shared_ptr<std::optional<Result<Sequence>>>& answer) {
    return reactor.call([&] { return answer->has_value(); });
  }
  Sequence logged() {
    return reactor.call([this] { return store->logged().sequence; });
  }
  Sequence durable() {
    return reactor.call([this] { return store->durable(); });
  }

  std::shared_ptr<DiskFaults> faults = std::make_shared<DiskFaults>();
  ReactorThread reactor;
  std::shared_ptr<LogStore> store;

 private:
  TempDirectory directory_;
  std::unique_ptr<Worker> worker_;
  FakePrimary primary_{{64 * kib}};
};

}  // namespace

TEST_CASE("log store: a sync with nothing of its own to do waits for the one before it") {
  OpenLog log;
  log.append();
  log.faults->hold_syncs = true;
  const auto first = log.sync();
  const auto second = log.sync();
  for (int i = 0; i < 50; ++i)
    CHECK_FALSE(log.is_answered(second));
  CHECK_FALSE(log.is_answered(first));
  CHECK(log.durable() == 0);
  log.faults->hold_syncs = false;
  REQUIRE(wait_until([&] { return log.is_answered(second); }));
  CHECK((**first).value() == 1);
  CHECK((**second).value() == 1);
  CHECK(log.durable() == 1);
}

TEST_CASE("log store: a sync that fails takes the ones behind it along") {
  OpenLog log;
  log.append();
  log.faults->failing_syncs = 1;
  const auto first = log.sync();
  const auto second = log.sync();
  REQUIRE(wait_until([&] { return log.is_answered(second); }));
  CHECK_FALSE((**first).has_value());
  CHECK_FALSE((**second).has_value());
  CHECK(log.durable() == 0);
}

}  // namespace replicad
