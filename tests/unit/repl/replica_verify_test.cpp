// Comparing on a stream (`verify`): the replica reads only when it has applied what the primary's sums hold.

#include <doctest/doctest.h>

#include "tests/unit/repl/replica_world.h"

namespace replicad {
namespace {

FrameHeader sums(Sequence after, const Range& range = {0, 4096, 8192}) {
  FrameHeader header;
  header.type = FrameType::block_sums;
  header.sequence = after;
  header.range = range;
  header.payload_bytes = 32;
  return header;
}

/// Streams, `frames` logged, for a primary that knows `verify`.
struct Verified {
  ReplicaWorld world;
  FrameSource source;

  explicit Verified(int frames, bool knows_verify = true) {
    AttachMessage message = ReplicaWorld::attach_message(first_epoch);
    if (knows_verify) message.features = {std::string(feature_verify)};
    const SessionId id = world.attach_as(message);
    world.finish_records();
    REQUIRE(world.attached.has_value());
    CHECK(has_feature(world.attached->features, feature_verify));
    world.step(replica_event::StartArrived{id, {.copy = false, .after = 0}});
    for (int i = 0; i < frames; ++i)
      world.frame(source.next(first_epoch));
    world.log_all();
    if (world.syncing) world.finish_sync();
  }
};

}  // namespace

TEST_CASE("verify: blocks are read when the sequence is applied, not before") {
  Verified verified(3);
  ReplicaWorld& world = verified.world;
  world.frame(sums(2));
  world.frame(sums(0));
  CHECK(world.verified == 1);  // there is nothing to wait for
  world.frame(sums(5));        // is on its way
  CHECK(world.verifies == std::vector<Sequence>{2, 5});
  world.apply(verified.source.at(1));
  CHECK(world.verified == 1);
  world.apply(verified.source.at(3));
  CHECK(world.verified == 2);
  world.frame(sums(3));
  CHECK(world.verified == 3);
  world.frame(verified.source.next(first_epoch));
  world.frame(verified.source.next(first_epoch));
  world.log_all();
  CHECK(world.verifies == std::vector<Sequence>{5});
  if (!world.syncing) world.pass(std::chrono::seconds(1));
  world.finish_sync();
  world.apply(verified.source.at(5));
  CHECK(world.verifies.empty());
  CHECK(world.verified == 4);
}

TEST_CASE("verify: while a stage is on its way into the images nothing is read") {
  Verified verified(2);
  ReplicaWorld& world = verified.world;
  world.step(replica_event::StartArrived{1, {.copy = true, .after = 10, .keep = true}});
  if (world.syncing) world.finish_sync();
  world.apply(verified.source.point());
  world.finish_image_sync();
  world.finish_record();
  world.finish_drop();
  FrameSource live(HistoryPoint{first_epoch, 10, {3, 4}});
  world.frame(live.next(first_epoch));
  world.step(replica_event::CopyEndArrived{1, live.point()});
  world.finish_stage_sync();
  world.finish_record();
  REQUIRE(world.copy_done.has_value());
  world.frame(sums(0));
  world.frame(sums(11));
  CHECK(world.verified == 0);
  SUBCASE("it is when it is there") {
    world.finish_unstaging();
    world.finish_image_sync();
    world.finish_record();
    CHECK(world.verified == 2);
  }
  SUBCASE("nor then, if its session has gone") {
    world.step(replica_event::SessionClosed{1});
    world.finish_unstaging();
    world.finish_image_sync();
    world.finish_record();
    CHECK(world.verified == 0);
  }
}

TEST_CASE("verify: what waited goes with its session") {
  Verified verified(1);
  ReplicaWorld& world = verified.world;
  world.frame(sums(1));
  world.step(replica_event::SessionClosed{*world.replica.session()});
  world.apply(verified.source.at(1));
  CHECK(world.verified == 0);
}

TEST_CASE(
    "verify: refused from a primary that has not said it, out of bounds, and beyond all numbers") {
  const auto refusal = [](const FrameHeader& header, bool knows_verify = true) {
    Verified verified(1, knows_verify);
    verified.world.frame(header);
    check_refused(verified.world, Errc::protocol);
    CHECK(verified.world.verifies.empty());
    return verified.world.refused->message;
  };
  CHECK(refusal(sums(1), false).find("out of place") != std::string::npos);
  FrameHeader other = sums(1);
  other.type = FrameType::copy_data;
  CHECK(refusal(other).find("out of place") != std::string::npos);
  CHECK(refusal(sums(1, {0, world_disk_bytes, 8192})).find("beyond disk") != std::string::npos);
  CHECK(refusal(sums(1, {2, 0, 8192})).find("names disk 2") != std::string::npos);
  CHECK(refusal(sums(counter_max + 1)).find("compare at sequence") != std::string::npos);

  ReplicaWorld world;  // nothing has started
  AttachMessage message = ReplicaWorld::attach_message(first_epoch);
  message.features = {std::string(feature_verify)};
  world.attach_as(message);
  world.finish_records();
  REQUIRE(world.attached.has_value());
  world.frame(sums(0));
  check_refused(world, Errc::protocol);
}

}  // namespace replicad
