#include <array>
#include <cerrno>
#include <cstddef>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io/ring.h"
#include "tests/io/child_process.h"
#include "tests/io/io_fixture.h"

namespace replicad {
namespace {

/// Makes system call `number` fail with `sys_errno` in this process, for good.
bool forbid(unsigned number, int sys_errno) {
  std::array<sock_filter, 4> program{{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(sys_errno)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

/// What probe_io_uring says in a process where system call `number` fails.
std::string said_where_forbidden(unsigned number, int sys_errno) {
  const ChildEnd end = run_child([&](int words) {
    std::string said = "no filter possible";
    if (forbid(number, sys_errno)) {
      const Status probed = probe_io_uring();
      said = probed ? "io_uring works"
                    : fmt::format("{}|{}|{}",
                                  errc_name(probed.error().code),
                                  probed.error().message,
                                  probed.error().hint);
    }
    if (::write(words, said.data(), said.size()) < 0) ::_exit(1);
  });
  return end.said;
}

TEST_CASE("io_uring: the probe is content here and leaves no descriptor behind") {
  const Fd before(::dup(0));
  REQUIRE(probe_io_uring().has_value());
  const Fd after(::dup(0));
  CHECK(after.get() == before.get() + 1);
}

TEST_CASE("io_uring: a sandbox that forbids it leads to a message that says so") {
  struct Call {
    unsigned number;
    const char* name;
  };
  for (const Call call : {Call{__NR_io_uring_setup, "io_uring_setup"},
                          Call{__NR_io_uring_register, "io_uring_register"},
                          Call{__NR_io_uring_enter, "io_uring_enter"}}) {
    for (const int sys_errno : {EPERM, EACCES, ENOSYS}) {
      const std::string said = said_where_forbidden(call.number, sys_errno);
      CAPTURE(said);
      if (said == "no filter possible") return;
      CHECK(said.starts_with("not_supported|io_uring is not available: "));
      CHECK(said.find(call.name) != std::string::npos);
      CHECK(said.find("seccomp") != std::string::npos);
    }
  }
}

TEST_CASE("io_uring: the hint names the sysctl when that is the cause") {
  const Error by_sysctl = io_uring_refused(EPERM, "2");
  CHECK(by_sysctl.code == Errc::not_supported);
  CHECK(by_sysctl.sys_errno == EPERM);
  CHECK(by_sysctl.message.find("Operation not permitted") != std::string::npos);
  CHECK(by_sysctl.hint.starts_with("sysctl kernel.io_uring_disabled is 2: set it to 0"));
  CHECK(io_uring_refused(EPERM, "1").hint.find("io_uring_group") != std::string::npos);
  CHECK(io_uring_refused(EPERM, "0").hint.find("seccomp") != std::string::npos);
  CHECK(io_uring_refused(EPERM, "").hint.find("seccomp") != std::string::npos);
  CHECK(io_uring_refused(ENOMEM, "0").hint.find("locked memory") != std::string::npos);
}

/// The ends of all operations that are over by now, in the order in which they are handed out.
std::vector<std::uint64_t> ends_of(Ring& ring) {
  std::array<RingCompletion, 8> completions;
  std::vector<std::uint64_t> ends;
  const std::size_t count = ring.reap(completions);
  for (std::size_t i = 0; i < count; ++i) {
    CHECK(completions[i].result == 2);
    ends.push_back(completions[i].user_data);
  }
  return ends;
}

TEST_CASE(
    "io_uring: a receive goes with what comes of the writes of its turn, and waits no longer") {
  const TemporaryDirectory directory;
  auto created = create_uring_ring(16);
  REQUIRE(created.has_value());
  Ring& ring = **created;
  REQUIRE(ring.enable().has_value());
  const Fd file(::open(directory.file("image").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  REQUIRE(file.valid());
  auto [left, right] = socket_pair();
  REQUIRE(::write(right.get(), "ab", 2) == 2);
  std::array<char, 2> received{};
  std::array<char, 2> written{'c', 'd'};
  const auto prepare = [&](RingOpcode opcode, int fd, void* address, std::uint64_t user_data) {
    REQUIRE(ring.prepare(
        {.opcode = opcode, .fd = fd, .address = address, .length = 2, .user_data = user_data}));
  };
  prepare(RingOpcode::recv, left.get(), received.data(), 1);
  prepare(RingOpcode::write, file.get(), written.data(), 2);
  CHECK(ring.submit_and_wait(std::nullopt) >= 0);
  CHECK(ends_of(ring) == std::vector<std::uint64_t>{2});
  // Writes that go on and on do not hold it up.
  prepare(RingOpcode::write, file.get(), written.data(), 3);
  CHECK(ring.submit_and_wait(std::nullopt) >= 0);
  CHECK(ends_of(ring) == std::vector<std::uint64_t>{3, 1});
  CHECK(received == std::array<char, 2>{'a', 'b'});
}

TEST_CASE("io_uring: more operations end than the completion queue holds, and each end is told") {
  constexpr std::uint64_t reads = 200;
  constexpr std::uint64_t receives = 50;
  const TemporaryDirectory directory;
  auto created = create_uring_ring(4);  // its completion queue has 16 entries
  REQUIRE(created.has_value());
  Ring& ring = **created;
  REQUIRE(ring.enable().has_value());
  const Fd file(::open(directory.file("image").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  REQUIRE(::pwrite(file.get(), "ab", 2, 0) == 2);
  auto [left, right] = socket_pair();
  std::array<char, 2> buffer{};
  const auto prepare = [&](RingOpcode opcode, int fd, std::uint64_t user_data) {
    const RingOperation operation{
        .opcode = opcode, .fd = fd, .address = buffer.data(), .length = 2, .user_data = user_data};
    if (ring.prepare(operation)) return;
    CHECK(ring.submit() > 0);
    REQUIRE(ring.prepare(operation));
  };
  for (std::uint64_t i = 0; i < receives; ++i)
    prepare(RingOpcode::recv, left.get(), i);
  for (std::uint64_t i = 0; i < reads; ++i)
    prepare(RingOpcode::read, file.get(), receives + i);
  CHECK(ring.submit() > 0);
  const std::string sent(2 * receives, 'x');
  REQUIRE(::write(right.get(), sent.data(), sent.size()) == static_cast<ssize_t>(sent.size()));
  // Nobody has looked so far.
  std::vector<unsigned> ends(receives + reads);
  std::size_t told = 0;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (told < ends.size() && std::chrono::steady_clock::now() < deadline) {
    CHECK(ring.submit_and_wait(std::chrono::milliseconds(100)) != -EINVAL);
    std::array<RingCompletion, 8> completions;
    const std::size_t count = ring.reap(completions);
    for (std::size_t i = 0; i < count; ++i) {
      CHECK(completions[i].result == 2);
      ++ends.at(completions[i].user_data);
    }
    told += count;
  }
  CHECK(ends == std::vector<unsigned>(receives + reads, 1));
}

}  // namespace
}  // namespace replicad
