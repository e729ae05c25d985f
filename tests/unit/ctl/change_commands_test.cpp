#include "tests/unit/ctl/run_ctl.h"

namespace replicad::ctl_test {
namespace {

using control_test::VolumeOptions;
using Strings = std::vector<std::string>;

const std::string delete_path = std::string("DELETE /v1/volumes/vm1?uuid=") + control_test::uuid;

/// Three hosts without a volume.
class Empty {
 public:
  FakeHost a{"a"};
  FakeHost b{"b"};
  FakeHost c{"c"};

  Outcome run(Strings words) {
    words.insert(words.end(), {"--hosts", a.entry() + "," + b.entry() + "," + c.entry()});
    return run_words(words);
  }
  [[nodiscard]] std::size_t changes() {
    return a.changes().size() + b.changes().size() + c.changes().size();
  }
};

VolumeOptions stopped() {
  VolumeOptions options;
  options.state = "stopped";
  return options;
}

TEST_CASE("create: posts to every chosen host and says what each one is") {
  Empty hosts;
  const Outcome outcome =
      hosts.run({"create", "vm1", "--size", "20G,10G", "--mode", "semi-sync", "--primary", "b"});
  CHECK(outcome.code == 0);
  CHECK(outcome.err.empty());
  for (FakeHost* host : {&hosts.a, &hosts.b, &hosts.c}) {
    CHECK(host->changes() == Strings{"POST /v1/volumes"});
    const Json body = host->last_body();
    CHECK(body["name"] == "vm1");
    CHECK(body["primary"] == "b");
    CHECK(body["uuid"].get<std::string>().size() == 36);
    CHECK(body["uuid"] == hosts.a.last_body()["uuid"]);
    CHECK(body["disks"] == Json::parse(
                               R"([{"name":"vda","bytes":21474836480,"adopt":null},
                {"name":"vdb","bytes":10737418240,"adopt":null}])"));
    CHECK(body["settings"] == Json{{"mode", "semi-sync"}});
    CHECK(body["members"][1]["control"].is_string());
    CHECK(body["in_sync"].size() == 3);
    CHECK(body["consistent"] == true);
  }
  CHECK(contains(outcome.out, "b: primary (score "));
  CHECK(contains(outcome.out, "b: create the images (primary): done"));
}

TEST_CASE("create: the JSON answer has the steps") {
  Empty hosts;
  const Json json =
      hosts.run({"create", "vm1", "--size", "1G", "--copies", "2", "-o", "json"}).json();
  CHECK(json["schema"] == 1);
  CHECK(json["volume"] == "vm1");
  CHECK(json["primary"] == "a");
  CHECK(json["hosts"] == Strings{"a", "b"});
  CHECK(json["dry_run"] == false);
  REQUIRE(json["steps"].size() == 2);
  CHECK(json["steps"][1]["host"] == "a");
  CHECK(json["steps"][1]["state"] == "done");
  CHECK(hosts.c.changes().empty());
}

TEST_CASE("create: if one host fails the others are taken back, and it says what happened where") {
  Empty hosts;
  hosts.b.fail_with("POST /v1/volumes", 507, "no_space", "the disk is full");
  const Outcome outcome = hosts.run({"create", "vm1", "--size", "1G", "--primary", "a"});
  CHECK(outcome.code == 1);
  CHECK(contains(outcome.err, "b: the disk is full; taken back on c"));
  REQUIRE(hosts.c.changes().size() == 2);
  CHECK(contains(hosts.c.changes()[1], "DELETE /v1/volumes/vm1?uuid="));
  CHECK(hosts.b.changes().size() == 1);
  CHECK(hosts.a.changes().empty());
  CHECK_FALSE(hosts.c.has_volume("vm1"));
}

TEST_CASE("create: what could not be taken back is named") {
  Empty hosts;
  hosts.b.fail_with("POST /v1/volumes", 500, "io_error", "broken");
  hosts.c.fail_with("DELETE /v1/volumes/vm1", 500, "io_error", "also broken");
  const Outcome outcome = hosts.run({"create", "vm1", "--size", "1G", "--primary", "a"});
  CHECK(outcome.code == 1);
  CHECK(contains(outcome.err, "b: broken; NOT taken back on c"));
  CHECK(contains(outcome.err, "replicactl delete vm1 --force"));
}

TEST_CASE("create: a host that died half-way is taken back too, as far as it can be") {
  Empty hosts;
  hosts.b.hang_after("POST /v1/volumes");
  std::thread killer([&] {
    while (hosts.b.changes_now() == 0)
      std::this_thread::yield();
    hosts.b.stop();
  });
  const Outcome outcome = hosts.run({"create", "vm1", "--size", "1G", "--primary", "a"});
  killer.join();
  CHECK(outcome.code == 4);
  CHECK_MESSAGE(contains(outcome.err, "taken back on c"), outcome.err);
  CHECK_MESSAGE(contains(outcome.err, "NOT taken back on b"), outcome.err);
  CHECK_FALSE(hosts.c.has_volume("vm1"));
  CHECK(hosts.a.changes().empty());
}

TEST_CASE("create: --dry-run shows the steps and sends nothing") {
  Empty hosts;
  const Outcome outcome = hosts.run({"create", "vm1", "--size", "1G", "--dry-run"});
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "would: a: create the images (primary)"));
  CHECK(hosts.changes() == 0);
}

TEST_CASE("create: an existing name is refused before anything is sent") {
  Trio trio;
  const Outcome outcome = trio.run({"create", "vm1", "--size", "1G"});
  CHECK(outcome.code == 3);
  CHECK(contains(outcome.err, "a has a volume vm1 already"));
  CHECK(trio.changes().empty());
}

TEST_CASE("create: --adopt goes to the primary, the replicas are told to expect a copy") {
  Empty hosts;
  const Outcome outcome = hosts.run({"create",
                                     "vm1",
                                     "--size",
                                     "1G",
                                     "--adopt",
                                     "/dev/vg0/vm1",
                                     "--primary",
                                     "c",
                                     "--on",
                                     "c,a"});
  CHECK(outcome.code == 0);
  CHECK(hosts.c.last_body()["disks"][0]["adopt"] == "/dev/vg0/vm1");
  CHECK(hosts.c.last_body()["consistent"] == true);
  CHECK(hosts.a.last_body()["disks"][0]["adopt"].is_null());
  CHECK(hosts.a.last_body()["consistent"] == false);
  CHECK(hosts.a.last_body()["in_sync"] == Strings{"c"});
  CHECK(contains(outcome.out, "first copy"));
  CHECK(hosts.b.changes().empty());
}

TEST_CASE("dry run: no command that changes anything sends more than questions") {
  struct Row {
    VolumeOptions options;
    Strings words;
  };
  VolumeOptions behind;
  behind.in_sync = {"a", "b"};
  const std::vector<Row> rows{{stopped(), {"activate", "vm1"}},
                              {{}, {"deactivate", "vm1"}},
                              {{}, {"restart", "vm1"}},
                              {{}, {"switchover", "vm1", "--to", "b"}},
                              {{}, {"set", "vm1", "mode=async"}},
                              {behind, {"resync", "vm1", "--host", "c", "--wait"}},
                              {{}, {"remove-replica", "vm1", "c"}},
                              {stopped(), {"delete", "vm1", "--force"}}};
  for (const Row& row : rows) {
    CAPTURE(row.words[0]);
    Trio trio(row.options);
    Strings words = row.words;
    words.emplace_back("--dry-run");
    const Outcome outcome = trio.run(words);
    CHECK(outcome.code == 0);
    CHECK(contains(outcome.out, "would: "));
    words.insert(words.end(), {"-o", "json"});
    const Json json = trio.run(words).json();
    CHECK(json["dry_run"] == true);
    CHECK(json["steps"][0]["state"] == "planned");
    CHECK(trio.changes().empty());
  }
}

TEST_CASE("activate: prints where the export is") {
  Trio trio(stopped());
  trio.a().set_answer("activate",
                      {{"schema", 1},
                       {"uri", "nbd+unix:///?socket=/run/replica/vm1.sock"},
                       {"socket", "/run/replica/vm1.sock"}});
  const Outcome outcome = trio.run({"activate", "vm1"});
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "nbd+unix:///?socket=/run/replica/vm1.sock\n"));
  CHECK(trio.changes() == Strings{"a POST /v1/volumes/vm1/activate"});
  const Json json = trio.run({"activate", "vm1", "-o", "json"}).json();
  CHECK(json["uri"] == "nbd+unix:///?socket=/run/replica/vm1.sock");
  CHECK(json["host"] == "a");
}

TEST_CASE("restart: of a served volume, and says when the old export did not end cleanly") {
  Trio trio;
  const Json answer = {
      {"schema", 1}, {"uri", "nbd+unix:///?socket=/s"}, {"socket", "/s"}, {"clean", true}};
  trio.a().set_answer("restart", answer);
  const Outcome outcome = trio.run({"restart", "vm1"});
  CHECK(outcome.code == 0);
  CHECK_FALSE(contains(outcome.out, "did not end cleanly"));
  CHECK(trio.changes() == Strings{"a POST /v1/volumes/vm1/restart"});
  Json unclean = answer;
  unclean["clean"] = false;
  trio.a().set_answer("restart", unclean);
  CHECK(contains(trio.run({"restart", "vm1"}).out, "did not end cleanly"));
  CHECK(trio.run({"restart", "vm1", "-o", "json"}).json()["clean"] == false);
  Trio inactive(stopped());
  const Outcome refused = inactive.run({"restart", "vm1"});
  CHECK(refused.code == 3);
  CHECK(contains(refused.err, "replicactl activate vm1"));
  CHECK(inactive.changes().empty());
}

TEST_CASE("activate: a daemon's refusal gives its message and exit code") {
  Trio trio(stopped());
  trio.a().fail_with(
      "POST /v1/volumes/vm1/activate", 409, "busy", "image is in use by another program");
  const Outcome outcome = trio.run({"activate", "vm1", "-o", "json"});
  CHECK(outcome.code == 3);
  CHECK(outcome.error()["code"] == "busy");
  CHECK(outcome.error()["message"] == "a: image is in use by another program");
}

TEST_CASE("exit codes: follow the daemon's error code") {
  struct Row {
    const char* code;
    int exit;
  };
  for (const Row& row : {Row{"invalid_argument", 2},
                         Row{"refused", 3},
                         Row{"exists", 3},
                         Row{"stale_epoch", 3},
                         Row{"diverged", 3},
                         Row{"inconsistent", 3},
                         Row{"too_far_behind", 3},
                         Row{"version_mismatch", 3},
                         Row{"unreachable", 4},
                         Row{"not_found", 5},
                         Row{"timeout", 124},
                         Row{"io_error", 1},
                         Row{"corrupt", 1},
                         Row{"no_space", 1},
                         Row{"protocol", 1},
                         Row{"not_supported", 1},
                         Row{"never heard of", 1}}) {
    CAPTURE(row.code);
    Trio trio;
    trio.a().fail_with("POST /v1/volumes/vm1/deactivate", 500, row.code, "m");
    CHECK(trio.run({"deactivate", "vm1"}).code == row.exit);
  }
}

Json proof(const std::string& target_digest) {
  return {{"schema", 1},
          {"volume", "vm1"},
          {"from", "a"},
          {"to", "b"},
          {"epoch", control_test::epoch_json(4)},
          {"history",
           {{"epoch", control_test::epoch_json(3)},
            {"sequence", 4711},
            {"digest", std::string(32, 'd')}}},
          {"held_ms", 12.34},
          {"replicas",
           {{{"host", "b"},
             {"sent", 4711},
             {"received", 4711},
             {"durable", 4711},
             {"applied", 4711},
             {"digest", target_digest}},
            {{"host", "c"},
             {"sent", 4711},
             {"received", 4711},
             {"durable", 4711},
             {"applied", 4700},
             {"digest", std::string(32, 'e')}}}},
          {"primary_digest", std::string(32, 'd')},
          {"equal", true},
          {"dry_run", false},
          {"export",
           {{"uri", "nbd+unix:///?socket=/run/replica/vm1.sock"},
            {"socket", "/run/replica/vm1.sock"}}}};
}

TEST_CASE("switchover: prints the proof") {
  Trio trio;
  trio.a().set_answer("switchover", proof(std::string(32, 'd')));
  const Outcome outcome = trio.run({"switchover", "vm1", "--to", "b", "--deadline", "5s"});
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "vm1 moved from a to b, epoch 4: equal since sequence 4711\n"));
  CHECK(contains(outcome.out, "the guest's I/O was held for 12.3 ms\n"));
  CHECK(contains(outcome.out,
                 "new primary  4711      4711     4711     4711  " + std::string(32, 'd')));
  CHECK(contains(outcome.out, "4700  " + std::string(32, 'e')));
  CHECK(trio.a().last_body() == Json{{"to", "b"}, {"deadline_ms", 5000}, {"dry_run", false}});
  const Json json = trio.run({"switchover", "vm1", "--to", "b", "-o", "json"}).json();
  CHECK(json["proof"]["equal"] == true);
}

TEST_CASE("switchover: a proof that does not prove it is an error") {
  Trio trio;
  trio.a().set_answer("switchover", proof(std::string(32, '0')));
  const Outcome differs = trio.run({"switchover", "vm1", "--to", "b"});
  CHECK(differs.code == 3);
  CHECK(contains(differs.err, "the digests of b and of the old primary differ"));
  trio.a().set_answer("switchover", {{"schema", 1}});
  CHECK(trio.run({"switchover", "vm1", "--to", "b"}).code == 1);
  Json other = proof(std::string(32, 'd'));
  other["replicas"].erase(0);
  trio.a().set_answer("switchover", other);
  CHECK(contains(trio.run({"switchover", "vm1", "--to", "b"}).err, "the proof says nothing of b"));
}

TEST_CASE("switchover: without --to the best in-sync replica is chosen by its host's metrics") {
  Trio trio;
  trio.b().set_host("/metrics/load_1m", 30.0);
  Json said = proof(std::string(32, 'd'));
  trio.a().set_answer("switchover", said);
  const Outcome outcome = trio.run({"switchover", "vm1", "--dry-run"});
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "hand over to c"));
}

TEST_CASE("switchover: a lost answer is not taken for a failure or a success") {
  Trio trio;
  trio.a().hang_after("POST /v1/volumes/vm1/switchover");
  std::thread killer([&] {
    while (trio.a().changes_now() == 0)
      std::this_thread::yield();
    trio.a().stop();
  });
  const Outcome outcome = trio.run({"switchover", "vm1", "--to", "b"});
  killer.join();
  CHECK(outcome.code == 4);
  CHECK(contains(outcome.err, "whether it was carried out there is not known"));
  CHECK(contains(outcome.err, "`replicactl status vm1` shows where it stands"));
}

TEST_CASE("switchover: to the primary itself succeeds without a request") {
  Trio trio;
  const Outcome outcome = trio.run({"switchover", "vm1", "--to", "a"});
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "a is the primary of vm1 already"));
  CHECK(trio.changes().empty());
}

TEST_CASE("primary: two that claim the same epoch stop every command that changes something") {
  VolumeOptions other;
  other.primary = "b";
  for (const Strings& words : {Strings{"activate", "vm1"},
                               Strings{"set", "vm1", "mode=async"},
                               Strings{"switchover", "vm1", "--to", "c"},
                               Strings{"delete", "vm1", "--force"},
                               Strings{"remove-replica", "vm1", "c"},
                               Strings{"resync", "vm1", "--host", "c"},
                               Strings{"add-replica", "vm1"}}) {
    CAPTURE(words[0]);
    Trio trio;
    trio.b().set_volume(trio.view("b", other));
    const Outcome outcome = trio.run(words);
    CHECK(outcome.code == 3);
    CHECK(contains(outcome.err, "a and b both say that they are the primary of vm1"));
    CHECK(trio.changes().empty());
  }
}

TEST_CASE("set: the primary first, then the others") {
  Trio trio;
  const Outcome outcome = trio.run({"set", "vm1", "mode=async", "ack-timeout=3s"});
  CHECK(outcome.code == 0);
  CHECK(trio.changes() == Strings{"a POST /v1/volumes/vm1/set",
                                  "b POST /v1/volumes/vm1/set",
                                  "c POST /v1/volumes/vm1/set"});
  CHECK(trio.c().last_body() == Json{{"settings", {{"mode", "async"}, {"ack_timeout_ms", 3000}}}});
}

TEST_CASE("set: if the primary refuses nobody else is told") {
  Trio trio;
  trio.a().fail_with("POST /v1/volumes/vm1/set", 400, "invalid_argument", "no");
  CHECK(trio.run({"set", "vm1", "mode=async"}).code == 2);
  CHECK(trio.changes() == Strings{"a POST /v1/volumes/vm1/set"});
}

TEST_CASE("set: a member that is down is named, the rest is done, and the exit code is 4") {
  Trio trio;
  trio.b().stop();
  const Outcome outcome = trio.run({"set", "vm1", "mode=async"});
  CHECK(outcome.code == 4);
  CHECK(contains(outcome.err, "b was not reached (cannot connect to"));
  CHECK(contains(outcome.err, "hint: give the same command again when they are back"));
  CHECK(trio.changes() == Strings{"a POST /v1/volumes/vm1/set", "c POST /v1/volumes/vm1/set"});
}

TEST_CASE("set: a member that fails does not keep the others from being told") {
  Trio trio;
  trio.b().fail_with("POST /v1/volumes/vm1/set", 500, "io_error", "disk gone");
  const Outcome outcome = trio.run({"set", "vm1", "mode=async"});
  CHECK(outcome.code == 1);
  CHECK(contains(outcome.err, "b: disk gone"));
  CHECK(contains(outcome.err, "the primary has the change"));
  CHECK(trio.changes().size() == 3);
}

TEST_CASE("delete: without --force it lists what would be lost and refuses") {
  Trio trio(stopped());
  const Outcome outcome = trio.run({"delete", "vm1"});
  CHECK(outcome.code == 3);
  CHECK(contains(outcome.err,
                 "\n  b: disk vda, 1 GiB (4 KiB of them on disk), /images/vm1.vda.raw\n"));
  CHECK(contains(outcome.err, "--force"));
  CHECK(trio.changes().empty());
}

TEST_CASE("delete: with --force the replicas go first and the primary last") {
  Trio trio(stopped());
  std::vector<std::string> order;
  std::mutex mutex;
  const auto note = [&](FakeHost& host) {
    host.on_request([&, name = host.name()](std::size_t) {
      const std::lock_guard lock(mutex);
      order.push_back(name);
    });
  };
  note(trio.a());
  note(trio.b());
  note(trio.c());
  const Outcome outcome = trio.run({"delete", "vm1", "--force"});
  CHECK(outcome.code == 0);
  CHECK(trio.changes() == Strings{"a " + delete_path, "b " + delete_path, "c " + delete_path});
  REQUIRE(order.size() == 6);
  CHECK(Strings(order.begin() + 3, order.end()) == Strings{"b", "c", "a"});
  CHECK(trio.run({"status", "vm1"}).code == 5);
}

TEST_CASE("delete: a replica that refuses keeps the primary's copy") {
  Trio trio(stopped());
  trio.b().fail_with("DELETE /v1/volumes/vm1", 409, "busy", "in use");
  const Outcome outcome = trio.run({"delete", "vm1", "--force"});
  CHECK(outcome.code == 3);
  CHECK(contains(outcome.err, "b: in use"));
  CHECK(trio.a().has_volume("vm1"));
}

TEST_CASE("delete: an active volume is refused even with --force") {
  Trio trio;
  const Outcome outcome = trio.run({"delete", "vm1", "--force"});
  CHECK(outcome.code == 3);
  CHECK(contains(outcome.err, "vm1 is active on a"));
  CHECK(trio.changes().empty());
}

TEST_CASE("delete: adopted images are said to be kept") {
  Trio trio(stopped());
  Json view = trio.view("a", stopped());
  view["disks"][0]["adopted"] = true;
  trio.a().set_volume(view);
  CHECK(contains(trio.run({"delete", "vm1"}).err, "adopted, the image is kept"));
  CHECK(contains(trio.run({"delete", "vm1", "--force"}).out, "adopted, the image is kept"));
}

TEST_CASE("remove-replica: asks on a terminal, and a no changes nothing") {
  Trio trio;
  const Outcome no = trio.run({"remove-replica", "vm1", "c"}, "n\n");
  CHECK(no.code == 3);
  CHECK(contains(no.err, "remove the copy of vm1 on c? [y/N]"));
  CHECK(trio.changes().empty());
  CHECK(trio.run({"remove-replica", "vm1", "c"}, "y\n").code == 0);
  CHECK(trio.changes() == Strings{"a PUT /v1/volumes/vm1/members", "c " + delete_path});
}

TEST_CASE("add-replica: the best host that has no copy yet") {
  Trio trio;
  FakeHost d("d");
  FakeHost e("e");
  d.set_host("/metrics/disk_errors", 3.0);
  const std::string hosts = trio.hosts() + "," + d.entry() + "," + e.entry();
  const Outcome outcome = run_words({"add-replica", "vm1", "--hosts", hosts});
  CHECK(outcome.code == 0);
  CHECK(e.changes() == Strings{"POST /v1/volumes"});
  CHECK(e.last_body()["consistent"] == false);
  CHECK(d.changes().empty());
  CHECK(trio.a().last_body()["members"].size() == 4);
  CHECK(run_words({"add-replica", "vm1", "d", "--hosts", hosts}).code == 0);
  CHECK(d.changes() == Strings{"POST /v1/volumes"});
  CHECK(run_words({"add-replica", "vm1", "b", "--hosts", hosts}).code == 3);
}

TEST_CASE("remove-replica: a host that keeps lost writes goes only with --force") {
  Trio trio;
  Json view = trio.view("c");
  view["lost_writes"] = {{"files", 2}, {"bytes", 8192}};
  trio.c().set_volume(view);
  const Outcome refused = trio.run({"remove-replica", "vm1", "c"});
  CHECK(refused.code == 3);
  CHECK(
      contains(refused.err, "c keeps 2 file(s) of lost writes of vm1, 8 KiB, and is the only one"));
  CHECK(contains(refused.err, "replicactl lost-writes vm1"));
  CHECK(trio.changes().empty());
  CHECK(trio.run({"remove-replica", "vm1", "c", "--force"}).code == 0);
  CHECK(trio.changes() == Strings{"a PUT /v1/volumes/vm1/members", "c " + delete_path});
}

TEST_CASE("add-replica: --witness adds a vote without images, and is removed again") {
  Trio trio;
  FakeHost w("w");
  const std::string hosts = trio.hosts() + "," + w.entry();
  const Outcome outcome = run_words({"add-replica", "vm1", "--witness", "w", "--hosts", hosts});
  CHECK_MESSAGE(outcome.code == 0, outcome.err);
  const Json body = w.last_body();
  CHECK(body["disks"].empty());
  CHECK(body["founder"] == false);
  CHECK(body["members"].back()["role"] == "witness");
  CHECK(trio.a().last_body()["members"].back()["host"] == "w");
  CHECK(trio.a().last_body()["members"].back()["role"] == "witness");
  CHECK(run_words({"add-replica", "vm1", "d", "--witness", "w", "--hosts", hosts}).code == 2);
  CHECK(run_words({"add-replica", "vm1", "--witness", "b", "--hosts", hosts}).code == 3);
  CHECK(run_words({"add-replica", "vm1", "--witness", "../w", "--hosts", hosts}).code == 2);
  Json view = trio.view("b");
  view["host"] = "w";
  view["state"] = "witness";
  view["disks"] = Json::array();
  view.erase("replica");
  w.set_volume(view);
  const Outcome removed = run_words({"remove-replica", "vm1", "w", "--hosts", hosts}, "y\n");
  CHECK(contains(removed.err, "remove the witness of vm1 on w?"));
}

TEST_CASE("readmit: goes to the host whose image it is, with what the user said") {
  Trio trio;
  trio.b().set_answer("readmit", {{"schema", 1}, {"accepted", true}});
  const Outcome outcome = trio.run({"readmit", "vm1", "--host", "b"});
  CHECK_MESSAGE(outcome.code == 0, outcome.err);
  CHECK(contains(outcome.out, "b takes its image as it is"));
  CHECK(trio.changes() == Strings{"b POST /v1/volumes/vm1/readmit"});
  CHECK(trio.b().last_body() == Json{{"force", false}});
  trio.b().set_answer("readmit", {{"schema", 1}, {"accepted", false}});
  CHECK(contains(trio.run({"readmit", "vm1", "--host", "b"}).out, "is the right one again"));
  const Outcome no = trio.run({"readmit", "vm1", "--host", "a", "--force"}, "n\n");
  CHECK(no.code == 3);
  CHECK(contains(no.err, "take the image of vm1 on a without a comparison?"));
  CHECK(trio.run({"readmit", "vm1"}).code == 2);
  CHECK(trio.run({"readmit", "vm1", "--host", "x"}).code == 5);
}

TEST_CASE("add-replica: what was created is taken back if the primary refuses the new list") {
  Trio trio;
  FakeHost d("d");
  trio.a().fail_with("PUT /v1/volumes/vm1/members", 409, "busy", "not now");
  const Outcome outcome =
      run_words({"add-replica", "vm1", "d", "--hosts", trio.hosts() + "," + d.entry()});
  CHECK(outcome.code == 3);
  CHECK(contains(outcome.err, "a: not now; taken back on d"));
  CHECK_FALSE(d.has_volume("vm1"));
  CHECK(trio.b().changes().empty());
}

TEST_CASE("resync: --wait follows the copy to its end") {
  VolumeOptions behind;
  behind.in_sync = {"a", "b"};
  Trio trio(behind);
  Json copying = trio.view("a", behind);
  copying["replicas"][1]["state"] = "copying";
  copying["replicas"][1]["copy"] = {{"done_bytes", 512 * mib}, {"total_bytes", gib}};
  const Json whole = trio.view("a");
  trio.c().on_request([&](std::size_t number) {
    if (number == 2) trio.a().set_volume(copying);
    if (number == 4) trio.a().set_volume(whole);
  });
  const Outcome outcome = trio.run({"resync", "vm1", "--host", "c", "--wait"});
  CHECK(outcome.code == 0);
  CHECK(trio.changes() == Strings{"a POST /v1/volumes/vm1/resync"});
  CHECK(trio.a().last_body() == Json{{"host", "c"}});
  CHECK(contains(outcome.out, "c is in sync"));
  CHECK(contains(outcome.err, "vm1 to c: 100%  1 GiB of 1 GiB"));
}

TEST_CASE(
    "resync: --wait ends with an error when the copy does, and with 124 when the time is over") {
  VolumeOptions behind;
  behind.in_sync = {"a", "b"};
  Trio trio(behind);
  CHECK(trio.run({"resync", "vm1", "--host", "c", "--wait", "--timeout", "0.3"}).code == 124);
  Json refused = trio.view("a", behind);
  refused["replicas"][1]["state"] = "refused";
  refused["replicas"][1]["error"] = {
      {"code", "no_space"}, {"message", "the disk of c is full"}, {"hint", ""}};
  trio.a().set_volume(refused);
  const Outcome outcome = trio.run({"resync", "vm1", "--host", "c", "--wait"});
  CHECK(outcome.code == 1);
  CHECK(contains(outcome.err, "the copy to c ended: it is refused: the disk of c is full"));
}

TEST_CASE("quiet: results only") {
  Trio trio;
  const Outcome outcome = trio.run({"set", "vm1", "mode=async", "-q"});
  CHECK(outcome.code == 0);
  CHECK(outcome.out.empty());
}

}  // namespace
}  // namespace replicad::ctl_test
