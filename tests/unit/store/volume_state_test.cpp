#include "core/store/volume_state.h"

#include <doctest/doctest.h>

namespace replicad {
namespace {

VolumeState sample_state() {
  VolumeState state;
  state.generation = 7;
  state.name = "vm1";
  state.uuid = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9";
  state.disks = {{"vda", 20 * mib, "/srv/vm1-vda.raw", false}, {"vdb", 512, "/dev/loop7", true}};
  state.members = {{"a", "127.0.0.1:7400", "127.0.0.1:7401"},
                   {"b", "127.0.0.1:7500", "127.0.0.1:7501"}};
  state.settings.mode = Mode::semi_sync;
  state.settings.congestion = Congestion::detach;
  state.settings.on_local_error = OnLocalError::fail;
  state.settings.autostart = true;
  state.primary = "a";
  state.epoch = {3, 0xfffffffe};
  state.in_sync = {"a", "b"};
  state.active = true;
  state.clean = false;
  state.history = {{2, 99}, 41, {0x1122334455667788, 0x99aabbccddeeff00}};
  state.sequence_reserved = 41 + (1U << 24);
  state.transfer = TransferState{"b", {4, 5}, {{3, 0xfffffffe}, 50, {1, 2}}};
  state.consistent = false;
  state.checkpoint = {{2, 98}, 40, {3, 4}};
  state.vote = founding_state(first_record("a", {"a", "b"}, state.members));
  state.vote.promised = {9, "b", 77};
  return state;
}

/// A state file around `body`, with the right length and checksum.
std::string sealed(const std::string& body) {
  return fmt::format(
      "replicad-state 1 {:08x} {}\n{}", crc32c(std::as_bytes(std::span(body))), body.size(), body);
}

std::string body_of(const std::string& content) {
  return content.substr(content.find('\n') + 1);
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const auto at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

void check_corrupt(const std::string& content, const std::string& word) {
  const auto state = decode_volume_state(content);
  REQUIRE_FALSE(state.has_value());
  CHECK(state.error().code == Errc::corrupt);
  INFO("message: ", state.error().message);
  CHECK(state.error().message.find(word) != std::string::npos);
}

}  // namespace

TEST_CASE("volume state: one that begins anew never goes back, and is not put back any more") {
  VolumeState state = sample_state();
  state.put_back = 90;
  begin_anew(state, 3);
  CHECK(state.generation == 7);
  CHECK_FALSE(state.put_back);
  begin_anew(state, 300);
  CHECK(state.generation == 300);
}

TEST_CASE("volume state: forgotten images are no state at a replica, and unclean at the primary") {
  VolumeState state = sample_state();
  state.clean = state.consistent = true;
  state.stage_bytes = 8192;
  state.resync = Epoch{3, 8};
  state.rewind = 2;
  state.disks[1].mark.identity = "device";
  state.marked_at = state.checkpoint;
  VolumeState primary = state;
  forget_images(primary, "a");
  CHECK_FALSE(primary.clean);
  CHECK(primary.consistent);
  CHECK(primary.disks[1].mark == ImageMark{});
  CHECK_FALSE(primary.marked_at);
  forget_images(state, "b");
  CHECK(state.clean);
  CHECK_FALSE(state.consistent);
  CHECK_FALSE(state.stage_bytes);
  CHECK_FALSE(state.resync);
  CHECK_FALSE(state.rewind);
  CHECK_FALSE(state.marked_at);
}

TEST_CASE("volume state: what is written is read back") {
  const VolumeState state = sample_state();
  const auto read = decode_volume_state(encode_volume_state(state));
  REQUIRE(read.has_value());
  CHECK(*read == state);

  VolumeState resyncing = state;
  resyncing.resync = Epoch{3, 8};
  const auto read_resyncing = decode_volume_state(encode_volume_state(resyncing));
  REQUIRE(read_resyncing.has_value());
  CHECK(*read_resyncing == resyncing);
  VolumeState split = state;
  split.fork_base = state.vote.record;
  split.rival = first_record("b", {"b"}, state.members);
  const auto read_split = decode_volume_state(encode_volume_state(split));
  REQUIRE(read_split.has_value());
  CHECK(*read_split == split);

  VolumeState put_back = state;
  put_back.stamps = {{"b", {12, 0xfffffffe, 10}}};
  put_back.put_back = 20;
  const std::string written = encode_volume_state(put_back);
  const auto read_put_back = decode_volume_state(written);
  REQUIRE(read_put_back.has_value());
  CHECK(*read_put_back == put_back);
  check_corrupt(sealed(replaced(body_of(written), "\"loaded\": 10", "\"loaded\": -1")), "loaded");
  check_corrupt(sealed(replaced(body_of(written), "\"put_back\": 20", "\"put_back\": []")),
                "put_back");

  VolumeState marked = state;
  marked.disks[0].mark = {
      "inode=7 born=8", 1'700'000'000'123'456'789, {{0, {1, 2}}, {4096, {3, 4}}}};
  marked.disks[1].mark.identity = "device wwid=naa.5000";
  marked.marked_at = state.checkpoint;
  const auto read_marked = decode_volume_state(encode_volume_state(marked));
  REQUIRE(read_marked.has_value());
  CHECK(*read_marked == marked);
  begin_writing(marked);
  CHECK_FALSE(marked.disks[0].mark.modified_ns);
  CHECK(marked.disks[0].mark.samples.size() == 2);

  VolumeState rewinding = state;
  rewinding.rewind = 3;
  const auto read_rewinding = decode_volume_state(encode_volume_state(rewinding));
  REQUIRE(read_rewinding.has_value());
  CHECK(*read_rewinding == rewinding);
  rewinding.rewind = 0;
  CHECK(decode_volume_state(encode_volume_state(rewinding)).error().code == Errc::corrupt);

  VolumeState plain = state;
  plain.transfer.reset();
  plain.settings = {};
  const auto read_plain = decode_volume_state(encode_volume_state(plain));
  REQUIRE(read_plain.has_value());
  CHECK(*read_plain == plain);
}

TEST_CASE("volume state: an epoch that a vote has raised belongs to the record's primary") {
  VolumeState state = sample_state();
  CHECK(promised_primary(state, "c") == "a");
  state.vote.record->primary = "b";
  state.vote.record->epoch = {4, 9};
  state.vote.chosen = false;  // so `primary` has not followed
  CHECK(promised_primary(state, "c") == "a");
  state.epoch = {4, 9};
  CHECK(promised_primary(state, "c") == "b");
  // Its own epoch: it stays a replica until its role is on record.
  CHECK(promised_primary(state, "b").empty());
}

TEST_CASE("volume state: the file's bytes never change for the same state") {
  VolumeState state;
  state.generation = 1;
  state.name = "vm1";
  state.uuid = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9";
  state.disks = {{"vda", 1 * mib, "/srv/vda", false}};
  state.members = {{"a", "127.0.0.1:7400", "127.0.0.1:7401"}};
  state.primary = "a";
  state.epoch = {1, 9};
  state.in_sync = {"a"};
  state.vote = founding_state(first_record("a", {"a"}, state.members));
  const std::string content = encode_volume_state(state);
  const std::string body = R"({
  "active": false,
  "checkpoint": {
    "digest": "00000000000000000000000000000000",
    "epoch": {
      "number": 0,
      "tag": 0
    },
    "sequence": 0
  },
  "clean": true,
  "consistent": true,
  "disks": [
    {
      "adopted": false,
      "bytes": 1048576,
      "name": "vda",
      "path": "/srv/vda"
    }
  ],
  "epoch": {
    "number": 1,
    "tag": 9
  },
  "generation": 1,
  "history": {
    "digest": "00000000000000000000000000000000",
    "epoch": {
      "number": 0,
      "tag": 0
    },
    "sequence": 0
  },
  "in_sync": [
    "a"
  ],
  "members": [
    {
      "control": "127.0.0.1:7401",
      "host": "a",
      "role": "data",
      "stream": "127.0.0.1:7400"
    }
  ],
  "name": "vm1",
  "primary": "a",
  "sequence_reserved": 0,
  "settings": {
    "ack_timeout_ms": 5000,
    "autostart": false,
    "congestion": "throttle",
    "log_bytes": 1073741824,
    "mode": "sync",
    "on_local_error": "hold",
    "quorum_timeout_ms": 0,
    "ring_bytes": 67108864,
    "segment_bytes": 67108864
  },
  "transfer": null,
  "uuid": "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9",
  "vote": {
    "accepted": {
      "host": "a",
      "nonce": 0,
      "round": 1
    },
    "chosen": true,
    "promised": {
      "host": "a",
      "nonce": 0,
      "round": 1
    },
    "record": {
      "before": null,
      "epoch": {
        "number": 0,
        "tag": 0
      },
      "fork": 0,
      "in_sync": [
        "a"
      ],
      "members": [
        {
          "control": "127.0.0.1:7401",
          "host": "a",
          "role": "data",
          "stream": "127.0.0.1:7400"
        }
      ],
      "primary": "a",
      "tie_break": "",
      "version": 1
    }
  },
  "whole": true
}
)";
  CHECK(content == "replicad-state 1 17c42e6f " + std::to_string(body.size()) + "\n" + body);
}

TEST_CASE("volume state: a change of any one byte is noticed") {
  const std::string good = encode_volume_state(sample_state());
  for (std::size_t at = 0; at < good.size(); ++at) {
    for (const char flip : {'\x01', '\x20', '\x80'}) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ flip);
      CAPTURE(at);
      const auto state = decode_volume_state(bad);
      // Upper-case digits of the checksum are the only other spelling of the same file.
      if (state.has_value()) {
        CHECK(at < good.find('\n'));
        CHECK(*state == sample_state());
      }
    }
  }
}

TEST_CASE("volume state: a file cut short or with more behind it is refused") {
  const std::string good = encode_volume_state(sample_state());
  for (std::size_t length = 0; length < good.size(); ++length) {
    CAPTURE(length);
    CHECK_FALSE(decode_volume_state(good.substr(0, length)).has_value());
  }
  check_corrupt(good + " ", "bytes behind the first line");
  check_corrupt(std::string(volume_state_bytes_max + 1, 'x'), "at most");
}

TEST_CASE("volume state: a later format is told apart from damage") {
  const std::string good = encode_volume_state(sample_state());
  const auto later = decode_volume_state(replaced(good, "replicad-state 1 ", "replicad-state 2 "));
  REQUIRE_FALSE(later.has_value());
  CHECK(later.error().code == Errc::version_mismatch);
  check_corrupt(replaced(good, "replicad-state 1 ", "replicad-state 0 "), "version");
  check_corrupt(replaced(good, "replicad-state 1 ", "replicad-state x "), "version");
  check_corrupt(replaced(good, "replicad-state 1 ", "replicad-state 99999999999999999999999999 "),
                "version");
  check_corrupt("", "first line");
  check_corrupt("hello\n", "first line");
}

TEST_CASE("volume state: a sealed file with bad content names the field") {
  const std::string body = body_of(encode_volume_state(sample_state()));
  const auto with = [&](const std::string& from, const std::string& to) {
    return sealed(replaced(body, from, to));
  };
  REQUIRE(decode_volume_state(sealed(body)).has_value());
  check_corrupt(sealed("{"), "parse error");
  check_corrupt(sealed("[]"), "generation");
  check_corrupt(sealed(std::string(1000, '[')), "deeply");
  check_corrupt(with("\"generation\": 7", "\"generation\": -7"), "generation");
  check_corrupt(with("\"generation\": 7", "\"generation\": 7.5"), "generation");
  check_corrupt(with("\"generation\": 7", "\"generation\": 9223372036854775807"), "generation");
  check_corrupt(with("\"generation\": 7,", ""), "generation");
  check_corrupt(with("4294967294", "4294967296"), "tag");
  check_corrupt(with("semi-sync", "semi"), "mode");
  check_corrupt(with("\"detach\"", "\"shout\""), "congestion");
  check_corrupt(with("\"clean\": false", "\"clean\": 0"), "clean");
  check_corrupt(with("99aabbccddeeff00", "99aabbccddeeff0g"), "digest");
  check_corrupt(with("\"bytes\": 512", "\"bytes\": 513"), "size 513");
  check_corrupt(with("\"bytes\": 512", "\"bytes\": 0"), "size 0");
  check_corrupt(with("\"/dev/loop7\"", "\"loop7\""), "absolute");
  check_corrupt(with("\"/dev/loop7\"", "\"/srv/vm1-vda.raw\""), "two disks");
  check_corrupt(with("\"vdb\"", "\"vda\""), "two disks are named");
  check_corrupt(with("\"name\": \"vm1\"", "\"name\": \"../vm1\""), "volume name");
  check_corrupt(with("\"primary\": \"a\"", "\"primary\": \"\""), "primary");
  check_corrupt(with("0a1b2c3d-", "0A1b2c3d-"), "UUID");
  check_corrupt(with("\"in_sync\": [", "\"in_sync\": [\"b\","), "twice");
  check_corrupt(with("\"segment_bytes\": 67108864", "\"segment_bytes\": 67108865"), "multiple");
  check_corrupt(with("\"log_bytes\": 1073741824", "\"log_bytes\": 67108864"), "log_bytes");
  check_corrupt(with("\"ring_bytes\": 67108864", "\"ring_bytes\": 1"), "ring_bytes");
  check_corrupt(with("\"ack_timeout_ms\": 5000", "\"ack_timeout_ms\": 4294967296"), "ack_timeout");
}

TEST_CASE("volume state: a mark that is none is refused") {
  VolumeState state = sample_state();
  state.disks[0].mark.samples = {{4096, {0x0a, 0x0b}}};
  const std::string body = body_of(encode_volume_state(state));
  const std::string sample = "4096 000000000000000b000000000000000a";
  for (const char* bad : {"4096", "4096 00", "x 000000000000000b000000000000000a", ""})
    check_corrupt(sealed(replaced(body, sample, bad)), "sample");
  check_corrupt(sealed(replaced(body, "\"4096 ", "\"99999999999 ")), "mark");
  state.disks[0].mark.samples.resize(image_samples_max + 1);
  CHECK_FALSE(check_volume_state(state).has_value());
  state.disks[0].mark = {};
  state.disks[0].mark.identity = std::string(image_identity_bytes_max + 1, 'x');
  CHECK_FALSE(check_volume_state(state).has_value());
}

TEST_CASE("volume state: names that could leave the directory are refused") {
  for (const char* name : {"vm1", "a", "0", "web-01.disk_2"})
    CHECK(is_valid_name(name));
  for (const char* name : {"", ".", "..", "-x", "_x", "A", "a/b", "a b", "\xc3\xa4", "a\n"}) {
    CAPTURE(name);
    CHECK_FALSE(is_valid_name(name));
  }
  CHECK(is_valid_name(std::string(64, 'a')));
  CHECK_FALSE(is_valid_name(std::string(65, 'a')));
}

TEST_CASE("volume state: counts of disks and members are bounded") {
  VolumeState state = sample_state();
  REQUIRE(check_volume_state(state).has_value());
  state.disks.clear();
  CHECK(check_volume_state(state).error().code == Errc::invalid_argument);
  for (std::size_t i = 0; i <= disks_max; ++i) {
    state.disks.push_back({fmt::format("d{}", i), 512, fmt::format("/d{}", i), false});
  }
  CHECK_FALSE(check_volume_state(state).has_value());
  state.disks.pop_back();
  CHECK(check_volume_state(state).has_value());

  state.members.clear();
  CHECK_FALSE(check_volume_state(state).has_value());
  state.members = {{"a", "", ""}, {"a", "", ""}};
  CHECK_FALSE(check_volume_state(state).has_value());
}

}  // namespace replicad
