// Images that were there before the volume: they become the primary's in place.
#include <filesystem>
#include <fstream>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>

#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

namespace fs = std::filesystem;

std::string make_image(const std::string& path, std::uint64_t bytes) {
  std::ofstream file(path, std::ios::binary);
  for (std::uint64_t at = 0; at < bytes; at += 2 * mib_bytes) {
    const std::string part(mib_bytes, static_cast<char>('a' + at / mib_bytes % 26));
    file.seekp(static_cast<std::streamoff>(at));
    file << part;
  }
  file.close();
  fs::resize_file(path, bytes);
  return path;
}

/// A loop device over a file, detached at the end (needs root).
class LoopDevice {
 public:
  explicit LoopDevice(const std::string& file) {
    path_ = run_ok({"losetup", "--find", "--show", file}).out;
    while (!path_.empty() && path_.back() == '\n')
      path_.pop_back();
  }
  LoopDevice(const LoopDevice&) = delete;
  LoopDevice& operator=(const LoopDevice&) = delete;
  ~LoopDevice() {
    try {
      run({"losetup", "--detach", path_});
    } catch (const HarnessError&) {
      // Nothing more can be done about it here.
    }
  }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

void check_adopted(Cluster& cluster, const std::string& path, const std::string& original) {
  cluster.activate();
  // The copies were made beside live writes.
  cluster.wait_streaming();
  run_ok({"qemu-img", "compare", "-f", "raw", "-F", "raw", original, cluster.uri()});
  {
    NbdClient client(cluster.uri());
    const std::vector<std::byte> block(65536, std::byte{0x42});
    client.write(5 * mib_bytes, block);
    client.flush();
  }
  cluster.stop_and_compare();
  CHECK(cluster.image_path("a") == path);
  CHECK(cluster.volume("a").at("disks").at(0).at("adopted") == true);
  CHECK(cluster.volume("b").at("disks").at(0).at("adopted") == false);
  // Without us it is a plain raw image, with the guest's write in it.
  const std::string image = cluster.image_path("b");
  cluster.ctl_ok({"--yes", "delete", "vm1", "--force"});
  CHECK(fs::exists(path));
  CHECK_FALSE(fs::exists(image));
  run_ok({"qemu-io", "-f", "raw", "-c", "read -P 0x42 5M 64k", "-c", "read -P 97 0 4k", path});
}

TEST_CASE("adopt: a raw file becomes the primary's image in place and is copied to the others") {
  Cluster cluster(3);
  const std::string path = make_image(cluster.directory() + "/old.raw", 32 * mib_bytes);
  const std::string original = cluster.directory() + "/original.raw";
  fs::copy_file(path, original);
  cluster.ctl_ok({"create", "vm1", "--adopt=" + path, "--primary=a", "--on=a,b,c"});
  check_adopted(cluster, path, original);
}

TEST_CASE("adopt: a loop device becomes the primary's image") {
  Cluster cluster(2);
  const std::string file = make_image(cluster.directory() + "/device.raw", 32 * mib_bytes);
  const std::string original = cluster.directory() + "/original.raw";
  fs::copy_file(file, original);
  const LoopDevice device(file);
  cluster.ctl_ok({"create", "vm1", "--adopt=" + device.path(), "--primary=a", "--on=a,b"});
  check_adopted(cluster, device.path(), original);
}

TEST_CASE("adopt: a loop device whose content or file was replaced is refused") {
  Cluster cluster(2);
  const std::string file = make_image(cluster.directory() + "/device.raw", 32 * mib_bytes);
  const std::string older = cluster.directory() + "/older.raw";
  fs::copy_file(file, older);
  auto device = std::make_unique<LoopDevice>(file);
  cluster.ctl_ok({"create", "vm1", "--adopt=" + device->path(), "--primary=a", "--on=a,b"});
  cluster.activate();
  cluster.wait_streaming();
  {
    NbdClient client(cluster.uri());
    client.write(5 * mib_bytes, std::vector<std::byte>(65536, std::byte{0x42}));
  }
  cluster.deactivate();
  const auto refusal = [&] {
    const Finished refused = cluster.ctl({"activate", "vm1"});
    CHECK(refused.exit_code != 0);
    return refused.err;
  };
  // A device has no time of its last change: the blocks written last tell it.
  cluster.host("a").stop();
  run_ok({"dd", "if=" + older, "of=" + device->path(), "bs=1M", "conv=fsync"});
  cluster.host("a").start();
  CHECK(refusal().find("its content at offset") != std::string::npos);
  // Another file behind the same device.
  cluster.host("a").stop();
  const std::string name = device->path();
  run_ok({"losetup", "--detach", name});
  run_ok({"losetup", name, older});
  cluster.host("a").start();
  CHECK(refusal().find("it is another file or device") != std::string::npos);
}

TEST_CASE("adopt: the holes of an adopted image are not copied") {
  Cluster cluster(2);
  const std::string path = make_image(cluster.directory() + "/old.raw", 32 * mib_bytes);
  cluster.ctl_ok({"create", "vm1", "--adopt=" + path, "--primary=a", "--on=a,b"});
  cluster.activate();
  cluster.wait_streaming();
  cluster.stop_and_compare();
  CHECK(allocated_bytes(path) <= 17 * mib_bytes);
  CHECK(allocated_bytes(cluster.image_path("b")) <= 17 * mib_bytes);
}

TEST_CASE("adopt: a file in use, a missing one and one that is adopted already are refused") {
  Cluster cluster(2);
  const std::string path = make_image(cluster.directory() + "/old.raw", 8 * mib_bytes);
  const auto create = [&](const std::string& name, const std::string& image) {
    return cluster.ctl(
        {"create", name, "--adopt=" + image, "--size=8M", "--primary=a", "--on=a,b"});
  };
  CHECK(create("vm1", cluster.directory() + "/nothing.raw").exit_code != 0);
  CHECK(create("vm1", cluster.directory()).exit_code != 0);
  REQUIRE(create("vm1", path).exit_code == 0);
  CHECK(create("vm2", path).exit_code != 0);
  CHECK(cluster.ctl_json({"list"}).at("volumes").size() == 1);
  CHECK(cluster.ctl({"status", "vm2"}).exit_code == 5);
}

}  // namespace
}  // namespace replicad::e2e
