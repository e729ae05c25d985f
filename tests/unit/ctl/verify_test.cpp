// replicactl verify: what it asks, what it makes of the answer, exit codes.

#include "tests/unit/ctl/run_ctl.h"

namespace replicad::ctl_test {
namespace {

Json found_at(const std::string& host, std::uint64_t different, std::uint64_t repaired = 0) {
  Json ranges = Json::array();
  if (different > 0)
    ranges.push_back({{"disk", "vda"}, {"offset", 20480}, {"length", different * 4096}});
  return {{"host", host},
          {"state", "done"},
          {"done_bytes", 1 << 30},
          {"total_bytes", 1 << 30},
          {"different_blocks", different},
          {"repaired_blocks", repaired},
          {"not_compared_blocks", 0},
          {"ranges", ranges},
          {"error", nullptr}};
}

Json verify_of(const std::vector<Json>& sides, std::uint64_t id = 7) {
  return {{"id", id},
          {"state", "done"},
          {"repair", false},
          {"force", false},
          {"seconds", 3.5},
          {"ended_seconds_ago", 0.1},
          {"block_bytes", 4096},
          {"alone_blocks", 0},
          {"kept_blocks", 0},
          {"error", nullptr},
          {"replicas", sides}};
}

/// The trio whose primary, once asked, has verify number 7 with this result.
struct Verifying {
  Trio trio;

  explicit Verifying(const Json& verify) {
    trio.a().set_answer("verify", {{"schema", 1}, {"id", 7}});
    Json view = trio.view("a");
    view["verify"] = verify;
    trio.a().set_volume_after("POST /v1/volumes/vm1/verify", view);
  }
  Outcome run(std::vector<std::string> options = {}) {
    options.insert(options.begin(), {"verify", "vm1"});
    return trio.run(options);
  }
};

TEST_CASE("verify: all equal is exit code 0, and status says so") {
  Verifying verifying(verify_of({found_at("b", 0), found_at("c", 0)}));
  const Outcome outcome = verifying.run();
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "b is equal\nc is equal\n"));
  CHECK(verifying.trio.changes() == std::vector<std::string>{"a POST /v1/volumes/vm1/verify"});
  CHECK(verifying.trio.a().last_body() == Json{{"repair", false}, {"force", false}});
  const Outcome status = verifying.trio.run({"status", "vm1"});
  CHECK(contains(status.out, "verify: b is equal, c is equal (0.1 s ago)\n"));
  CHECK_FALSE(contains(status.out, "problem"));
  const Json json = verifying.trio.run({"status", "vm1", "-o", "json"}).json();
  CHECK(json["volumes"][0]["verify"]["id"] == 7);
  CHECK(verifying.run({"-o", "json"}).json()["verify"]["replicas"][1]["host"] == "c");
}

TEST_CASE("verify: what differs is listed, exit code 1, with the way on") {
  Verifying verifying(verify_of({found_at("b", 2), found_at("c", 0)}));
  const Outcome outcome = verifying.run();
  CHECK(outcome.code == 1);
  CHECK(contains(outcome.out, "b     vda    20480    8192\n"));
  CHECK(contains(outcome.out, "b differs in 2 block(s)\nc is equal\n"));
  CHECK(contains(outcome.err, "b differs in 2 block(s)"));
  CHECK(contains(outcome.err, "`replicactl verify vm1 --repair`"));
  CHECK(contains(verifying.trio.run({"status", "vm1"}).out,
                 "b: 2 block(s) were found different by the last verify"));
  const Outcome json = verifying.run({"-o", "json"});
  CHECK(json.code == 1);
  CHECK(json.json()["verify"]["replicas"][0]["ranges"][0]["offset"] == 20480);
}

TEST_CASE("verify: repaired is exit code 0, and what no replica has like the primary is left") {
  SUBCASE("repaired") {
    Verifying verifying(verify_of({found_at("b", 2, 2), found_at("c", 0)}));
    const Outcome outcome = verifying.run({"--repair"});
    CHECK(outcome.code == 0);
    CHECK(contains(outcome.out, "b is equal, 2 block(s) repaired\n"));
    CHECK(verifying.trio.a().last_body()["repair"] == true);
  }
  SUBCASE("every replica differs: the primary is the likelier culprit") {
    Json verify = verify_of({found_at("b", 2), found_at("c", 2)});
    verify["alone_blocks"] = verify["kept_blocks"] = 2;
    Verifying verifying(verify);
    const Outcome outcome = verifying.run({"--repair"});
    CHECK(outcome.code == 1);
    CHECK(contains(outcome.err, "its disk is the likelier culprit"));
    CHECK(contains(outcome.err, "`replicactl switchover vm1`"));
  }
  SUBCASE("one replica: nobody knows") {
    Json verify = verify_of({found_at("b", 2)});
    verify["alone_blocks"] = 2;
    Verifying verifying(verify);
    const Outcome outcome = verifying.run({"--host", "b"});
    CHECK(outcome.code == 1);
    CHECK(contains(outcome.err, "nothing tells which side is right"));
    CHECK(verifying.trio.a().last_body()["host"] == "b");
  }
}

TEST_CASE("verify: what could not be compared is exit code 1") {
  Json gone = found_at("b", 0);
  gone["state"] = "failed";
  gone["error"] = {{"code", "unreachable"}, {"message", "link down"}, {"hint", "look at b"}};
  Json behind = found_at("c", 0);
  behind["not_compared_blocks"] = 3;
  Json verify = verify_of({gone, behind});
  verify["state"] = "failed";
  Verifying verifying(verify);
  const Outcome outcome = verifying.run();
  CHECK(outcome.code == 1);
  CHECK(contains(outcome.out, "b not compared to the end: link down\n"));
  CHECK(contains(outcome.out, "c 3 block(s) not compared\n"));
  CHECK(contains(outcome.err, "look at b"));
}

TEST_CASE("verify: the end of the export, or another verify, is told from a result") {
  SUBCASE("another one") {
    Verifying verifying(verify_of({found_at("b", 0)}, 8));
    const Outcome outcome = verifying.run();
    CHECK(outcome.code == 1);
    CHECK(contains(outcome.err, "another verify has begun since"));
  }
  SUBCASE("no export") {
    Verifying verifying(nullptr);
    Json view = verifying.trio.view("a");
    view["export"]["pid"] = 1;
    verifying.trio.a().set_volume_after("POST /v1/volumes/vm1/verify", view);
    const Outcome outcome = verifying.run();
    CHECK(outcome.code == 1);
    CHECK(contains(outcome.err, "the export on a has ended, and the verify with it"));
  }
}

TEST_CASE("verify: --no-wait, --stop, --timeout, and options that do not fit") {
  Json running = verify_of({found_at("b", 0)});
  running["state"] = "running";
  running["ended_seconds_ago"] = nullptr;
  running["replicas"][0]["state"] = "running";
  running["replicas"][0]["done_bytes"] = 1 << 29;
  Verifying verifying(running);
  const Json started = verifying.run({"--no-wait", "-o", "json"}).json();
  CHECK(started["verify"] == Json{{"id", 7}, {"state", "running"}});
  CHECK(contains(verifying.trio.run({"status", "vm1"}).out, "verify: under way, 50.0% of 1 GiB\n"));
  const Outcome waited = verifying.run({"--timeout", "0.3"});
  CHECK(waited.code == 124);
  CHECK(contains(waited.err, "--stop"));
  CHECK(verifying.run({"--stop"}).code == 0);
  CHECK(verifying.trio.a().last_body() == Json{{"stop", true}});
  const std::size_t asked = verifying.trio.changes().size();
  CHECK(verifying.run({"--force"}).code == 2);
  CHECK(verifying.run({"--stop", "--repair"}).code == 2);
  CHECK(verifying.run({"--host", "x"}).code == 5);
  CHECK(verifying.run({"--host", "a"}).code == 3);
  CHECK(verifying.run({"--dry-run"}).code == 0);
  CHECK(verifying.trio.changes().size() == asked);
}

}  // namespace
}  // namespace replicad::ctl_test
