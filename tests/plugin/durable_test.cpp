// What follows a failed sync of the primary's image (nbd-plugin/durable_fds.h, write_back.h).
#include <latch>

#include "io/file.h"
#include "nbd-plugin/write_back.h"
#include "tests/plugin/served_disk.h"

namespace replicad {
namespace {

/// An image of 1 MiB with content in its first half, and a directory for the mark.
struct Image {
  std::string directory;
  std::string path;

  Image() {
    std::string pattern = (std::filesystem::temp_directory_path() / "rd-durable-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    directory = pattern;
    path = directory + "/vda.raw";
    const Fd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    REQUIRE(file.valid());
    REQUIRE(::ftruncate(file.get(), image_size) == 0);
    const std::vector<char> bytes(writable_size, 'x');
    REQUIRE(::pwrite(file.get(), bytes.data(), bytes.size(), 0) ==
            static_cast<ssize_t>(bytes.size()));
  }
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;
  ~Image() { std::filesystem::remove_all(directory); }

  [[nodiscard]] std::string mark() const { return failed_sync_mark(directory); }
  [[nodiscard]] bool is_marked() const { return std::filesystem::exists(mark()); }
  [[nodiscard]] std::vector<DiskImage> open() const {
    std::vector<DiskImage> images;
    auto image = DiskImage::open({.name = "vda", .bytes = image_size, .path = path}, mark());
    REQUIRE(image.has_value());
    images.push_back(std::move(*image));
    return images;
  }
};

}  // namespace

TEST_CASE("durable: one failure is the end, also for those who were told of a success meanwhile") {
  const Image image;
  const Fd fd(::open(image.path.c_str(), O_RDWR | O_CLOEXEC));
  auto fds = DurableFds::open(fd.get(), image.path, image.mark());
  REQUIRE(fds.has_value());
  CHECK((*fds)->run(false, [](int) { return 0; }) == 0);
  std::latch begun(1);
  std::latch failed(1);
  auto other = std::async(std::launch::async, [&] {
    return (*fds)->run(false, [&](int) {
      begun.count_down();
      failed.wait();
      return 0;  // the kernel has told somebody else
    });
  });
  begun.wait();
  CHECK_FALSE(image.is_marked());
  CHECK((*fds)->run(false, [](int) { return EIO; }) == EIO);
  CHECK(image.is_marked());
  failed.count_down();
  CHECK(other.get() == EIO);
  bool tried = false;
  CHECK((*fds)->run(false, [&](int) {
    tried = true;
    return 0;
  }) == EIO);
  CHECK_FALSE(tried);
  CHECK((*fds)->has_failed());
}

TEST_CASE("durable: operations at the same time have descriptors of their own") {
  const Image image;
  const Fd fd(::open(image.path.c_str(), O_RDWR | O_CLOEXEC));
  auto fds = DurableFds::open(fd.get(), image.path, {});
  REQUIRE(fds.has_value());
  std::latch both(2);
  const auto use = [&] {
    int mine = -1;
    CHECK((*fds)->run(false, [&](int own) {
      mine = own;
      both.arrive_and_wait();
      return 0;
    }) == 0);
    return mine;
  };
  auto first = std::async(std::launch::async, use);
  auto second = std::async(std::launch::async, use);
  const int a = first.get();
  const int b = second.get();
  CHECK(a != b);
  CHECK(a != fd.get());
  CHECK(b != fd.get());
}

TEST_CASE(
    "durable: a write for which there is no room is told and changes nothing, a sync is lost") {
  const Image image;
  const Fd fd(::open(image.path.c_str(), O_RDWR | O_CLOEXEC));
  auto fds = DurableFds::open(fd.get(), image.path, image.mark());
  REQUIRE(fds.has_value());
  CHECK((*fds)->run(true, [](int) { return ENOSPC; }) == ENOSPC);
  CHECK((*fds)->run(true, [](int) { return 0; }) == 0);
  CHECK_FALSE(image.is_marked());
  CHECK((*fds)->run(false, [](int) { return ENOSPC; }) == ENOSPC);
  CHECK((*fds)->run(true, [](int) { return 0; }) == EIO);
  CHECK(image.is_marked());
}

TEST_CASE("durable: an image's failed durable write poisons its syncs and leaves the mark") {
  const Image image;
  const auto images = image.open();
  const std::vector<std::byte> data(4096, std::byte{1});
  {
    const HalfDisk half;
    CHECK(images[0].write(data, writable_size, true) == EFBIG);
  }
  CHECK(images[0].sync() == EIO);
  CHECK(images[0].write(data, 0, true) == EIO);
  CHECK(images[0].write(data, 0, false) == 0);
  CHECK(image.is_marked());
}

TEST_CASE("write back: with the mark everything named is written again, then the mark goes") {
  const Image image;
  const std::vector<Range> all{{0, 0, image_size}};
  SUBCASE("no mark, nothing to do") {
    const HalfDisk none(0);
    CHECK(write_back_again(image.mark(), image.open(), all).has_value());
  }
  SUBCASE("it is written, holes stay holes") {
    REQUIRE(write_file_durably(image.mark(), "x").has_value());
    const auto images = image.open();
    CHECK(write_back_again(image.mark(), images, all).has_value());
    CHECK_FALSE(image.is_marked());
    std::vector<std::byte> bytes(image_size);
    REQUIRE(images[0].read(bytes, 0) == 0);
    CHECK(bytes[writable_size - 1] == std::byte{'x'});
    CHECK(bytes[writable_size] == std::byte{0});
    CHECK(images[0].extent_at(writable_size).is_hole);
  }
  SUBCASE("it still fails: the mark stays") {
    REQUIRE(write_file_durably(image.mark(), "x").has_value());
    const auto images = image.open();
    const HalfDisk little(writable_size / 2);
    const Status status = write_back_again(image.mark(), images, all);
    REQUIRE_FALSE(status.has_value());
    CHECK(status.error().message.find(image.path) != std::string::npos);
    CHECK(image.is_marked());
  }
}

}  // namespace replicad
