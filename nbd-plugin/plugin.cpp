// The nbdkit callbacks of the `replica` plugin and nothing else. Every callback catches everything and sets a
// message and an errno; the man page is nbdkit-replica-plugin(1).

#define NBDKIT_API_VERSION 2

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <string>

#include <nbdkit-plugin.h>

#include "core/base/log.h"
#include "io/sudden_end.h"
#include "nbd-plugin/exported.h"

namespace {

using replicad::DiskImage;
using replicad::DiskIndex;
using replicad::Error;
using replicad::Exported;
using replicad::FrameType;

// nbdkit's plugin interface has no handle for the plugin itself: this is its configuration and its volume.
struct Plugin {
  std::string volume_name;
  std::string agent_path = "/run/replica/agent.sock";
  std::unique_ptr<Exported> volume;
};

Plugin& plugin() {
  static Plugin instance;
  return instance;
}

/// Runs `body` in a callback; `failed` is returned when it throws.
template <typename Body, typename Value>
Value guarded(Value failed, Body body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    nbdkit_error("replica: %s", error.what());
  } catch (...) {
    nbdkit_error("replica: unknown exception");
  }
  nbdkit_set_error(EIO);
  return failed;
}

int report(const Error& error) {
  if (error.hint.empty()) {
    nbdkit_error("replica: %s", error.message.c_str());
  } else {
    nbdkit_error("replica: %s (%s)", error.message.c_str(), error.hint.c_str());
  }
  return -1;
}

/// 0 or errno of a guest request, as nbdkit wants it.
int finish(int error, const char* what) {
  if (error == 0) return 0;
  nbdkit_error("replica: %s", replicad::errno_to_error(error, what).message.c_str());
  nbdkit_set_error(error);
  return -1;
}

void log_to_nbdkit(replicad::LogLevel level, std::string_view line) {
  const std::string text(line);
  if (level == replicad::LogLevel::debug) {
    nbdkit_debug("%s", text.c_str());
  } else {
    // nbdkit_error is for request errors; the journal or replicad's export log reads stderr.
    std::fprintf(stderr, "%s\n", text.c_str());
  }
}

/// Or this thread's client has hung up.
bool nbdkit_is_stopping() {
  return nbdkit_nanosleep(0, 1) == -1;
}

DiskIndex disk_of(void* handle) {
  return static_cast<DiskIndex>(reinterpret_cast<std::uintptr_t>(handle) - 1);
}
const DiskImage& image_of(void* handle) {
  return plugin().volume->images()[disk_of(handle)];
}

void load() {
  replicad::set_log_sink(&log_to_nbdkit);
  replicad::end_rather_than_guess();
}

void unload() {
  plugin().volume.reset();
}

void dump_plugin() {
  std::printf("replica_version=%s\n", REPLICAD_VERSION);
  std::printf("replica_protocol_min=%u\n", replicad::protocol_version_min);
  std::printf("replica_protocol_max=%u\n", replicad::protocol_version_max);
  std::printf("replica_io_engine=io_uring\n");
}

int config(const char* key, const char* value) {
  return guarded(-1, [&] {
    const std::string name = key;
    if (name == "volume") {
      if (!plugin().volume_name.empty()) {
        nbdkit_error("replica: volume= is given twice; one nbdkit serves one volume");
        return -1;
      }
      plugin().volume_name = value;
    } else if (name == "agent") {
      char* path = nbdkit_absolute_path(value);
      if (path == nullptr) return -1;
      plugin().agent_path = path;
      std::free(path);
    } else {
      nbdkit_error("replica: unknown parameter '%s'; `nbdkit --help replica` lists the parameters",
                   key);
      return -1;
    }
    return 0;
  });
}

int config_complete() {
  if (!plugin().volume_name.empty()) return 0;
  nbdkit_error("replica: which volume? give its name: nbdkit replica NAME");
  return -1;
}

int get_ready() {
  return guarded(-1, [] {
    auto volume = Exported::claim(
        plugin().agent_path, plugin().volume_name, {.stopping = &nbdkit_is_stopping});
    if (!volume) return report(volume.error());
    plugin().volume = std::move(*volume);
    return 0;
  });
}

int after_fork() {
  return guarded(-1, [] {
    const auto started = plugin().volume->start();
    return started ? 0 : report(started.error());
  });
}

void cleanup() {
  guarded(0, [] {
    if (plugin().volume) plugin().volume->stop();
    return 0;
  });
}

int list_exports(int /*readonly*/, int /*is_tls*/, nbdkit_exports* exports) {
  return guarded(-1, [&] {
    const std::string description = plugin().volume->describe();
    for (const DiskImage& image : plugin().volume->images()) {
      if (nbdkit_add_export(exports, image.name().c_str(), description.c_str()) == -1) return -1;
    }
    return 0;
  });
}

const char* default_export(int /*readonly*/, int /*is_tls*/) {
  return plugin().volume->images().front().name().c_str();
}

const char* export_description(void* handle) {
  return guarded(static_cast<const char*>(nullptr), [&]() -> const char* {
    const std::string description = image_of(handle).name() + " of " + plugin().volume->describe();
    return nbdkit_strdup_intern(description.c_str());
  });
}

void* open_export(int /*readonly*/) {
  return guarded(static_cast<void*>(nullptr), []() -> void* {
    const std::string name = nbdkit_export_name();
    const auto& images = plugin().volume->images();
    for (std::size_t disk = 0; disk < images.size(); ++disk) {
      if (!name.empty() && images[disk].name() != name) continue;
      // NOLINTNEXTLINE(performance-no-int-to-ptr): nbdkit's handle is a number of ours
      return reinterpret_cast<void*>(disk + 1);
    }
    nbdkit_error("replica: volume %s has no disk '%s'; its exports are listed by nbdinfo --list",
                 plugin().volume_name.c_str(),
                 name.c_str());
    nbdkit_set_error(ENOENT);
    return nullptr;
  });
}

std::int64_t get_size(void* handle) {
  return static_cast<std::int64_t>(image_of(handle).bytes());
}

int block_size(void* /*handle*/,
               std::uint32_t* minimum,
               std::uint32_t* preferred,
               std::uint32_t* maximum) {
  *minimum = 1;
  *preferred = 4096;
  *maximum = 32 * 1024 * 1024;
  return 0;
}

int yes(void* /*handle*/) {
  return 1;
}
int no(void* /*handle*/) {
  return 0;
}
int fua_native(void* /*handle*/) {
  return NBDKIT_FUA_NATIVE;
}
int cache_native(void* /*handle*/) {
  return NBDKIT_CACHE_NATIVE;
}

int pread(void* handle,
          void* buffer,
          std::uint32_t count,
          std::uint64_t offset,
          std::uint32_t /*flags*/) {
  return guarded(-1, [&] {
    const std::span<std::byte> data(static_cast<std::byte*>(buffer), count);
    return finish(plugin().volume->read(disk_of(handle), data, offset), "read");
  });
}

int pwrite(void* handle,
           const void* buffer,
           std::uint32_t count,
           std::uint64_t offset,
           std::uint32_t flags) {
  return guarded(-1, [&] {
    const std::span<const std::byte> data(static_cast<const std::byte*>(buffer), count);
    const bool fua = (flags & NBDKIT_FLAG_FUA) != 0;
    return finish(plugin().volume->write(disk_of(handle), data, offset, fua), "write");
  });
}

int flush(void* handle, std::uint32_t /*flags*/) {
  return guarded(-1, [&] { return finish(plugin().volume->flush(disk_of(handle)), "flush"); });
}

int trim(void* handle, std::uint32_t count, std::uint64_t offset, std::uint32_t flags) {
  return guarded(-1, [&] {
    const bool fua = (flags & NBDKIT_FLAG_FUA) != 0;
    return finish(plugin().volume->zero(disk_of(handle), FrameType::trim, offset, count, true, fua),
                  "trim");
  });
}

int zero(void* handle, std::uint32_t count, std::uint64_t offset, std::uint32_t flags) {
  return guarded(-1, [&] {
    if ((flags & NBDKIT_FLAG_FAST_ZERO) != 0 && !image_of(handle).fast_zero()) {
      nbdkit_set_error(EOPNOTSUPP);
      return -1;
    }
    const bool fua = (flags & NBDKIT_FLAG_FUA) != 0;
    const bool may_trim = (flags & NBDKIT_FLAG_MAY_TRIM) != 0;
    return finish(
        plugin().volume->zero(disk_of(handle), FrameType::zero, offset, count, may_trim, fua),
        "zero");
  });
}

int extents(void* handle,
            std::uint32_t count,
            std::uint64_t offset,
            std::uint32_t flags,
            nbdkit_extents* list) {
  return guarded(-1, [&] {
    const std::uint64_t end = std::min(offset + count, image_of(handle).bytes());
    while (offset < end) {
      const DiskImage::Extent extent = plugin().volume->extent_at(disk_of(handle), offset);
      const std::uint32_t type = extent.is_hole ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0;
      if (nbdkit_add_extent(list, offset, extent.length_bytes, type) == -1) return -1;
      if ((flags & NBDKIT_FLAG_REQ_ONE) != 0) break;
      offset += extent.length_bytes;
    }
    return 0;
  });
}

int cache(void* handle, std::uint32_t count, std::uint64_t offset, std::uint32_t /*flags*/) {
  return guarded(-1, [&] { return finish(image_of(handle).prefetch(offset, count), "cache"); });
}

nbdkit_plugin make_plugin() {
  nbdkit_plugin fields{};
  fields.name = "replica";
  fields.longname = "replicad volume (primary's update agent)";
  fields.version = REPLICAD_VERSION;
  fields.description = "serves a replicad volume and streams every write to its replicas";
  fields.magic_config_key = "volume";
  fields.config_help =
      "volume=NAME         (required) the volume to serve; `volume=` may be left out.\n"
      "agent=PATH          agent.sock of this host's replicad, default\n"
      "                    /run/replica/agent.sock.\n"
      "Everything else (mode, ring, members) is a setting of the volume: see\n"
      "`replicactl set`.";
  fields.load = load;
  fields.unload = unload;
  fields.dump_plugin = dump_plugin;
  fields.config = config;
  fields.config_complete = config_complete;
  fields.get_ready = get_ready;
  fields.after_fork = after_fork;
  fields.cleanup = cleanup;
  fields.list_exports = list_exports;
  fields.default_export = default_export;
  fields.export_description = export_description;
  fields.open = open_export;
  fields.get_size = get_size;
  fields.block_size = block_size;
  fields.can_write = yes;
  fields.can_flush = yes;
  fields.can_trim = yes;
  fields.can_zero = yes;
  fields.can_fast_zero = yes;
  fields.can_extents = yes;
  fields.can_multi_conn = yes;
  fields.is_rotational = no;
  fields.can_fua = fua_native;
  fields.can_cache = cache_native;
  fields.pread = pread;
  fields.pwrite = pwrite;
  fields.flush = flush;
  fields.trim = trim;
  fields.zero = zero;
  fields.extents = extents;
  fields.cache = cache;
  fields.errno_is_preserved = 0;
  return fields;
}

nbdkit_plugin plugin_fields = make_plugin();

}  // namespace

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
NBDKIT_REGISTER_PLUGIN(plugin_fields)
