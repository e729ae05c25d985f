#include "core/wire/messages.h"

#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/wire/frame_reader.h"
#include "tests/unit/wire/golden.h"

namespace replicad {
namespace {

const std::string point_json =
    R"({"digest":"000102030405060708090a0b0c0d0e0f","epoch":{"number":3,"tag":7},"sequence":17})";
const HistoryPoint point{{3, 7}, 17, {0x08090a0b0c0d0e0f, 0x0001020304050607}};
const std::string attach_json =
    R"({"disk_bytes":[1048576,4096],"epoch":{"number":3,"tag":7},"features":[],"primary":"a","protocol_max":1,)"
    R"("protocol_min":1,"replica":"b","volume":"vm1","volume_uuid":"u-1"})";
const std::string attached_json =
    R"({"applied":15,"boot_id":"boot","consistent":true,"durable":16,"features":["x"],"logged":)" +
    point_json + R"(,"protocol":1})";

AttachMessage attach_message() {
  AttachMessage message;
  message.volume = "vm1";
  message.volume_uuid = "u-1";
  message.primary = "a";
  message.replica = "b";
  message.epoch = {3, 7};
  message.disk_bytes = {1048576, 4096};
  return message;
}

AttachedMessage attached_message() {
  AttachedMessage message;
  message.features = {"x"};
  message.boot_id = "boot";
  message.logged = point;
  message.durable = 16;
  message.applied = 15;
  return message;
}

std::string payload_text(const std::vector<std::byte>& frame) {
  return {reinterpret_cast<const char*>(frame.data()) + frame_header_bytes,
          frame.size() - frame_header_bytes};
}

std::string header_hex(const std::vector<std::byte>& frame) {
  return hex_of(std::span(frame).first<frame_header_bytes>());
}

/// The header of a control frame is all zero but for type, size and checksums.
void check_json_frame(const std::vector<std::byte>& frame,
                      std::string_view head,
                      std::string_view header_crc,
                      const std::string& json) {
  CHECK(payload_text(frame) == json);
  CHECK(header_hex(frame) == std::string(head) + std::string(88, '0') + std::string(header_crc));
}

TEST_CASE("messages: golden bytes of every JSON frame") {
  check_json_frame(
      encode_attach(attach_message()), "52504c4401010000a9000000e6fb40ed", "d51d4b50", attach_json);
  check_json_frame(encode_attached(attached_message()),
                   "52504c4401020000be0000004b282bb2",
                   "2a5dde6a",
                   attached_json);
  check_json_frame(encode_refuse({Errc::stale_epoch, "old", "wait"}),
                   "52504c440103000034000000d7e9574d",
                   "af310b36",
                   R"({"code":"stale_epoch","hint":"wait","message":"old"})");
  check_json_frame(encode_start({.after = 17, .answered = 19}),
                   "52504c44010400002700000004df8557",
                   "1bff28c5",
                   R"({"after":17,"answered":19,"copy":false})");
  check_json_frame(encode_start({.copy = true, .after = 17, .keep = true, .answered = 17}),
                   "52504c440104000032000000301cd5e1",
                   "3cf33640",
                   R"({"after":17,"answered":17,"copy":true,"keep":true})");
  const std::string wrapped = R"({"point":)" + point_json + "}";
  check_json_frame(
      encode_copy_end({point}), "52504c440122000062000000b969468e", "baac9169", wrapped);
  check_json_frame(
      encode_copy_done({point}), "52504c440123000062000000b969468e", "662f62b3", wrapped);
  check_json_frame(encode_json_frame(FrameType::agent_request, R"({"id":1,"op":"seal"})"),
                   "52504c44014000001400000004ac83f9",
                   "86ebb503",
                   R"({"id":1,"op":"seal"})");
  check_json_frame(encode_json_frame(FrameType::agent_reply, R"({"id":1,"ok":true,"result":{}})"),
                   "52504c44014100001e000000a1b02a94",
                   "69019684",
                   R"({"id":1,"ok":true,"result":{}})");
  check_json_frame(encode_json_frame(FrameType::agent_event, R"({"op":"status"})"),
                   "52504c44014200000f0000006dce7972",
                   "f0085f8f",
                   R"({"op":"status"})");
}

TEST_CASE("messages: golden bytes of watermarks, digest, heartbeat and sync_request") {
  const Watermarks marks{9,
                         8,
                         6,
                         7,
                         {0x0102030405060708, 0x1112131415161718},
                         {0x2122232425262728, 0x3132333435363738}};
  CHECK(hex_of(encode_watermarks(marks)) ==
        "52504c4401300000400000007e99f3810000000000000000000000000000000000000000000000000000000000"
        "000000"
        "0000000000000000000000004543aa810900000000000000080000000000000006000000000000000700000000"
        "000000"
        "0807060504030201181716151413121128272625242322213837363534333231");
  const HistoryPoint digest_point{golden_epoch, 77, {0x0102030405060708, 0x1112131415161718}};
  CHECK(hex_of(encode_digest(digest_point)) ==
        "52504c4401320000100000001ee1fca308070605040302014d0000000000000000000000000000000000000000"
        "000000"
        "a4a3a2a10000000000000000dfc9a5a008070605040302011817161514131211");
  CHECK(encode_empty(FrameType::heartbeat).size() == frame_header_bytes);
  CHECK(header_hex(encode_empty(FrameType::heartbeat)).ends_with("18dc9d12"));
  CHECK(header_hex(encode_empty(FrameType::sync_request)).ends_with("51ad96a2"));
  // A heartbeat's number comes back in the watermarks behind it; it is in the header.
  const auto header_of = [](const std::vector<std::byte>& frame) {
    const auto header = decode_header(std::span(frame).first<frame_header_bytes>());
    REQUIRE(header.has_value());
    return *header;
  };
  CHECK(header_of(encode_heartbeat(7)).sequence == 7);
  CHECK(encode_heartbeat(0) == encode_empty(FrameType::heartbeat));
  const auto answer = encode_watermarks(marks, 7);
  CHECK(header_of(answer).sequence == 7);
  CHECK(decode_watermarks(std::span(answer).subspan(frame_header_bytes)) == marks);
}

TEST_CASE("messages: golden bytes of block_sums and block_diffs") {
  const Range range{1, 8192, 4608};  // the second block is the disk's short last one
  const std::vector<Digest> sums{{0x0102030405060708, 0x1112131415161718}, {3, 4}};
  const auto sums_frame = encode_block_sums(range, sums);
  CHECK(hex_of(sums_frame) ==
        "52504c440124000020000000f7888b4b000000000000000000000000000000000020000000000000"
        "0012000000000000000000000100000000000000973bd08208070605040302011817161514131211"
        "03000000000000000400000000000000");
  const auto diffs_frame = encode_block_diffs(range, {false, true});
  CHECK(hex_of(diffs_frame) ==
        "52504c440125000001000000a62346b3000000000000000000000000000000000020000000000000"
        "0012000000000000000000000100000000000000e6d5501102");
  // On a stream they name a sequence, and nothing else is different.
  const auto on_stream = encode_block_sums(range, sums, 0x0102030405060708);
  CHECK(hex_of(on_stream) ==
        "52504c440124000020000000f7888b4b000000000000000008070605040302010020000000000000"
        "00120000000000000000000001000000000000009666316b08070605040302011817161514131211"
        "03000000000000000400000000000000");
  const auto payload = [](const std::vector<std::byte>& frame) {
    return std::span(frame).subspan(frame_header_bytes);
  };
  CHECK(decode_block_sums(payload(sums_frame)) == sums);
  CHECK(decode_block_diffs(range, payload(diffs_frame)) == std::vector<Range>{{1, 12288, 512}});
  const Range three{0, 4096, 12288};
  const auto adjacent = encode_block_diffs(three, {true, true, false});
  CHECK(decode_block_diffs(three, payload(adjacent)) == std::vector<Range>{{0, 4096, 8192}});
}

TEST_CASE("messages: compare frames must agree with their range") {
  const auto header_of = [](const Range& range, std::uint32_t payload_bytes) {
    FrameHeader header;
    header.type = FrameType::block_sums;
    header.range = range;
    header.payload_bytes = payload_bytes;
    std::array<std::byte, frame_header_bytes> bytes{};
    encode_header(header, bytes);
    return decode_header(bytes);
  };
  CHECK(header_of({0, 4096, 8192}, 32).has_value());
  CHECK(header_of({0, 4096, mib}, 4096).has_value());
  CHECK_FALSE(header_of({0, 4096, 8192}, 16).has_value());    // a sum is missing
  CHECK_FALSE(header_of({0, 512, 4096}, 16).has_value());     // begins within a block
  CHECK_FALSE(header_of({0, 0, 0}, 0).has_value());           // nothing
  CHECK_FALSE(header_of({0, 0, mib + 1}, 4112).has_value());  // too much
  CHECK_FALSE(header_of({99, 0, 4096}, 16).has_value());      // no such disk
}

TEST_CASE("messages: attached tells of an interrupted resync only where there was one") {
  AttachedMessage message = attached_message();
  message.consistent = false;
  message.resync = Epoch{3, 9};
  const std::string text = payload_text(encode_attached(message));
  CHECK(text.find(R"("resync":{"number":3,"tag":9})") != std::string::npos);
  const auto decoded = decode_attached(bytes_of(text));
  REQUIRE(decoded.has_value());
  CHECK(decoded->resync == Epoch{3, 9});
}

TEST_CASE("messages: attached tells of a stage only where one is kept") {
  CHECK(payload_text(encode_attached(attached_message())).find("stage") == std::string::npos);
  AttachedMessage message = attached_message();
  message.stage = Epoch{3, 7};
  const std::string text = payload_text(encode_attached(message));
  CHECK(
      text ==
      R"({"applied":15,"boot_id":"boot","consistent":true,"durable":16,"features":["x"],"logged":)" +
          point_json + R"(,"protocol":1,"stage":{"number":3,"tag":7}})");
  const auto decoded = decode_attached(bytes_of(text));
  REQUIRE(decoded.has_value());
  CHECK(decoded->stage == Epoch{3, 7});
}

TEST_CASE("messages: start goes on with a stage, and only with one") {
  const std::string text =
      payload_text(encode_start({.copy = true, .after = 5, .keep = true, .go_on = true}));
  CHECK(text == R"({"after":5,"answered":0,"copy":true,"go_on":true,"keep":true})");
  const auto decoded = decode_start(bytes_of(text));
  REQUIRE(decoded);
  CHECK(decoded->go_on);
  for (const char* other : {"in_place", "save"}) {
    const std::string both =
        fmt::format(R"({{"after":5,"answered":5,"copy":true,"go_on":true,"{}":true}})", other);
    CHECK(decode_start(bytes_of(both)).error().code == Errc::protocol);
  }
}

TEST_CASE("messages: attach tells of the terms before, attached of where the histories part") {
  AttachMessage attach = attach_message();
  attach.history = {{{2, 5}, 100}, {{3, 6}, 170}};
  std::string text = payload_text(encode_attach(attach));
  CHECK(
      text ==
      R"({"disk_bytes":[1048576,4096],"epoch":{"number":3,"tag":7},"features":[],)"
      R"("history":[{"end":100,"epoch":{"number":2,"tag":5}},{"end":170,"epoch":{"number":3,"tag":6}}],)"
      R"("primary":"a","protocol_max":1,"protocol_min":1,"replica":"b","volume":"vm1","volume_uuid":"u-1"})");
  const auto decoded_attach = decode_attach(bytes_of(text));
  REQUIRE(decoded_attach.has_value());
  CHECK(decoded_attach->history == attach.history);

  AttachedMessage attached = attached_message();
  attached.parted = {{2, 5}, 90, {{0, 4194304, 4194304}, {1, 0, 512}}};
  text = payload_text(encode_attached(attached));
  CHECK(
      text ==
      R"({"applied":15,"boot_id":"boot","consistent":true,"durable":16,"features":["x"],"logged":)" +
          point_json +
          R"(,"parted":{"epoch":{"number":2,"tag":5},"ranges":[[0,4194304,4194304],[1,0,512]],)"
          R"("sequence":90},"protocol":1})");
  const auto decoded = decode_attached(bytes_of(text));
  REQUIRE(decoded.has_value());
  CHECK(decoded->parted == attached.parted);
}

TEST_CASE("messages: more terms or ranges than there may be are refused") {
  AttachMessage attach = attach_message();
  attach.history.resize(history_terms_max + 1);
  CHECK(decode_attach(bytes_of(payload_text(encode_attach(attach)))).error().code ==
        Errc::protocol);
  AttachedMessage attached = attached_message();
  attached.parted = AttachedMessage::Parted{};
  attached.parted->ranges.resize(parted_ranges_max, Range{15, counter_max, counter_max});
  const auto frame = encode_attached(attached);
  // What may be told has room in a frame.
  CHECK(decode_header(std::span(frame).first<frame_header_bytes>()).has_value());
  CHECK(decode_attached(bytes_of(payload_text(frame))).has_value());
  attached.parted->ranges.emplace_back();
  CHECK(decode_attached(bytes_of(payload_text(encode_attached(attached)))).error().code ==
        Errc::protocol);
  attached.parted->ranges = {Range{16, 0, 512}};
  CHECK(decode_attached(bytes_of(payload_text(encode_attached(attached)))).error().code ==
        Errc::protocol);
}

TEST_CASE("messages: start keeps what is the member's own in a rewind alone") {
  const std::string text =
      payload_text(encode_start({.copy = true, .after = 5, .save = true, .parted = true}));
  CHECK(text == R"({"after":5,"answered":0,"copy":true,"parted":true,"save":true})");
  const auto decoded = decode_start(bytes_of(text));
  REQUIRE(decoded);
  CHECK(decoded->parted);
  const std::string alone = R"({"after":5,"answered":5,"copy":true,"parted":true})";
  CHECK(decode_start(bytes_of(alone)).error().code == Errc::protocol);
}

TEST_CASE("messages: a feature is known by its name") {
  CHECK(has_feature({"x", "go-on"}, feature_go_on));
  CHECK_FALSE(has_feature({"x", "go-on2"}, feature_go_on));
}

TEST_CASE("messages: start tells of a copy in place") {
  const std::string text = payload_text(encode_start({.copy = true, .after = 5, .in_place = true}));
  CHECK(text == R"({"after":5,"answered":0,"copy":true,"in_place":true})");
  const auto decoded = decode_start(bytes_of(text));
  REQUIRE(decoded);
  CHECK(decoded->in_place);
  CHECK_FALSE(decoded->keep);
}

TEST_CASE("messages: start tells of a rewind, and of one thing only") {
  const std::string text = payload_text(encode_start({.copy = true, .after = 5, .save = true}));
  CHECK(text == R"({"after":5,"answered":0,"copy":true,"save":true})");
  const auto decoded = decode_start(bytes_of(text));
  REQUIRE(decoded.has_value());
  CHECK(decoded->save);
  CHECK_FALSE(decoded->keep);
  const std::string both = R"({"after":5,"answered":5,"copy":true,"keep":true,"save":true})";
  CHECK(decode_start(bytes_of(both)).error().code == Errc::protocol);
}

TEST_CASE("messages: what is encoded is decoded") {
  const auto attach = decode_attach(bytes_of(attach_json));
  REQUIRE(attach);
  CHECK(attach->volume == "vm1");
  CHECK(attach->volume_uuid == "u-1");
  CHECK(attach->primary == "a");
  CHECK(attach->replica == "b");
  CHECK(attach->epoch == Epoch{3, 7});
  CHECK(attach->disk_bytes == std::vector<std::uint64_t>{1048576, 4096});
  const auto attached = decode_attached(bytes_of(attached_json));
  REQUIRE(attached);
  CHECK(attached->consistent);
  CHECK(attached->logged == point);
  CHECK(attached->durable == 16);
  CHECK(attached->applied == 15);
  CHECK(attached->features == std::vector<std::string>{"x"});
  const auto start =
      decode_start(bytes_of(R"({"copy":true,"after":18446744073709551615,"answered":3})"));
  REQUIRE(start);
  CHECK(start->copy);
  CHECK(start->after == 18446744073709551615ULL);
  CHECK(start->answered == 3);
  const auto end = decode_copy_end(bytes_of(payload_text(encode_copy_end({point}))));
  REQUIRE(end);
  CHECK(end->point == point);
  const auto done = decode_copy_done(bytes_of(payload_text(encode_copy_done({point}))));
  REQUIRE(done);
  CHECK(done->point == point);
}

TEST_CASE(
    "messages: fields of a later version are ignored, a later refuse code is read as protocol") {
  const auto refuse =
      decode_refuse(bytes_of(R"({"code":"tired","message":"m","hint":"h","since":"v2"})"));
  REQUIRE(refuse);
  CHECK(refuse->code == Errc::protocol);
  CHECK(refuse->message == "m");
}

TEST_CASE("messages: watermarks and digest survive the round trip, wrong sizes do not") {
  const Watermarks marks{20, 15, 10, 15, {1, 2}, {3, 4}};
  const auto frame = encode_watermarks(marks);
  const auto payload = std::span(frame).subspan(frame_header_bytes);
  CHECK(decode_watermarks(payload) == marks);
  CHECK_FALSE(decode_watermarks(payload.first(63)));
  CHECK_FALSE(decode_watermarks({}));
  FrameHeader header;
  header.epoch = {5, 6};
  header.sequence = 7;
  const auto digest_frame = encode_digest({{5, 6}, 7, {8, 9}});
  const auto digest_payload = std::span(digest_frame).subspan(frame_header_bytes);
  CHECK(decode_digest(header, digest_payload) == HistoryPoint{{5, 6}, 7, {8, 9}});
  CHECK_FALSE(decode_digest(header, digest_payload.first(15)));
}

TEST_CASE("messages: watermarks that contradict each other are refused") {
  for (const Watermarks& bad : {Watermarks{1, 2, 0, 0, {}, {}},
                                Watermarks{2, 1, 2, 0, {}, {}},
                                Watermarks{2, 1, 0, 2, {}, {}}}) {
    const auto frame = encode_watermarks(bad);
    const auto result = decode_watermarks(std::span(frame).subspan(frame_header_bytes));
    REQUIRE_FALSE(result);
    CHECK(result.error().code == Errc::protocol);
    CHECK(result.error().message.find("out of order") != std::string::npos);
  }
}

std::string replaced(std::string text, std::string_view what, std::string_view with) {
  const auto at = text.find(what);
  REQUIRE(at != std::string::npos);
  return text.replace(at, what.size(), with);
}

void check_refused(const std::string& json, std::string_view part) {
  const auto result = decode_attach(bytes_of(json));
  CAPTURE(json);
  REQUIRE_FALSE(result);
  CHECK(result.error().code == Errc::protocol);
  CHECK_MESSAGE(result.error().message.find(part) != std::string::npos, result.error().message);
}

TEST_CASE("messages: a missing, wrong or oversized field is named") {
  check_refused("", "bad attach message");
  check_refused("{", "bad attach message");
  check_refused("[]", "bad attach message");
  check_refused("null", "bad attach message");
  check_refused("\xff\xfe", "bad attach message");
  check_refused(replaced(attach_json, R"("volume":"vm1",)", ""), "volume");
  check_refused(replaced(attach_json, R"("volume":"vm1")", R"("volume":1)"), "string");
  check_refused(replaced(attach_json, R"("number":3)", R"("number":-3)"), "negative");
  check_refused(replaced(attach_json, R"("number":3)", R"("number":3.5)"), "not whole");
  check_refused(replaced(attach_json, R"("number":3)", R"("number":true)"), "number");
  check_refused(replaced(attach_json, R"("tag":7)", R"("tag":4294967303)"), "tag is too large");
  check_refused(replaced(attach_json, R"("tag":7)", R"("tag":true)"), "number");
  check_refused(replaced(attach_json, R"("protocol_max":1)", R"("protocol_max":4294967297)"),
                "protocol_max");
  check_refused(replaced(attach_json, "[1048576,4096]", "[]"), "disk count");
  check_refused(replaced(attach_json, "[1048576,4096]", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]"),
                "disk count");
  check_refused(replaced(attach_json, "[1048576,4096]", "[true]"), "number");
  std::string many = R"("features":[""])";
  for (int i = 0; i < 64; ++i)
    many.insert(many.size() - 1, R"(,"")");
  check_refused(replaced(attach_json, R"("features":[])", many), "64 features");
}

TEST_CASE("messages: deep nesting is refused before it is built") {
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  check_refused(deep, "nested too deeply");
  check_refused(R"({"a":)" + deep + "}", "nested too deeply");
}

TEST_CASE("messages: a digest that is not 32 hexadecimal digits is refused") {
  for (const std::string& bad : {std::string("00"), std::string(32, 'g'), std::string(33, '0')}) {
    const auto result = decode_copy_end(bytes_of(
        R"({"point":)" + replaced(point_json, "000102030405060708090a0b0c0d0e0f", bad) + "}"));
    REQUIRE_FALSE(result);
    CHECK(result.error().message.find("digest") != std::string::npos);
  }
}

TEST_CASE("messages: text that is not UTF-8 is encoded all the same") {
  const auto frame = encode_refuse({Errc::io_error, "open \xff\xfe", ""});
  const auto decoded = decode_refuse(std::span(frame).subspan(frame_header_bytes));
  REQUIRE(decoded);
  CHECK(decoded->message.starts_with("open "));
}

}  // namespace
}  // namespace replicad
