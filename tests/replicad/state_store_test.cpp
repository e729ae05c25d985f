#include "replicad/state_store.h"

#include <doctest/doctest.h>
#include <sys/resource.h>

#include "replicad/reactor_call.h"
#include "tests/replicad/daemon_fixture.h"

namespace replicad {
namespace {

VolumeState sample_state() {
  VolumeState state;
  state.name = "vm1";
  state.uuid = fixture_uuid;
  state.disks = {{"vda", mib, "/images/vda.raw", false}};
  state.members = {{"a", "127.0.0.1:1", "127.0.0.1:2"}};
  state.primary = "a";
  return state;
}

/// A reactor in a thread, a worker, and one store in a directory of its own.
class StoreFixture {
 public:
  StoreFixture() {
    auto reactor = Reactor::create();
    REQUIRE(reactor.has_value());
    reactor_ = std::move(*reactor);
    worker_ = Worker::create();
    thread_ = std::thread([this] { reactor_->run(); });
    open(VolumeState{});
  }
  StoreFixture(const StoreFixture&) = delete;
  StoreFixture& operator=(const StoreFixture&) = delete;
  ~StoreFixture() {
    run_on_reactor(*reactor_, [this] { store_.reset(); });
    worker_.reset();
    reactor_->stop();
    thread_.join();
  }

  void open(const VolumeState& state) {
    run_on_reactor(*reactor_, [&] { replace_store(state); });
  }
  /// On the reactor's thread.
  void replace_store(const VolumeState& state) {
    store_ = std::make_unique<StateStore>(*reactor_, *worker_, path(), state);
  }
  [[nodiscard]] std::string path() const { return dir_.path() + "/state"; }
  [[nodiscard]] std::string directory() const { return dir_.path(); }
  Status update(StateStore::Change change) {
    return call_reactor<void>(
        *reactor_, [&](auto done) { store_->update(std::move(change), std::move(done)); });
  }
  VolumeState state() {
    return run_on_reactor(*reactor_, [this] { return store_->state(); });
  }
  Reactor& reactor() { return *reactor_; }
  StateStore& store() { return *store_; }

 private:
  DaemonDir dir_;
  std::unique_ptr<Reactor> reactor_;
  std::unique_ptr<Worker> worker_;
  std::thread thread_;
  std::unique_ptr<StateStore> store_;
};

StateStore::Change set_epoch(std::uint64_t number) {
  return [number](VolumeState& state) -> Status {
    state.epoch = {number, 7};
    return {};
  };
}

Status become_sample(VolumeState& state) {
  state = sample_state();
  return {};
}

TEST_CASE("state store: a change is on disk when its done is called") {
  StoreFixture fixture;
  REQUIRE(fixture.update(become_sample).has_value());
  REQUIRE(fixture.update(set_epoch(3)).has_value());
  const auto loaded = StateStore::load(fixture.path());
  REQUIRE(loaded.has_value());
  CHECK(*loaded == fixture.state());
  CHECK(loaded->epoch.number == 3);
  CHECK(loaded->generation == 2);
}

TEST_CASE(
    "state store: changes are applied in the order of the calls, each to what the last one left") {
  StoreFixture fixture;
  REQUIRE(fixture.update(become_sample).has_value());
  std::vector<std::uint64_t> seen;
  constexpr std::uint64_t count = 20;
  const Status last = call_reactor<void>(fixture.reactor(), [&](auto done) {
    for (std::uint64_t i = 1; i <= count; ++i) {
      fixture.store().update(
          [&seen](VolumeState& state) -> Status {
            seen.push_back(state.epoch.number);
            ++state.epoch.number;
            return {};
          },
          i == count ? done : [](const Status& status) { CHECK(status.has_value()); });
    }
    CHECK(seen.empty());  // never inside update()
  });
  REQUIRE(last.has_value());
  for (std::uint64_t i = 0; i < count; ++i)
    CHECK(seen.at(i) == i);
  CHECK(StateStore::load(fixture.path())->epoch.number == count);
}

TEST_CASE("state store: a refused or invalid change leaves file and state as they were") {
  StoreFixture fixture;
  REQUIRE(fixture.update(become_sample).has_value());
  const std::string before = file_text(fixture.path());
  const Status refused = fixture.update([](VolumeState& state) -> Status {
    state.epoch.number = 99;
    return fail(Errc::stale_epoch, "no");
  });
  CHECK(refused.error().code == Errc::stale_epoch);
  const Status invalid = fixture.update([](VolumeState& state) -> Status {
    state.disks.clear();
    return {};
  });
  CHECK(invalid.error().code == Errc::invalid_argument);
  CHECK(file_text(fixture.path()) == before);
  CHECK(fixture.state().epoch.number == 0);
  CHECK(fixture.state().disks.size() == 1);
}

TEST_CASE("state store: a write that fails keeps the old state, and later ones work") {
  StoreFixture fixture;
  REQUIRE(fixture.update(become_sample).has_value());
  const std::string before = file_text(fixture.path());
  // Every write of this process beyond a few bytes fails with EFBIG.
  rlimit old_limit{};
  ::getrlimit(RLIMIT_FSIZE, &old_limit);
  const auto old_handler = ::signal(SIGXFSZ, SIG_IGN);
  rlimit tiny = old_limit;
  tiny.rlim_cur = 16;
  ::setrlimit(RLIMIT_FSIZE, &tiny);
  const Status failed = fixture.update(set_epoch(5));
  ::setrlimit(RLIMIT_FSIZE, &old_limit);
  ::signal(SIGXFSZ, old_handler);
  REQUIRE_FALSE(failed.has_value());
  CHECK(file_text(fixture.path()) == before);
  CHECK(fixture.state().epoch.number == 0);
  CHECK(fixture.update(set_epoch(6)).has_value());
  CHECK(StateStore::load(fixture.path())->epoch.number == 6);
}

TEST_CASE("state store: its stamp says what was loaded, and begins anew with a raised generation") {
  StoreFixture fixture;
  REQUIRE(fixture.update(become_sample).has_value());
  REQUIRE(fixture.update(set_epoch(3)).has_value());
  const auto stamp = [&] {
    return run_on_reactor(fixture.reactor(), [&] { return fixture.store().stamp(); });
  };
  const StateStamp first = stamp();
  CHECK(first.generation == 2);
  CHECK(first.loaded == 0);
  fixture.open(*StateStore::load(fixture.path()));
  const StateStamp second = stamp();
  CHECK(second.generation == 2);
  CHECK(second.loaded == 2);
  CHECK(second.start != first.start);
  CHECK(knows_of(second, first));
  const Status raised = fixture.update([](VolumeState& state) -> Status {
    state.generation = 100;
    return {};
  });
  REQUIRE(raised.has_value());
  CHECK(stamp() == StateStamp{101, second.start, 100});
  // Whatever another process had told of it.
  CHECK(knows_of(stamp(), {100, 5, 3}));
}

TEST_CASE("state store: what it remembers goes to the disk with the next change, of members only") {
  StoreFixture fixture;
  REQUIRE(fixture
              .update([](VolumeState& state) -> Status {
                state = sample_state();
                state.members.push_back({"b", "127.0.0.1:3", "127.0.0.1:4"});
                return {};
              })
              .has_value());
  const auto remember_both = [&](std::uint64_t generation) {
    fixture.store().remember("b", {generation, 9, 1});
    fixture.store().remember("gone", {generation, 9, 1});
  };
  run_on_reactor(fixture.reactor(), [&] { remember_both(4); });
  CHECK(fixture.state().stamps.at("b").generation == 4);
  CHECK(StateStore::load(fixture.path())->stamps.empty());
  // Also what is heard of while a change is being written.
  const Status written = call_reactor<void>(fixture.reactor(), [&](auto done) {
    fixture.store().update(
        [&](VolumeState& state) -> Status {
          remember_both(5);
          ++state.epoch.number;
          return {};
        },
        done);
  });
  REQUIRE(written.has_value());
  CHECK(StateStore::load(fixture.path())->stamps.at("b").generation == 4);
  CHECK(fixture.state().stamps.at("b").generation == 5);
  REQUIRE(fixture.update(set_epoch(9)).has_value());
  CHECK(StateStore::load(fixture.path())->stamps.at("b").generation == 5);
  REQUIRE(fixture
              .update([](VolumeState& state) -> Status {
                state.members.pop_back();
                state.stamps.clear();
                return {};
              })
              .has_value());
  CHECK(fixture.state().stamps.empty());
}

TEST_CASE("state store: what a crash in the middle of a write leaves is the old state") {
  StoreFixture fixture;
  REQUIRE(fixture.update(become_sample).has_value());
  // A temporary file that was never renamed lies beside the state.
  std::ofstream(fixture.path() + ".tmp") << "half a st";
  std::ofstream(fixture.path() + ".new") << "half a st";
  CHECK(*StateStore::load(fixture.path()) == fixture.state());
  REQUIRE(fixture.update(set_epoch(2)).has_value());
  CHECK(StateStore::load(fixture.path())->epoch.number == 2);
}

TEST_CASE("state store: every truncation and every flipped byte is recognised") {
  StoreFixture fixture;
  REQUIRE(fixture.update(become_sample).has_value());
  const std::string good = file_text(fixture.path());
  const std::string other = fixture.directory() + "/damaged";
  for (std::size_t i = 0; i < good.size(); ++i) {
    std::string damaged = good;
    damaged[i] = static_cast<char>(damaged[i] ^ 1);
    std::ofstream(other, std::ios::trunc) << damaged;
    const auto flipped = StateStore::load(other);
    REQUIRE_FALSE(flipped.has_value());
    CHECK(flipped.error().message.find(other) != std::string::npos);
    std::ofstream(other, std::ios::trunc) << good.substr(0, i);
    REQUIRE_FALSE(StateStore::load(other).has_value());
  }
  CHECK(StateStore::load(fixture.directory() + "/none").error().code == Errc::not_found);
}

TEST_CASE("state store: destroyed with a change on its way, it calls nobody") {
  StoreFixture fixture;
  REQUIRE(fixture.update(become_sample).has_value());
  bool called = false;
  run_on_reactor(fixture.reactor(), [&] {
    fixture.store().update(set_epoch(4), [&called](const Status&) { called = true; });
    // In the same turn: later it may have been called rightly.
    fixture.replace_store(sample_state());
  });
  CHECK(fixture.update(set_epoch(9)).has_value());
  CHECK_FALSE(called);
}

}  // namespace
}  // namespace replicad
