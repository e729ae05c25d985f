#include "io/medium_sums.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "core/base/limits.h"
#include "io/fd.h"

namespace replicad {
namespace {

TEST_CASE("medium sums: data, holes, a short last block, and by block what cannot be read") {
  std::string pattern = (std::filesystem::temp_directory_path() / "rd-sums-XXXXXX").string();
  const Fd file(::mkstemp(pattern.data()));
  REQUIRE(file.valid());
  const std::vector<std::byte> data(4096, std::byte{7});
  REQUIRE(::pwrite(file.get(), data.data(), data.size(), 8192) == 4096);
  REQUIRE(::ftruncate(file.get(), mib + 512) == 0);
  const std::vector<std::byte> zeroes(4096);
  const Digest zero = block_sum(zeroes);

  MediumReader reader(file.get());
  const MediumSums first = reader.read(4096, 12288);
  CHECK(first.sys_errno == 0);
  CHECK(first.sums == std::vector<Digest>{zero, block_sum(data), zero});
  CHECK(first.unreadable == std::vector<bool>{false, false, false});

  const MediumSums last = reader.read(mib - 4096, 4096 + 512);
  CHECK(last.sums == std::vector<Digest>{zero, block_sum(std::span(zeroes).first(512))});

  // Beyond the end nothing can be read; what is before still is.
  REQUIRE(::pwrite(file.get(), data.data(), data.size(), mib - 4096) == 4096);
  REQUIRE(::ftruncate(file.get(), mib) == 0);
  const MediumSums cut = reader.read(mib - 4096, 8192);
  CHECK(cut.sys_errno != 0);
  CHECK(cut.unreadable == std::vector<bool>{false, true});
  CHECK(cut.sums[0] == block_sum(data));
  std::filesystem::remove(pattern);
}

/// What this process had disks read for it.
std::uint64_t bytes_from_disks() {
  std::ifstream file("/proc/self/io");
  std::string name;
  std::uint64_t value = 0;
  while (file >> name >> value) {
    if (name == "read_bytes:") return value;
  }
  return 0;
}

TEST_CASE(
    "medium sums: the medium is read, once, however large the pieces that the kernel caches") {
  // Where the tests were built: what is for temporary files may be a tmpfs, which has no medium.
  const std::filesystem::path directory = std::filesystem::current_path();
  struct statfs info {};
  REQUIRE(::statfs(directory.c_str(), &info) == 0);
  REQUIRE(info.f_type != TMPFS_MAGIC);
  std::string pattern = (directory / "rd-sums-XXXXXX").string();
  const Fd file(::mkstemp(pattern.data()));
  REQUIRE(file.valid());
  constexpr std::uint64_t size = 48 * mib;
  const std::vector<std::byte> data(size, std::byte{7});
  REQUIRE(::pwrite(file.get(), data.data(), data.size(), 0) == static_cast<ssize_t>(size));
  REQUIRE(::fdatasync(file.get()) == 0);

  const std::uint64_t before = bytes_from_disks();
  {
    MediumReader reader(file.get());
    for (std::uint64_t at = 0; at < size; at += mib)
      CHECK(reader.read(at, mib).sys_errno == 0);
  }
  CHECK(bytes_from_disks() - before >= size);
  CHECK(bytes_from_disks() - before < size + size / 4);

  // Nothing of it is left in the cache.
  void* map = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.get(), 0);
  REQUIRE(map != MAP_FAILED);
  std::vector<unsigned char> resident(size / 4096);
  CHECK(::mincore(map, size, resident.data()) == 0);
  ::munmap(map, size);
  CHECK(std::ranges::count_if(resident, [](unsigned char page) { return (page & 1) != 0; }) == 0);
  std::filesystem::remove(pattern);
}

}  // namespace
}  // namespace replicad
