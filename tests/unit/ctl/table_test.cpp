#include "ctl/table.h"

#include <doctest/doctest.h>

namespace replicad::ctl {
namespace {

TEST_CASE("table: columns align, colours and wide letters do not count, empty cells are dashes") {
  Table table({"NAME", ">SIZE", "STATE"});
  table.add_row({"a", "20 GiB", Cell("up", "\x1b[32mup\x1b[0m")});
  table.add_row({"caf\xc3\xa9-9", "1 B", ""});
  CHECK(table.text(1) ==
        " NAME      SIZE  STATE\n"
        " a       20 GiB  \x1b[32mup\x1b[0m\n"
        " caf\xc3\xa9-9     1 B  -\n");
}

}  // namespace
}  // namespace replicad::ctl
