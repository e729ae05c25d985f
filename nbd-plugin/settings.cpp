#include "nbd-plugin/settings.h"

namespace replicad {

namespace {

using nlohmann::json;

struct FieldError {
  std::string what;
};

Epoch read_epoch(const json& value) {
  return Epoch{value.at("number").get<std::uint64_t>(), value.at("tag").get<std::uint32_t>()};
}

SettingsGrant read_settings(const json& value) {
  SettingsGrant settings;
  const auto mode = mode_from_name(value.at("mode").get<std::string>());
  if (!mode) throw FieldError{"unknown mode"};
  const auto congestion = congestion_from_name(value.at("congestion").get<std::string>());
  if (!congestion) throw FieldError{"unknown congestion policy"};
  const auto on_local_error =
      on_local_error_from_name(value.at("on_local_error").get<std::string>());
  if (!on_local_error) throw FieldError{"unknown on_local_error policy"};
  settings.on_local_error = *on_local_error;
  settings.mode = *mode;
  settings.congestion = *congestion;
  settings.ring_bytes = value.at("ring_bytes").get<std::uint64_t>();
  settings.ack_timeout_ms = value.at("ack_timeout_ms").get<std::uint32_t>();
  settings.quorum_timeout_ms = value.value("quorum_timeout_ms", quorum_timeout_ms_default);
  if (settings.ring_bytes < ring_bytes_min || settings.ring_bytes > ring_bytes_max)
    throw FieldError{"ring_bytes"};
  return settings;
}

std::vector<MemberGrant> read_members(const json& value) {
  std::vector<MemberGrant> members;
  for (const json& member : value) {
    members.push_back(
        {member.at("host").get<std::string>(), member.at("stream").get<std::string>()});
  }
  if (members.empty() || members.size() > members_max) throw FieldError{"member count"};
  return members;
}

VoterSet read_voters(const json& value) {
  VoterSet voters{value.at("hosts").get<std::vector<std::string>>(),
                  value.at("tie_break").get<std::string>()};
  if (voters.hosts.size() > members_max) throw FieldError{"voter count"};
  return voters;
}

std::vector<DiskGrant> read_disks(const json& value) {
  std::vector<DiskGrant> disks;
  for (const json& disk : value) {
    disks.push_back({disk.at("name").get<std::string>(),
                     disk.at("bytes").get<std::uint64_t>(),
                     disk.at("path").get<std::string>()});
  }
  if (disks.empty() || disks.size() > disks_max) throw FieldError{"disk count"};
  return disks;
}

HistoryPoint read_point(const json& value) {
  const auto digest = digest_from_hex(value.at("digest").get<std::string>());
  if (!digest) throw FieldError{"digest"};
  return HistoryPoint{read_epoch(value.at("epoch")), value.at("sequence").get<Sequence>(), *digest};
}

template <typename T, typename Read>
Result<T> decode(const char* what, const json& value, Read read) {
  try {
    return read(value);
  } catch (const json::exception& error) {
    return fail(Errc::protocol, "replicad's {} cannot be read: {}", what, error.what());
  } catch (const FieldError& error) {
    return fail(Errc::protocol, "replicad's {} cannot be read: {}", what, error.what);
  }
}

}  // namespace

Result<Grant> decode_grant(const json& value) {
  return decode<Grant>("grant", value, [](const json& in) {
    Grant grant;
    grant.host = in.at("host").get<std::string>();
    grant.uuid = in.at("uuid").get<std::string>();
    grant.epoch = read_epoch(in.at("epoch"));
    grant.disks = read_disks(in.at("disks"));
    grant.members = read_members(in.at("members"));
    grant.voters = read_voters(in.at("voters"));
    grant.settings = read_settings(in.at("settings"));
    grant.history = read_point(in.at("history"));
    grant.reserved = in.at("reserved").get<Sequence>();
    grant.in_sync = in.at("in_sync").get<std::vector<std::string>>();
    grant.unclean = in.at("unclean").get<bool>();
    grant.directory = in.at("directory").get<std::string>();
    grant.standby = in.value("standby", std::uint32_t{0});
    if (grant.reserved < grant.history.sequence)
      throw FieldError{"reserved is below the history's sequence"};
    return grant;
  });
}

Result<SettingsGrant> decode_settings(const json& value) {
  return decode<SettingsGrant>("settings", value, read_settings);
}

Result<std::vector<MemberGrant>> decode_members(const json& value) {
  return decode<std::vector<MemberGrant>>("member list", value, read_members);
}

Result<VoterSet> decode_voters(const json& value) {
  return decode<VoterSet>("voters", value, read_voters);
}

Result<Epoch> decode_epoch(const json& value) {
  return decode<Epoch>("epoch", value, read_epoch);
}

json epoch_json(const Epoch& epoch) {
  return {{"number", epoch.number}, {"tag", epoch.tag}};
}

json point_json(const HistoryPoint& point) {
  return {{"epoch", epoch_json(point.epoch)},
          {"sequence", point.sequence},
          {"digest", to_hex(point.digest)}};
}

json error_json(const Error& error) {
  // A peer's words may be a part of it; a status with those of all peers must fit into a frame.
  constexpr std::size_t text_bytes_max = 4096;
  return {{"code", errc_name(error.code)},
          {"message", error.message.substr(0, text_bytes_max)},
          {"hint", error.hint.substr(0, text_bytes_max)}};
}

}  // namespace replicad
