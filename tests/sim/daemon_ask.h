#pragma once
// Requests from one host's replicad to another's, with an answer or none (the template of daemon.h).

#include <chrono>
#include <optional>
#include <utility>

#include "tests/sim/cluster.h"
#include "tests/sim/daemon.h"

namespace replicad::sim {

inline constexpr Duration ask_timeout = std::chrono::seconds(3);
inline constexpr Duration proposal_timeout = std::chrono::seconds(10);

template <typename Answer>
void Daemon::ask(HostIndex to,
                 Duration timeout,
                 std::function<void(Daemon&, std::function<void(Answer)>)> request,
                 std::function<void(std::optional<Answer>)> done) {
  // Whoever comes first: the answer, or the deadline.
  const auto once = std::make_shared<std::function<void(std::optional<Answer>)>>(std::move(done));
  auto finish = life_.guard([once](std::optional<Answer> answer) {
    if (*once) std::exchange(*once, nullptr)(std::move(answer));
  });
  machine_.after(timeout, [finish]() mutable { finish(std::nullopt); });
  Cluster& cluster = cluster_;
  cluster.network.message(
      host_, to, [&cluster, from = host_, to, request = std::move(request), finish]() mutable {
        const auto daemon = cluster.daemons[to];
        if (!daemon->is_alive()) return;
        request(*daemon, [&cluster, from, to, finish](Answer answer) mutable {
          cluster.network.message(to, from, [finish, answer = std::move(answer)]() mutable {
            finish(std::optional<Answer>(std::move(answer)));
          });
        });
      });
}

}  // namespace replicad::sim
