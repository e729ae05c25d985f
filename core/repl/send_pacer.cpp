#include "core/repl/send_pacer.h"

namespace replicad {

bool SendPacer::is_due(const Backlog& backlog, Mode mode, std::size_t crowd, Instant now) const {
  if (backlog.frames == 0) return false;
  if (backlog.bytes >= gather_bytes || now >= until_) return true;
  return mode != Mode::async && 2 * backlog.frames >= crowd;
}

void SendPacer::sent(Mode mode, Instant now) {
  until_ = mode == Mode::async ? now + async_gather_time : Instant::max();
}

void SendPacer::look(const Backlog& backlog, Instant now) {
  if (!backlog.in_flight && until_ == Instant::max()) until_ = now + gather_time;
}

}  // namespace replicad
