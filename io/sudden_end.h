#pragma once
// How a process ends that cannot go on safely.

namespace replicad {

/// From now on this process ends with abort() and one line on stderr when it gets no memory, or when an exception
/// leaves a thread (no thread could be started): what was under way then may be half done, and going on might answer
/// what is not true. The next start finds what is durable, as after a kill -9. Call once, before threads start.
void end_rather_than_guess();

}  // namespace replicad
