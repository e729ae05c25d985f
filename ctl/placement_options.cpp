#include "ctl/placement_options.h"

#include <charconv>
#include <set>

#include "core/base/limits.h"
#include "core/base/names.h"
#include "core/control/text.h"
#include "ctl/units.h"

namespace replicad::ctl {

namespace {

constexpr std::size_t copies_default = 3;

Result<std::size_t> parse_copies(const std::string& text) {
  std::size_t copies = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), copies);
  if (error != std::errc() || stop != text.data() + text.size() || copies < 1 ||
      copies > members_max) {
    return fail(Errc::invalid_argument,
                "--copies '{}' is no number between 1 and {}",
                printable(text),
                members_max);
  }
  return copies;
}

Status check_host_name(const char* option, const std::string& name) {
  if (is_valid_name(name)) return {};
  return fail(Errc::invalid_argument, "{}: '{}' is no name of a host", option, printable(name));
}

}  // namespace

Result<PlacementRequest> read_placement(const OptionValues& values) {
  PlacementRequest request;
  request.version = REPLICAD_VERSION;
  request.primary = text_option(values, "primary");
  if (!request.primary.empty()) RD_TRY(check_host_name("--primary", request.primary));
  const auto on = split_list(text_option(values, "on"));
  if (!on) return fail(Errc::invalid_argument, "--on: {}", on.error().message);
  request.on = *on;
  for (const std::string& name : request.on)
    RD_TRY(check_host_name("--on", name));
  if (std::set<std::string>(request.on.begin(), request.on.end()).size() != request.on.size()) {
    return fail(Errc::invalid_argument, "--on names a host twice");
  }
  request.overcommit = values.count("overcommit") > 0;
  request.copies = request.on.empty() ? copies_default : request.on.size();
  if (const std::string text = text_option(values, "copies"); !text.empty()) {
    const auto copies = parse_copies(text);
    if (!copies) return tl::unexpected(copies.error());
    request.copies = *copies;
  }
  return request;
}

Status check_disk_bytes(std::uint64_t bytes) {
  if (bytes > 0 && bytes <= disk_bytes_max && bytes % disk_granularity_bytes == 0) return {};
  return fail(Errc::invalid_argument,
              "a disk of {} bytes is not possible: a multiple of {} bytes, at most {}",
              bytes,
              disk_granularity_bytes,
              format_bytes(disk_bytes_max));
}

Result<std::vector<std::uint64_t>> read_sizes(const OptionValues& values) {
  const auto parts = split_list(text_option(values, "size"));
  if (!parts) return fail(Errc::invalid_argument, "--size: {}", parts.error().message);
  if (parts->empty())
    return fail(Errc::invalid_argument, "--size is missing, for example --size 20G,10G");
  if (parts->size() > disks_max)
    return fail(Errc::invalid_argument, "a volume has at most {} disks", disks_max);
  std::vector<std::uint64_t> sizes;
  for (const std::string& part : *parts) {
    const auto bytes = parse_size(part);
    if (!bytes) return fail(Errc::invalid_argument, "--size: {}", bytes.error().message);
    RD_TRY(check_disk_bytes(*bytes));
    sizes.push_back(*bytes);
  }
  return sizes;
}

}  // namespace replicad::ctl
