// Syncs of a replica's images, on a disk that is late or failing.

#include <array>
#include <filesystem>
#include <fstream>

#include "replicad/replica_images.h"
#include "tests/replicad/disk_fault_ring.h"
#include "tests/replicad/replica_fixture.h"

namespace replicad {
namespace {

constexpr std::uint64_t image_set_bytes = 64 * kib;

class OpenImages {
 public:
  using Answer = std::shared_ptr<std::optional<Status>>;

  OpenImages() : reactor(faulty_reactor(faults)) {
    const std::string path = directory_.path() + "/image";
    REQUIRE(create_image(path, image_set_bytes).has_value());
    DiskState disk;
    disk.name = "vda";
    disk.bytes = image_set_bytes;
    disk.path = path;
    images = ImageSet::open({disk}).value();
  }

  Answer sync() {
    auto answer = std::make_shared<std::optional<Status>>();
    reactor.call(
        [&] { images->sync(*reactor, [answer](Status status) { *answer = std::move(status); }); });
    return answer;
  }
  void write() {
    const std::vector<std::byte> bytes(4096, std::byte{7});
    REQUIRE(write_all_at(images->fd(0), bytes, 0).has_value());
    reactor.call([this] { images->note_written({0, 0, 4096}); });
  }
  bool is_answered(const Answer& answer) {
    return reactor.call([&] { return answer->has_value(); });
  }

  std::shared_ptr<DiskFaults> faults = std::make_shared<DiskFaults>();
  ReactorThread reactor;
  std::shared_ptr<ImageSet> images;

 private:
  TempDirectory directory_;
};

}  // namespace

TEST_CASE("image set: a sync with nothing of its own to do waits for the one before it") {
  OpenImages open;
  open.write();
  open.faults->hold_syncs = true;
  const auto first = open.sync();
  const auto second = open.sync();
  for (int i = 0; i < 50; ++i)
    CHECK_FALSE(open.is_answered(second));
  CHECK_FALSE(open.is_answered(first));
  open.faults->hold_syncs = false;
  REQUIRE(wait_until([&] { return open.is_answered(second); }));
  CHECK((*first)->has_value());
  CHECK((*second)->has_value());
}

TEST_CASE("image set: a sync that fails takes the ones behind it along") {
  OpenImages open;
  open.write();
  open.faults->failing_syncs = 1;
  const auto first = std::make_shared<std::optional<Status>>();
  const auto second = std::make_shared<std::optional<Status>>();
  open.reactor.call([&] {
    open.images->sync(*open.reactor, [first](Status status) { *first = std::move(status); });
    open.images->note_written({0, 0, 4096});
    open.images->sync(*open.reactor, [second](Status status) { *second = std::move(status); });
  });
  REQUIRE(wait_until([&] { return open.is_answered(second); }));
  CHECK_FALSE((*first)->has_value());
  CHECK_FALSE((*second)->has_value());
  // It is tried again then.
  const auto third = open.sync();
  REQUIRE(wait_until([&] { return open.is_answered(third); }));
  CHECK((*third)->has_value());
}

TEST_CASE("image set: what is read after its cache was dropped is what was written") {
  OpenImages open;
  open.write();
  REQUIRE(open.images->drop_cache().has_value());
  std::array<std::byte, 8192> bytes{};
  REQUIRE(read_all_at(open.images->fd(0), bytes, 0).has_value());
  CHECK(bytes[4095] == std::byte{7});
  CHECK(bytes[4096] == std::byte{0});
}

}  // namespace replicad
