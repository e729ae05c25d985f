#include "ctl/api_client.h"

#include <chrono>

#include <httplib.h>
#include <sys/socket.h>

#include "core/control/text.h"
#include "core/control/views.h"
#include "ctl/hosts_list.h"

namespace replicad::ctl {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t answer_bytes_max = 8 << 20;

struct Exchange {
  httplib::Request request;
  httplib::Response response;
  std::string body;
  bool too_long = false;
  bool too_slow = false;
};

/// The daemon's answer is taken in pieces, so that it can neither grow without bound nor trickle
/// for ever.
void receive_bounded(Exchange& exchange, Clock::time_point deadline) {
  exchange.request.content_receiver =
      [&exchange, deadline](const char* data, std::size_t bytes, std::uint64_t, std::uint64_t) {
        exchange.too_long = exchange.body.size() + bytes > answer_bytes_max;
        exchange.too_slow = Clock::now() > deadline;
        if (exchange.too_long || exchange.too_slow) return false;
        exchange.body.append(data, bytes);
        return true;
      };
}

ApiAnswer failed(Errc code, std::string message, std::string hint, bool maybe_done) {
  return {tl::unexpected(Error{code, 0, std::move(message), std::move(hint)}), maybe_done};
}

ApiAnswer transport_error(const std::string& address,
                          const Exchange& exchange,
                          httplib::Error error,
                          bool timed_out) {
  const std::string where = printable(address);
  if (error == httplib::Error::Connection || error == httplib::Error::ConnectionTimeout ||
      error == httplib::Error::BindIPAddress) {
    return failed(Errc::unreachable,
                  fmt::format("cannot connect to {}", where),
                  "is replicad running there, and is the address right?",
                  false);
  }
  if (exchange.too_long) {
    return failed(Errc::protocol,
                  fmt::format("the answer of {} is longer than 8 MiB", where),
                  "is that a replicad?",
                  true);
  }
  if (exchange.too_slow || timed_out) {
    return failed(Errc::timeout,
                  fmt::format("{} did not answer in time", where),
                  "a longer --timeout may help",
                  true);
  }
  return failed(Errc::unreachable,
                fmt::format("the connection to {} was lost before it answered", where),
                {},
                true);
}

ApiAnswer read_answer(const std::string& address, const Exchange& exchange) {
  const int status = exchange.response.status;
  auto json = nlohmann::json::parse(exchange.body, nullptr, false);
  if (status >= 200 && status < 300) {
    if (json.is_object()) return {std::move(json), false};
    return failed(Errc::protocol,
                  fmt::format("{} answered something that is no JSON object", printable(address)),
                  "is that a replicad?",
                  true);
  }
  if (!json.is_discarded()) {
    if (std::optional<Error> error = parse_error_body(json))
      return {tl::unexpected(std::move(*error)), false};
  }
  return failed(
      Errc::protocol,
      fmt::format("{} answered HTTP status {} without a reason", printable(address), status),
      "is that a replicad of a matching version?",
      false);
}

}  // namespace

ApiAnswer call_api(const std::string& address,
                   const ApiRequest& request,
                   const Timeouts& timeouts) {
  const auto parsed = parse_address(address);
  if (!parsed) return {tl::unexpected(parsed.error()), false};
  httplib::Client client(parsed->host, parsed->port == 0 ? 80 : parsed->port);
  if (parsed->port == 0) client.set_address_family(AF_UNIX);
  client.set_connection_timeout(std::chrono::milliseconds(timeouts.connect_ms));
  client.set_read_timeout(std::chrono::milliseconds(timeouts.answer_ms));
  client.set_write_timeout(std::chrono::milliseconds(timeouts.answer_ms));
  client.set_keep_alive(false);

  const auto start = Clock::now();
  const auto answer_time = std::chrono::milliseconds(timeouts.answer_ms);
  Exchange exchange;
  exchange.request.method = request.method;
  exchange.request.path = request.path;
  exchange.request.set_header("Host", parsed->port == 0 ? "localhost" : address);
  exchange.request.set_header("Accept", "application/json");
  if (!request.body.is_null()) {
    exchange.request.body =
        request.body.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    exchange.request.set_header("Content-Type", "application/json");
  }
  receive_bounded(exchange, start + std::chrono::milliseconds(timeouts.connect_ms) + answer_time);
  httplib::Error error = httplib::Error::Success;
  if (!client.send(exchange.request, exchange.response, error)) {
    return transport_error(address, exchange, error, Clock::now() - start >= answer_time);
  }
  return read_answer(address, exchange);
}

}  // namespace replicad::ctl
