#pragma once
// Blocking work of the reactor thread, done on a Worker.

#include <utility>

#include "io/reactor.h"
#include "io/worker.h"

namespace replicad {

/// Runs `work()` on the worker's thread, then `done(result)` on the reactor's. What `done` holds is let go on the
/// reactor's thread only, so that an object that owns the worker never ends on it.
template <typename Work, typename Done>
void offload(Worker& worker, Reactor& reactor, Work work, Done done) {
  worker.post([&reactor, work = std::move(work), done = std::move(done)]() mutable {
    auto result = work();
    reactor.post([result = std::move(result), done = std::move(done)]() mutable {
      done(std::move(result));
    });
  });
}

}  // namespace replicad
