#include "core/control/members.h"

#include "core/base/names.h"
#include "tests/unit/control/facts.h"

namespace replicad {
namespace {

using control_test::Json;
using control_test::member;
using control_test::member_said;
using control_test::silent;
using control_test::three;
using control_test::volume_json;
using control_test::VolumeOptions;
using control_test::without_part;

bool mentions(const std::vector<std::string>& lines, const std::string& text) {
  return std::any_of(lines.begin(), lines.end(), [&](const std::string& line) {
    return line.find(text) != std::string::npos;
  });
}

TEST_CASE("members: the one that says primary is the primary") {
  const auto reports = three();
  const auto primary = find_primary("vm1", reports);
  REQUIRE(primary.has_value());
  CHECK((*primary)->host == "a");
}

TEST_CASE("members: of two that say primary the higher epoch counts") {
  VolumeOptions older;
  older.epoch = 2;
  VolumeOptions newer;
  newer.primary = "b";
  newer.epoch = 5;
  const std::vector<MemberReport> reports{member("a", older), member("b", newer)};
  const auto primary = find_primary("vm1", reports);
  REQUIRE(primary.has_value());
  CHECK((*primary)->host == "b");
}

TEST_CASE("members: two primaries of one epoch are an error, whatever the order") {
  VolumeOptions other;
  other.primary = "b";
  VolumeOptions old;
  old.epoch = 1;
  old.primary = "c";
  std::vector<MemberReport> reports{member("a"), member("b", other), member("c", old)};
  for (int turn = 0; turn < 3; ++turn) {
    const auto primary = find_primary("vm1", reports);
    REQUIRE_FALSE(primary.has_value());
    CHECK(primary.error().code == Errc::refused);
    CHECK(primary.error().message.find("both say that they are the primary of vm1 in epoch 3") !=
          std::string::npos);
    std::rotate(reports.begin(), reports.begin() + 1, reports.end());
  }
}

TEST_CASE("members: a member that follows another primary in a later epoch stops everything") {
  VolumeOptions moved;
  moved.primary = "c";
  moved.epoch = 9;
  const std::vector<MemberReport> reports{member("a"), member("b", moved), silent("c")};
  const auto primary = find_primary("vm1", reports);
  REQUIRE_FALSE(primary.has_value());
  CHECK(primary.error().code == Errc::refused);
  CHECK(primary.error().message ==
        "a is the primary of vm1 in epoch 3, but b follows c in epoch 9");
  CHECK(primary.error().hint.find("make c reachable") != std::string::npos);
}

TEST_CASE("members: a later epoch at a replica that follows the same primary is no disagreement") {
  VolumeOptions fenced;
  fenced.epoch = 5;
  const std::vector<MemberReport> reports{member("a"), member("b", fenced)};
  CHECK(find_primary("vm1", reports).has_value());
}

TEST_CASE("members: different uuids are different volumes") {
  auto json = volume_json("b");
  json["uuid"] = "99999999-2222-4333-8444-555555555555";
  const std::vector<MemberReport> reports{member("a"), member_said(json)};
  const auto primary = find_primary("vm1", reports);
  REQUIRE_FALSE(primary.has_value());
  CHECK(primary.error().code == Errc::refused);
  CHECK(primary.error().message.find("different volumes of the name vm1") != std::string::npos);
}

TEST_CASE("members: a silent primary is named as unreachable") {
  const std::vector<MemberReport> reports{silent("a"), member("b"), member("c")};
  const auto primary = find_primary("vm1", reports);
  REQUIRE_FALSE(primary.has_value());
  CHECK(primary.error().code == Errc::unreachable);
  CHECK(primary.error().message ==
        "the primary of vm1, a, does not answer: cannot connect to a:7401");
}

TEST_CASE("members: nobody has the volume, and some or none did not answer") {
  const auto none = find_primary("vm1", {without_part("a"), without_part("b")});
  REQUIRE_FALSE(none.has_value());
  CHECK(none.error().code == Errc::not_found);
  const auto some = find_primary("vm1", {without_part("a"), silent("b")});
  REQUIRE_FALSE(some.has_value());
  CHECK(some.error().code == Errc::unreachable);
  CHECK(some.error().message.find("no answer from b") != std::string::npos);
  const auto empty = find_primary("vm1", {});
  REQUIRE_FALSE(empty.has_value());
  CHECK(empty.error().code == Errc::not_found);
}

TEST_CASE("members: replicas alone, whose primary has no part of the volume, are a refusal") {
  const auto primary = find_primary("vm1", {without_part("a"), member("b")});
  REQUIRE_FALSE(primary.has_value());
  CHECK(primary.error().code == Errc::refused);
  CHECK(primary.error().message.find("no host says that it is the primary") != std::string::npos);
}

TEST_CASE("members: what a delete loses names host, disk, size and adopted images") {
  auto json = volume_json("a");
  json["disks"][0]["adopted"] = true;
  const std::vector<std::string> lines =
      describe_loss({member_said(json), member("b"), silent("c")});
  REQUIRE(lines.size() == 2);
  CHECK(lines[0] ==
        "a: disk vda, 1 GiB (4 KiB of them on disk), /images/vm1.vda.raw: adopted, the image is "
        "kept");
  CHECK(lines[1] == "b: disk vda, 1 GiB (4 KiB of them on disk), /images/vm1.vda.raw");
}

TEST_CASE("members: a healthy volume has no problems") {
  CHECK(volume_problems("vm1", three()).empty());
}

TEST_CASE("members: that nobody is connected to a stopped export is no problem of whole copies") {
  VolumeOptions options;
  options.in_sync = {"a", "b"};
  auto json = volume_json("a", options);
  json["state"] = "stopped";
  for (auto& replica : json["replicas"]) {
    replica["state"] = "disconnected";
    replica["error"] = {
        {"code", "unreachable"}, {"message", "the peer closed the connection"}, {"hint", ""}};
  }
  // It says so itself, too.
  auto own = volume_json("b", options);
  own["state"] = "disconnected";
  own["error"] = json["replicas"][0]["error"];
  const auto problems =
      volume_problems("vm1", {member_said(json), member_said(own), member("c", options)});
  REQUIRE(problems.size() == 1);
  CHECK(mentions(problems, "c: the peer closed the connection"));
}

TEST_CASE("members: one that cannot read its state file is in nobody's way") {
  Json json = volume_json("c");
  json["uuid"] = unknown_uuid;
  json["state"] = "failed";
  json["error"] = {
      {"code", "corrupt"}, {"message", "the checksum is wrong"}, {"hint", "restore the file"}};
  const MemberReport broken{"c", "c:7401", parse_volume(json)};
  REQUIRE_FALSE(broken.volume.has_value());
  CHECK(says_broken(broken));
  const std::vector<MemberReport> reports{member("a"), member("b"), broken};
  const auto primary = find_primary("vm1", reports);
  REQUIRE(primary.has_value());
  CHECK((*primary)->host == "a");
  const auto problems = volume_problems("vm1", reports);
  REQUIRE(problems.size() == 1);
  CHECK(problems[0] == "c: the checksum is wrong; restore the file");
  // Where nobody knows more, its own words are the error.
  const auto alone = find_primary("vm1", {broken});
  REQUIRE_FALSE(alone.has_value());
  CHECK(alone.error().code == Errc::corrupt);
  CHECK(alone.error().message == "c: the checksum is wrong");
}

TEST_CASE("members: problems name silent, missing, detached, failing and left-over members") {
  VolumeOptions options;
  options.members = {"a", "b", "c", "d"};
  options.in_sync = {"a", "b"};
  auto json = volume_json("a", options);
  json["replicas"][1]["state"] = "detached";
  json["replicas"][0]["error"] = {
      {"code", "no_space"}, {"message", "log full\x1b[2J"}, {"hint", "free some space"}};
  const auto problems = volume_problems("vm1",
                                        {member_said(json),
                                         member("b", options),
                                         silent("c"),
                                         without_part("d"),
                                         member("e", options)});
  CHECK(mentions(problems, "b: log full\\x1b[2J; free some space"));
  CHECK(mentions(problems, "c is detached: `replicactl resync vm1 --host c`"));
  CHECK(mentions(problems, "c does not answer: cannot connect to c:7401"));
  CHECK(mentions(problems, "d is a member but has no part of the volume"));
  CHECK(mentions(problems, "e is no member but still has a part"));
}

}  // namespace
}  // namespace replicad
