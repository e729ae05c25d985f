#include "core/vote/record_json.h"

#include "core/base/limits.h"

namespace replicad {

namespace {

using nlohmann::json;

constexpr std::size_t member_address_bytes_max = 300;

/// Reads fields of one object; the first that is wrong is kept.
class RecordReader {
 public:
  explicit RecordReader(const json& object) : object_(object) {
    if (!object.is_object()) reject("an object");
  }

  const json* field(const char* name) {
    if (!object_.is_object()) return nullptr;
    const auto found = object_.find(name);
    if (found == object_.end()) {
      reject(name);
      return nullptr;
    }
    return &*found;
  }
  std::uint64_t number(const char* name, std::uint64_t value_max) {
    const json* value = field(name);
    if (value == nullptr) return 0;
    if (!value->is_number_unsigned() || value->get<std::uint64_t>() > value_max) {
      reject(name);
      return 0;
    }
    return value->get<std::uint64_t>();
  }
  std::uint32_t number_32(const char* name) {
    return static_cast<std::uint32_t>(number(name, 0xffffffffU));
  }
  bool boolean(const char* name) {
    const json* value = field(name);
    if (value == nullptr) return false;
    if (!value->is_boolean()) reject(name);
    return value->is_boolean() && value->get<bool>();
  }
  std::string text(const char* name, std::size_t bytes_max) {
    const json* value = field(name);
    return value == nullptr ? std::string() : text_of(*value, name, bytes_max);
  }
  std::vector<std::string> texts(const char* name) {
    std::vector<std::string> result;
    for (const json& item : list(name))
      result.push_back(text_of(item, name, host_name_bytes_max));
    return result;
  }
  const json& list(const char* name) {
    static const json none = json::array();
    const json* value = field(name);
    if (value == nullptr) return none;
    if (!value->is_array() || value->size() > members_max) {
      reject(name);
      return none;
    }
    return *value;
  }
  Epoch epoch(const char* name) {
    const json* value = field(name);
    if (value == nullptr) return {};
    RecordReader fields(*value);
    const Epoch epoch{fields.number("number", counter_max), fields.number_32("tag")};
    if (!fields.good()) reject(name);
    return epoch;
  }
  template <typename T>
  void take(const char* name, T& into, Result<T> (*parse)(const json&)) {
    const json* value = field(name);
    if (value == nullptr) return;
    auto parsed = parse(*value);
    if (!parsed) return reject(parsed.error().message);
    into = std::move(*parsed);
  }

  void reject(std::string_view what) {
    if (wrong_.empty()) wrong_ = what;
  }
  [[nodiscard]] bool good() const { return wrong_.empty(); }
  [[nodiscard]] Status finish() const {
    if (good()) return {};
    return fail(Errc::protocol, "vote: \"{}\" is missing or wrong", wrong_);
  }

 private:
  std::string text_of(const json& value, const char* name, std::size_t bytes_max) {
    if (value.is_string() && value.get_ref<const std::string&>().size() <= bytes_max)
      return value.get<std::string>();
    reject(name);
    return {};
  }

  const json& object_;
  std::string wrong_;
};

json epoch_to_json(const Epoch& epoch) {
  return {{"number", epoch.number}, {"tag", epoch.tag}};
}

json voters_json(const VoterSet& voters) {
  return {{"hosts", voters.hosts}, {"tie_break", voters.tie_break}};
}

Result<VoterSet> voters_from_json(const json& value) {
  RecordReader fields(value);
  VoterSet voters{fields.texts("hosts"), fields.text("tie_break", host_name_bytes_max)};
  RD_TRY(fields.finish());
  return voters;
}

Result<std::vector<MemberState>> record_members_from(RecordReader& record) {
  std::vector<MemberState> members;
  for (const json& item : record.list("members")) {
    RecordReader fields(item);
    MemberState member;
    member.host = fields.text("host", host_name_bytes_max);
    member.stream = fields.text("stream", member_address_bytes_max);
    member.control = fields.text("control", member_address_bytes_max);
    const std::string role = fields.text("role", host_name_bytes_max);
    if (role != "data" && role != "witness") fields.reject("role");
    member.witness = role == "witness";
    RD_TRY(fields.finish());
    members.push_back(std::move(member));
  }
  return members;
}

Result<HandoverState> handover_from_json(const json& value) {
  RecordReader fields(value);
  HandoverState handover{fields.number_32("id"),
                         fields.text("from", host_name_bytes_max),
                         fields.text("to", host_name_bytes_max),
                         fields.number("term", counter_max)};
  RD_TRY(fields.finish());
  return handover;
}

}  // namespace

json handover_json(const HandoverState& handover) {
  return {
      {"id", handover.id}, {"from", handover.from}, {"to", handover.to}, {"term", handover.term}};
}

json ballot_json(const Ballot& ballot) {
  return {{"round", ballot.round}, {"host", ballot.host}, {"nonce", ballot.nonce}};
}

json record_json(const Record& record) {
  json members = json::array();
  for (const MemberState& member : record.members) {
    members.push_back({{"host", member.host},
                       {"stream", member.stream},
                       {"control", member.control},
                       {"role", member.witness ? "witness" : "data"}});
  }
  json value = {{"version", record.version},
                {"fork", record.fork},
                {"epoch", epoch_to_json(record.epoch)},
                {"primary", record.primary},
                {"in_sync", record.in_sync},
                {"members", std::move(members)},
                {"tie_break", record.tie_break},
                {"before", record.before ? voters_json(*record.before) : json(nullptr)}};
  if (record.handover) value["handover"] = handover_json(*record.handover);
  return value;
}

json voter_json(const VoterState& state) {
  return {{"promised", ballot_json(state.promised)},
          {"accepted", ballot_json(state.accepted)},
          {"chosen", state.chosen},
          {"record", state.record ? record_json(*state.record) : json(nullptr)}};
}

json stamps_json(const StateStamps& stamps) {
  json value = json::object();
  for (const auto& [host, stamp] : stamps) {
    value[host] = {
        {"generation", stamp.generation}, {"start", stamp.start}, {"loaded", stamp.loaded}};
  }
  return value;
}

Result<StateStamps> stamps_from_json(const json& value) {
  if (!value.is_object() || value.size() > members_max)
    return fail(Errc::protocol, "vote: \"stamps\" is no object of at most {}", members_max);
  StateStamps stamps;
  for (const auto& [host, item] : value.items()) {
    RecordReader fields(item);
    const StateStamp stamp{fields.number("generation", counter_max),
                           fields.number_32("start"),
                           fields.number("loaded", counter_max)};
    RD_TRY(fields.finish());
    stamps.emplace(host, stamp);
  }
  return stamps;
}

Result<Ballot> ballot_from_json(const json& value) {
  RecordReader fields(value);
  Ballot ballot{fields.number("round", counter_max),
                fields.text("host", host_name_bytes_max),
                fields.number_32("nonce")};
  RD_TRY(fields.finish());
  return ballot;
}

Result<Record> record_from_json(const json& value) {
  RecordReader fields(value);
  Record record;
  record.version = fields.number("version", counter_max);
  record.fork = fields.number_32("fork");
  record.epoch = fields.epoch("epoch");
  record.primary = fields.text("primary", host_name_bytes_max);
  record.in_sync = fields.texts("in_sync");
  auto members = record_members_from(fields);
  if (!members) return tl::unexpected(members.error());
  record.members = std::move(*members);
  record.tie_break = fields.text("tie_break", host_name_bytes_max);
  const json* before = fields.field("before");
  if (before != nullptr && !before->is_null()) {
    auto voters = voters_from_json(*before);
    if (!voters) return tl::unexpected(voters.error());
    record.before = std::move(*voters);
  }
  if (const auto found = value.find("handover"); found != value.end()) {
    auto handover = handover_from_json(*found);
    if (!handover) return tl::unexpected(handover.error());
    record.handover = std::move(*handover);
  }
  RD_TRY(fields.finish());
  if (const Status valid = check_record(record); !valid)
    return fail(Errc::protocol, "vote: {}", valid.error().message);
  return record;
}

Result<VoterState> voter_from_json(const json& value) {
  RecordReader fields(value);
  VoterState state;
  fields.take("promised", state.promised, ballot_from_json);
  fields.take("accepted", state.accepted, ballot_from_json);
  state.chosen = fields.boolean("chosen");
  const json* record = fields.field("record");
  if (record != nullptr && !record->is_null()) {
    auto parsed = record_from_json(*record);
    if (!parsed) return tl::unexpected(parsed.error());
    state.record = std::move(*parsed);
  }
  RD_TRY(fields.finish());
  if (state.accepted > state.promised || (state.chosen && !state.record))
    return fail(Errc::protocol, "vote: ballots and record do not fit together");
  return state;
}

}  // namespace replicad
