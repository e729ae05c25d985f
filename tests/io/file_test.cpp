#include "io/file.h"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <vector>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/io/io_fixture.h"

namespace replicad {
namespace {

constexpr std::uint64_t image_size = 1 << 20;

std::string content_of(const std::string& path) {
  std::ostringstream content;
  content << std::ifstream(path, std::ios::binary).rdbuf();
  return content.str();
}

struct CommandResult {
  int exit_code = -1;
  std::string output;
};

/// Runs a program with its standard output and error caught; exit code 127: it is not installed.
CommandResult run(const std::vector<std::string>& arguments) {
  std::array<int, 2> ends{};
  REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
  Fd reading(ends[0]);
  Fd writing(ends[1]);
  std::vector<char*> raw;
  raw.reserve(arguments.size() + 1);
  for (const auto& argument : arguments)
    raw.push_back(const_cast<char*>(argument.c_str()));
  raw.push_back(nullptr);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::dup2(writing.get(), STDOUT_FILENO);
    ::dup2(writing.get(), STDERR_FILENO);
    ::execvp(raw.front(), raw.data());
    ::_exit(127);
  }
  writing.reset();
  CommandResult result;
  std::array<char, 4096> part{};
  for (ssize_t count = 0; (count = ::read(reading.get(), part.data(), part.size())) > 0;) {
    result.output.append(part.data(), static_cast<std::size_t>(count));
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  return result;
}

TEST_CASE("file: create_image makes a sparse file of exactly the size, and never overwrites") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("image");
  REQUIRE(create_image(path, 10 * image_size).has_value());
  const Fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  CHECK(image_bytes(fd.get()).value() == 10 * image_size);
  CHECK(allocated_bytes(fd.get()).value() < image_size);
  const auto again = create_image(path, image_size);
  REQUIRE_FALSE(again.has_value());
  CHECK(again.error().code == Errc::exists);
  CHECK(again.error().message.find(path) != std::string::npos);
  CHECK(image_bytes(fd.get()).value() == 10 * image_size);
  CHECK(create_image(directory.file("none/image"), 1).error().code == Errc::not_found);
  CHECK(create_image(directory.file("big"), ~std::uint64_t{0}).error().code ==
        Errc::invalid_argument);
  CHECK_FALSE(std::filesystem::exists(directory.file("big")));
}

TEST_CASE("file: an open image keeps a second opener and QEMU off, a closed one does not") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("image");
  REQUIRE(create_image(path, image_size).has_value());
  auto first = open_image_locked(path, image_size);
  REQUIRE(first.has_value());
  const auto second = open_image_locked(path, image_size);
  REQUIRE_FALSE(second.has_value());
  CHECK(second.error().code == Errc::busy);
  CHECK(second.error().message == "image " + path + " is in use by another program");
  CHECK_FALSE(second.error().hint.empty());

  // Not `qemu-img info`: it only looks at the size and takes no lock.
  const std::vector<std::string> qemu{"qemu-img", "map", "-f", "raw", path};
  const auto locked_out = run(qemu);
  if (locked_out.exit_code != 127) {
    CHECK(locked_out.exit_code == 1);
    CHECK(locked_out.output.find("lock") != std::string::npos);
  }
  first->reset();
  if (locked_out.exit_code != 127) CHECK(run(qemu).exit_code == 0);
  CHECK(open_image_locked(path, image_size).has_value());
}

TEST_CASE("file: open_image_locked says what is wrong with the path") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("image");
  CHECK(open_image_locked(path, 1).error().code == Errc::not_found);
  REQUIRE(create_image(path, image_size).has_value());
  const auto wrong_size = open_image_locked(path, image_size + 512);
  REQUIRE_FALSE(wrong_size.has_value());
  CHECK(wrong_size.error().code == Errc::invalid_argument);
  CHECK(wrong_size.error().message.find("1048576 bytes") != std::string::npos);
  CHECK(wrong_size.error().message.find("1049088") != std::string::npos);
  CHECK(open_image_locked(directory.path(), 1).error().code == Errc::invalid_argument);
  const std::string fifo = directory.file("fifo");
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  CHECK(open_image_locked(fifo, 1).error().code == Errc::invalid_argument);
  CHECK(open_image_locked("/dev/zero", 1).error().code == Errc::invalid_argument);
}

/// Zeroes a part of a file full of ones, in `directory`, and checks every byte.
void check_zero_range(const std::string& directory, bool may_punch) {
  CAPTURE(directory);
  CAPTURE(may_punch);
  const std::string path = directory + "/zero-range-image";
  REQUIRE(create_image(path, image_size).has_value());
  const Fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  const std::vector<std::byte> ones(image_size, std::byte{1});
  std::vector<std::byte> back(image_size);
  struct Part {
    std::uint64_t offset;
    std::uint64_t length;
  };
  for (const Part part : {Part{0, image_size},
                          Part{4096, 8192},
                          Part{1, 3},
                          Part{4095, 2},
                          Part{513, 300'000},
                          Part{image_size - 700, 700},
                          Part{5, 0}}) {
    REQUIRE(write_all_at(fd.get(), ones, 0).has_value());
    REQUIRE(::fsync(fd.get()) == 0);
    REQUIRE(zero_range(fd.get(), part.offset, part.length, may_punch).has_value());
    CHECK(image_bytes(fd.get()).value() == image_size);
    REQUIRE(read_all_at(fd.get(), back, 0).has_value());
    auto expected = ones;
    std::fill_n(
        expected.begin() + static_cast<std::ptrdiff_t>(part.offset), part.length, std::byte{0});
    const bool equal = back == expected;
    CHECK(equal);
    if (part.length == image_size && may_punch) {
      CHECK(allocated_bytes(fd.get()).value() < image_size / 2);
    }
  }
  ::unlink(path.c_str());
}

TEST_CASE("file: zero_range zeroes exactly the range, aligned or not, and punches where it may") {
  const TemporaryDirectory directory;
  check_zero_range(directory.path(), true);
  check_zero_range(directory.path(), false);
}

TEST_CASE("file: zero_range writes zeroes where the file system knows nothing better") {
  // tmpfs punches holes but has no FALLOC_FL_ZERO_RANGE.
  std::string pattern = "/dev/shm/replicad-io-XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) return;
  check_zero_range(pattern, true);
  check_zero_range(pattern, false);
  ::rmdir(pattern.c_str());
}

TEST_CASE("file: zero_range handles the unaligned edges of a block device") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("backing");
  REQUIRE(create_image(path, image_size).has_value());
  const auto attached = run({"losetup", "--find", "--show", path});
  if (attached.exit_code != 0) {
    MESSAGE("no loop device here");
    return;
  }
  const std::string device = attached.output.substr(0, attached.output.find('\n'));
  {
    const auto too_large = open_image_locked(device, image_size + 512);
    CHECK(too_large.error().code == Errc::invalid_argument);
    const auto fd = open_image_locked(device, image_size / 2);
    CHECK(fd.has_value());
    if (fd) {
      CHECK(open_image_locked(device, image_size).error().code == Errc::busy);
      std::vector<std::byte> expected(image_size, std::byte{1});
      CHECK(write_all_at(fd->get(), expected, 0).has_value());
      CHECK(zero_range(fd->get(), 513, 300'000, true).has_value());
      CHECK(zero_range(fd->get(), 400'001, 200'000, false).has_value());
      CHECK(zero_range(fd->get(), 700'001, 3, true).has_value());
      std::fill_n(expected.begin() + 513, 300'000, std::byte{0});
      std::fill_n(expected.begin() + 400'001, 200'000, std::byte{0});
      std::fill_n(expected.begin() + 700'001, 3, std::byte{0});
      std::vector<std::byte> back(image_size);
      CHECK(read_all_at(fd->get(), back, 0).has_value());
      const bool equal = back == expected;
      CHECK(equal);
    }
  }
  CHECK(run({"losetup", "--detach", device}).exit_code == 0);
}

TEST_CASE("file: a failed write-back is told to whoever had the file open, once") {
  const TemporaryDirectory directory;
  const std::string small = directory.file("small");
  REQUIRE(::mkdir(small.c_str(), 0700) == 0);
  if (run({"mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small}).exit_code != 0) {
    MESSAGE("no mount here");
    return;
  }
  // A device that has no room for what is written to it.
  REQUIRE(create_image(small + "/backing", 4 * image_size).has_value());
  const auto attached = run({"losetup", "--find", "--show", small + "/backing"});
  if (attached.exit_code == 0) {
    const std::string device = attached.output.substr(0, attached.output.find('\n'));
    {
      const Fd writer(::open(device.c_str(), O_RDWR | O_CLOEXEC));
      const Fd watch(::open(device.c_str(), O_RDONLY | O_CLOEXEC));
      const Fd untold(::open(device.c_str(), O_RDONLY | O_CLOEXEC));
      CHECK(check_written_back(watch.get()).has_value());
      const std::vector<std::byte> bytes(4 * image_size, std::byte{1});
      CHECK(write_all_at(writer.get(), bytes, 0).has_value());
      CHECK(::fdatasync(writer.get()) != 0);
      CHECK_FALSE(check_written_back(watch.get()).has_value());
      CHECK(check_written_back(watch.get()).has_value());
      CHECK_FALSE(check_written_back(untold.get()).has_value());
      // Who comes later is told nothing: the others know.
      const Fd late(::open(device.c_str(), O_RDONLY | O_CLOEXEC));
      CHECK(check_written_back(late.get()).has_value());
    }
    CHECK(run({"losetup", "--detach", device}).exit_code == 0);
  } else {
    MESSAGE("no loop device here");
  }
  CHECK(run({"umount", "--lazy", small}).exit_code == 0);
}

TEST_CASE("file: write_file_durably replaces the content and leaves nothing else") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("state");
  REQUIRE(write_file_durably(path, "one").has_value());
  REQUIRE(write_file_durably(path, "the second content").has_value());
  CHECK(content_of(path) == "the second content");
  REQUIRE(write_file_durably(path, "").has_value());
  CHECK(content_of(path).empty());
  const auto files = std::distance(std::filesystem::directory_iterator(directory.path()), {});
  CHECK(files == 1);
}

TEST_CASE("file: write_file_durably is not misled by a leftover of a crash") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("state");
  std::ofstream(path + ".tmp") << "a torn and much longer temporary file";
  REQUIRE(write_file_durably(path, "new").has_value());
  CHECK(content_of(path) == "new");
  REQUIRE(::symlink("/nowhere/else", (path + ".tmp").c_str()) == 0);
  CHECK_FALSE(write_file_durably(path, "newer").has_value());
  CHECK(content_of(path) == "new");
}

TEST_CASE("file: write_file_durably keeps the old content when the disk is full") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("state");
  REQUIRE(write_file_durably(path, "old").has_value());
  // A file size limit stops the write half-way, as a full disk would.
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limited = before;
  limited.rlim_cur = 8192;
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &limited) == 0);
  const auto failed = write_file_durably(path, std::string(100'000, 'n'));
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
  std::signal(SIGXFSZ, old_handler);
  REQUIRE_FALSE(failed.has_value());
  CHECK(failed.error().message.find(path) != std::string::npos);
  CHECK(content_of(path) == "old");
  CHECK_FALSE(std::filesystem::exists(path + ".tmp"));
}

TEST_CASE("file: write_file_durably fails when the target is a directory or has none") {
  const TemporaryDirectory directory;
  CHECK_FALSE(write_file_durably(directory.path(), "x").has_value());
  CHECK(write_file_durably(directory.file("no/state"), "x").error().code == Errc::not_found);
}

TEST_CASE("file: read_file reads all, up to its limit") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("state");
  const std::string content(100'000, 'c');
  REQUIRE(write_file_durably(path, content).has_value());
  CHECK(read_file(path, 100'000).value() == content);
  CHECK(read_file(path, 99'999).error().code == Errc::corrupt);
  CHECK(read_file(directory.file("none"), 10).error().code == Errc::not_found);
}

TEST_CASE("file: read_all_at reports a file that ends too early") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("short");
  REQUIRE(write_file_durably(path, "12345").has_value());
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<std::byte> buffer(6);
  CHECK(read_all_at(fd.get(), buffer, 0).error().code == Errc::corrupt);
  CHECK(read_all_at(fd.get(), std::span(buffer).first(5), 0).has_value());
  CHECK(write_all_at(fd.get(), buffer, 0).error().sys_errno == EBADF);
}

TEST_CASE("file: read_medium_at reads what was synced, aligned or not") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("file");
  std::vector<std::byte> content(10'000);
  for (std::size_t i = 0; i < content.size(); ++i)
    content[i] = static_cast<std::byte>(i * 7);
  const Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  REQUIRE(fd.valid());
  REQUIRE(write_all_at(fd.get(), content, 0).has_value());
  REQUIRE(::fdatasync(fd.get()) == 0);
  std::vector<std::byte> bytes(300);
  if (!read_medium_at(path, bytes, 0)) {
    MESSAGE("this file system cannot do it: ", path);
    return;
  }
  for (const unsigned offset : {0U, 1U, 511U, 4000U, 4096U, 9700U}) {
    CAPTURE(offset);
    REQUIRE(read_medium_at(path, bytes, offset).has_value());
    CHECK(std::ranges::equal(bytes, std::span(content).subspan(offset, bytes.size())));
  }
  CHECK(read_medium_at(path, bytes, 9701).error().code == Errc::corrupt);
  CHECK(read_medium_at(path + "x", bytes, 0).error().code == Errc::not_found);
}

TEST_CASE("file: make_directories makes the whole path and accepts what is there") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("a/b/c");
  REQUIRE(make_directories(path, 0700).has_value());
  CHECK(std::filesystem::is_directory(path));
  CHECK(make_directories(path + "/", 0700).has_value());
  CHECK(make_directories("/", 0700).has_value());
  std::ofstream(directory.file("file")) << "x";
  const auto over_file = make_directories(directory.file("file/sub"), 0700);
  REQUIRE_FALSE(over_file.has_value());
  CHECK(over_file.error().sys_errno == ENOTDIR);
}

TEST_CASE("file: boot id, uuids and tags have their form and differ") {
  const auto boot = boot_id();
  REQUIRE(boot.has_value());
  CHECK(boot->size() == 36);
  CHECK(boot_id().value() == *boot);
  std::set<std::string> uuids;
  for (int i = 0; i < 100; ++i) {
    const std::string uuid = random_uuid();
    REQUIRE(uuid.size() == 36);
    CHECK(uuid[14] == '4');
    CHECK(std::string("89ab").find(uuid[19]) != std::string::npos);
    CHECK(uuid[8] == '-');
    uuids.insert(uuid);
  }
  CHECK(uuids.size() == 100);
  std::set<std::uint32_t> tags;
  for (int i = 0; i < 8; ++i)
    tags.insert(random_tag());
  CHECK(tags.size() >= 7);
}

}  // namespace
}  // namespace replicad
