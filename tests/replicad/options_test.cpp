#include "replicad/options.h"

#include <fstream>

#include <doctest/doctest.h>

#include "tests/replicad/daemon_fixture.h"

namespace replicad {
namespace {

Options checked(std::vector<std::string> arguments) {
  auto parsed = parse_options(arguments);
  REQUIRE(parsed.has_value());
  REQUIRE(check_options(parsed->options).has_value());
  return parsed->options;
}

Error check_error(const std::vector<std::string>& arguments) {
  auto parsed = parse_options(arguments);
  REQUIRE(parsed.has_value());
  const Status status = check_options(parsed->options);
  REQUIRE_FALSE(status.has_value());
  return status.error();
}

TEST_CASE("options: the command line wins over the file, and both know the same keys") {
  const DaemonDir dir;
  const std::string path = dir.path() + "/replicad.conf";
  std::ofstream(path)
      << "# a comment\nhost=from-file\nlisten = 127.0.0.1:7500\ntransport=plaintext\n"
         "plaintext-beyond-loopback=yes\nlog-level=debug\nstate-dir=/var/lib/elsewhere\n";
  const Options options = checked({"--config", path, "--host=from-line"});
  CHECK(options.host == "from-line");
  CHECK(options.listen == "127.0.0.1:7500");
  CHECK(options.plaintext_beyond_loopback);
  CHECK(options.log_level == LogLevel::debug);
  CHECK(options.image_dir == "/var/lib/elsewhere/images");
}

TEST_CASE("options: unknown keys and unreadable values are usage errors that name them") {
  const DaemonDir dir;
  const std::string path = dir.path() + "/replicad.conf";
  std::ofstream(path) << "transport=plaintext\nlissen=127.0.0.1:1\n";
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{"--lissen=x"},
                                             {"--config", path},
                                             {"--plaintext-beyond-loopback=maybe"},
                                             {"--log-level=loud"},
                                             {"stray"}}) {
    const auto parsed = parse_options(arguments);
    REQUIRE_FALSE(parsed.has_value());
    CHECK(parsed.error().code == Errc::invalid_argument);
  }
  CHECK(parse_options({"--config", path}).error().message.find("lissen") != std::string::npos);
}

TEST_CASE("options: commands take a volume, restore-state also a file, recover --dry-run") {
  using Action = ParsedOptions::Action;
  const auto recover = parse_options({"--host=a", "recover", "--dry-run", "vm1"});
  REQUIRE(recover.has_value());
  CHECK(recover->action == Action::recover);
  CHECK(recover->volume == "vm1");
  CHECK(recover->dry_run);
  CHECK(recover->options.host == "a");
  CHECK(parse_options({"dump-state", "vm1"})->action == Action::dump_state);
  const auto restore = parse_options({"restore-state", "vm1", "/tmp/file"});
  REQUIRE(restore.has_value());
  CHECK(restore->action == Action::restore_state);
  CHECK(restore->file == "/tmp/file");
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{"recover"},
                                             {"recover", "vm1", "vm2"},
                                             {"restore-state", "vm1"},
                                             {"dump-state", "--dry-run", "vm1"},
                                             {"--dry-run"}}) {
    const auto parsed = parse_options(arguments);
    REQUIRE_FALSE(parsed.has_value());
    CHECK(parsed.error().code == Errc::invalid_argument);
  }
}

TEST_CASE("options: a configuration file that cannot be read is no usage error") {
  const auto parsed = parse_options({"--config", "/nonexistent/replicad.conf"});
  REQUIRE_FALSE(parsed.has_value());
  CHECK(parsed.error().code == Errc::not_found);
  CHECK(parsed.error().message.find("/nonexistent/replicad.conf") != std::string::npos);
  // It can be opened, and is not an empty file for that.
  const DaemonDir dir;
  const auto directory = parse_options({"--config", dir.path()});
  REQUIRE_FALSE(directory.has_value());
  CHECK(directory.error().message.find(dir.path()) != std::string::npos);
}

TEST_CASE("options: help names every key, version the program") {
  const auto help = parse_options({"--help"});
  REQUIRE(help.has_value());
  CHECK(help->action == ParsedOptions::Action::help);
  for (const char* key : {"host",
                          "state-dir",
                          "image-dir",
                          "run-dir",
                          "listen",
                          "advertise",
                          "control",
                          "transport",
                          "plaintext-beyond-loopback",
                          "nbdkit",
                          "plugin",
                          "log-level",
                          "config"}) {
    CHECK_MESSAGE(help->text.find(std::string("--") + key) != std::string::npos, key);
  }
  CHECK(parse_options({"--version"})->text == "replicad " REPLICAD_VERSION "\n");
}

TEST_CASE("options: plaintext must be asked for, and twice beyond loopback") {
  CHECK(check_error({}).code == Errc::not_supported);
  CHECK(check_error({"--transport=tls"}).message.find("plaintext") != std::string::npos);
  const Error beyond = check_error({"--transport=plaintext", "--listen=192.0.2.1:7400"});
  CHECK(beyond.code == Errc::refused);
  CHECK(beyond.hint.find("plaintext-beyond-loopback") != std::string::npos);
  CHECK(check_error({"--transport=plaintext", "--control=192.0.2.1:7401"}).code == Errc::refused);
  checked({"--transport=plaintext", "--listen=192.0.2.1:7400", "--plaintext-beyond-loopback"});
}

TEST_CASE("options: values that cannot work are refused by name") {
  const auto refuses = [](const std::string& argument, const std::string& word) {
    const Error error = check_error({"--transport=plaintext", argument});
    CHECK_MESSAGE(error.message.find(word) != std::string::npos, error.message);
  };
  refuses("--host=Not A Name", "host=");
  refuses("--state-dir=relative", "state-dir=");
  refuses("--run-dir=/" + std::string(120, 'x'), "run-dir=");
  refuses("--listen=nowhere", "listen=");
  refuses("--listen=127.0.0.1:99999", "listen=");
  refuses("--advertise=:5", "advertise=");
  const Error wildcard = check_error(
      {"--transport=plaintext", "--plaintext-beyond-loopback", "--listen=0.0.0.0:7400"});
  CHECK(wildcard.hint.find("advertise") != std::string::npos);
}

TEST_CASE("options: addresses split into host and port") {
  CHECK(split_host_port("[::1]:80")->host == "::1");
  CHECK(split_host_port("host.example:65535")->port == 65535);
  for (const char* bad : {"",
                          ":",
                          "host",
                          "host:",
                          "::1:80",
                          "[]:1",
                          "[::1:80",
                          "host:65536",
                          "host:-1",
                          "host:1x"}) {
    CHECK_MESSAGE(!split_host_port(bad).has_value(), bad);
  }
}

}  // namespace
}  // namespace replicad
