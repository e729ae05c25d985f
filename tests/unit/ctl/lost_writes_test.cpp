// `replicactl lost-writes` against made-up hosts.

#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/unit/ctl/run_ctl.h"
#include "tests/unit/ctl/temp_dir.h"

namespace replicad::ctl_test {
namespace {

namespace fs = std::filesystem;

constexpr const char* list_target = "GET /v1/volumes/vm1/lost-writes";

Json file_json(std::uint64_t number) {
  return {{"number", number},
          {"left", nullptr},
          {"term", {{"number", 3}, {"tag", 1}}},
          {"primary", "b"},
          {"epoch", {{"number", 4}, {"tag", 2}}},
          {"begun_seconds", 1'700'000'000},
          {"ranges", 2},
          {"bytes", 8192},
          {"file_bytes", 20000},
          {"complete", true},
          {"damaged", nullptr}};
}

Json range_json(std::uint64_t offset, const std::string& digits, std::uint64_t length = 4096) {
  std::string content;
  for (std::uint64_t i = 0; i < length && !digits.empty(); ++i)
    content += digits;
  return {{"disk", "vda"},
          {"offset", offset},
          {"length", length},
          {"zero", digits.empty()},
          {"damaged", false},
          {"content", content}};
}

/// a keeps file 1, in two answers; the others keep nothing.
class World : public Trio {
 public:
  World() {
    const Json nothing{{"schema", 1}, {"files", Json::array()}};
    b().set_page(list_target, nothing);
    c().set_page(list_target, nothing);
    a().set_page(list_target, {{"schema", 1}, {"files", {file_json(1)}}});
    Json first = file_json(1);
    first["ranges"] = {range_json(8192, "ab")};
    first["next"] = 500;
    Json second = file_json(1);
    second["ranges"] = {range_json(0, "")};
    second["next"] = nullptr;
    a().set_page("GET /v1/volumes/vm1/lost-writes/1", first);
    a().set_page("GET /v1/volumes/vm1/lost-writes/1?at=500", second);
  }
};

TEST_CASE("lost-writes: lists what every host keeps, and says who did not tell") {
  World world;
  const Outcome outcome = world.run({"lost-writes", "vm1"});
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "2023-11-14 22:13:20Z"));
  CHECK(contains(outcome.out, "kept"));
  const Json listed = world.run({"lost-writes", "vm1", "-o", "json"}).json();
  REQUIRE(listed["files"].size() == 1);
  CHECK(listed["files"][0]["host"] == "a");
  CHECK(listed["silent"].empty());
  CHECK(contains(world.run({"lost-writes", "vm1", "--host", "b"}).out, "no lost writes"));
  world.b().fail_with("GET /v1/volumes/vm1/lost-writes", 500, "io_error", "its disk is gone");
  const Outcome partly = world.run({"lost-writes", "vm1"});
  CHECK(partly.code == 4);
  CHECK(contains(partly.out, "kept"));
  CHECK(contains(partly.err, "b: its disk is gone"));
}

TEST_CASE("lost-writes: shows a file's ranges, through all its answers") {
  World world;
  const Outcome outcome = world.run({"lost-writes", "vm1", "--host", "a", "--file", "1"});
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "abababababababababababababababab"));
  CHECK(contains(outcome.out, "zeroes"));
  const Json shown =
      world.run({"lost-writes", "vm1", "--host", "a", "--file", "1", "-o", "json"}).json();
  REQUIRE(shown["ranges"].size() == 2);
  CHECK(shown["ranges"][0]["offset"] == 8192);
  CHECK(shown["ranges"][0]["first_bytes"] == "abababababababababababababababab");
  CHECK(shown["ranges"][1]["zero"] == true);
}

TEST_CASE("lost-writes: --extract writes the content where it was, and nothing over another file") {
  World world;
  const TempDir directory;
  const std::string to = directory.file("out");
  const Outcome planned =
      world.run({"lost-writes", "vm1", "--host", "a", "--file", "1", "--extract", to, "--dry-run"});
  CHECK(contains(planned.out, "would: write file 1 of a to " + to));
  CHECK_FALSE(fs::exists(to));
  const Outcome outcome =
      world.run({"lost-writes", "vm1", "--host", "a", "--file", "1", "--extract", to});
  CHECK_MESSAGE(outcome.code == 0, outcome.err);
  REQUIRE(fs::file_size(to + "/vda.raw") == 3 * 4096);
  std::ifstream image(to + "/vda.raw", std::ios::binary);
  std::stringstream content;
  content << image.rdbuf();
  CHECK(content.str() == std::string(8192, '\0') + std::string(4096, '\xab'));
  std::ifstream ranges(to + "/ranges.txt");
  std::stringstream text;
  text << ranges.rdbuf();
  CHECK(text.str() == "vda 8192 4096 data\nvda 0 4096 zero\n");
  const Outcome again =
      world.run({"lost-writes", "vm1", "--host", "a", "--file", "1", "--extract", to});
  CHECK(again.code != 0);
  CHECK(contains(again.err, "vda.raw"));
}

TEST_CASE("lost-writes: the only copy is removed with --force alone") {
  World world;
  const std::string target =
      std::string("DELETE /v1/volumes/vm1/lost-writes/1?uuid=") + control_test::uuid;
  world.a().set_page(target, {{"schema", 1}});
  const Outcome refused =
      world.run({"lost-writes", "vm1", "--host", "a", "--file", "1", "--remove"});
  CHECK(refused.code == 3);
  CHECK(contains(refused.err, "the only copy"));
  CHECK(world.changes().empty());
  const std::vector<std::string> forced{
      "lost-writes", "vm1", "--host", "a", "--file", "1", "--remove", "--force"};
  std::vector<std::string> dry = forced;
  dry.emplace_back("--dry-run");
  const Outcome planned = world.run(dry);
  CHECK(planned.code == 0);
  CHECK(contains(planned.out, "would: a: remove file 1"));
  CHECK(world.changes().empty());
  dry.insert(dry.end(), {"-o", "json"});
  CHECK(world.run(dry).json()["dry_run"] == true);
  CHECK(contains(world.run(forced).out, "removed"));
  CHECK(world.changes() == std::vector<std::string>{"a " + target});
}

TEST_CASE("lost-writes: options that do not go together are usage errors") {
  World world;
  using Words = std::vector<std::string>;
  for (const Words& words :
       {Words{"--file", "1"},
        Words{"--extract", "/tmp/x"},
        Words{"--host", "a", "--remove", "--force"},
        Words{"--host", "../a"},
        Words{"--host", "a", "--file", "1", "--extract", "/tmp/x", "--remove"}}) {
    Words all{"lost-writes", "vm1"};
    all.insert(all.end(), words.begin(), words.end());
    CAPTURE(all.back());
    CHECK(world.run(all).code == 2);
  }
  CHECK(world.run({"lost-writes", "vm2"}).code == 5);
}

TEST_CASE("lost-writes: a host that is no member is named, not the volume") {
  World world;
  const Outcome outcome = world.run({"lost-writes", "vm1", "--host", "z"});
  CHECK(outcome.code == 5);
  CHECK(contains(outcome.err, "z is no member of vm1"));
  CHECK(contains(world.run({"lost-writes", "vm2", "--host", "z"}).err, "has a volume vm2"));
}

TEST_CASE("lost-writes: answers that are not what they say are refused, nothing is written") {
  for (const char* bad : {"length", "content", "disk", "next"}) {
    CAPTURE(bad);
    World world;
    const TempDir directory;
    Json file = file_json(1);
    file["ranges"] = {range_json(0, "ab")};
    file["next"] = nullptr;
    if (std::string(bad) == "length") file["ranges"][0]["length"] = 4097;
    if (std::string(bad) == "content") file["ranges"][0]["content"] = "zz";
    if (std::string(bad) == "disk") file["ranges"][0]["disk"] = "../../etc/passwd";
    if (std::string(bad) == "next") file["next"] = 0;
    world.a().set_page("GET /v1/volumes/vm1/lost-writes/1", file);
    const Outcome outcome = world.run(
        {"lost-writes", "vm1", "--host", "a", "--file", "1", "--extract", directory.file("out")});
    CHECK(outcome.code == 1);
    CHECK_FALSE(fs::exists(directory.file("out") + "/ranges.txt"));
  }
}

}  // namespace
}  // namespace replicad::ctl_test
