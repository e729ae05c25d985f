#include "io/sudden_end.h"

#include <csignal>
#include <functional>
#include <new>
#include <stdexcept>
#include <thread>

#include "tests/io/child_process.h"

namespace replicad {
namespace {

ChildEnd end_of(const std::function<void()>& act) {
  return run_child([&](int words) {
    // doctest would take the signal for its own.
    std::signal(SIGABRT, SIG_DFL);
    ::dup2(words, STDERR_FILENO);
    end_rather_than_guess();
    std::thread(act).join();
  });
}

TEST_CASE("sudden end: without memory, or by an exception that nobody takes, with one line") {
  const ChildEnd starved = end_of([] { std::get_new_handler()(); });
  CHECK(starved.signal == SIGABRT);
  CHECK(starved.said ==
        "event=out_of_memory error=\"no memory left: this process ends, as after kill -9\"\n");
  const ChildEnd thrown = end_of([] { throw std::runtime_error("no thread"); });
  CHECK(thrown.signal == SIGABRT);
  CHECK(thrown.said == "event=sudden_end error=\"no thread\"\n");
  const ChildEnd strange = end_of([] { throw 7; });
  CHECK(strange.signal == SIGABRT);
  CHECK(strange.said == "event=sudden_end error=unknown\n");
}

}  // namespace
}  // namespace replicad
