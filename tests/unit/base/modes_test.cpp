#include "core/base/modes.h"

#include <doctest/doctest.h>

namespace replicad {
namespace {

TEST_CASE("modes: names go there and back") {
  for (const Mode mode : {Mode::async, Mode::semi_sync, Mode::sync})
    CHECK(mode_from_name(mode_name(mode)) == mode);
  for (const Congestion congestion : {Congestion::throttle, Congestion::detach}) {
    CHECK(congestion_from_name(congestion_name(congestion)) == congestion);
  }
  for (const OnLocalError policy : {OnLocalError::hold, OnLocalError::fail}) {
    CHECK(on_local_error_from_name(on_local_error_name(policy)) == policy);
  }
  CHECK(mode_name(Mode::semi_sync) == "semi-sync");
}

TEST_CASE("modes: unknown names are refused") {
  CHECK_FALSE(mode_from_name("semi_sync"));
  CHECK_FALSE(mode_from_name("Sync"));
  CHECK_FALSE(mode_from_name(""));
  CHECK_FALSE(congestion_from_name("drop"));
  CHECK_FALSE(on_local_error_from_name("panic"));
}

}  // namespace
}  // namespace replicad
