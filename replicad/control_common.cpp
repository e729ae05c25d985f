// What several requests of the control API share.

#include <charconv>
#include <thread>

#include <sys/stat.h>

#include "replicad/control_api.h"
#include "replicad/lost_writes.h"
#include "replicad/reactor_call.h"

namespace replicad {

using nlohmann::json;

namespace {

constexpr auto poll_interval = std::chrono::milliseconds(10);
constexpr std::uint64_t stat_block_bytes = 512;

std::uint64_t allocated_bytes_of(const std::string& path, std::uint64_t bytes) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return 0;
  if (S_ISBLK(info.st_mode)) return bytes;
  return static_cast<std::uint64_t>(info.st_blocks) * stat_block_bytes;
}

}  // namespace

Result<OperationGuard> OperationGuard::begin(ControlContext& context,
                                             const std::string& name,
                                             const std::string& what) {
  return run_on_reactor(context.reactor, [&context, name, what]() -> Result<OperationGuard> {
    auto volume = context.registry.find(name);
    if (!volume) return fail(Errc::not_found, "{} has no volume {}", context.options.host, name);
    RD_TRY(volume->begin_operation(what));
    return OperationGuard(context, std::move(volume));
  });
}

OperationGuard::~OperationGuard() {
  if (volume_) context_->reactor.post([volume = std::move(volume_)] { volume->end_operation(); });
}

Result<std::shared_ptr<Volume>> find_volume(ControlContext& context, const std::string& name) {
  return run_on_reactor(context.reactor, [&context, name]() -> Result<std::shared_ptr<Volume>> {
    auto volume = context.registry.find(name);
    if (!volume) return fail(Errc::not_found, "{} has no volume {}", context.options.host, name);
    return volume;
  });
}

json describe_volume(ControlContext& context, const std::shared_ptr<Volume>& volume) {
  auto description = run_on_reactor(context.reactor, [volume] {
    json result = volume_json(volume->snapshot());
    result["operation"] = volume->operation().empty() ? json(nullptr) : json(volume->operation());
    return result;
  });
  const LostTotals lost = lost_totals(
      lost_directory(context.environment.volume_dir(description["name"].get<std::string>())));
  description["lost_writes"] = {{"files", lost.files}, {"bytes", lost.bytes}};
  for (json& disk : description["disks"]) {
    disk["allocated_bytes"] =
        allocated_bytes_of(disk["path"].get<std::string>(), disk["bytes"].get<std::uint64_t>());
  }
  return description;
}

Status update_volume(ControlContext& context,
                     const std::shared_ptr<Volume>& volume,
                     StateStore::Change change) {
  return call_reactor<void>(context.reactor, [volume, change = std::move(change)](auto done) {
    volume->update(change, std::move(done));
  });
}

Result<json> ask_plugin(ControlContext& context,
                        const std::shared_ptr<Volume>& volume,
                        const std::string& op,
                        json fields,
                        Duration timeout) {
  return call_reactor<json>(
      context.reactor,
      [volume, op, fields = std::move(fields), timeout](auto done) {
        volume->plugin_request(op, fields, timeout, std::move(done));
      },
      timeout + reactor_call_timeout);
}

bool wait_for(ControlContext& context, const std::function<bool()>& condition, Duration timeout) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  while (true) {
    if (run_on_reactor(context.reactor, condition)) return true;
    if (context.stopping || std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::sleep_for(poll_interval);
  }
}

Status require_primary(ControlContext& context, const std::shared_ptr<Volume>& volume) {
  return run_on_reactor(context.reactor, [&context, volume]() -> Status {
    if (volume->is_primary()) return {};
    return with_hint(fail(Errc::refused,
                          "{} is not the primary of volume {}",
                          context.options.host,
                          volume->name()),
                     fmt::format("ask {}, the primary", volume->state().primary));
  });
}

Status require_no_handover(ControlContext& context, const std::shared_ptr<Volume>& volume) {
  return run_on_reactor(context.reactor, [volume]() -> Status {
    const auto& record = volume->state().vote.record;
    if (!record || !record->handover) return {};
    return with_hint(fail(Errc::busy,
                          "a handover of volume {} from {} to {} is prepared",
                          volume->name(),
                          record->handover->from,
                          record->handover->to),
                     fmt::format("`replicactl handover {} --end` ends it", volume->name()));
  });
}

Result<std::uint64_t> number_in(const std::string& text, const char* what) {
  std::uint64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [after, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc{} || after != end) {
    return fail(Errc::invalid_argument, "{}: a number is needed", what);
  }
  return number;
}

}  // namespace replicad
