// The program itself: how it starts, what it says when it cannot, how it ends; and what its stream
// port takes.

#include <sys/un.h>

#include "core/wire/messages.h"
#include "tests/replicad/daemon_fixture.h"

namespace replicad {
namespace {

using nlohmann::json;

std::vector<std::string> arguments_in(const DaemonDir& dir) {
  return {REPLICAD_PROGRAM,
          "--host=a",
          "--transport=plaintext",
          "--state-dir=" + dir.path() + "/state",
          "--run-dir=" + dir.path() + "/run",
          "--listen=127.0.0.1:0"};
}

/// The same with one value changed or added: a key that is given twice is a usage error.
std::vector<std::string> arguments_with(const DaemonDir& dir, const std::string& argument) {
  std::vector<std::string> arguments = arguments_in(dir);
  const std::string key = argument.substr(0, argument.find('=') + 1);
  std::erase_if(arguments, [&](const std::string& each) { return each.starts_with(key); });
  arguments.push_back(argument);
  return arguments;
}

struct Ended {
  int status;
  std::string output;
};

Ended run_to_end(const DaemonDir& dir, std::vector<std::string> arguments) {
  const std::string output = dir.path() + "/output";
  ChildProgram program(std::move(arguments), output);
  const int status = program.wait();
  return {status, file_text(output)};
}

bool says(const std::string& text, const std::string& word) {
  return text.find(word) != std::string::npos;
}

TEST_CASE("program: usage errors end with 2, what keeps it from starting with 1") {
  const DaemonDir dir;
  const auto with = [&](const std::string& argument) {
    return run_to_end(dir, arguments_with(dir, argument));
  };
  const Ended unknown = with("--no-such-key=1");
  CHECK(unknown.status == 2);
  CHECK(says(unknown.output, "no-such-key"));
  const Ended bad = with("--host=Bad Name");
  CHECK(bad.status == 1);
  CHECK(says(bad.output, "Bad Name"));
  CHECK(run_to_end(dir, {REPLICAD_PROGRAM}).status == 1);
  CHECK(says(run_to_end(dir, {REPLICAD_PROGRAM}).output, "TLS is not available"));
  CHECK(run_to_end(dir, {REPLICAD_PROGRAM, "--help"}).status == 0);
  CHECK(run_to_end(dir, {REPLICAD_PROGRAM, "--version"}).status == 0);
  std::ofstream(dir.path() + "/file") << "no directory";
  const Ended directory = with("--image-dir=" + dir.path() + "/file/images");
  CHECK(directory.status == 1);
  CHECK(says(directory.output, dir.path() + "/file"));
}

TEST_CASE("program: a port, a state directory or a run directory in use is named") {
  const TestHost other("other");
  const DaemonDir dir;
  const auto with = [&](const std::string& argument) {
    return run_to_end(dir, arguments_with(dir, argument));
  };
  const std::string stream = other.member().at("stream");
  const std::string control = other.member().at("control");
  for (const auto& used : std::vector<std::pair<std::string, std::string>>{
           {"--listen=" + stream, stream},
           {"--control=" + control, control},
           {"--state-dir=" + other.dir() + "/state", other.dir() + "/state"},
           {"--run-dir=" + other.dir() + "/run", other.dir() + "/run"}}) {
    const Ended ended = with(used.first);
    CHECK_MESSAGE(ended.status == 1, used.first);
    CHECK_MESSAGE(says(ended.output, used.second), ended.output);
    CHECK_MESSAGE(says(ended.output, "in use"), ended.output);
  }
  CHECK(other.ask("GET", "/v1/host").ok());
  CHECK(other.connect_agent().has_value());
}

TEST_CASE("program: it tells the service manager, serves, and ends cleanly on SIGTERM") {
  const DaemonDir dir;
  const std::string notify_path = dir.path() + "/notify";
  const Fd notify(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, notify_path.c_str(), sizeof address.sun_path - 1);
  REQUIRE(::bind(notify.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  std::vector<std::string> arguments = arguments_in(dir);
  arguments.insert(arguments.begin(), {"/usr/bin/env", "NOTIFY_SOCKET=" + notify_path});
  ChildProgram program(std::move(arguments), dir.path() + "/output");
  pollfd waiting{notify.get(), POLLIN, 0};
  REQUIRE(::poll(&waiting, 1, 20'000) == 1);
  std::array<char, 64> message{};
  CHECK(::recv(notify.get(), message.data(), message.size() - 1, 0) > 0);
  CHECK(std::string(message.data()) == "READY=1");
  const std::string control = "unix:" + dir.path() + "/run/control.sock";
  CHECK(ask_peer({control, "GET", "/v1/host"})->ok());
  CHECK(std::filesystem::exists(dir.path() + "/state/running"));
  program.signal(SIGTERM);
  CHECK(program.wait() == 0);
  CHECK_FALSE(std::filesystem::exists(dir.path() + "/state/running"));
  CHECK_FALSE(std::filesystem::exists(dir.path() + "/run/control.sock"));
  CHECK_FALSE(std::filesystem::exists(dir.path() + "/run/agent.sock"));
}

TEST_CASE(
    "program: killed, it starts again over its own leftovers and counts the unclean restart") {
  const DaemonDir dir;
  const std::string control = "unix:" + dir.path() + "/run/control.sock";
  const auto answers = [&] {
    const auto answer = ask_peer({control, "GET", "/v1/host"});
    return answer && answer->ok();
  };
  {
    ChildProgram program(arguments_in(dir), dir.path() + "/output");
    REQUIRE(eventually(answers));
    program.signal(SIGKILL);
    CHECK(program.wait() == -1);
  }
  ChildProgram again(arguments_in(dir), dir.path() + "/output");
  REQUIRE_MESSAGE(eventually(answers), file_text(dir.path() + "/output"));
  const json metrics = ask_peer({control, "GET", "/v1/host"})->body.at("metrics");
  CHECK(metrics.at("unclean_restarts") == doctest::Approx(1).epsilon(0.01));
  again.signal(SIGINT);
  CHECK(again.wait() == 0);
}

// --- the stream port

/// What the stream port answers to `bytes`: the refusal, or nullopt if it just closes.
std::optional<RefuseMessage> refusal_of(const TestHost& host, std::span<const std::byte> bytes) {
  const auto socket = connect_blocking(host.member().at("stream"), 2000);
  REQUIRE(socket.has_value());
  ::send(socket->get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  FrameReader reader(2 * mib);
  pollfd waiting{socket->get(), POLLIN, 0};
  while (::poll(&waiting, 1, 10'000) == 1) {
    const auto room = reader.writable();
    const ssize_t got = ::recv(socket->get(), room.data(), room.size(), 0);
    if (got <= 0) return std::nullopt;
    reader.commit(static_cast<std::size_t>(got));
    const auto frame = reader.next();
    REQUIRE(frame.has_value());
    if (!*frame) continue;
    CHECK((*frame)->header.type == FrameType::refuse);
    const auto message = decode_refuse((*frame)->payload);
    REQUIRE(message.has_value());
    return *message;
  }
  FAIL("the stream port neither answers nor closes");
  return std::nullopt;
}

AttachMessage attach_message() {
  AttachMessage message;
  message.volume = "vm1";
  message.volume_uuid = fixture_uuid;
  message.primary = "b";
  message.replica = "a";
  message.epoch = {1, 1};
  message.disk_bytes = {1 * mib};
  return message;
}

TEST_CASE("stream: garbage is refused and the daemon serves on") {
  const TestHost host("a");
  const std::string text = "GET / HTTP/1.1\r\nHost: a\r\n\r\n" + std::string(100, 'x');
  const auto refused = refusal_of(host, std::as_bytes(std::span(text)));
  REQUIRE(refused.has_value());
  CHECK(refused->code == Errc::protocol);
  CHECK(refusal_of(host, encode_empty(FrameType::heartbeat))->code == Errc::protocol);
  CHECK(refusal_of(host, encode_json_frame(FrameType::attach, "{}"))->code == Errc::protocol);
  std::vector<std::byte> flipped = encode_attach(attach_message());
  flipped[70] ^= std::byte{1};
  CHECK(refusal_of(host, flipped)->code == Errc::protocol);
  CHECK(host.ask("GET", "/v1/host").ok());
}

TEST_CASE("stream: an attach for something else is refused by name") {
  const TestHost host("a");
  CHECK(refusal_of(host, encode_attach(attach_message()))->code == Errc::not_found);
  const json b = {{"host", "b"}, {"stream", "127.0.0.1:1"}, {"control", "127.0.0.1:2"}};
  REQUIRE(host.ask("POST", "/v1/volumes", create_body("vm1", "a", {host.member(), b})).ok());
  const auto primary = refusal_of(host, encode_attach(attach_message()));
  CHECK(primary->code == Errc::refused);
  CHECK(says(primary->message, "primary"));
  AttachMessage other = attach_message();
  other.volume_uuid = "99999999-89ab-cdef-0123-456789abcdef";
  const auto uuid = refusal_of(host, encode_attach(other));
  CHECK(uuid->code == Errc::refused);
  CHECK(says(uuid->message, "uuid"));
}

TEST_CASE("stream: who says nothing is sent away, and a crowd of such is bounded") {
  const TestHost host("a");
  std::vector<Fd> crowd;
  for (int i = 0; i < 80; ++i) {
    auto socket = connect_blocking(host.member().at("stream"), 2000);
    REQUIRE(socket.has_value());
    crowd.push_back(std::move(*socket));
  }
  // Those beyond the limit go at once, the others after five seconds.
  const auto closed = [&] {
    std::size_t count = 0;
    for (const Fd& socket : crowd) {
      char byte = 0;
      if (::recv(socket.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0) ++count;
    }
    return count;
  };
  CHECK(eventually([&] { return closed() >= 16; }));
  CHECK(closed() < crowd.size());
  CHECK(host.ask("GET", "/v1/host").ok());
  // The refusal frame comes before the end.
  const auto drained = [&] {
    return std::all_of(crowd.begin(), crowd.end(), [](const Fd& socket) {
      std::array<char, 4096> bytes{};
      ssize_t got = 0;
      while ((got = ::recv(socket.get(), bytes.data(), bytes.size(), MSG_DONTWAIT)) > 0) {
      }
      return got == 0 || errno == ECONNRESET;
    });
  };
  CHECK(eventually(drained));
  CHECK(refusal_of(host, encode_attach(attach_message()))->code == Errc::not_found);
}

}  // namespace
}  // namespace replicad
