// attach and detach as far as they go without a kernel device; with one they are in tests/vm.

#include <doctest/doctest.h>

#include "ctl/nbd_kernel.h"
#include "tests/unit/ctl/fake_host.h"
#include "tests/unit/ctl/run_ctl.h"

namespace replicad::ctl_test {
namespace {

TEST_CASE("attach: devices are named /dev/nbdN") {
  CHECK(ctl::nbd_index("/dev/nbd0") == 0U);
  CHECK(ctl::nbd_index("nbd15") == 15U);
  for (const char* wrong :
       {"", "/dev/sda", "/dev/nbd", "/dev/nbd1p1", "nbd-1", "nbd 1", "nbd4294967296"}) {
    CAPTURE(wrong);
    CHECK_FALSE(ctl::nbd_index(wrong).has_value());
  }
}

TEST_CASE("attach: refused where the volume is served on another machine, or not at all") {
  Trio trio;
  const Outcome elsewhere = trio.run({"attach", "vm1"});
  CHECK(elsewhere.code == 3);
  CHECK(contains(elsewhere.err, "replicactl switchover"));
  CHECK(trio.run({"attach", "vm1", "/dev/sda"}).code == 2);
  CHECK(trio.run({"attach", "vm1", "--dead-timeout", "soon"}).code == 2);
  CHECK(trio.run({"attach", "vm1", "--disk", "vdz"}).code == 5);
  CHECK(trio.changes().empty());
}

TEST_CASE("detach: needs no daemon, and names what is not attached") {
  const Outcome nothing = run_words({"detach", "vm-that-is-not", "--hosts", "a=127.0.0.1:1"});
  CHECK(nothing.code == 5);
  CHECK(contains(nothing.err, "no disk of vm-that-is-not is attached"));
  CHECK(run_words({"detach", "/dev/sda"}).code == 2);
  CHECK(run_words({"detach", "No Name"}).code == 2);
}

}  // namespace
}  // namespace replicad::ctl_test
