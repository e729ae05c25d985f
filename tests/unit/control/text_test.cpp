#include "core/control/text.h"

#include <doctest/doctest.h>

namespace replicad {
namespace {

TEST_CASE("text: sizes keep one decimal of the largest unit that fits") {
  CHECK(format_bytes(0) == "0 B");
  CHECK(format_bytes(1023) == "1023 B");
  CHECK(format_bytes(1024) == "1 KiB");
  CHECK(format_bytes(1536) == "1.5 KiB");
  CHECK(format_bytes(20ULL << 30) == "20 GiB");
  CHECK(format_bytes((1ULL << 30) - 1) == "1 GiB");
  CHECK(format_bytes(~0ULL) == "16 EiB");
}

TEST_CASE("text: times use at most two units, and nonsense is a question mark") {
  CHECK(format_seconds(0.25) == "0.2 s");
  CHECK(format_seconds(41) == "41 s");
  CHECK(format_seconds(125) == "2 m 5 s");
  CHECK(format_seconds(12000) == "3 h 20 m");
  CHECK(format_seconds(1051200) == "12 d 4 h");
  CHECK(format_seconds(-1) == "?");
  CHECK(format_seconds(1e300) == "for ever");
}

TEST_CASE("text: lists read like a sentence") {
  CHECK(format_list({}) == "none");
  CHECK(format_list({"a"}) == "a");
  CHECK(format_list({"a", "b", "c"}) == "a, b and c");
}

TEST_CASE("text: control characters and broken UTF-8 cannot reach the terminal") {
  CHECK(printable("plain text") == "plain text");
  CHECK(printable("caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x92\xbe") ==
        "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x92\xbe");
  CHECK(printable("\x1b[2Jgone\n\x7f") == "\\x1b[2Jgone\\x0a\\x7f");
  CHECK(printable("\xc2\x9b"
                  "31m") == "\\xc2\\x9b31m");
  CHECK(printable("\xff\xc3(") == "\\xff\\xc3(");
  CHECK(printable("\xc0\xaf \xed\xa0\x80 \xf5\x80\x80\x80 \xe2\x82") ==
        "\\xc0\\xaf \\xed\\xa0\\x80 \\xf5\\x80\\x80\\x80 \\xe2\\x82");
  CHECK(printable(std::string_view("a\0b", 3)) == "a\\x00b");
}

}  // namespace
}  // namespace replicad
