#include "nbd-plugin/standby.h"

#include <cerrno>
#include <csignal>

#include <poll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "nbd-plugin/agent_client.h"

namespace replicad {

namespace {

using nlohmann::json;

/// After an answer that was no yes.
constexpr int ask_again_ms = 50;

}  // namespace

Result<std::unique_ptr<Exported>> Standby::open(Place place,
                                                Hooks hooks,
                                                const std::vector<DiskGrant>& disks) {
  std::unique_ptr<Standby> standby(new Standby(std::move(place), std::move(hooks)));
  for (const DiskGrant& disk : disks) {
    auto image = DiskImage::open_to_read(disk);
    if (!image) return tl::unexpected(std::move(image).error());
    standby->images_.push_back(std::move(*image));
  }
  return std::unique_ptr<Exported>(std::move(standby));
}

Status Standby::start() {
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) return fail_errno(errno, "prctl");
  if (::getppid() == place_.daemon) return {};
  return fail(Errc::unreachable, "the replicad that has started this standby is gone");
}

std::string Standby::describe() {
  return fmt::format("volume {}, prepared to take over", place_.volume);
}

DiskImage::Extent Standby::extent_at(DiskIndex disk, std::uint64_t offset) const {
  // Where holes are may change under it.
  return {images_[disk].bytes() - offset, false};
}

int Standby::ask(const char* op, json fields) const {
  fields["op"] = op;
  fields["volume"] = place_.volume;
  fields["standby"] = place_.id;
  while (true) {
    if (ask_agent(place_.agent_path, fields, hooks_.stopping)) return 0;
    if (hooks_.stopping()) return ESHUTDOWN;
    ::poll(nullptr, 0, ask_again_ms);
  }
}

int Standby::read(DiskIndex disk, std::span<std::byte> to, std::uint64_t offset) {
  if (const int error = ask("gate", {{"durable", false}}); error != 0) return error;
  return images_[disk].read(to, offset);
}

int Standby::write(DiskIndex /*disk*/,
                   std::span<const std::byte> /*data*/,
                   std::uint64_t /*offset*/,
                   bool /*fua*/) {
  return ask("want_role", json::object());
}

int Standby::zero(DiskIndex /*disk*/,
                  FrameType /*kind*/,
                  std::uint64_t /*offset*/,
                  std::uint64_t /*length*/,
                  bool /*may_trim*/,
                  bool /*fua*/) {
  return ask("want_role", json::object());
}

int Standby::flush(DiskIndex /*disk*/) {
  return ask("gate", {{"durable", true}});
}

}  // namespace replicad
