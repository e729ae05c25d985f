// Comparing with a replica that streams, without one: the test answers in its place.

#include "nbd-plugin/verify_job.h"

#include <mutex>

#include "tests/plugin/served_disk.h"

namespace replicad {
namespace {

constexpr std::uint64_t asked_block = 5;
constexpr std::uint64_t asked_offset = asked_block * 4096;

/// A compare frame as the replica gets it.
struct Asked {
  Range range;
  Sequence after = 0;
  std::vector<Digest> sums;
};

/// A disk with a replica b on the stream, and the reactor that drives its verify.
class VerifiedDisk {
 public:
  VerifiedDisk() : disk_(OnLocalError::hold, Mode::async, {"b"}) {
    auto reactor = Reactor::create();
    REQUIRE(reactor.has_value());
    reactor_ = std::move(*reactor);
    AttachedMessage attached;
    attached.features = {std::string(feature_verify)};
    disk_.bridge().step(primary_event::PeerAttached{0, attached});
    job_ = std::make_shared<VerifyJob>(
        VerifyJob::Context{*reactor_, *worker_, disk_.bridge(), disk_.images(), 0},
        VerifyJob::Hooks{.on_sums = [this](const std::vector<std::byte>& frame) { take(frame); },
                         .on_sync = [this] { ++syncs; },
                         .on_end = [this] { ended = true; }});
    reactor_->set_turn_hook([this] { turn(); });
    thread_ = std::thread([this] { reactor_->run(); });
  }
  VerifiedDisk(const VerifiedDisk&) = delete;
  VerifiedDisk& operator=(const VerifiedDisk&) = delete;
  ~VerifiedDisk() {
    reactor_->stop();
    thread_.join();
    worker_.reset();
    job_.reset();
  }

  ServedDisk& disk() { return disk_; }
  /// On the reactor's thread, waited for.
  template <typename Function>
  auto call(Function function) {
    std::promise<decltype(function(*job_))> result;
    reactor_->post([&] { result.set_value(function(*job_)); });
    return result.get_future().get();
  }
  void start() {
    call([](VerifyJob& job) {
      job.start();
      return true;
    });
  }
  /// The next frame that was sent.
  Asked next() {
    REQUIRE(eventually([this] {
      const std::lock_guard lock(mutex_);
      return !asked_.empty();
    }));
    const std::lock_guard lock(mutex_);
    Asked asked = std::move(asked_.front());
    asked_.erase(asked_.begin());
    return asked;
  }
  [[nodiscard]] bool was_asked() {
    const std::lock_guard lock(mutex_);
    return !asked_.empty();
  }
  Status answer(const Asked& asked, const std::vector<std::uint64_t>& different_blocks) {
    std::vector<bool> differs(asked.sums.size());
    for (const std::uint64_t block : different_blocks)
      differs[block] = true;
    const auto frame = encode_block_diffs(asked.range, differs);
    return call([&](VerifyJob& job) {
      return job.on_diffs(asked.range, std::span(frame).subspan(frame_header_bytes));
    });
  }
  bool is_over() {
    return eventually([this] { return ended.load(); });
  }

  std::atomic<int> syncs{0};
  std::atomic<bool> ended{false};

 private:
  void take(std::span<const std::byte> frame) {
    const auto header = decode_header(frame.first<frame_header_bytes>());
    REQUIRE(header.has_value());
    const std::lock_guard lock(mutex_);
    asked_.push_back(
        {header->range, header->sequence, decode_block_sums(frame.subspan(frame_header_bytes))});
  }
  void turn() {
    std::vector<PrimaryEffect> effects;
    while (disk_.bridge().drain(effects)) {
      for (const PrimaryEffect& effect : effects) {
        if (std::holds_alternative<primary_effect::CopyLocked>(effect)) job_->on_locked();
      }
    }
  }

  ServedDisk disk_;
  std::unique_ptr<Reactor> reactor_;
  std::unique_ptr<Worker> worker_ = Worker::create();
  std::shared_ptr<VerifyJob> job_;
  std::thread thread_;
  std::mutex mutex_;
  std::vector<Asked> asked_;
};

bool is_done(const std::future<int>& answer) {
  return answer.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

struct Seen {
  std::uint64_t found;
  std::uint64_t not_compared;
  std::uint64_t done_bytes;
  bool failed;
};

Seen result_of(VerifiedDisk& verified) {
  return verified.call([](VerifyJob& job) {
    return Seen{job.found().blocks(),
                job.not_compared().blocks(),
                job.done_bytes(),
                job.error().has_value()};
  });
}

}  // namespace

TEST_CASE("verify job: everything is compared once, what is equal is not looked at again") {
  VerifiedDisk verified;
  CHECK(verified.disk().write(8192, 'x').get() == 0);
  verified.start();
  const Asked asked = verified.next();
  CHECK(asked.range == Range{0, 0, image_size});
  CHECK(asked.after == 1);
  std::vector<std::byte> block(4096);
  CHECK(asked.sums[0] == block_sum(block));
  std::fill(block.begin(), block.end(), std::byte{'x'});
  CHECK(asked.sums[2] == block_sum(block));
  CHECK(verified.answer(asked, {}).has_value());
  REQUIRE(verified.is_over());
  const Seen result = result_of(verified);
  CHECK(result.found == 0);
  CHECK(result.not_compared == 0);
  CHECK(result.done_bytes == image_size);
  CHECK_FALSE(result.failed);
  CHECK_FALSE(verified.was_asked());
  // Nothing more is expected.
  CHECK_FALSE(verified.answer(asked, {}).has_value());
}

TEST_CASE("verify job: different is what differs while nothing can be written there") {
  VerifiedDisk verified;
  verified.start();
  CHECK(verified.answer(verified.next(), {asked_block}).has_value());
  const Asked again = verified.next();
  CHECK(again.range == Range{0, asked_offset, 4096});
  // The guest's write waits for the answer, another one does not.
  auto held = verified.disk().write(asked_offset, 'h');
  CHECK(verified.disk().write(0, 'x').get() == 0);
  CHECK_FALSE(is_done(held));
  CHECK(verified.answer(again, {0}).has_value());
  CHECK(held.get() == 0);
  REQUIRE(verified.is_over());
  const Seen result = result_of(verified);
  CHECK(result.found == 1);
  CHECK(result.not_compared == 0);
  CHECK(verified.call([](VerifyJob& job) { return job.found().next(0, 0, mib); }) ==
        Range{0, asked_offset, 4096});
}

TEST_CASE("verify job: a block that was only written to meanwhile is no finding") {
  VerifiedDisk verified;
  verified.start();
  const Asked first = verified.next();
  CHECK(verified.disk().write(asked_offset, 'n').get() == 0);
  CHECK(verified.answer(first, {asked_block}).has_value());
  const Asked again = verified.next();
  CHECK(again.after == 1);  // the write, which the replica is asked to apply
  CHECK(eventually([&] { return verified.syncs == 1; }));
  const std::vector<std::byte> now(4096, std::byte{'n'});
  CHECK(again.sums == std::vector<Digest>{block_sum(now)});
  CHECK(verified.answer(again, {}).has_value());
  REQUIRE(verified.is_over());
  CHECK(result_of(verified).found == 0);
}

TEST_CASE("verify job: no lock is held for longer than a second, and it is tried three times") {
  VerifiedDisk verified;
  verified.start();
  CHECK(verified.answer(verified.next(), {asked_block}).has_value());
  for (unsigned round = 1; round <= VerifyJob::rounds_max; ++round) {
    const Asked asked = verified.next();
    CHECK(asked.range == Range{0, asked_offset, 4096});
    const auto begun = std::chrono::steady_clock::now();
    CHECK(verified.disk().write(asked_offset, 'w').get() == 0);
    CHECK(std::chrono::steady_clock::now() - begun < 30 * VerifyJob::lock_hold_max);
    CHECK_FALSE(verified.ended);
    CHECK(verified.answer(asked, {0}).has_value());
  }
  REQUIRE(verified.is_over());
  const Seen result = result_of(verified);
  CHECK(result.found == 0);
  CHECK(result.not_compared == 1);
  CHECK_FALSE(result.failed);
}

TEST_CASE("verify job: stopped, it ends with the last answer and leaves no lock") {
  VerifiedDisk verified;
  verified.start();
  CHECK(verified.answer(verified.next(), {asked_block}).has_value());
  const Asked again = verified.next();
  verified.call([](VerifyJob& job) {
    job.stop({Errc::refused, 0, "stopped", {}});
    return true;
  });
  CHECK(verified.disk().write(asked_offset, 'w').get() == 0);
  CHECK_FALSE(verified.ended);
  CHECK(verified.answer(again, {0}).has_value());
  REQUIRE(verified.is_over());
  CHECK(result_of(verified).failed);
  CHECK(result_of(verified).found == 0);
}

TEST_CASE("verify job: a replica that goes ends it at once") {
  VerifiedDisk verified;
  verified.start();
  CHECK(verified.answer(verified.next(), {asked_block}).has_value());
  static_cast<void>(verified.next());
  const Error error{Errc::unreachable, 0, "link down", {}};
  verified.disk().bridge().step(primary_event::PeerLost{0, error});
  verified.call([&](VerifyJob& job) {
    job.lost(error);
    return true;
  });
  REQUIRE(verified.is_over());
  CHECK(result_of(verified).failed);
  CHECK(verified.disk().write(asked_offset, 'w').get() == 0);
}

TEST_CASE("verify job: what was written anew is compared once more") {
  VerifiedDisk verified;
  CHECK(verified.disk().write(asked_offset, 'g').get() == 0);
  verified.start();
  CHECK(verified.answer(verified.next(), {asked_block}).has_value());
  CHECK(verified.answer(verified.next(), {0}).has_value());
  REQUIRE(verified.is_over());
  const Range block{0, asked_offset, 4096};
  REQUIRE(verified.disk().bridge().rewrite(block) == 0);
  // As a write of what is there: numbered, with the image as it was.
  CHECK(verified.disk().bridge().look([](const Primary& p) { return p.ring().next() - 1; }) == 2);
  CHECK(verified.disk().bridge().look([](const Primary& p) { return p.ring().at(2).item.kind; }) ==
        static_cast<std::uint8_t>(FrameType::write));
  CHECK(verified.disk().byte_at(asked_offset) == 'g');
  verified.ended = false;
  verified.call([&](VerifyJob& job) {
    BlockMap blocks({image_size});
    blocks.mark(block);
    job.recheck(blocks);
    return true;
  });
  const Asked again = verified.next();
  CHECK(again.range == block);
  CHECK(again.after == 2);
  CHECK(verified.answer(again, {}).has_value());
  REQUIRE(verified.is_over());
  verified.call([](VerifyJob& job) {
    CHECK(job.found().blocks() == 1);
    CHECK(job.different().empty());
    CHECK(job.repaired_blocks() == 1);
    return true;
  });
}

}  // namespace replicad
