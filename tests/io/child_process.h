#pragma once
// For what a test process must not do itself.

#include <array>
#include <functional>
#include <string>

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/fd.h"

namespace replicad {

struct ChildEnd {
  std::string said;
  int signal = 0;  ///< that ended it; 0: it ended by itself
};

/// Forks; the child does `act`, whose argument is a descriptor that its words go to, and ends.
inline ChildEnd run_child(const std::function<void(int)>& act) {
  std::array<int, 2> ends{};
  REQUIRE(::pipe(ends.data()) == 0);
  const Fd reading(ends[0]);
  Fd writing(ends[1]);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    act(writing.get());
    ::_exit(0);
  }
  writing.reset();
  ChildEnd end;
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

}  // namespace replicad
