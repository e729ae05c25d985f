#include "ctl/commands.h"
#include "tests/unit/ctl/run_ctl.h"

namespace replicad::ctl_test {
namespace {

TEST_CASE("usage: help names every command, and each command has its own") {
  const Outcome help = run_words({"--help"});
  CHECK(help.code == 0);
  for (const ctl::Command& command : ctl::all_commands()) {
    CAPTURE(command.name);
    CHECK(contains(help.out, fmt::format("\n  {} ", command.name)));
    const Outcome own = run_words({command.name, "--help"});
    CHECK(own.code == 0);
    CHECK(contains(own.out, fmt::format("usage: replicactl {} ", command.name)));
  }
}

TEST_CASE("usage: the version is printed") {
  const Outcome outcome = run_words({"--version"});
  CHECK(outcome.code == 0);
  CHECK(outcome.out == "replicactl " REPLICAD_VERSION "\n");
}

TEST_CASE("usage: wrong command lines end with exit code 2 and say why") {
  struct Row {
    std::vector<std::string> words;
    const char* text;
  };
  const std::vector<Row> rows{
      {{}, "no command given"},
      {{"fly"}, "there is no command 'fly'"},
      {{"status", "--frob"}, "unrecognised option '--frob'"},
      {{"status", "vm1", "vm2"}, "'vm2' is one argument too many"},
      {{"activate"}, "an argument is missing"},
      {{"activate", "../x"}, "'../x' is no name of a volume"},
      {{"activate", "VM1\x1b[2J"}, "'VM1\\x1b[2J' is no name of a volume"},
      {{"list", "-o", "xml"}, "--output takes table or json"},
      {{"list", "--color", "red"}, "--color takes"},
      {{"list", "--timeout", "0"}, "--timeout must be more than 0"},
      {{"list", "--timeout", "soon"}, "--timeout: 'soon' is no time"},
      {{"list", "--hosts", "a"}, "'a' is no address"},
      {{"list", "--hosts", "a=127.0.0.1:1,a=127.0.0.1:2"}, "host a is given twice"},
      {{"--hosts"}, "required argument"},
      {{"create", "vm1", "--hosts", "a=127.0.0.1:1"}, "--size is missing"},
      {{"create", "vm1", "--hosts", "a=127.0.0.1:1", "--size", "20X"}, "--size: '20X' is no size"},
      {{"create", "vm1", "--hosts", "a=127.0.0.1:1", "--size", "100"}, "a multiple of 512 bytes"},
      {{"create", "vm1", "--hosts", "a=127.0.0.1:1", "--size", "1G", "--copies", "0"},
       "--copies '0'"},
      {{"create", "vm1", "--hosts", "a=127.0.0.1:1", "--size", "1G", "--mode", "quick"},
       "mode takes"},
      {{"create", "vm1", "--hosts", "a=127.0.0.1:1", "--size", "1G,2G", "--disk-names", "x"},
       "1 names for 2 disks"},
      {{"create", "vm1", "--hosts", "a=127.0.0.1:1", "--size", "1G,2G", "--disk-names", "x,x"},
       "two disks are called x"},
      {{"create", "vm1", "--hosts", "a=127.0.0.1:1", "--size", "1G", "--adopt", "/dev/x"},
       "--adopt needs --primary"},
      {{"create",
        "vm1",
        "--hosts",
        "a=127.0.0.1:1",
        "--size",
        "1G",
        "--adopt",
        "x",
        "--primary",
        "a"},
       "absolute paths"},
      {{"set", "vm1", "--hosts", "a=127.0.0.1:1"}, "an argument is missing"},
      {{"set", "vm1", "speed=9", "--hosts", "a=127.0.0.1:1"}, "there is no setting 'speed'"},
      {{"switchover", "vm1", "--deadline", "x", "--hosts", "a=127.0.0.1:1"},
       "--deadline: 'x' is no time"},
      {{"switchover", "vm1", "--to", "B!", "--hosts", "a=127.0.0.1:1"},
       "--to: 'B!' is no name of a host"},
      {{"wait", "vm1", "--hosts", "a=127.0.0.1:1"}, "wait needs --for"},
      {{"wait", "vm1", "--for", "luck", "--hosts", "a=127.0.0.1:1"}, "--for takes"},
      {{"resync", "vm1", "--hosts", "a=127.0.0.1:1"}, "resync needs --host"},
      {{"attach-info", "vm1", "--format", "ova", "--hosts", "a=127.0.0.1:1"}, "--format takes"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const Outcome outcome = run_words(row.words);
    CHECK(outcome.code == 2);
    CHECK_MESSAGE(contains(outcome.err, row.text), outcome.err);
    CHECK(outcome.out.empty());
  }
}

TEST_CASE("usage: with -o json an error is one object on stderr") {
  const Outcome outcome = run_words({"fly", "-o", "json"});
  CHECK(outcome.code == 2);
  CHECK(outcome.out.empty());
  const Json error = outcome.error();
  CHECK(error["schema"] == 1);
  CHECK(error["code"] == "invalid_argument");
  CHECK(error["message"] == "there is no command 'fly'");
  CHECK(error["hint"].is_string());
  CHECK(error.size() == 4);
}

TEST_CASE("usage: a missing hosts file is named") {
  const Outcome outcome = run_words({"list", "--hosts-file", "/nonexistent/hosts"});
  CHECK(outcome.code == 5);
  CHECK(contains(outcome.err, "cannot read the hosts file /nonexistent/hosts"));
}

TEST_CASE("usage: an answer that cannot be written is an error") {
  std::istringstream in;
  std::ostringstream out;
  std::ostringstream err;
  out.setstate(std::ios::badbit);
  ctl::Terminal terminal{in, out, err};
  CHECK(ctl::run_replicactl({"--version"}, terminal) == 1);
  CHECK(contains(err.str(), "the answer could not be written"));
}

TEST_CASE("usage: options may stand before and after the command") {
  Trio trio;
  CHECK(run_words({"-o", "json", "--hosts", trio.hosts(), "list"}).json() ==
        run_words({"list", "--hosts", trio.hosts(), "-ojson"}).json());
}

}  // namespace
}  // namespace replicad::ctl_test
