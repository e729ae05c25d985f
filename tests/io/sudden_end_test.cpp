#include "io/sudden_end.h"

#include <array>
#include <csignal>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/fd.h"

namespace replicad {
namespace {

struct End {
  std::string said;
  int signal = 0;
};

/// What a process says that does this, and the signal that ends it.
End end_of(const std::function<void()>& act) {
  std::array<int, 2> ends{};
  REQUIRE(::pipe(ends.data()) == 0);
  const Fd reading(ends[0]);
  Fd writing(ends[1]);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    // doctest would take the signal for its own.
    std::signal(SIGABRT, SIG_DFL);
    ::dup2(writing.get(), STDERR_FILENO);
    end_rather_than_guess();
    std::thread(act).join();
    ::_exit(0);
  }
  writing.reset();
  End end;
  std::array<char, 4096> part{};
  for (;;) {
    const ssize_t count = ::read(reading.get(), part.data(), part.size());
    if (count <= 0) break;
    end.said.append(part.data(), static_cast<std::size_t>(count));
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  if (WIFSIGNALED(status)) end.signal = WTERMSIG(status);
  return end;
}

TEST_CASE("sudden end: without memory, or by an exception that nobody takes, with one line") {
  const End starved = end_of([] { std::get_new_handler()(); });
  CHECK(starved.signal == SIGABRT);
  CHECK(starved.said ==
        "event=out_of_memory error=\"no memory left: this process ends, as after kill -9\"\n");
  const End thrown = end_of([] { throw std::runtime_error("no thread"); });
  CHECK(thrown.signal == SIGABRT);
  CHECK(thrown.said == "event=sudden_end error=\"no thread\"\n");
  const End strange = end_of([] { throw 7; });
  CHECK(strange.signal == SIGABRT);
  CHECK(strange.said == "event=sudden_end error=unknown\n");
}

}  // namespace
}  // namespace replicad
