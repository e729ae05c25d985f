#include "core/wire/messages.h"

#include <algorithm>
#include <limits>
#include <string_view>

#include <nlohmann/json.hpp>

#include "core/base/check.h"
#include "core/base/endian.h"

namespace replicad {

namespace {

using nlohmann::json;

std::vector<std::byte> frame_with(FrameHeader header, std::span<const std::byte> payload) {
  header.payload_bytes = static_cast<std::uint32_t>(payload.size());
  header.payload_crc32c = crc32c(payload);
  std::vector<std::byte> frame(frame_header_bytes + payload.size());
  encode_header(header, std::span<std::byte, frame_header_bytes>(frame.data(), frame_header_bytes));
  std::copy(payload.begin(), payload.end(), frame.begin() + frame_header_bytes);
  return frame;
}

std::vector<std::byte> json_frame(FrameType type, const json& value) {
  return encode_json_frame(type, value.dump(-1, ' ', false, json::error_handler_t::replace));
}

json to_json(const Epoch& epoch) {
  return {{"number", epoch.number}, {"tag", epoch.tag}};
}
json to_json(const HistoryPoint& point) {
  return {{"epoch", to_json(point.epoch)},
          {"sequence", point.sequence},
          {"digest", to_hex(point.digest)}};
}

// Reads the fields of one message; any wrong or missing field throws json::exception or FieldError,
// which `decode` turns into Errc::protocol.
struct FieldError {
  std::string what;
};

// get<std::uint32_t>() would cut a larger number off without a word, and take `true` for 1.
std::uint32_t uint32_from(const json& value, const char* field) {
  const auto wide = value.at(field).get<std::uint64_t>();
  if (wide > std::numeric_limits<std::uint32_t>::max())
    throw FieldError{fmt::format("{} is too large", field)};
  return static_cast<std::uint32_t>(wide);
}

Epoch epoch_from(const json& value) {
  return Epoch{value.at("number").get<std::uint64_t>(), uint32_from(value, "tag")};
}

HistoryPoint point_from(const json& value) {
  const auto digest = digest_from_hex(value.at("digest").get<std::string>());
  if (!digest) throw FieldError{"digest is not 32 hexadecimal digits"};
  return HistoryPoint{epoch_from(value.at("epoch")), value.at("sequence").get<Sequence>(), *digest};
}

AttachedMessage::Parted parted_from(const json& value) {
  AttachedMessage::Parted parted{
      epoch_from(value.at("epoch")), value.at("sequence").get<Sequence>(), {}};
  for (const json& each : value.at("ranges")) {
    const auto disk = each.at(0).get<std::uint64_t>();
    if (disk >= disks_max || each.size() != 3) throw FieldError{"a range of parted"};
    parted.ranges.push_back({static_cast<DiskIndex>(disk),
                             each.at(1).get<std::uint64_t>(),
                             each.at(2).get<std::uint64_t>()});
    if (parted.ranges.size() > parted_ranges_max) throw FieldError{"too many ranges"};
  }
  return parted;
}

std::vector<std::string> features_from(const json& value) {
  auto features = value.at("features").get<std::vector<std::string>>();
  if (features.size() > 64) throw FieldError{"more than 64 features"};
  return features;
}

// nlohmann::json would take -1 or 1.5 for an unsigned field without a word.
void require_unsigned_numbers(const json& value) {
  if (value.is_number() && !value.is_number_unsigned())
    throw FieldError{"a number is negative or not whole"};
  if (value.is_structured()) {
    for (const auto& item : value)
      require_unsigned_numbers(item);
  }
}

template <typename Message, typename Read>
Result<Message> decode(std::span<const std::byte> payload, std::string_view name, Read read) {
  const auto* text = reinterpret_cast<const char*>(payload.data());
  // A callback bounds the depth before anything deep is built.
  const auto shallow = [](int depth, json::parse_event_t /*event*/, json& /*parsed*/) {
    if (depth > 8) throw FieldError{"nested too deeply"};
    return true;
  };
  try {
    const json value = json::parse(text, text + payload.size(), shallow);
    require_unsigned_numbers(value);
    return read(value);
  } catch (const json::exception& error) {
    return fail(Errc::protocol, "bad {} message: {}", name, error.what());
  } catch (const FieldError& error) {
    return fail(Errc::protocol, "bad {} message: {}", name, error.what);
  }
}

}  // namespace

bool has_feature(const std::vector<std::string>& features, std::string_view feature) {
  return std::ranges::find(features, feature) != features.end();
}

std::vector<std::byte> encode_json_frame(FrameType type, const std::string& json_text) {
  RD_CHECK(is_json(type));
  FrameHeader header;
  header.type = type;
  return frame_with(header, std::as_bytes(std::span(json_text)));
}

std::vector<std::byte> encode_attach(const AttachMessage& message) {
  json value = {{"protocol_min", message.protocol_min},
                {"protocol_max", message.protocol_max},
                {"features", message.features},
                {"volume", message.volume},
                {"volume_uuid", message.volume_uuid},
                {"primary", message.primary},
                {"replica", message.replica},
                {"epoch", to_json(message.epoch)},
                {"disk_bytes", message.disk_bytes}};
  for (const HistoryTerm& term : message.history)
    value["history"].push_back({{"epoch", to_json(term.epoch)}, {"end", term.end}});
  return json_frame(FrameType::attach, value);
}

Result<AttachMessage> decode_attach(std::span<const std::byte> payload) {
  return decode<AttachMessage>(payload, "attach", [](const json& value) {
    AttachMessage message;
    message.protocol_min = uint32_from(value, "protocol_min");
    message.protocol_max = uint32_from(value, "protocol_max");
    message.features = features_from(value);
    message.volume = value.at("volume").get<std::string>();
    message.volume_uuid = value.at("volume_uuid").get<std::string>();
    message.primary = value.at("primary").get<std::string>();
    message.replica = value.at("replica").get<std::string>();
    message.epoch = epoch_from(value.at("epoch"));
    message.disk_bytes = value.at("disk_bytes").get<std::vector<std::uint64_t>>();
    if (message.disk_bytes.empty() || message.disk_bytes.size() > disks_max)
      throw FieldError{"disk count"};
    if (!value.contains("history")) return message;
    for (const json& term : value.at("history")) {
      message.history.push_back({epoch_from(term.at("epoch")), term.at("end").get<Sequence>()});
      if (message.history.size() > history_terms_max) throw FieldError{"too many terms"};
    }
    return message;
  });
}

std::vector<std::byte> encode_attached(const AttachedMessage& message) {
  json value = {{"protocol", message.protocol},
                {"features", message.features},
                {"boot_id", message.boot_id},
                {"consistent", message.consistent},
                {"logged", to_json(message.logged)},
                {"durable", message.durable},
                {"applied", message.applied}};
  if (message.resync) value["resync"] = to_json(*message.resync);
  if (message.stage) value["stage"] = to_json(*message.stage);
  if (message.parted) {
    json ranges = json::array();
    for (const Range& range : message.parted->ranges)
      ranges.push_back({range.disk, range.offset_bytes, range.length_bytes});
    value["parted"] = {{"epoch", to_json(message.parted->epoch)},
                       {"sequence", message.parted->sequence},
                       {"ranges", ranges}};
  }
  return json_frame(FrameType::attached, value);
}

Result<AttachedMessage> decode_attached(std::span<const std::byte> payload) {
  return decode<AttachedMessage>(payload, "attached", [](const json& value) {
    AttachedMessage message;
    message.protocol = uint32_from(value, "protocol");
    message.features = features_from(value);
    message.boot_id = value.at("boot_id").get<std::string>();
    message.consistent = value.at("consistent").get<bool>();
    if (value.contains("resync")) message.resync = epoch_from(value.at("resync"));
    if (value.contains("stage")) message.stage = epoch_from(value.at("stage"));
    message.logged = point_from(value.at("logged"));
    message.durable = value.at("durable").get<Sequence>();
    message.applied = value.at("applied").get<Sequence>();
    if (value.contains("parted")) message.parted = parted_from(value.at("parted"));
    return message;
  });
}

std::vector<std::byte> encode_refuse(const RefuseMessage& message) {
  return json_frame(
      FrameType::refuse,
      {{"code", errc_name(message.code)}, {"message", message.message}, {"hint", message.hint}});
}

Result<RefuseMessage> decode_refuse(std::span<const std::byte> payload) {
  return decode<RefuseMessage>(payload, "refuse", [](const json& value) {
    return RefuseMessage{errc_from_name(value.at("code").get<std::string>()),
                         value.at("message").get<std::string>(),
                         value.at("hint").get<std::string>()};
  });
}

std::vector<std::byte> encode_start(const StartMessage& message) {
  json value = {{"copy", message.copy}, {"after", message.after}, {"answered", message.answered}};
  if (message.keep) value["keep"] = true;
  if (message.save) value["save"] = true;
  if (message.in_place) value["in_place"] = true;
  if (message.go_on) value["go_on"] = true;
  if (message.parted) value["parted"] = true;
  return json_frame(FrameType::start, value);
}

Result<StartMessage> decode_start(std::span<const std::byte> payload) {
  return decode<StartMessage>(payload, "start", [](const json& value) {
    StartMessage message{value.at("copy").get<bool>(),
                         value.at("after").get<Sequence>(),
                         value.contains("keep") && value.at("keep").get<bool>(),
                         value.contains("save") && value.at("save").get<bool>(),
                         value.contains("in_place") && value.at("in_place").get<bool>(),
                         value.at("answered").get<Sequence>(),
                         value.contains("go_on") && value.at("go_on").get<bool>(),
                         value.contains("parted") && value.at("parted").get<bool>()};
    if (message.keep && message.save) throw FieldError{"both keep and save"};
    if (message.go_on && (message.save || message.in_place))
      throw FieldError{"go_on without a stage"};
    if (message.parted && !message.save) throw FieldError{"parted without save"};
    return message;
  });
}

std::vector<std::byte> encode_copy_end(const CopyEndMessage& message) {
  return json_frame(FrameType::copy_end, {{"point", to_json(message.point)}});
}

Result<CopyEndMessage> decode_copy_end(std::span<const std::byte> payload) {
  return decode<CopyEndMessage>(payload, "copy_end", [](const json& value) {
    return CopyEndMessage{point_from(value.at("point"))};
  });
}

std::vector<std::byte> encode_copy_done(const CopyDoneMessage& message) {
  return json_frame(FrameType::copy_done, {{"point", to_json(message.point)}});
}

Result<CopyDoneMessage> decode_copy_done(std::span<const std::byte> payload) {
  return decode<CopyDoneMessage>(payload, "copy_done", [](const json& value) {
    return CopyDoneMessage{point_from(value.at("point"))};
  });
}

std::vector<std::byte> encode_heartbeat(std::uint64_t number) {
  FrameHeader header;
  header.type = FrameType::heartbeat;
  header.sequence = number;
  return frame_with(header, {});
}

std::vector<std::byte> encode_watermarks(const Watermarks& marks, std::uint64_t heartbeat) {
  std::array<std::byte, 64> payload{};
  store_le(payload.data(), marks.received);
  store_le(payload.data() + 8, marks.logged);
  store_le(payload.data() + 16, marks.durable);
  store_le(payload.data() + 24, marks.applied);
  store_le(payload.data() + 32, marks.logged_digest.low);
  store_le(payload.data() + 40, marks.logged_digest.high);
  store_le(payload.data() + 48, marks.applied_digest.low);
  store_le(payload.data() + 56, marks.applied_digest.high);
  FrameHeader header;
  header.type = FrameType::watermarks;
  header.sequence = heartbeat;
  return frame_with(header, payload);
}

Result<Watermarks> decode_watermarks(std::span<const std::byte> payload) {
  if (payload.size() != 64)
    return fail(Errc::protocol, "watermarks of {} bytes, not 64", payload.size());
  const std::byte* in = payload.data();
  Watermarks marks;
  marks.received = load_le<std::uint64_t>(in);
  marks.logged = load_le<std::uint64_t>(in + 8);
  marks.durable = load_le<std::uint64_t>(in + 16);
  marks.applied = load_le<std::uint64_t>(in + 24);
  marks.logged_digest = {load_le<std::uint64_t>(in + 32), load_le<std::uint64_t>(in + 40)};
  marks.applied_digest = {load_le<std::uint64_t>(in + 48), load_le<std::uint64_t>(in + 56)};
  if (marks.logged > marks.received || marks.durable > marks.logged ||
      marks.applied > marks.logged) {
    return fail(Errc::protocol,
                "watermarks out of order: received {} logged {} durable {} applied {}",
                marks.received,
                marks.logged,
                marks.durable,
                marks.applied);
  }
  return marks;
}

std::vector<std::byte> encode_digest(const HistoryPoint& point) {
  std::array<std::byte, 16> payload{};
  store_le(payload.data(), point.digest.low);
  store_le(payload.data() + 8, point.digest.high);
  FrameHeader header;
  header.type = FrameType::digest;
  header.epoch = point.epoch;
  header.sequence = point.sequence;
  return frame_with(header, payload);
}

Result<HistoryPoint> decode_digest(const FrameHeader& header, std::span<const std::byte> payload) {
  if (payload.size() != 16)
    return fail(Errc::protocol, "digest of {} bytes, not 16", payload.size());
  return HistoryPoint{
      header.epoch,
      header.sequence,
      {load_le<std::uint64_t>(payload.data()), load_le<std::uint64_t>(payload.data() + 8)}};
}

std::vector<std::byte> encode_block_sums(const Range& range,
                                         std::span<const Digest> sums,
                                         Sequence after) {
  std::vector<std::byte> payload(sums.size() * block_sum_bytes);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    store_le(payload.data() + i * block_sum_bytes, sums[i].low);
    store_le(payload.data() + i * block_sum_bytes + 8, sums[i].high);
  }
  FrameHeader header;
  header.type = FrameType::block_sums;
  header.sequence = after;
  header.range = range;
  return frame_with(header, payload);
}

std::vector<Digest> decode_block_sums(std::span<const std::byte> payload) {
  std::vector<Digest> sums(payload.size() / block_sum_bytes);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const std::byte* in = payload.data() + i * block_sum_bytes;
    sums[i] = {load_le<std::uint64_t>(in), load_le<std::uint64_t>(in + 8)};
  }
  return sums;
}

std::vector<std::byte> encode_block_diffs(const Range& range, const std::vector<bool>& differs) {
  std::vector<std::byte> payload((differs.size() + 7) / 8);
  for (std::size_t i = 0; i < differs.size(); ++i) {
    if (differs[i]) payload[i / 8] |= std::byte{1} << (i % 8);
  }
  FrameHeader header;
  header.type = FrameType::block_diffs;
  header.range = range;
  return frame_with(header, payload);
}

std::vector<Range> decode_block_diffs(const Range& range, std::span<const std::byte> payload) {
  std::vector<Range> found;
  for (std::uint64_t at = 0; at < range.length_bytes; at += compare_block_bytes) {
    const std::uint64_t block = at / compare_block_bytes;
    if ((payload[block / 8] >> (block % 8) & std::byte{1}) == std::byte{0}) continue;
    const std::uint64_t length = std::min(compare_block_bytes, range.length_bytes - at);
    if (!found.empty() && found.back().end_bytes() == range.offset_bytes + at) {
      found.back().length_bytes += length;
    } else {
      found.push_back({range.disk, range.offset_bytes + at, length});
    }
  }
  return found;
}

std::vector<std::byte> encode_empty(FrameType type) {
  FrameHeader header;
  header.type = type;
  return frame_with(header, {});
}

}  // namespace replicad
