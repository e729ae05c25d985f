// The control API over its real unix socket, with replicad in this process.

#include <fcntl.h>

#include "tests/replicad/daemon_fixture.h"

namespace replicad {
namespace {

using nlohmann::json;

std::string error_code(const PeerAnswer& answer) {
  return answer.body.at("error").at("code").get<std::string>();
}
std::string error_message(const PeerAnswer& answer) {
  return answer.body.at("error").at("message").get<std::string>();
}

json body_for(const TestHost& host) {
  return create_body("vm1", host.name(), {host.member()});
}

void check_nothing_left(const TestHost& host) {
  CHECK(host.ask("GET", "/v1/volumes").body.at("volumes").empty());
  CHECK(std::filesystem::is_empty(host.dir() + "/images"));
  CHECK(std::filesystem::is_empty(host.dir() + "/state/volumes"));
}

TEST_CASE("control: the host describes itself") {
  const TestHost host("a");
  const json answer = host.ask("GET", "/v1/host").body;
  CHECK(answer.at("schema") == 1);
  CHECK(answer.at("host") == "a");
  CHECK(answer.at("version") == REPLICAD_VERSION);
  CHECK(answer.at("stream").get<std::string>().starts_with("127.0.0.1:"));
  CHECK(answer.at("stream") != "127.0.0.1:0");
  CHECK(answer.at("control") != "127.0.0.1:0");
  CHECK(answer.at("metrics").at("image_dir_free_bytes") > 0);
  CHECK(answer.at("metrics").at("unclean_restarts") == 0);
  CHECK(answer.at("volumes") == json{{"primary", 0}, {"replica", 0}});
}

TEST_CASE("control: TCP and unix socket answer alike, and the socket is closed to others") {
  TestHost host("a");
  const auto answer = ask_peer({host.options().control, "GET", "/v1/volumes"});
  REQUIRE(answer.has_value());
  CHECK(answer->body == host.ask("GET", "/v1/volumes").body);
  for (const std::string& socket :
       {host.options().control_socket(), host.options().agent_socket()}) {
    struct stat info {};
    REQUIRE(::stat(socket.c_str(), &info) == 0);
    CHECK((info.st_mode & 0777) == 0660);
  }
}

TEST_CASE("control: a created volume is there after a restart, and gone after delete") {
  TestHost host("a");
  const PeerAnswer made = host.ask("POST", "/v1/volumes", body_for(host));
  REQUIRE_MESSAGE(made.ok(), made.body.dump());
  CHECK(made.body.at("state") == "stopped");
  CHECK(made.body.at("role") == "primary");
  CHECK(made.body.at("disks")[0].at("allocated_bytes") == 0);
  const std::string image = made.body.at("disks")[0].at("path");
  CHECK(std::filesystem::file_size(image) == 1 * mib);
  CHECK(host.disk_state("vm1").uuid == fixture_uuid);
  // The primary's images are locked while nobody serves them.
  CHECK(open_image_locked(image, 1 * mib).error().code == Errc::busy);
  host.restart();
  json again = host.get("vm1");
  // It asks the voters, of which it is the only one, and takes a new ballot for that.
  for (const char* ballot : {"promised", "accepted"})
    again["vote"][ballot] = made.body["vote"][ballot];
  CHECK(again == made.body);
  CHECK(host.ask("GET", "/v1/host").body.at("volumes").at("primary") == 1);

  const PeerAnswer wrong =
      host.ask("DELETE", "/v1/volumes/vm1?uuid=11111111-89ab-cdef-0123-456789abcdef");
  CHECK(wrong.status == 409);
  CHECK(host.ask("DELETE", "/v1/volumes/vm1").status == 409);
  CHECK(std::filesystem::exists(image));
  CHECK(host.ask("DELETE", std::string("/v1/volumes/vm1?uuid=") + fixture_uuid).ok());
  CHECK(host.ask("GET", "/v1/volumes/vm1").status == 404);
  check_nothing_left(host);
}

TEST_CASE("control: a second volume of the same name is refused and changes nothing") {
  const TestHost host("a");
  REQUIRE(host.ask("POST", "/v1/volumes", body_for(host)).ok());
  const std::string before = file_text(host.state_file("vm1"));
  json again = body_for(host);
  again["uuid"] = "99999999-89ab-cdef-0123-456789abcdef";
  const PeerAnswer refused = host.ask("POST", "/v1/volumes", again);
  CHECK(refused.status == 409);
  CHECK(error_code(refused) == "exists");
  CHECK(file_text(host.state_file("vm1")) == before);
}

TEST_CASE("control: requests that break a rule leave nothing behind and name the rule") {
  const TestHost host("a");
  const json other = {{"host", "b"}, {"stream", "127.0.0.1:1"}, {"control", "127.0.0.1:2"}};
  struct Case {
    const char* pointer;
    json value;
    const char* word;
  };
  const std::vector<Case> cases = {
      {"/name", "../../etc", "name"},
      {"/name", "", "name"},
      {"/uuid", "not-a-uuid", "UUID"},
      {"/primary", "z", "primary"},
      {"/disks", json::array(), "disks"},
      {"/disks/0/name", "a/b", "disk"},
      {"/disks/0/bytes", 1000, "multiple"},
      {"/disks/0/bytes", -5, "bytes"},
      {"/disks/0/bytes", 0, "size"},
      {"/disks/0/bytes", 1.5, "bytes"},
      {"/disks/0/bytes", "1M", "bytes"},
      {"/disks/0/bytes", disk_bytes_max, "free"},
      {"/disks/0/colour", "red", "colour"},
      {"/members", json::array({other}), "members"},
      {"/members/0/stream", "192.0.2.1:7400", "loopback"},
      {"/members/0/stream", "", "stream"},
      {"/settings/mode", "fast", "mode"},
      {"/settings/ring_bytes", 1, "ring_bytes"},
      {"/settings/turbo", true, "turbo"},
      {"/in_sync", json::array({"c"}), "c"},
      {"/consistent", "yes", "consistent"},
      {"/consistent", false, "inconsistent"},
      {"/surprise", 1, "surprise"},
  };
  for (const Case& item : cases) {
    json body = body_for(host);
    body[json::json_pointer(item.pointer)] = item.value;
    const PeerAnswer answer = host.ask("POST", "/v1/volumes", body);
    CHECK_MESSAGE(answer.status >= 400, item.pointer, " ", item.value.dump());
    CHECK_MESSAGE(error_message(answer).find(item.word) != std::string::npos,
                  item.pointer,
                  ": ",
                  error_message(answer));
    check_nothing_left(host);
  }
}

TEST_CASE("control: too large for the file system is no_space with both figures") {
  const TestHost host("a");
  json body = body_for(host);
  body["disks"][0]["bytes"] = disk_bytes_max;
  const PeerAnswer answer = host.ask("POST", "/v1/volumes", body);
  CHECK(answer.status == 507);
  CHECK(error_code(answer) == "no_space");
}

TEST_CASE("control: overcommit takes images larger than the free space") {
  const TestHost host("a");
  const std::uint64_t space = std::filesystem::space(host.dir()).available;
  json body = body_for(host);
  body["disks"][0]["bytes"] = (space / disk_granularity_bytes + 1024) * disk_granularity_bytes;
  CHECK(error_code(host.ask("POST", "/v1/volumes", body)) == "no_space");
  body["overcommit"] = true;
  const PeerAnswer made = host.ask("POST", "/v1/volumes", body);
  CHECK_MESSAGE(made.ok(), made.body.dump());
}

TEST_CASE("control: garbage is answered with an error, whatever it is") {
  const TestHost host("a");
  const std::string deep(100'000, '[');
  for (const std::string& garbage : {std::string(),
                                     std::string("{"),
                                     std::string("[]"),
                                     std::string("null"),
                                     std::string("\xff\xfe\x00", 3),
                                     deep,
                                     std::string("{\"name\":{\"name\":{}}}"),
                                     std::string("{\"name\":18446744073709551616}")}) {
    const PeerAnswer answer = host.ask_raw("POST", "/v1/volumes", garbage);
    CHECK(answer.status == 400);
    CHECK(error_code(answer) == "invalid_argument");
    if (garbage.starts_with("{\"")) continue;  // an object, if a senseless one
    for (const char* verb :
         {"set", "resync", "switchover", "promote", "vote/prepare", "vote/accept", "vote/chosen"}) {
      CHECK(host.ask_raw("POST", std::string("/v1/volumes/vm1/") + verb, garbage).status == 400);
    }
  }
  CHECK(host.ask_raw("POST", "/v1/volumes", std::string(2 * mib, ' ')).status == 413);
  CHECK(host.ask("GET", "/v1/volumes/" + std::string(4000, 'x')).status == 404);
  CHECK(host.ask("GET", "/v1/volumes/%2e%2e%2f%00").status == 404);
  CHECK(host.ask("PATCH", "/v1/volumes").status >= 400);
  CHECK(error_code(host.ask("GET", "/nothing")) == "not_found");
  check_nothing_left(host);
}

TEST_CASE("control: every verb on an unknown volume is not_found") {
  const TestHost host("a");
  const json point = {
      {"epoch", {{"number", 1}, {"tag", 1}}}, {"sequence", 0}, {"digest", std::string(32, '0')}};
  const json epoch = {{"number", 1}, {"tag", 1}};
  const json ballot = {{"round", 2}, {"host", "b"}, {"nonce", 3}};
  const std::vector<std::pair<std::string, json>> verbs = {
      {"activate", json::object()},
      {"deactivate", json::object()},
      {"set", {{"settings", json::object()}}},
      {"resync", {{"host", "b"}}},
      {"switchover", {{"to", "b"}}},
      {"promote",
       {{"from", "b"}, {"term", epoch}, {"epoch", epoch}, {"history", point}, {"activate", false}}},
      {"vote/prepare", {{"uuid", fixture_uuid}, {"fork", 0}, {"ballot", ballot}}}};
  for (const auto& verb : verbs)
    CHECK_MESSAGE(host.post("vm9", verb.first, verb.second).status == 404, verb.first);
  CHECK(host.ask("PUT", "/v1/volumes/vm9/members", {{"members", json::array()}}).status == 404);
  CHECK(host.ask("DELETE", "/v1/volumes/vm9?uuid=x").status == 404);
}

TEST_CASE("control: a voter that hears of a later state of its own has an old copy and no vote") {
  const TestHost host("a");
  REQUIRE(host.ask("POST", "/v1/volumes", body_for(host)).ok());
  const json ballot = {{"round", 2}, {"host", "b"}, {"nonce", 3}};
  json request = {{"uuid", fixture_uuid}, {"fork", 0}, {"ballot", ballot}};
  // A proposer of an earlier version sends no stamps.
  const PeerAnswer plain = host.post("vm1", "vote/prepare", request);
  REQUIRE_MESSAGE(plain.ok(), plain.body.dump());
  const json stamp = plain.body.at("stamps").at("a");
  // What this process has told, and what it found: the same state. Of strangers nothing is kept.
  request["stamps"] = {{"a", stamp}, {"x", {{"generation", 7}, {"start", 1}, {"loaded", 0}}}};
  const PeerAnswer again = host.post("vm1", "vote/prepare", request);
  REQUIRE_MESSAGE(again.ok(), again.body.dump());
  CHECK_FALSE(again.body.at("stamps").contains("x"));
  request["stamps"]["a"] = {{"generation", stamp.at("loaded")}, {"start", 77}, {"loaded", 0}};
  CHECK(host.post("vm1", "vote/prepare", request).ok());

  request["stamps"]["a"]["generation"] = stamp.at("loaded").get<std::uint64_t>() + 1;
  const PeerAnswer refused = host.post("vm1", "vote/prepare", request);
  CHECK(error_code(refused) == "inconsistent");
  request.erase("stamps");
  CHECK(error_code(host.post("vm1", "vote/prepare", request)) == "inconsistent");
  const json view = host.ask("GET", "/v1/volumes/vm1").body;
  CHECK(view.at("error").at("code") == "inconsistent");
  CHECK(error_code(host.post("vm1", "readmit", json::object())) == "refused");  // the primary
  // Alone it is no majority of others: only by force.
  CHECK(host.post("vm1", "readmit", {{"force", true}}).ok());
  const PeerAnswer back = host.post("vm1", "vote/prepare", request);
  CHECK(back.body.at("granted") == false);  // it has promised a much later ballot
  CHECK(back.body.at("state").at("promised").at("round") > forgotten_max);
  CHECK(back.body.at("stamps").at("a").at("generation") > forgotten_max);
}

TEST_CASE("control: a file is adopted in place, and delete leaves it") {
  const TestHost host("a");
  const std::string file = host.dir() + "/disk.raw";
  std::ofstream(file) << std::string(4096, 'x');
  json body = body_for(host);
  body["disks"][0]["adopt"] = file;
  body["disks"][0]["bytes"] = 0;
  const PeerAnswer made = host.ask("POST", "/v1/volumes", body);
  REQUIRE_MESSAGE(made.ok(), made.body.dump());
  CHECK(made.body.at("disks")[0].at("bytes") == 4096);
  CHECK(made.body.at("disks")[0].at("adopted") == true);
  CHECK(made.body.at("disks")[0].at("path") == file);

  json second = body;
  second["name"] = "vm2";
  const PeerAnswer twice = host.ask("POST", "/v1/volumes", second);
  CHECK(error_code(twice) == "exists");
  // The same file under another name.
  std::filesystem::create_symlink(file, host.dir() + "/link");
  second["disks"][0]["adopt"] = host.dir() + "/link";
  CHECK(error_code(host.ask("POST", "/v1/volumes", second)) == "exists");

  CHECK(host.ask("DELETE", std::string("/v1/volumes/vm1?uuid=") + fixture_uuid).ok());
  CHECK(file_text(file) == std::string(4096, 'x'));
}

TEST_CASE("control: what cannot be adopted is refused and stays as it was") {
  const TestHost host("a");
  const std::string odd = host.dir() + "/odd.raw";
  std::ofstream(odd) << std::string(1000, 'x');
  const std::string good = host.dir() + "/good.raw";
  std::ofstream(good) << std::string(1024, 'x');
  REQUIRE(::mkfifo((host.dir() + "/fifo").c_str(), 0600) == 0);
  const auto adopt = [&](const std::string& path, std::uint64_t bytes) {
    json body = body_for(host);
    body["disks"][0]["adopt"] = path;
    body["disks"][0]["bytes"] = bytes;
    return host.ask("POST", "/v1/volumes", body);
  };
  CHECK(error_message(adopt(odd, 0)).find("multiple") != std::string::npos);
  CHECK(adopt(good, 512).status == 400);
  CHECK(adopt(host.dir() + "/fifo", 0).status == 400);
  CHECK(adopt(host.dir(), 0).status == 400);
  CHECK(adopt("relative/path", 0).status == 400);
  CHECK(adopt(host.dir() + "/missing", 0).status == 404);
  const auto held = open_image_locked(good, 1024);
  REQUIRE(held.has_value());
  CHECK(error_code(adopt(good, 1024)) == "busy");
  CHECK(file_text(odd).size() == 1000);
  CHECK(file_text(good) == std::string(1024, 'x'));
  check_nothing_left(host);
}

TEST_CASE("control: creation that fails half-way is undone, and files of others stay") {
  const TestHost host("a");
  // The second image is there already.
  std::filesystem::create_directories(host.dir() + "/images/vm1");
  std::ofstream(host.dir() + "/images/vm1/vdb.raw") << "precious";
  json body = body_for(host);
  body["disks"].push_back({{"name", "vdb"}, {"bytes", 1 * mib}, {"adopt", nullptr}});
  const PeerAnswer answer = host.ask("POST", "/v1/volumes", body);
  CHECK(error_code(answer) == "exists");
  CHECK(file_text(host.dir() + "/images/vm1/vdb.raw") == "precious");
  CHECK_FALSE(std::filesystem::exists(host.dir() + "/images/vm1/vda.raw"));
  CHECK_FALSE(std::filesystem::exists(host.dir() + "/state/volumes/vm1"));
  CHECK(host.ask("GET", "/v1/volumes").body.at("volumes").empty());
}

TEST_CASE("control: settings are changed durably, one field at a time") {
  TestHost host("a");
  REQUIRE(host.ask("POST", "/v1/volumes", body_for(host)).ok());
  const PeerAnswer answer = host.post("vm1", "set", {{"settings", {{"mode", "async"}}}});
  REQUIRE(answer.ok());
  CHECK(answer.body.at("settings").at("mode") == "async");
  CHECK(answer.body.at("settings").at("log_bytes") == 8 * mib);
  CHECK(host.disk_state("vm1").settings.mode == Mode::async);
  CHECK(host.post("vm1", "set", {{"settings", {{"ack_timeout_ms", 1}}}}).status == 400);
  CHECK(host.post("vm1", "set", {{"settings", {{"speed", 1}}}}).status == 400);
  CHECK(host.post("vm1", "set").status == 400);
  host.restart();
  CHECK(host.get("vm1").at("settings") == answer.body.at("settings"));
}

TEST_CASE("control: members are replaced, but never without this host or the primary") {
  const TestHost host("a");
  const json b = {{"host", "b"}, {"stream", "127.0.0.1:1"}, {"control", "127.0.0.1:2"}};
  REQUIRE(host.ask("POST", "/v1/volumes", create_body("vm1", "a", {host.member(), b})).ok());
  const auto put = [&](const json& members) {
    return host.ask("PUT", "/v1/volumes/vm1/members", {{"members", members}});
  };
  CHECK(put(json::array({b})).status == 409);
  CHECK(put(json::array()).status >= 400);
  const PeerAnswer alone = put(json::array({host.member()}));
  REQUIRE_MESSAGE(alone.ok(), alone.body.dump());
  CHECK(alone.body.at("in_sync") == json{"a"});
  CHECK(host.disk_state("vm1").members.size() == 1);
  CHECK(put(json::array({host.member(), b})).ok());
  CHECK(host.disk_state("vm1").in_sync == std::vector<std::string>{"a"});
}

TEST_CASE(
    "control: a damaged state file fails its volume and no other, and nothing on disk changes") {
  TestHost host("a");
  REQUIRE(host.ask("POST", "/v1/volumes", body_for(host)).ok());
  json second = body_for(host);
  second["name"] = "vm2";
  REQUIRE(host.ask("POST", "/v1/volumes", second).ok());
  host.stop();
  std::string damaged = file_text(host.state_file("vm1"));
  damaged[damaged.size() / 2] = static_cast<char>(damaged[damaged.size() / 2] ^ 4);
  std::ofstream(host.state_file("vm1"), std::ios::trunc) << damaged;
  host.start();
  CHECK(host.get("vm1").at("state") == "failed");
  CHECK(host.get("vm1").at("error").at("code") == "corrupt");
  CHECK(host.get("vm1").at("error").at("message").get<std::string>().find(host.state_file("vm1")) !=
        std::string::npos);
  CHECK(host.get("vm2").at("state") == "stopped");
  CHECK(host.post("vm1", "activate").body.at("error").at("code") == "corrupt");
  CHECK(host.ask("DELETE", std::string("/v1/volumes/vm1?uuid=") + fixture_uuid).status == 500);
  CHECK_FALSE(host.ask("POST", "/v1/volumes", body_for(host)).ok());
  CHECK(file_text(host.state_file("vm1")) == damaged);
  CHECK(std::filesystem::exists(host.dir() + "/images/vm1/vda.raw"));
}

TEST_CASE("control: a volume without its image is failed, and comes back with it") {
  TestHost host("a");
  REQUIRE(host.ask("POST", "/v1/volumes", body_for(host)).ok());
  host.stop();
  const std::string image = host.dir() + "/images/vm1/vda.raw";
  std::filesystem::rename(image, image + ".away");
  host.start();
  CHECK(host.get("vm1").at("state") == "failed");
  CHECK(host.get("vm1").at("error").at("message").get<std::string>().find(image) !=
        std::string::npos);
  CHECK(host.post("vm1", "activate").status == 404);
  std::filesystem::rename(image + ".away", image);
  CHECK(eventually([&] { return host.shows("vm1", "state", "stopped"); }));
}

TEST_CASE("control: a volume whose image has another size comes back with the right one") {
  TestHost host("a");
  REQUIRE(host.ask("POST", "/v1/volumes", body_for(host)).ok());
  host.stop();
  const std::string image = host.dir() + "/images/vm1/vda.raw";
  std::filesystem::rename(image, image + ".away");
  std::ofstream(image) << "too short";
  host.start();
  CHECK(host.get("vm1").at("state") == "failed");
  CHECK(host.get("vm1").at("error").at("message").get<std::string>().find("has 9 bytes") !=
        std::string::npos);
  std::filesystem::rename(image + ".away", image);
  CHECK(eventually([&] { return host.shows("vm1", "state", "stopped"); }));
}

TEST_CASE("control: one of many simultaneous creations of a name wins") {
  const TestHost host("a");
  std::atomic<int> made{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&] {
      const auto answer = ask_peer({"unix:" + host.dir() + "/run/control.sock",
                                    "POST",
                                    "/v1/volumes",
                                    body_for(host),
                                    std::chrono::seconds(60)});
      if (answer && answer->ok()) ++made;
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  CHECK(made == 1);
  CHECK(host.get("vm1").at("state") == "stopped");
}

}  // namespace
}  // namespace replicad
