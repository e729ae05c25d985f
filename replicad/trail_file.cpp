#include "replicad/trail_file.h"

#include <cerrno>
#include <span>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/log.h"
#include "io/fd.h"
#include "io/file.h"
#include "replicad/volume_files.h"

namespace replicad {

namespace {

std::string trail_path(const std::string& volume_dir) {
  return volume_dir + "/" + std::string(trail_file_name);
}

}  // namespace

TrailUpdate make_trail_update(const Trail& trail,
                              const Trail::Changes& changes,
                              std::string_view volume_uuid,
                              std::uint64_t generation,
                              const HistoryPoint& point) {
  TrailUpdate update;
  update.anew = changes.anew;
  for (const auto& [disk, page] : changes.pages) {
    std::vector<std::byte> bytes(trail_page_bytes);
    encode_trail_page(disk,
                      page,
                      trail.entries(disk, page),
                      std::span<std::byte, trail_page_bytes>(bytes.data(), trail_page_bytes));
    update.pages.emplace_back(trail_page_offset(trail.file_page(disk, page)), std::move(bytes));
  }
  TrailHeader header = trail.header(point);
  header.volume_uuid = volume_uuid;
  header.generation = generation;
  update.header_offset = trail_header_offset(generation);
  update.header = encode_trail_header(header);
  return update;
}

Status write_trail(const std::string& volume_dir, const TrailUpdate& update) {
  const std::string path = trail_path(volume_dir);
  // One of its headers may name the same point.
  if (update.anew && ::unlink(path.c_str()) != 0 && errno != ENOENT)
    return fail_errno(errno, "remove {}", path);
  const bool is_new = ::access(path.c_str(), F_OK) != 0;
  const Fd fd(
      ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, S_IRUSR | S_IWUSR | S_IRGRP));
  if (!fd.valid()) return fail_errno(errno, "open {}", path);
  for (const auto& [offset, bytes] : update.pages)
    RD_TRY(write_all_at(fd.get(), bytes, offset));
  if (!update.pages.empty() && ::fdatasync(fd.get()) != 0)
    return fail_errno(errno, "fdatasync of {}", path);
  RD_TRY(write_all_at(fd.get(), update.header, update.header_offset));
  if (::fdatasync(fd.get()) != 0) return fail_errno(errno, "fdatasync of {}", path);
  return is_new ? sync_directory(volume_dir) : Status{};
}

std::optional<TrailFound> load_trail(const std::string& volume_dir,
                                     std::string_view volume_uuid,
                                     const std::vector<std::uint64_t>& disk_bytes,
                                     const HistoryPoint& covers) {
  const auto file = read_file(trail_path(volume_dir), trail_file_bytes(disk_bytes));
  if (!file) return std::nullopt;
  return read_trail(std::as_bytes(std::span(*file)), volume_uuid, disk_bytes, covers);
}

Status convert_activity(const std::string& volume_dir,
                        std::string_view volume_uuid,
                        const std::vector<std::uint64_t>& disk_bytes,
                        const HistoryPoint& covers) {
  const auto file = read_file(volume_dir + "/activity", activity_file_bytes(disk_bytes));
  if (!file && file.error().code == Errc::not_found) return {};
  // It says how the images were before this host was the primary. Its header may name the point at which they are now,
  // too, and with that would speak for the pages that are written next.
  RD_TRY(forget_trail(volume_dir));
  const auto activity =
      file ? read_activity(std::as_bytes(std::span(*file)), disk_bytes) : std::nullopt;
  if (activity && activity->header.volume_uuid == volume_uuid) {
    if (auto trail = trail_of_activity(activity->header, activity->entries, covers)) {
      const auto update = make_trail_update(*trail, trail->take_changed(), volume_uuid, 1, covers);
      if (const Status written = write_trail(volume_dir, update); !written)
        log(LogLevel::warn, "trail_not_written", "error={}", log_value(written.error().message));
    }
  }
  return forget_activity(volume_dir);
}

Status forget_trail(const std::string& volume_dir) {
  if (::unlink(trail_path(volume_dir).c_str()) == 0) return sync_directory(volume_dir);
  if (errno == ENOENT) return {};
  return fail_errno(errno, "remove {}", trail_path(volume_dir));
}

}  // namespace replicad
