#include <chrono>
#include <fstream>

#include "core/base/names.h"
#include "tests/unit/ctl/run_ctl.h"
#include "tests/unit/ctl/temp_dir.h"

namespace replicad::ctl_test {
namespace {

using control_test::VolumeOptions;

TEST_CASE("hosts: a table of what each says, and why one does not answer") {
  Trio trio;
  trio.c().stop();
  const Outcome outcome = trio.run({"hosts"});
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "HOST"));
  CHECK(contains(outcome.out, "a     " + trio.a().address()));
  CHECK(contains(outcome.out, "unreachable"));
  CHECK(contains(outcome.out, "c: cannot connect to " + trio.c().address()));
  const Json json = trio.run({"hosts", "-o", "json"}).json();
  CHECK(json["schema"] == 1);
  REQUIRE(json["hosts"].size() == 3);
  CHECK(json["hosts"][0]["host"] == "a");
  CHECK(json["hosts"][0]["reachable"] == true);
  CHECK(json["hosts"][0]["metrics"]["cpus"] == 4);
  CHECK(json["hosts"][2]["reachable"] == false);
  CHECK(json["hosts"][2]["error"]["code"] == "unreachable");
}

TEST_CASE("hosts: a daemon that calls itself otherwise is an error of that host") {
  FakeHost host("b");
  const Outcome outcome = run_words({"hosts", "--hosts", "a=" + host.address()});
  CHECK(outcome.code == 4);
  CHECK(contains(outcome.out, "the daemon at " + host.address() + " calls itself 'b', not 'a'"));
}

TEST_CASE("hosts: none that answers is exit code 4") {
  CHECK(run_words({"hosts", "--hosts", "a=127.0.0.1:1"}).code == 4);
}

TEST_CASE("place: chooses, explains every term and sends nothing") {
  Trio trio;
  trio.b().set_host("/metrics/load_1m", 20.0);
  const Outcome outcome = trio.run({"place", "--size", "10G", "--copies", "2", "--explain"});
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "primary"));
  CHECK(contains(outcome.out, "enough better ones"));
  CHECK(contains(outcome.out, "score = 0.40 load + 0.30 capacity + 0.30 stability"));
  CHECK(contains(outcome.out, "unclean restarts"));
  CHECK(trio.changes().empty());
  const Json json = trio.run({"place", "--size", "10G,1G", "--copies", "2", "-o", "json"}).json();
  CHECK(json["bytes"] == 11 * gib);
  CHECK(json["chosen"] == std::vector<std::string>{"a", "c"});
  CHECK(json["primary"] == "a");
  CHECK(json["hosts"][2]["host"] == "b");
  CHECK(json["hosts"][2]["terms"].size() == 8);
}

TEST_CASE("place: too few hosts is exit code 3, with every host's reason") {
  Trio trio;
  trio.b().set_host("/metrics/image_dir_free_bytes", 5);
  trio.c().stop();
  const Outcome outcome = trio.run({"place", "--size", "10G"});
  CHECK(outcome.code == 3);
  CHECK(contains(outcome.err, "3 copies wanted, but only 1 of 3 hosts can take one"));
  CHECK(contains(outcome.err, "b: 5 B free"));
  CHECK(contains(outcome.err, "c: it does not answer"));
  CHECK(contains(outcome.out, "rejected"));
  // Nobody was chosen, so nobody was better than a.
  CHECK_FALSE(contains(outcome.out, "enough better ones"));
}

TEST_CASE("list: one line per volume") {
  Trio trio;
  const Outcome outcome = trio.run({"list"});
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "vm1   sync  1 GiB      1  a        serving  2 of 2 in sync  -\n"));
  const Json json = trio.run({"list", "-o", "json"}).json();
  CHECK(json["volumes"][0]["name"] == "vm1");
  CHECK(json["volumes"][0]["members"].size() == 3);
  CHECK(json["silent"].empty());
}

TEST_CASE("status: roles, watermarks, lag, copy and the word on failover") {
  VolumeOptions options;
  options.in_sync = {"a", "b"};
  Trio trio(options);
  Json view = trio.view("a", options);
  view["replicas"][1]["state"] = "copying";
  view["replicas"][1]["copy"] = {{"done_bytes", 512 * mib}, {"total_bytes", gib}};
  view["replicas"][1]["lag_seconds"] = 1.5;
  trio.a().set_volume(view);
  const Outcome outcome = trio.run({"status", "vm1"});
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "vm1  sync  serving on a  epoch 3  sequence 42\n"));
  CHECK(contains(outcome.out, "disks: vda 1 GiB\n"));
  CHECK(contains(outcome.out, "b     replica  streaming  yes"));
  CHECK(contains(outcome.out, "c     replica  copying    no"));
  CHECK(contains(outcome.out, "8 KiB     1.5 s  50.0% of 1 GiB\n"));
  CHECK(contains(outcome.out,
                 "failover: possible: `replicactl failover vm1` if the primary is lost\n"));
}

TEST_CASE("status: --watch ends when every host says that there is no such volume") {
  Trio trio;
  const Outcome outcome = trio.run({"status", "vm2", "--watch"});
  CHECK(outcome.code == 5);
  CHECK(contains(outcome.err, "there is no volume vm2"));
}

TEST_CASE("status: a member that cannot read its state is failed, and no vote for a failover") {
  Trio trio;
  Json broken = trio.view("c");
  broken["uuid"] = unknown_uuid;
  broken["state"] = "failed";
  broken["error"] = {
      {"code", "corrupt"}, {"message", "the checksum is wrong"}, {"hint", "restore the file"}};
  trio.c().set_volume(broken);
  const Outcome outcome = trio.run({"status", "vm1"});
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "vm1  sync  serving on a"));
  CHECK(contains(outcome.out, "c     replica  failed"));
  CHECK(contains(outcome.out, "problem: c: the checksum is wrong; restore the file\n"));
  CHECK(contains(outcome.out, "failover: not possible now"));
  CHECK(trio.run({"deactivate", "vm1"}).code == 0);
  // The last copy of all.
  const std::string alone = trio.c().entry();
  const Outcome status = run_words({"--hosts", alone, "status"});
  CHECK(status.code == 0);
  CHECK(contains(status.out, "problem: c: the checksum is wrong; restore the file\n"));
  const Json listed = run_words({"--hosts", alone, "list", "-o", "json"}).json();
  CHECK(listed["volumes"][0]["name"] == "vm1");
  CHECK(listed["volumes"][0]["state"] == "unknown");
  CHECK(run_words({"--hosts", alone, "status", "vm1"}).code == 1);
}

TEST_CASE("status: the JSON has one object per volume and member") {
  Trio trio;
  const Json json = trio.run({"status", "vm1", "-o", "json"}).json();
  CHECK(json["schema"] == 1);
  REQUIRE(json["volumes"].size() == 1);
  const Json& volume = json["volumes"][0];
  CHECK(volume["state"] == "serving");
  CHECK(volume["primary"] == "a");
  CHECK(volume["sequence"] == 42);
  CHECK(volume["failover"]["available"] == true);
  CHECK(volume["export"]["uris"]["vda"] == "nbd+unix:///vda?socket=/run/replica/vm1.sock");
  REQUIRE(volume["members"].size() == 3);
  CHECK(volume["members"][0]["role"] == "primary");
  const Json& replica = volume["members"][1];
  for (const char* mark : {"sent", "received", "logged", "durable", "applied"})
    CHECK(replica[mark] == 42);
  CHECK(replica["lag_bytes"] == 0);
  CHECK(replica["reachable"] == true);
  CHECK(trio.run({"status", "-o", "json"}).json()["volumes"][0] == volume);
}

TEST_CASE("status: a dead host is shown and does not stall the others") {
  Trio trio;
  trio.c().hang_after("GET /v1/volumes/vm1");
  trio.b().stop();
  const auto start = std::chrono::steady_clock::now();
  const Outcome outcome = trio.run({"status", "vm1", "--timeout", "0.4"});
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(3));
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "serving on a"));
  CHECK(contains(outcome.out, "b does not answer: cannot connect to"));
  CHECK(contains(outcome.out,
                 "c does not answer: " + trio.c().address() + " did not answer in time"));
}

TEST_CASE("status: without the primary the replicas still tell what they know") {
  Trio trio;
  trio.a().stop();
  const Outcome outcome = trio.run({"status", "vm1"});
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "vm1  sync  unknown on a"));
  CHECK(contains(outcome.out, "the primary of vm1, a, does not answer"));
}

TEST_CASE("status: no such volume is 5, no host at all is 4") {
  Trio trio;
  CHECK(trio.run({"status", "vm9"}).code == 5);
  CHECK(contains(trio.run({"status", "vm9"}).err, "there is no volume vm9"));
  trio.c().stop();
  CHECK(trio.run({"status", "vm9"}).code == 4);
  trio.a().stop();
  trio.b().stop();
  CHECK(trio.run({"status"}).code == 4);
  CHECK(trio.run({"status", "vm1"}).code == 4);
  CHECK(trio.run({"list"}).code == 4);
}

TEST_CASE("status: members that are not in the hosts list are found through the others") {
  Trio trio;
  const Json json = run_words({"status", "vm1", "-o", "json", "--hosts", trio.b().entry()}).json();
  CHECK(json["volumes"][0]["state"] == "serving");
  for (const Json& member : json["volumes"][0]["members"])
    CHECK(member["reachable"] == true);
}

TEST_CASE("status: one address without a name is enough to start from, also a unix socket") {
  const TempDir dir;
  Trio trio;
  FakeHost local("b", dir.file("control.sock"));
  local.set_volume(trio.view("b"));
  const Json json = run_words({"list", "-o", "json", "--hosts", local.address()}).json();
  CHECK(json["volumes"][0]["state"] == "serving");
}

TEST_CASE("status: the hosts file and its environment variable are read") {
  const TempDir dir;
  Trio trio;
  std::ofstream(dir.file("hosts"))
      << "# test\na " << trio.a().address() << "\nb " << trio.b().address() << "\n";
  CHECK(run_words({"status", "vm1", "--hosts-file", dir.file("hosts")}).code == 0);
  ::setenv("REPLICACTL_HOSTS", dir.file("hosts").c_str(), 1);
  CHECK(run_words({"status", "vm1"}).code == 0);
  ::unsetenv("REPLICACTL_HOSTS");
}

TEST_CASE("status: what a daemon says cannot drive the terminal") {
  Trio trio;
  Json view = trio.view("a");
  view["state"] = "serving\x1b[2J";
  view["disks"][0]["name"] = "vda\n\x1b]0;owned\x07";
  view["error"] = {{"code", "io_error"}, {"message", "bad\x1b[31m"}, {"hint", "x\ry"}};
  trio.a().set_volume(view);
  for (const char* command : {"status", "list"}) {
    const Outcome outcome = trio.run({command});
    CHECK(outcome.code == 0);
    CHECK_FALSE(contains(outcome.out, "\x1b"));
    CHECK_FALSE(contains(outcome.out, "\x07"));
    CHECK_FALSE(contains(outcome.out, "\r"));
  }
  trio.a().fail_with("POST /v1/volumes/vm1/activate", 500, "io_error", "no\x1b[2J");
  CHECK_FALSE(contains(trio.run({"activate", "vm1"}).err, "\x1b"));
}

TEST_CASE("status: colours come with --color=always only") {
  Trio trio;
  CHECK(contains(trio.run({"status", "vm1", "--color=always"}).out, "\x1b[32mserving\x1b[0m"));
  CHECK_FALSE(contains(trio.run({"status", "vm1"}).out, "\x1b["));
  CHECK_FALSE(contains(trio.run({"status", "vm1", "--color=always", "-o", "json"}).out, "\x1b["));
}

TEST_CASE("answers: what is no answer of a replicad is an error, never a crash") {
  const std::string deep(100000, '[');
  for (const std::string& text : {std::string(),
                                  std::string("hello"),
                                  std::string("[]"),
                                  std::string("{}"),
                                  deep,
                                  std::string("{\"volumes\":[1]}"),
                                  std::string("{\"volumes\":[{\"name\":\"../x\"}]}"),
                                  std::string("{\"volumes\":[{\"name\":\"vm1\"}]}"),
                                  std::string("\xff\xfe")}) {
    FakeHost host("a");
    host.say_only(text);
    for (const std::vector<std::string>& words : {std::vector<std::string>{"hosts"},
                                                  {"list"},
                                                  {"status"},
                                                  {"status", "vm1"},
                                                  {"activate", "vm1"},
                                                  {"place", "--size", "1G"}}) {
      std::vector<std::string> all = words;
      all.insert(all.end(), {"--hosts", host.entry()});
      const Outcome outcome = run_words(all);
      const bool lists = words[0] == "list" || words == std::vector<std::string>{"status"};
      CAPTURE(words[0]);
      CAPTURE(text.substr(0, 40));
      if (!lists) CHECK(outcome.code != 0);
      CHECK(outcome.code < 6);
    }
  }
}

TEST_CASE("answers: one that does not end is cut off") {
  FakeHost host("a");
  host.say_only("{\"x\":\"" + std::string(9 << 20, 'x') + "\"}");
  const Outcome outcome = run_words({"activate", "vm1", "--hosts", host.entry()});
  CHECK(outcome.code != 0);
  CHECK(contains(outcome.err, "longer than 8 MiB"));
}

TEST_CASE("attach-info: URI, QEMU and libvirt, or one of them") {
  Trio trio;
  const Outcome all = trio.run({"attach-info", "vm1"});
  CHECK(all.code == 0);
  CHECK(contains(all.out, "nbd+unix:///vda?socket=/run/replica/vm1.sock"));
  CHECK(contains(all.out, "-blockdev '{\"driver\":\"nbd\""));
  CHECK(contains(all.out, "<disk type='network'"));
  CHECK(trio.run({"attach-info", "vm1", "--format", "uri"}).out ==
        "nbd+unix:///vda?socket=/run/replica/vm1.sock\n");
  const Json json = trio.run({"attach-info", "vm1", "-o", "json"}).json();
  CHECK(json["disks"][0]["name"] == "vda");
  CHECK(json["disks"][0]["qemu"].size() == 6);
}

TEST_CASE("attach-info: an inactive volume is refused with what to do") {
  VolumeOptions options;
  options.state = "stopped";
  Trio trio(options);
  const Outcome outcome = trio.run({"attach-info", "vm1"});
  CHECK(outcome.code == 3);
  CHECK(contains(outcome.err, "hint: `replicactl activate vm1` first"));
}

TEST_CASE("wait: returns when it is so, and with 124 when the time is over") {
  VolumeOptions behind;
  behind.in_sync = {"a", "b"};
  Trio trio(behind);
  CHECK(trio.run({"wait", "vm1", "--for", "serving"}).code == 0);
  CHECK(trio.run({"wait", "vm1", "--for", "primary=a"}).code == 0);
  const Outcome late = trio.run({"wait", "vm1", "--for", "in-sync", "--timeout", "0.5"});
  CHECK(late.code == 124);
  CHECK(contains(late.err, "waited 0.5 s for in-sync"));
  CHECK(contains(late.err, "c is catching-up"));
  CHECK(trio.run({"wait", "vm9", "--for", "serving"}).code == 5);
  // The third look finds it in sync.
  const Json whole = trio.view("a");
  trio.b().on_request([&](std::size_t number) {
    if (number == 3) trio.a().set_volume(whole);
  });
  CHECK(trio.run({"wait", "vm1", "--for", "in-sync", "--timeout", "20"}).code == 0);
}

}  // namespace
}  // namespace replicad::ctl_test
