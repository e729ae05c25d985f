#include "ctl/hosts_list.h"

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include <sys/un.h>

#include "core/base/names.h"
#include "core/control/text.h"
#include "ctl/units.h"

namespace replicad::ctl {

namespace {

constexpr const char* default_hosts_file = "/etc/replicad/hosts";
constexpr const char* local_daemon = "unix:/run/replica/control.sock";
constexpr std::size_t hosts_file_bytes_max = 1 << 20;

Status add_host(std::vector<HostAddress>& hosts, HostAddress host) {
  const auto address = parse_address(host.address);
  if (!address) return tl::unexpected(address.error());
  if (!host.name.empty() && !is_valid_name(host.name)) {
    return fail(Errc::invalid_argument,
                "'{}' is no name of a host: lower-case letters, digits, '.', '_' and '-'",
                printable(host.name));
  }
  for (const HostAddress& known : hosts) {
    if (!host.name.empty() && known.name == host.name) {
      return fail(Errc::invalid_argument, "host {} is given twice", host.name);
    }
  }
  hosts.push_back(std::move(host));
  return {};
}

Result<std::vector<HostAddress>> read_hosts_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return fail_errno(errno, "cannot read the hosts file {}", printable(path));
  std::string content(hosts_file_bytes_max + 1, '\0');
  file.read(content.data(), static_cast<std::streamsize>(content.size()));
  if (file.bad()) return fail(Errc::io_error, "cannot read the hosts file {}", printable(path));
  content.resize(static_cast<std::size_t>(file.gcount()));
  if (content.size() > hosts_file_bytes_max) {
    return fail(Errc::invalid_argument, "the hosts file {} is longer than 1 MiB", printable(path));
  }
  return parse_hosts_file(content, path);
}

}  // namespace

Result<ParsedAddress> parse_address(std::string_view text) {
  const auto bad = [&] {
    return with_hint(
        fail(Errc::invalid_argument, "'{}' is no address", printable(text)),
        "addresses look like 10.0.0.1:7401, [fd00::1]:7401 or unix:/run/replica/control.sock");
  };
  ParsedAddress address;
  if (text.starts_with("unix:")) {
    address.host = text.substr(5);
    if (!address.host.starts_with('/') || address.host.size() >= sizeof(sockaddr_un::sun_path))
      return bad();
    return address;
  }
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return bad();
  const std::string_view port = text.substr(colon + 1);
  const auto [stop, error] = std::from_chars(port.data(), port.data() + port.size(), address.port);
  if (error != std::errc() || stop != port.data() + port.size() || address.port < 1 ||
      address.port > 65535)
    return bad();
  std::string_view host = text.substr(0, colon);
  if (host.starts_with('[')) {
    if (!host.ends_with(']') || host.size() < 4) return bad();
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return bad();
  }
  if (host.find_first_of(" \t\r\n/") != std::string_view::npos || printable(host) != host)
    return bad();
  address.host = host;
  return address;
}

Result<std::vector<HostAddress>> parse_hosts(std::string_view text) {
  const auto entries = split_list(text);
  if (!entries || entries->empty()) {
    return with_hint(
        fail(Errc::invalid_argument, "--hosts '{}' is no list of hosts", printable(text)),
        "--hosts a=10.0.0.1:7401,b=10.0.0.2:7401");
  }
  std::vector<HostAddress> hosts;
  for (const std::string& entry : *entries) {
    const std::size_t equals = entry.find('=');
    HostAddress host;
    if (equals == 0)
      return fail(Errc::invalid_argument, "--hosts: '{}' has an empty name", printable(entry));
    if (equals == std::string::npos) {
      host.address = entry;
    } else {
      host = {entry.substr(0, equals), entry.substr(equals + 1)};
    }
    RD_TRY(add_host(hosts, std::move(host)));
  }
  return hosts;
}

Result<std::vector<HostAddress>> parse_hosts_file(std::string_view content,
                                                  const std::string& path) {
  std::vector<HostAddress> hosts;
  std::istringstream lines{std::string(content)};
  std::string line;
  for (std::size_t number = 1; std::getline(lines, line); ++number) {
    std::istringstream words(line.substr(0, line.find('#')));
    HostAddress host;
    std::string more;
    if (!(words >> host.name)) continue;
    const bool complete = static_cast<bool>(words >> host.address);
    if (!complete || (words >> more)) {
      return fail(
          Errc::invalid_argument, "{}:{}: a line is 'name address'", printable(path), number);
    }
    if (const Status status = add_host(hosts, std::move(host)); !status) {
      return with_hint(
          fail(
              Errc::invalid_argument, "{}:{}: {}", printable(path), number, status.error().message),
          status.error().hint);
    }
  }
  if (hosts.empty())
    return fail(Errc::invalid_argument, "the hosts file {} names no host", printable(path));
  return hosts;
}

Result<std::vector<HostAddress>> load_hosts(const std::string& hosts_option,
                                            const std::string& hosts_file_option) {
  if (!hosts_option.empty()) return parse_hosts(hosts_option);
  if (!hosts_file_option.empty()) return read_hosts_file(hosts_file_option);
  // Read before any thread is started.
  const char* named = std::getenv("REPLICACTL_HOSTS");  // NOLINT(concurrency-mt-unsafe)
  if (named != nullptr && *named != '\0') return read_hosts_file(named);
  auto hosts = read_hosts_file(default_hosts_file);
  if (hosts || hosts.error().code != Errc::not_found) return hosts;
  return std::vector<HostAddress>{{"", local_daemon}};
}

}  // namespace replicad::ctl
