// Wrong input and a hostile environment: each ends in a clear message and an exit code, none in a
// crash, a hang or a changed byte.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/wire/messages.h"
#include "io/file.h"
#include "io/net.h"
#include "tests/e2e/load.h"
#include "tests/e2e/sanitizer.h"

namespace replicad::e2e {
namespace {

namespace fs = std::filesystem;

void check_fails_with(const Finished& finished, int code, std::string_view part) {
  CHECK_MESSAGE(finished.exit_code == code, finished.text());
  CHECK_MESSAGE(contains(finished.err + finished.out, part), finished.text());
}

Finished run_nbdkit(Cluster& cluster, const std::vector<std::string>& parameters) {
  std::vector<std::string> arguments = {
      nbdkit_program(), "-f", "-U", cluster.directory() + "/hand.sock", plugin_path};
  arguments.insert(arguments.end(), parameters.begin(), parameters.end());
  return run(arguments, {.limit = Millis(20'000), .environment = {}});
}

std::string agent_parameter(Cluster& cluster, const std::string& host = "a") {
  return "agent=" + cluster.host(host).agent_socket();
}

/// A served volume with something in it that must not change.
void make_served(Cluster& cluster, const VolumeSpec& spec = {.members = {"a", "b"}}) {
  cluster.create(spec);
  cluster.activate();
  cluster.wait_streaming();
  NbdClient client(cluster.uri());
  const std::vector<std::byte> block(mib_bytes, std::byte{0x77});
  client.write(0, block);
  client.flush();
}

TEST_CASE("bad input: the plugin refuses wrong keys, missing values and unknown volumes") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}});
  const std::string agent = agent_parameter(cluster);
  check_fails_with(run_nbdkit(cluster, {"volume=vm1", agent, "volum=x"}), 1, "volum");
  check_fails_with(run_nbdkit(cluster, {agent}), 1, "volume");
  check_fails_with(run_nbdkit(cluster, {"vm2", agent}), 1, "vm2");
  check_fails_with(run_nbdkit(cluster, {"../../etc/passwd", agent}), 1, "replica");
  check_fails_with(run_nbdkit(cluster, {"vm1", "agent=/nonexistent/agent.sock"}), 1, "nonexistent");
  // The host that is not the primary names the one that is.
  check_fails_with(run_nbdkit(cluster, {"vm1", agent_parameter(cluster, "b")}), 1, "primary");
}

TEST_CASE("bad input: a second export of a served volume is refused, so is every other program") {
  Cluster cluster(2);
  make_served(cluster);
  check_fails_with(run_nbdkit(cluster, {"vm1", agent_parameter(cluster)}), 1, "vm1");
  for (const std::string host : {"a", "b"}) {
    const std::string image = cluster.image_path(host);
    const Finished io = run({"qemu-io", "-f", "raw", "-c", "write -P 1 0 4k", image});
    CHECK_MESSAGE(io.exit_code != 0, io.text());
    CHECK_MESSAGE(contains(io.err + io.out, "lock"), io.text());
    CHECK(run({"qemu-img", "check", "-f", "raw", image}).exit_code != 0);
  }
  cluster.stop_and_compare();
  // Stopped, the images stay with the daemons: a replica's is still being written, the primary's
  // may move.
  CHECK(run({"qemu-io", "-f", "raw", "-c", "write -P 1 0 4k", cluster.image_path("b")}).exit_code !=
        0);
}

TEST_CASE("bad input: an image opened by another program is not served") {
  Cluster cluster(2);
  make_served(cluster);
  cluster.stop_and_compare();
  const std::string image = cluster.image_path("a");
  CHECK(cluster.host("a").stop() == 0);
  {
    const auto held = open_image_locked(image, 32 * mib_bytes);
    REQUIRE(held);
    cluster.host("a").launch();
    wait_until("the daemon answers or ends", Millis(20'000), [&] {
      return !cluster.host("a").running() || cluster.host("a").get("/v1/host").has_value();
    });
    CHECK(cluster.ctl({"activate", "vm1"}).exit_code != 0);
  }
  if (!cluster.host("a").running()) cluster.host("a").launch();
  cluster.host("a").wait_ready();
  cluster.activate();
  cluster.wait_streaming();
  cluster.stop_and_compare();
}

TEST_CASE("bad input: a missing image or one of another size is named, and nothing is served") {
  Cluster cluster(2);
  make_served(cluster);
  cluster.stop_and_compare();
  const std::string image = cluster.image_path("a");
  const std::string aside = cluster.directory() + "/aside.raw";
  CHECK(cluster.host("a").stop() == 0);

  fs::rename(image, aside);
  cluster.host("a").start();
  const Finished missing = cluster.ctl({"activate", "vm1"});
  CHECK_MESSAGE(missing.exit_code != 0, missing.text());
  CHECK_MESSAGE(contains(missing.err, image), missing.text());
  CHECK_FALSE(fs::exists(image));
  CHECK(cluster.host("a").stop() == 0);

  fs::rename(aside, image);
  REQUIRE(::truncate(image.c_str(), 32 * mib_bytes - 4096) == 0);
  cluster.host("a").start();
  const Finished wrong = cluster.ctl({"activate", "vm1"});
  CHECK_MESSAGE(wrong.exit_code != 0, wrong.text());
  CHECK_MESSAGE(contains(wrong.err, image), wrong.text());
  CHECK(fs::file_size(image) == 32 * mib_bytes - 4096);
}

TEST_CASE("bad input: the daemon refuses wrong options with exit code 2 and says which") {
  const Finished unknown = run({replicad_program, "--no-such-option"});
  check_fails_with(unknown, 2, "no-such-option");
  check_fails_with(run({replicad_program, "--log-level=loud"}), 2, "loud");
  CHECK(run({replicad_program, "--version"}).exit_code == 0);
  CHECK(run({replicad_program, "--help"}).exit_code == 0);
}

TEST_CASE("bad input: without transport=plaintext, or beyond loopback, the daemon does not start") {
  const TempDir dir;
  const std::vector<std::string> base = {replicad_program,
                                         "--host=x",
                                         "--state-dir=" + dir.path() + "/state",
                                         "--run-dir=" + dir.path() + "/run",
                                         "--listen=127.0.0.1:0"};
  const Finished no_transport = run(base);
  CHECK(no_transport.exit_code != 0);
  CHECK_MESSAGE(contains(no_transport.err, "TLS"), no_transport.text());
  std::vector<std::string> beyond = base;
  beyond.back() = "--listen=0.0.0.0:0";
  beyond.push_back("--transport=plaintext");
  const Finished far = run(beyond);
  CHECK(far.exit_code != 0);
  CHECK_MESSAGE(contains(far.err, "plaintext-beyond-loopback"), far.text());
}

TEST_CASE("bad input: a port in use ends the second daemon and leaves the first alone") {
  Cluster cluster(1);
  const std::string stream = cluster.host("a").stream();
  const TempDir dir;
  const Finished second = run({replicad_program,
                               "--host=x",
                               "--state-dir=" + dir.path() + "/state",
                               "--run-dir=" + dir.path() + "/run",
                               "--listen=" + stream,
                               "--transport=plaintext"});
  check_fails_with(second, 1, "in use");
  CHECK(contains(second.err, stream));
  CHECK(cluster.host("a").get("/v1/host"));
  // The same state directory twice is refused as well.
  const Finished twice = run({replicad_program,
                              "--host=a",
                              "--state-dir=" + cluster.host("a").state_directory(),
                              "--run-dir=" + dir.path() + "/run",
                              "--listen=127.0.0.1:0",
                              "--transport=plaintext"});
  CHECK_MESSAGE(twice.exit_code == 1, twice.text());
}

class RawConnection {
 public:
  explicit RawConnection(const std::string& address) {
    auto connected = connect_blocking(address, 5000);
    if (!connected) throw HarnessError("cannot connect to " + address);
    fd_ = std::move(*connected);
  }
  void send(std::span<const std::byte> bytes) const {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;  // refused already
      bytes = bytes.subspan(static_cast<std::size_t>(sent));
    }
  }
  /// Everything until the peer closes, which it must do in time.
  std::vector<std::byte> read_to_end() const {
    timeval limit{10, 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    std::vector<std::byte> all;
    std::vector<std::byte> buffer(65536);
    while (true) {
      const ssize_t got = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
      if (got < 0 && errno == EAGAIN) {
        throw HarnessError("the daemon does not close a connection that it cannot use");
      }
      if (got <= 0) return all;
      all.insert(all.end(), buffer.begin(), buffer.begin() + got);
    }
  }

 private:
  Fd fd_;
};

RefuseMessage expect_refusal(const std::string& address, std::span<const std::byte> bytes) {
  const RawConnection connection(address);
  connection.send(bytes);
  const auto answer = connection.read_to_end();
  if (answer.size() < frame_header_bytes) throw HarnessError("no refuse frame");
  const auto header = decode_header(std::span(answer).first<frame_header_bytes>());
  if (!header || header->type != FrameType::refuse) throw HarnessError("not a refuse frame");
  const auto refuse = decode_refuse(std::span(answer).subspan(frame_header_bytes));
  if (!refuse) throw HarnessError("unreadable refuse frame");
  return *refuse;
}

AttachMessage attach_for(Cluster& cluster, const std::string& replica) {
  const json volume = cluster.volume("a");
  AttachMessage message;
  message.volume = "vm1";
  message.volume_uuid = volume.at("uuid").get<std::string>();
  message.primary = "a";
  message.replica = replica;
  message.epoch = {volume.at("epoch").at("number").get<std::uint64_t>(),
                   volume.at("epoch").at("tag").get<std::uint32_t>()};
  message.disk_bytes = {32 * mib_bytes};
  return message;
}

TEST_CASE("bad input: every wrong attach is refused with its own code and text") {
  Cluster cluster(2);
  make_served(cluster);
  // A second term, so that there is an earlier one.
  cluster.ctl_ok({"deactivate", "vm1"});
  cluster.activate();
  cluster.wait_streaming();
  const std::string stream = cluster.host("b").stream();
  const AttachMessage good = attach_for(cluster, "b");
  const auto refused = [&](auto change) {
    AttachMessage message = good;
    change(message);
    return expect_refusal(stream, encode_attach(message));
  };
  const RefuseMessage version =
      refused([](AttachMessage& m) { m.protocol_min = 7, m.protocol_max = 9; });
  CHECK(version.code == Errc::version_mismatch);
  CHECK(contains(version.message, "7"));
  CHECK(refused([](AttachMessage& m) { m.volume = "vm9"; }).code == Errc::not_found);
  CHECK_FALSE(refused([](AttachMessage& m) { m.volume_uuid = "other"; }).message.empty());
  CHECK_FALSE(refused([](AttachMessage& m) { m.replica = "c"; }).message.empty());
  CHECK_FALSE(refused([](AttachMessage& m) { m.disk_bytes = {4096}; }).message.empty());
  CHECK_FALSE(refused([](AttachMessage& m) { m.disk_bytes.push_back(4096); }).message.empty());
  CHECK(refused([](AttachMessage& m) { m.epoch.number -= 1; }).code == Errc::stale_epoch);
  CHECK_FALSE(refused([](AttachMessage& m) { m.epoch.tag ^= 1U; }).message.empty());
  CHECK_FALSE(refused([](AttachMessage& m) { m.volume = "../b"; }).message.empty());
  // Nobody attaches to the primary.
  CHECK_FALSE(expect_refusal(cluster.host("a").stream(), encode_attach(attach_for(cluster, "a")))
                  .message.empty());
  cluster.wait_streaming();
  cluster.stop_and_compare();
}

TEST_CASE("bad input: garbage on the stream port changes nothing") {
  Cluster cluster(2);
  make_served(cluster);
  const std::string stream = cluster.host("b").stream();
  const std::uint64_t seed = test_seed();
  INFO("RD_SEED=", seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 40; ++round) {
    std::vector<std::byte> garbage(64 + random() % 100'000);
    for (std::byte& byte : garbage)
      byte = static_cast<std::byte>(random());
    if (round % 3 == 0) {
      // A good beginning, so that the damage is met further inside.
      const auto attach = encode_attach(attach_for(cluster, "b"));
      std::ranges::copy(attach, garbage.begin());
      garbage[random() % attach.size()] ^= std::byte{1};
    }
    const RawConnection connection(stream);
    connection.send(garbage);
    connection.read_to_end();
  }
  const std::string http = "GET / HTTP/1.1\r\nHost: x\r\n\r\n" + std::string(100, ' ');
  const RawConnection web(stream);
  web.send(std::as_bytes(std::span(http)));
  web.read_to_end();
  CHECK(cluster.host("b").running());
  cluster.wait_streaming();
  cluster.stop_and_compare();
}

TEST_CASE("bad input: silent and half-open connections do not keep a replica from its work") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}});
  cluster.activate();
  cluster.wait_streaming();
  std::vector<RawConnection> silent;
  silent.reserve(50);
  for (int i = 0; i < 50; ++i)
    silent.emplace_back(cluster.host("b").stream());
  const auto attach = encode_attach(attach_for(cluster, "b"));
  for (const RawConnection& connection : silent)
    connection.send(std::span(attach).first(30));
  Load load(cluster, {});
  load.start();
  load.wait_answered(50);
  load.stop();
  cluster.wait_streaming();
  cluster.stop_and_compare();
}

TEST_CASE("bad input: a replica without descriptors takes no connection, loses nothing, recovers") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}});
  cluster.activate();
  cluster.wait_streaming();
  Host& b = cluster.host("b");
  rlimit before{};
  REQUIRE(::prlimit(b.pid(), RLIMIT_NOFILE, nullptr, &before) == 0);
  const rlimit few{64, before.rlim_max};
  REQUIRE(::prlimit(b.pid(), RLIMIT_NOFILE, &few, nullptr) == 0);
  {
    std::vector<RawConnection> silent;
    silent.reserve(100);
    const auto attach = encode_attach(attach_for(cluster, "b"));
    Load load(cluster, {});
    load.start();
    // They are let go after a while; others come.
    wait_until("b has no descriptor left", Millis(60'000), [&] {
      silent.clear();
      for (int i = 0; i < 100; ++i) {
        silent.emplace_back(b.stream());
        silent.back().send(std::span(attach).first(30));
      }
      return contains(b.log(), "event=accept_failed");
    });
    load.wait_answered(200);
    load.stop();
  }
  CHECK(b.running());
  cluster.wait_streaming();
  cluster.stop_and_compare();
}

/// From now on the process gets no more memory than it has.
void starve(pid_t pid) {
  std::ifstream status(fmt::format("/proc/{}/status", pid));
  for (std::string line; std::getline(status, line);) {
    unsigned long long kib_used = 0;
    if (std::sscanf(line.c_str(), "VmData: %llu kB", &kib_used) != 1) continue;
    rlimit limit{};
    REQUIRE(::prlimit(pid, RLIMIT_DATA, nullptr, &limit) == 0);
    limit.rlim_cur = kib_used * 1024;
    REQUIRE(::prlimit(pid, RLIMIT_DATA, &limit, nullptr) == 0);
    return;
  }
  FAIL("no VmData of process ", pid);
}

TEST_CASE("bad input: a process without memory ends and says so, or goes on, and loses nothing") {
  if (sanitizer_slowdown > 1) {
    MESSAGE("a sanitizer's own memory would run out first");
    return;
  }
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}});
  cluster.activate();
  cluster.wait_streaming();
  Load load(cluster, {});
  load.start();
  load.wait_answered(50);
  Host& b = cluster.host("b");
  starve(b.pid());
  const std::string body(100'000, ' ');
  wait_until("b has ended", Millis(60'000), [&] {
    run({"curl", "-s", "-m", "2", "-d", body, "http://" + b.control() + "/v1/volumes"});
    return !b.running();
  });
  CHECK_MESSAGE((contains(b.log(), "event=out_of_memory") || contains(b.log(), "event=sudden_end")),
                b.log());
  load.wait_answered(200);  // without b
  load.stop();
  b.start();
  cluster.wait_streaming();
  load.check_through_nbd();

  // The export: nbdkit may have no buffer for a request, which then fails.
  std::map<std::uint64_t, std::vector<std::byte>> answered;
  {
    NbdClient client(cluster.uri());
    starve(cluster.export_pid());
    for (std::uint64_t i = 0; i < 64; ++i) {
      std::vector<std::byte> content((i % 16 + 1) * block_bytes, std::byte(i + 1));
      const std::uint64_t offset = i * content.size() % (16 << 20);
      try {
        client.write(offset, content);
        for (std::size_t at = 0; at < content.size(); at += block_bytes)
          answered[offset + at].assign(block_bytes, std::byte(i + 1));
      } catch (const NbdError& error) {
        if (error.connection_lost) break;
        CHECK(error.sys_errno == ENOMEM);
      }
    }
  }
  CHECK(!answered.empty());
  cluster.deactivate();
  cluster.activate();
  NbdClient client(cluster.uri());
  for (const auto& [offset, content] : answered) {
    std::vector<std::byte> found(block_bytes);
    client.read(offset, found);
    CHECK(found == content);
  }
  cluster.stop_and_compare();
}

TEST_CASE("bad input: garbage on the control API and the agent socket changes nothing") {
  Cluster cluster(2);
  make_served(cluster);
  const std::uint64_t seed = test_seed();
  INFO("RD_SEED=", seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::byte> garbage(64 + random() % 5000);
    for (std::byte& byte : garbage)
      byte = static_cast<std::byte>(random());
    RawConnection("unix:" + cluster.host("a").agent_socket()).send(garbage);
    RawConnection(cluster.host("a").control()).send(garbage);
  }
  const std::string base = "http://" + cluster.host("a").control() + "/v1/volumes";
  const auto post = [&](const std::string& path, const std::string& body) {
    return run_ok({"curl", "-s", "-m", "10", "-X", "POST", "-d", body, base + path}).out;
  };
  for (const char* body : {"", "{", "[]", "null", "{\"name\":7}", "{\"name\":\"../x\"}"}) {
    CHECK(json::parse(post("", body)).contains("error"));
  }
  CHECK(json::parse(post("/vm1/set", "{\"settings\":{\"mode\":\"fast\"}}")).contains("error"));
  CHECK(json::parse(post("/vm1/set", "{\"settings\":{\"ring_bytes\":-1}}")).contains("error"));
  CHECK(json::parse(post("/vm1/switchover", "{\"to\":7}")).contains("error"));
  CHECK(json::parse(post("/vm1/promote", "{}")).contains("error"));
  CHECK(json::parse(post("/nope/activate", "{}")).at("error").at("code") == "not_found");
  const std::string deep(200'000, '[');
  std::ofstream(cluster.directory() + "/deep") << deep;
  CHECK(json::parse(post("", "@" + cluster.directory() + "/deep")).contains("error"));
  CHECK(cluster.serving_host() == "a");
  CHECK(cluster.volume("a").at("settings").at("mode") == "sync");
  cluster.wait_streaming();
  cluster.stop_and_compare();
}

TEST_CASE("bad input: replicactl says what is wrong, with the documented exit codes") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}});
  check_fails_with(cluster.ctl({"no-such-command"}), 2, "no-such-command");
  check_fails_with(cluster.ctl({"create", "Bad/Name", "--size=1G"}), 2, "Bad/Name");
  check_fails_with(cluster.ctl({"create", "x", "--size=ten"}), 2, "ten");
  check_fails_with(cluster.ctl({"create", "x", "--size=1G", "--mode=quick"}), 2, "quick");
  check_fails_with(cluster.ctl({"status", "nope"}), 5, "nope");
  check_fails_with(cluster.ctl({"activate", "nope"}), 5, "nope");
  CHECK(cluster.ctl({"switchover", "vm1", "--to=b"}).exit_code == 3);
  cluster.activate();
  check_fails_with(cluster.ctl({"switchover", "vm1", "--to=z"}), 3, "vm1");
  cluster.deactivate();
  CHECK(cluster.ctl({"create", "vm1", "--size=32M", "--on=a,b"}).exit_code != 0);
  CHECK(cluster.ctl({"create", "big", "--size=200T", "--on=a,b"}).exit_code == 3);
  const int port = free_port();
  const Finished nobody =
      run({replicactl_program, fmt::format("--hosts=x=127.0.0.1:{}", port), "list"});
  CHECK_MESSAGE(nobody.exit_code == 4, nobody.text());
  CHECK(cluster.ctl_json({"list"}).at("volumes").size() == 1);
}

TEST_CASE("bad input: a full disk on a replica takes it out of the set, the guest goes on") {
  Cluster cluster(1);
  const SmallDisk small(cluster.directory() + "/small", 12 * mib_bytes);
  cluster.add_host({.name = "b",
                    .directory = cluster.directory() + "/b",
                    .image_directory = small.path(),
                    .state_directory = "",
                    .arguments = {},
                    .launcher = {}});
  // The size check at creation sees a sparse image that could fit; the data will not.
  cluster.create({.members = {"a", "b"}, .disk_bytes = {10 * mib_bytes}});
  const std::string hog = small.path() + "/hog";
  run_ok({"fallocate", "-l", "8M", hog});
  cluster.activate();
  cluster.wait_streaming();
  Load load(cluster, {.disks = {{"vda", 10 * mib_bytes}}, .zeroes = false});
  load.start();
  load.wait_answered(400);
  wait_until("b is out", Millis(30'000), [&] {
    return cluster.volume("a").at("in_sync") == json::array({"a"});
  });
  load.wait_answered(100);
  CHECK(load.reconnects() == 0);
  CHECK(cluster.host("b").running());
  const json replica = cluster.volume("b");
  CHECK_MESSAGE(!replica.at("error").is_null(), replica.dump(1));
  load.stop();
  cluster.deactivate();
  CHECK(file_difference(cluster.image_path("a"), load.mirror("vda")).empty());
  // Space is back: a restart of the daemon goes on where it stood, or a copy heals it.
  fs::remove(hog);
  CHECK(cluster.host("b").stop() == 0);
  cluster.host("b").start();
  cluster.activate();
  wait_until("b is healed", Millis(60'000), [&] {
    cluster.ctl({"resync", "vm1", "--host=b", "--wait"}, Millis(60'000));
    return cluster.volume("a").at("in_sync").size() == 2;
  });
  cluster.stop_and_compare();
  load.check_images(cluster);
}

TEST_CASE("bad input: a full disk below a replica's log does the same") {
  Cluster cluster(1);
  const SmallDisk small(cluster.directory() + "/small", 16 * mib_bytes);
  cluster.add_host({.name = "b",
                    .directory = cluster.directory() + "/b",
                    .image_directory = "",
                    .state_directory = small.path(),
                    .arguments = {},
                    .launcher = {}});
  cluster.create(
      {.members = {"a", "b"}, .create_options = {"--set=segment-bytes=4M", "--set=log-bytes=64M"}});
  run_ok({"fallocate", "-l", "10M", small.path() + "/hog"});
  cluster.activate();
  Load load(cluster, {.zeroes = false});
  load.start();
  load.wait_answered(1500);
  CHECK(load.reconnects() == 0);
  CHECK(cluster.host("b").running());
  load.stop();
  // Either the log made do with the space there is, or b left the set and says why.
  wait_until("b is whole or out", Millis(30'000), [&] {
    if (cluster.volume("a").at("in_sync") == json::array({"a"})) {
      return !cluster.volume("b").at("error").is_null();
    }
    const json replica = cluster.volume("b").at("replica");
    return replica.at("applied") == cluster.volume("a").at("history").at("sequence");
  });
  MESSAGE("in sync at the end: ", cluster.volume("a").at("in_sync").dump());
  cluster.deactivate();
  CHECK(file_difference(cluster.image_path("a"), load.mirror("vda")).empty());
}

TEST_CASE(
    "bad input: with on-local-error=fail a full primary gives the guest an error, nothing else "
    "changes") {
  Cluster cluster(0);
  const SmallDisk small(cluster.directory() + "/small", 16 * mib_bytes);
  cluster.add_host({.name = "a",
                    .directory = cluster.directory() + "/a",
                    .image_directory = small.path(),
                    .state_directory = "",
                    .arguments = {},
                    .launcher = {}});
  cluster.add_host({.name = "b",
                    .directory = cluster.directory() + "/b",
                    .image_directory = "",
                    .state_directory = "",
                    .arguments = {},
                    .launcher = {}});
  cluster.create({.members = {"a", "b"},
                  .disk_bytes = {14 * mib_bytes},
                  .create_options = {"--set=on-local-error=fail"}});
  run_ok({"fallocate", "-l", "12M", small.path() + "/hog"});
  cluster.activate();
  cluster.wait_streaming();
  std::vector<std::byte> mirror(14 * mib_bytes);
  const std::vector<std::byte> block(mib_bytes / 2, std::byte{0x33});
  std::size_t answered = 0;
  bool failed = false;
  {
    NbdClient client(cluster.uri());
    for (std::size_t at = 0; at < mirror.size() && !failed; at += block.size()) {
      try {
        client.write(at, block);
        std::ranges::copy(block, mirror.begin() + static_cast<std::ptrdiff_t>(at));
        ++answered;
      } catch (const NbdError& error) {
        failed = true;
        CHECK_MESSAGE((error.sys_errno == ENOSPC || error.sys_errno == EIO), error.what());
      }
    }
  }
  CHECK(failed);
  CHECK(answered > 0);
  const std::size_t answered_bytes = answered * block.size();
  for (const char* host : {"a", "b"}) {
    wait_until("what was answered is in the image", Millis(20'000), [&] {
      mirror.resize(answered_bytes);
      return file_difference(cluster.image_path(host), mirror).empty();
    });
  }
  CHECK(cluster.host("a").running());
}

std::vector<std::string> files_below(const std::string& directory, const std::string& part) {
  std::vector<std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (entry.is_regular_file() && contains(entry.path().string(), part)) {
      found.push_back(entry.path().string());
    }
  }
  std::ranges::sort(found);
  return found;
}

void flip_byte(const std::string& path, std::uint64_t at) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(static_cast<std::streamoff>(at));
  const int old = file.get();
  file.seekp(static_cast<std::streamoff>(at));
  file.put(static_cast<char>(old ^ 0x10));
}

TEST_CASE("bad input: a damaged state file is named, its volume is not served, its images stay") {
  Cluster cluster(2);
  make_served(cluster);
  cluster.create({.name = "vm2", .members = {"a", "b"}});
  cluster.stop_and_compare();
  const std::string image = cluster.image_path("a");
  CHECK(cluster.host("a").stop() == 0);
  const Finished before = run_ok({"sha256sum", image});
  const std::string state = cluster.host("a").state_directory() + "/volumes/vm1/state";
  flip_byte(state, fs::file_size(state) / 2);
  cluster.host("a").launch();
  wait_until("the daemon answers or ends", Millis(20'000), [&] {
    return !cluster.host("a").running() || cluster.host("a").get("/v1/host").has_value();
  });
  CHECK_MESSAGE(contains(cluster.host("a").log(), "vm1"), cluster.host("a").log());
  CHECK(cluster.ctl({"activate", "vm1"}).exit_code != 0);
  if (cluster.host("a").running()) {
    CHECK(cluster.ctl({"activate", "vm2"}).exit_code == 0);
  } else {
    CHECK(cluster.host("a").wait(Millis(1000)) == 1);
  }
  CHECK(run_ok({"sha256sum", image}).out == before.out);
}

TEST_CASE(
    "bad input: a damaged log is cut or named, what is applied stays a prefix of the history") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}});
  cluster.activate();
  cluster.wait_streaming();
  Load load(cluster, {});
  load.start();
  load.wait_answered(300);
  cluster.host("b").kill9();
  load.wait_answered(20);
  const std::string image = cluster.host("b").image_directory();
  const std::uint64_t seed = test_seed();
  INFO("RD_SEED=", seed);
  std::mt19937_64 random(seed);
  auto segments = files_below(cluster.host("b").state_directory() + "/volumes/vm1", "/log/");
  REQUIRE(!segments.empty());
  for (int i = 0; i < 20; ++i) {
    const std::string& path = segments[random() % segments.size()];
    flip_byte(path, random() % std::min<std::uint64_t>(fs::file_size(path), 4 * mib_bytes));
  }
  cluster.host("b").launch();
  wait_until("the daemon answers or ends", Millis(20'000), [&] {
    return !cluster.host("b").running() || cluster.host("b").get("/v1/host").has_value();
  });
  REQUIRE(cluster.host("b").running());
  load.wait_answered(50);
  // It has caught up, or it waits for a copy; it never takes what it cannot check.
  wait_until("b has found its place", Millis(60'000), [&] {
    const json volume = cluster.volume("a");
    const auto& state = volume.at("replicas").at(0).at("state");
    if (state == "streaming") return true;
    cluster.ctl({"resync", "vm1", "--host=b", "--wait"}, Millis(60'000));
    return false;
  });
  load.stop();
  cluster.wait_streaming();
  cluster.stop_and_compare();
  load.check_images(cluster);
}

TEST_CASE("bad input: where io_uring is forbidden daemon and plugin say so and name the switch") {
  const TempDir dir;
  const Finished daemon = run({RD_DENY_URING,
                               replicad_program,
                               "--host=x",
                               "--state-dir=" + dir.path() + "/state",
                               "--run-dir=" + dir.path() + "/run",
                               "--listen=127.0.0.1:0",
                               "--transport=plaintext"});
  CHECK_MESSAGE(daemon.exit_code == 1, daemon.text());
  CHECK_MESSAGE(contains(daemon.err, "io_uring"), daemon.text());
  CHECK_MESSAGE(contains(daemon.err, "kernel.io_uring_disabled"), daemon.text());
  CHECK_MESSAGE(contains(daemon.err, "seccomp"), daemon.text());

  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}});
  const Finished plugin = run({RD_DENY_URING,
                               nbdkit_program(),
                               "-f",
                               "-U",
                               dir.path() + "/nbd.sock",
                               plugin_path,
                               "vm1",
                               agent_parameter(cluster)});
  CHECK_MESSAGE(plugin.exit_code == 1, plugin.text());
  CHECK_MESSAGE(contains(plugin.err, "io_uring"), plugin.text());
  // It has left the volume as it was.
  cluster.activate();
  cluster.wait_streaming();
  cluster.stop_and_compare();
}

TEST_CASE("bad input: delete is refused while served, removes everything of ours afterwards") {
  Cluster cluster(2);
  make_served(cluster);
  CHECK(cluster.ctl({"--yes", "delete", "vm1"}).exit_code != 0);
  CHECK(cluster.serving_host() == "a");
  const std::string image_a = cluster.image_path("a");
  const std::string image_b = cluster.image_path("b");
  cluster.stop_and_compare();
  // Without the word that data is lost it is refused, with it nothing is left.
  const Finished refused = cluster.ctl({"delete", "vm1"});
  CHECK_MESSAGE(refused.exit_code == 3, refused.text());
  CHECK(fs::exists(image_a));
  cluster.ctl_ok({"--yes", "delete", "vm1", "--force"});
  CHECK_FALSE(fs::exists(image_a));
  CHECK_FALSE(fs::exists(image_b));
  CHECK(cluster.ctl_json({"list"}).at("volumes").empty());
}

}  // namespace
}  // namespace replicad::e2e
