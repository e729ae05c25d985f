#include "io/sudden_end.h"

#include <cstdlib>
#include <exception>
#include <new>
#include <string_view>

#include <unistd.h>

namespace replicad {

namespace {

/// Without an allocation.
void say(std::string_view text) {
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
}

[[noreturn]] void end_without_memory() {
  say("event=out_of_memory error=\"no memory left: this process ends, as after kill -9\"\n");
  std::abort();
}

[[noreturn]] void end_by_exception() {
  try {
    if (const std::exception_ptr thrown = std::current_exception()) std::rethrow_exception(thrown);
  } catch (const std::exception& error) {
    say("event=sudden_end error=\"");
    say(error.what());
    say("\"\n");
    std::abort();
  } catch (...) {
  }
  say("event=sudden_end error=unknown\n");
  std::abort();
}

}  // namespace

void end_rather_than_guess() {
  std::set_new_handler(end_without_memory);
  std::set_terminate(end_by_exception);
}

}  // namespace replicad
