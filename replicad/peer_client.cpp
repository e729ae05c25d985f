#include "replicad/peer_client.h"

#include <algorithm>

#include <httplib.h>
#include <sys/socket.h>

#include "core/control/views.h"
#include "replicad/json_fields.h"
#include "replicad/options.h"

namespace replicad {

namespace {

constexpr std::chrono::milliseconds connect_timeout_max{2000};
constexpr std::size_t answer_bytes_max = 4 * mib;
constexpr std::string_view peer_unix_prefix = "unix:";

Result<std::unique_ptr<httplib::Client>> client_for(const std::string& address) {
  if (address.empty()) return fail(Errc::unreachable, "no control address is known");
  if (address.starts_with(peer_unix_prefix)) {
    auto client = std::make_unique<httplib::Client>(address.substr(peer_unix_prefix.size()), 80);
    client->set_address_family(AF_UNIX);
    return client;
  }
  const auto parts = split_host_port(address);
  if (!parts) return fail(Errc::unreachable, "{}", parts.error().message);
  return std::make_unique<httplib::Client>(parts->host, parts->port);
}

}  // namespace

Error PeerAnswer::error() const {
  if (auto error = parse_error_body(body)) return *error;
  return Error{Errc::protocol, 0, fmt::format("HTTP status {} without a reason", status), {}};
}

bool PeerAnswer::is_definite_refusal() const {
  return (status >= 400 && status < 500) || status == 501 || status == 507;
}

Result<PeerAnswer> ask_peer(const PeerRequest& request) {
  auto client = client_for(request.address);
  if (!client) return tl::unexpected(client.error());
  (*client)->set_connection_timeout(std::min(request.timeout, connect_timeout_max));
  (*client)->set_read_timeout(request.timeout);
  (*client)->set_write_timeout(request.timeout);
  const httplib::Result result =
      request.method == "GET"
          ? (*client)->Get(request.path)
          : (*client)->Post(request.path, request.body.dump(), "application/json");
  if (!result) {
    const bool not_sent = result.error() == httplib::Error::Connection ||
                          result.error() == httplib::Error::ConnectionTimeout;
    if (not_sent)
      return fail(Errc::unreachable, "{} does not accept a connection", request.address);
    return fail(Errc::timeout, "{} took the request and gave no answer", request.address);
  }
  if (result->body.size() > answer_bytes_max) {
    return fail(
        Errc::protocol, "{} gave an answer of {} bytes", request.address, result->body.size());
  }
  auto body = parse_json_object(result->body, Errc::protocol);
  if (!body) return fail(Errc::protocol, "{}: {}", request.address, body.error().message);
  return PeerAnswer{result->status, std::move(*body)};
}

}  // namespace replicad
