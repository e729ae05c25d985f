// GET of /v1/volumes/NAME/log (docs/control-api.md): what this host's log has that another copy lacks.

#include <algorithm>

#include "replicad/control_api.h"
#include "replicad/reactor_call.h"
#include "replicad/replica_log_files.h"
#include "replicad/volume_json.h"

namespace replicad {

using nlohmann::json;

namespace {

struct LogPlace {
  std::string directory;
  std::vector<DiskState> disks;
  std::string uuid;
  std::optional<Sequence> until;  ///< none: there is no log in use here
};

json changes_json(const std::vector<LoggedChanges>& changes, const std::vector<DiskState>& disks) {
  json list = json::array();
  for (const LoggedChanges& of_disk : changes) {
    if (of_disk.disk >= disks.size()) continue;
    list.push_back({{"disk", disks[of_disk.disk].name},
                    {"writes", of_disk.writes},
                    {"bytes", of_disk.bytes},
                    {"seconds", nullptr}});
  }
  return list;
}

}  // namespace

ControlApi::Answer ControlApi::log_count(const std::string& name, const std::string& after) {
  const auto volume = find_volume(context_, name);
  if (!volume) return tl::unexpected(volume.error());
  const auto sequence = number_in(after, "after");
  if (!sequence) return tl::unexpected(sequence.error());
  const LogPlace place = run_on_reactor(context_.reactor, [&] {
    const VolumeSnapshot snapshot = (*volume)->snapshot();
    LogPlace found{context_.environment.volume_dir(name) + "/log",
                   snapshot.state.disks,
                   snapshot.state.uuid,
                   std::nullopt};
    if (snapshot.replica && snapshot.replica->consistent)
      found.until = snapshot.replica->logged.sequence;
    return found;
  });
  json answer = {{"schema", 1},
                 {"host", context_.options.host},
                 {"name", name},
                 {"after", *sequence},
                 {"until", place.until ? json(*place.until) : json(nullptr)},
                 {"complete", false},
                 {"disks", json::array()}};
  // A log that is used meanwhile may have lost its beginning: then the answer is that it is not known.
  if (!place.until || *place.until < *sequence) return answer;
  const auto changes = count_log_files(place.directory, place.uuid, *sequence, *place.until);
  if (!changes) return answer;
  answer["complete"] = true;
  answer["disks"] = changes_json(*changes, place.disks);
  return answer;
}

}  // namespace replicad
