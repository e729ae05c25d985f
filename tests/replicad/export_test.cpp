// Starting and stopping exports, with a program that stands in for nbdkit (fake_nbdkit.cpp).

#include "replicad/export.h"

#include "tests/replicad/daemon_fixture.h"

namespace replicad {
namespace {

using nlohmann::json;

int pid_of(const PeerAnswer& answer) {
  return answer.body.at("pid").get<int>();
}

bool is_running(int pid) {
  // A zombie has ended.
  const std::string status = file_text(fmt::format("/proc/{}/stat", pid));
  return !status.empty() && status.find(") Z") == std::string::npos;
}

TEST_CASE(
    "export: activate answers when the export can be opened, deactivate when it has ended "
    "cleanly") {
  TestHost host("a");
  create_volume({&host});
  const PeerAnswer started = host.post("vm1", "activate");
  REQUIRE_MESSAGE(started.ok(), started.body.dump());
  const std::string socket = started.body.at("socket");
  CHECK(socket == host.run_file("vm1.sock"));
  CHECK(started.body.at("uri") == "nbd+unix:///vda?socket=" + socket);
  CHECK(probe_nbd(socket, std::chrono::seconds(2)).has_value());
  const json shown = host.get("vm1");
  CHECK(shown.at("state") == "serving");
  CHECK(shown.at("active") == true);
  CHECK(shown.at("export").at("uris").at("vda") == started.body.at("uri"));
  CHECK(shown.at("export").at("pid") == started.body.at("pid"));

  const PeerAnswer again = host.post("vm1", "activate");
  CHECK(again.body == started.body);
  CHECK(host.ask("DELETE", std::string("/v1/volumes/vm1?uuid=") + fixture_uuid).status == 409);

  const PeerAnswer stopped = host.post("vm1", "deactivate");
  REQUIRE_MESSAGE(stopped.ok(), stopped.body.dump());
  CHECK(stopped.body.at("state") == "stopped");
  CHECK(stopped.body.at("active") == false);
  CHECK(host.disk_state("vm1").clean);
  CHECK_FALSE(is_running(pid_of(started)));
  CHECK(host.post("vm1", "deactivate").ok());
  CHECK(host.post("vm1", "activate").ok());
}

TEST_CASE("export: what nbdkit said is the error when it ends early") {
  TestHost host("a", "early");
  create_volume({&host});
  const PeerAnswer answer = host.post("vm1", "activate");
  CHECK_FALSE(answer.ok());
  CHECK(answer.body.at("error").at("message").get<std::string>().find(
            "the volume stands on its head") != std::string::npos);
  CHECK(host.shows("vm1", "state", "stopped"));
  CHECK(host.disk_state("vm1").clean);
  host.stop();
  host.options().nbdkit = "/nonexistent/nbdkit";
  host.start();
  const PeerAnswer missing = host.post("vm1", "activate");
  CHECK(missing.status == 404);
  CHECK(missing.body.at("error").at("message").get<std::string>().find("/nonexistent/nbdkit") !=
        std::string::npos);
}

TEST_CASE("export: one that never serves is killed, and its claim undone") {
  TestHost host("a", "mute");
  create_volume({&host});
  const PeerAnswer answer = host.post("vm1", "activate");
  CHECK(answer.status == 504);
  CHECK(host.shows("vm1", "state", "stopped"));
  const VolumeState state = host.disk_state("vm1");
  CHECK(state.clean);
  CHECK_FALSE(state.active);
  CHECK_FALSE(is_running(std::atoi(file_text(host.run_file("vm1.pid")).c_str())));
}

TEST_CASE("export: it survives a restart of replicad and can be stopped by the next one") {
  TestHost host("a");
  create_volume({&host});
  const PeerAnswer started = host.post("vm1", "activate");
  REQUIRE(started.ok());
  host.restart();
  CHECK(is_running(pid_of(started)));
  CHECK(probe_nbd(host.run_file("vm1.sock"), std::chrono::seconds(2)).has_value());
  REQUIRE(eventually([&] { return host.shows("vm1", "state", "serving"); }));
  CHECK(host.get("vm1").at("export").at("socket") == host.run_file("vm1.sock"));
  CHECK(host.post("vm1", "activate").body == started.body);
  CHECK(host.post("vm1", "deactivate").ok());
  CHECK_FALSE(is_running(pid_of(started)));
  CHECK(host.disk_state("vm1").clean);
}

TEST_CASE("export: one that is killed is noticed, and another is started in a new term") {
  TestHost host("a");
  create_volume({&host});
  const PeerAnswer started = host.post("vm1", "activate");
  REQUIRE(started.ok());
  ::kill(pid_of(started), SIGKILL);
  CHECK(eventually([&] {
    return file_text(fmt::format("/proc/{}/stat", pid_of(started))).empty();
  }));  // collected
  REQUIRE(eventually([&] {
    const json shown = host.get("vm1").at("export");
    return shown.is_object() && shown.at("pid") != pid_of(started);
  }));
  CHECK(host.shows("vm1", "state", "serving"));
  CHECK(host.disk_state("vm1").epoch.number == 2);
  CHECK(host.post("vm1", "deactivate").ok());
}

TEST_CASE("export: an orphan socket is replaced, one that somebody serves is not") {
  TestHost host("a");
  create_volume({&host});
  std::ofstream(host.run_file("vm1.sock")) << "left over";
  CHECK(host.post("vm1", "activate").ok());
  CHECK(host.post("vm1", "deactivate").ok());
  const auto foreign = listen_on("unix:" + host.run_file("vm1.sock"));
  REQUIRE(foreign.has_value());
  const PeerAnswer refused = host.post("vm1", "activate");
  CHECK(refused.status == 409);
  CHECK(refused.body.at("error").at("message").get<std::string>().find("vm1.sock") !=
        std::string::npos);
  CHECK(std::filesystem::exists(host.run_file("vm1.sock")));
  CHECK(host.shows("vm1", "state", "stopped"));
}

TEST_CASE("export: settings, members and copies reach the plugin") {
  TestHost host("a");
  create_volume({&host});
  const json b = {{"host", "b"}, {"stream", "127.0.0.1:1"}, {"control", "127.0.0.1:2"}};
  CHECK(host.post("vm1", "resync", {{"host", "b"}}).status == 404);
  REQUIRE(host.ask("PUT", "/v1/volumes/vm1/members", {{"members", {host.member(), b}}}).ok());
  CHECK(host.post("vm1", "resync", {{"host", "b"}}).status == 409);
  REQUIRE(host.post("vm1", "activate").ok());
  CHECK(host.post("vm1", "set", {{"settings", {{"mode", "async"}}}}).ok());
  CHECK(host.last_plugin_request("vm1").at("settings").at("mode") == "async");
  CHECK(host.ask("PUT", "/v1/volumes/vm1/members", {{"members", {host.member(), b}}}).ok());
  CHECK(host.last_plugin_request("vm1").at("members").size() == 2);
  CHECK(host.post("vm1", "resync", {{"host", "b"}}).ok());
  CHECK(host.last_plugin_request("vm1").at("host") == "b");
  CHECK(host.post("vm1", "resync", {{"host", "a"}}).status == 404);
  CHECK(host.plugin_ops("vm1") == std::vector<std::string>{"set", "members", "copy"});
  CHECK(host.post("vm1", "deactivate").ok());
}

TEST_CASE("export: a replica is not activated") {
  TestHost a("a");
  TestHost b("b");
  create_volume({&a, &b});
  const PeerAnswer refused = b.post("vm1", "activate");
  CHECK(refused.status == 409);
  CHECK(refused.body.at("error").at("hint").get<std::string>().find("a") != std::string::npos);
  CHECK(b.get("vm1").at("role") == "replica");
}

}  // namespace
}  // namespace replicad
