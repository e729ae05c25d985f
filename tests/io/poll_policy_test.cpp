#include "io/poll_policy.h"

#include <doctest/doctest.h>

namespace replicad {
namespace {

using std::chrono::microseconds;

constexpr Instant begin_time{std::chrono::seconds(1000)};

PollPolicy after_short_waits(unsigned count) {
  PollPolicy policy;
  for (unsigned i = 0; i < count; ++i)
    policy.waited(microseconds(40));
  return policy;
}

TEST_CASE("polling: pays after so many short waits in a row, and until a long one") {
  CHECK_FALSE(after_short_waits(PollPolicy::short_waits_needed - 1).pays(begin_time));
  PollPolicy policy = after_short_waits(PollPolicy::short_waits_needed);
  CHECK(policy.pays(begin_time));
  policy.waited(PollPolicy::look_time);
  CHECK_FALSE(policy.pays(begin_time));
  policy.waited(microseconds(40));
  CHECK_FALSE(policy.pays(begin_time));
}

TEST_CASE("polling: a look that had to wait for the core ends it for a while") {
  PollPolicy policy = after_short_waits(PollPolicy::short_waits_needed);
  CHECK(policy.looked(begin_time, begin_time + microseconds(2)));
  CHECK(policy.pays(begin_time + microseconds(2)));
  const Instant late = begin_time + PollPolicy::look_time_max + microseconds(1);
  CHECK_FALSE(policy.looked(begin_time, late));
  CHECK_FALSE(policy.pays(late));
  CHECK_FALSE(policy.pays(late + PollPolicy::rest_time - microseconds(1)));
  CHECK(policy.pays(late + PollPolicy::rest_time));
}

}  // namespace
}  // namespace replicad
