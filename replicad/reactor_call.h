#pragma once
// How another thread (control API, start and end of the daemon) uses what belongs to the reactor
// thread: it posts a function and waits. Never call these on the reactor thread.

#include <functional>
#include <future>
#include <memory>
#include <type_traits>
#include <utility>

#include "core/base/result.h"
#include "core/base/time.h"
#include "io/reactor.h"

namespace replicad {

constexpr Duration reactor_call_timeout = std::chrono::seconds(60);

/// Runs `start` on the reactor thread and waits until it has called the function it was given,
/// once, now or later. Errors: what it was called with; Errc::timeout when that takes longer than
/// `timeout` (it may still happen).
template <typename T>
[[nodiscard]] Result<T> call_reactor(Reactor& reactor,
                                     std::function<void(std::function<void(Result<T>)>)> start,
                                     Duration timeout = reactor_call_timeout) {
  const auto promise = std::make_shared<std::promise<Result<T>>>();
  std::future<Result<T>> future = promise->get_future();
  reactor.post([promise, start = std::move(start)] {
    start([promise](Result<T> result) { promise->set_value(std::move(result)); });
  });
  if (future.wait_for(timeout) != std::future_status::ready) {
    return fail(Errc::timeout, "replicad did not get it done in time");
  }
  try {
    return future.get();
  } catch (const std::future_error&) {  // the reactor ended without calling it
    return fail(Errc::unreachable, "replicad is stopping");
  }
}

/// Runs `function` on the reactor thread and returns what it returns.
template <typename Function>
[[nodiscard]] auto run_on_reactor(Reactor& reactor, Function function) -> decltype(function()) {
  using Value = decltype(function());
  const auto promise = std::make_shared<std::promise<Value>>();
  std::future<Value> future = promise->get_future();
  reactor.post([promise, function = std::move(function)]() mutable {
    if constexpr (std::is_void_v<Value>) {
      function();
      promise->set_value();
    } else {
      promise->set_value(function());
    }
  });
  return future.get();
}

}  // namespace replicad
