#include "io/image_identity.h"

#include <cstdio>
#include <filesystem>
#include <fstream>

#include <fcntl.h>

#include "io/file.h"
#include "tests/io/io_fixture.h"

namespace replicad {
namespace {

constexpr std::uint64_t file_size = 1 << 20;

std::string identity_of(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  REQUIRE(fd.valid());
  const auto identity = image_identity(fd.get());
  REQUIRE(identity.has_value());
  return *identity;
}

std::optional<std::uint64_t> changed_at(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const auto modified = modified_ns(fd.get());
  REQUIRE(modified.has_value());
  return *modified;
}

void overwrite(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  const std::vector<std::byte> block(4096, std::byte{7});
  REQUIRE(write_all_at(fd.get(), block, 0).has_value());
}

/// Output of a command; empty if it failed.
std::string output_of(const std::string& command) {
  // NOLINTNEXTLINE(cert-env33-c): a fixed command
  FILE* pipe = ::popen(command.c_str(), "r");
  std::string output;
  std::array<char, 256> part{};
  while (pipe != nullptr && std::fgets(part.data(), part.size(), pipe) != nullptr)
    output += part.data();
  if (pipe != nullptr && ::pclose(pipe) != 0) return {};
  return output.substr(0, output.find('\n'));
}

TEST_CASE("image identity: of a file it outlives writes and a rename, a copy has another one") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("image");
  REQUIRE(create_image(path, file_size).has_value());
  const std::string identity = identity_of(path);
  CHECK(identity.starts_with("inode="));
  overwrite(path);
  CHECK(identity_of(path) == identity);
  std::filesystem::copy_file(path, directory.file("copy"));
  std::filesystem::rename(directory.file("copy"), path);
  CHECK(identity_of(path) != identity);
}

TEST_CASE("image identity: an older copy written over the file is seen in the time of its change") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("image");
  REQUIRE(create_image(path, file_size).has_value());
  std::filesystem::copy_file(path, directory.file("copy"));
  overwrite(path);
  const std::string identity = identity_of(path);
  const auto before = changed_at(path);
  CHECK(changed_at(path) == before);
  // The clock of a file system moves in steps: until it has moved.
  const auto end = std::chrono::steady_clock::now() + test_deadline;
  while (changed_at(path) == before && std::chrono::steady_clock::now() < end) {
    std::filesystem::copy_file(
        directory.file("copy"), path, std::filesystem::copy_options::overwrite_existing);
  }
  CHECK(changed_at(path) != before);
  CHECK(identity_of(path) == identity);
}

TEST_CASE("image identity: of a loop device it is that of its file") {
  const TemporaryDirectory directory;
  std::string identities[3];
  for (int i = 0; i < 3; ++i) {
    const std::string path = directory.file(i == 2 ? "other" : "backing");
    if (i != 1) REQUIRE(create_image(path, file_size).has_value());
    const std::string device = output_of("losetup --find --show " + path + " 2>/dev/null");
    if (device.empty()) {
      MESSAGE("no loop device here");
      return;
    }
    identities[i] = identity_of(device);
    CHECK_FALSE(changed_at(device));
    output_of("losetup --detach " + device);
  }
  CHECK(identities[0].starts_with("device loop inode="));
  CHECK(identities[0] == identities[1]);
  CHECK(identities[0] != identities[2]);
}

}  // namespace
}  // namespace replicad
