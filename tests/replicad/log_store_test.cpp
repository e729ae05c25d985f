// The log in use, on a disk that is late or failing.

#include "replicad/log_store.h"

#include "tests/replicad/disk_fault_ring.h"
#include "tests/replicad/replica_fixture.h"

namespace replicad {
namespace {

/// A log without anything around it.
class OpenLog {
 public:
  explicit OpenLog(int spares = 0) : reactor(faulty_reactor(faults)), worker_(Worker::create()) {
    RecoveredLog empty;
    for (int i = 0; i < spares; ++i) {
      auto spare = create_log_file(
          directory_.path(), spare_file_name(empty.next_spare++), segment_bytes_min);
      REQUIRE(spare.has_value());
      empty.spares.push_back(*spare);
    }
    reactor.call([&] {
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
      store->adopt(std::move(empty));
    });
  }
  OpenLog(const OpenLog&) = delete;
  OpenLog& operator=(const OpenLog&) = delete;
  ~OpenLog() {
    release_worker();
    std::promise<void> ended;
    reactor.call([&] { store->stop([&] { ended.set_value(); }); });
    ended.get_future().wait();
    reactor.call([this] { store.reset(); });
  }

  void append() {
    begin_append(4096);
    REQUIRE(wait_until([&] { return logged() == primary_.point.sequence; }));
  }
  void begin_append(std::size_t length) {
    const auto& frame = primary_.write_pattern(0, 0, length, primary_.point.sequence);
    reactor.call([&] {
      const auto owner = std::make_shared<std::vector<std::byte>>(frame);
      store->append(*owner, primary_.point, owner);
    });
  }
  /// Nothing that the worker is to do is done before release_worker(): the sync of the directory, for one.
  void hold_worker() {
    worker_->post([released = held_worker_.get_future().share()] { released.wait(); });
  }
  void release_worker() {
    if (!std::exchange(worker_released_, true)) held_worker_.set_value();
  }
  [[nodiscard]] std::size_t segments() const {
    std::size_t count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(directory_.path()))
      count += entry.path().extension() == ".seg" ? 1U : 0U;
    return count;
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
  std::promise<void> held_worker_;
  bool worker_released_ = false;
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

TEST_CASE("log store: a segment gets its name, and is durable, behind the name of the one before") {
  constexpr std::uint64_t length = 60 * kib;
  constexpr std::uint64_t room =
      segment_bytes_min - segment_header_bytes - (frame_header_bytes + 4096);
  constexpr Sequence first_has = 1 + room / (frame_header_bytes + length);
  OpenLog log(2);
  log.hold_worker();
  log.append();
  const auto synced = log.sync();
  for (Sequence i = 1; i < first_has + 3; ++i)
    log.begin_append(length);
  REQUIRE(wait_until([&] { return log.logged() >= first_has; }));
  for (int i = 0; i < 50; ++i)
    CHECK(log.logged() == first_has);
  CHECK(log.segments() == 1);
  CHECK_FALSE(log.is_answered(synced));
  CHECK(log.durable() == 0);
  log.release_worker();
  REQUIRE(wait_until([&] { return log.logged() == first_has + 3; }));
  CHECK(log.segments() == 2);
  REQUIRE(wait_until([&] { return log.is_answered(synced); }));
  CHECK((**synced).value() == 1);
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
