#include "io/medium_sums.h"

#include <filesystem>
#include <string>

#include <doctest/doctest.h>
#include <fcntl.h>
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

  const MediumSums first = read_medium_sums(file.get(), 4096, 12288);
  CHECK(first.sys_errno == 0);
  CHECK(first.sums == std::vector<Digest>{zero, block_sum(data), zero});
  CHECK(first.unreadable == std::vector<bool>{false, false, false});

  const MediumSums last = read_medium_sums(file.get(), mib - 4096, 4096 + 512);
  CHECK(last.sums == std::vector<Digest>{zero, block_sum(std::span(zeroes).first(512))});

  // Beyond the end nothing can be read; what is before still is.
  REQUIRE(::pwrite(file.get(), data.data(), data.size(), mib - 4096) == 4096);
  REQUIRE(::ftruncate(file.get(), mib) == 0);
  const MediumSums cut = read_medium_sums(file.get(), mib - 4096, 8192);
  CHECK(cut.sys_errno != 0);
  CHECK(cut.unreadable == std::vector<bool>{false, true});
  CHECK(cut.sums[0] == block_sum(data));
  std::filesystem::remove(pattern);
}

}  // namespace
}  // namespace replicad
