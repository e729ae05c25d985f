#include "nbd-plugin/exported.h"

#include "nbd-plugin/standby.h"
#include "nbd-plugin/volume.h"

namespace replicad {

Result<std::unique_ptr<Exported>> Exported::claim(const std::string& agent_path,
                                                  const std::string& name,
                                                  Hooks hooks) {
  RD_TRY(probe_io_uring());
  Grant grant;
  auto agent = AgentClient::claim(agent_path, name, grant);
  if (!agent) return tl::unexpected(std::move(agent).error());
  if (grant.standby == 0) {
    return Volume::open(name, std::move(hooks), std::move(grant), std::move(*agent));
  }
  const pid_t daemon = (*agent)->daemon_pid();
  return Standby::open({agent_path, name, grant.standby, daemon}, std::move(hooks), grant.disks);
}

}  // namespace replicad
