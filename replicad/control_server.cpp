#include "replicad/control_server.h"

#include <cerrno>
#include <thread>

#include <httplib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/base/log.h"

namespace replicad {

using nlohmann::json;

namespace {

constexpr std::size_t body_bytes_max = 1 * mib;
/// Enough that voters are heard while others wait for a switchover or an export's start.
constexpr std::size_t pool_threads = 32;
constexpr std::string_view unix_prefix = "unix:";
constexpr const char* json_type = "application/json";

void answer(httplib::Response& response, const ControlApi::Answer& result) {
  if (result) {
    response.status = 200;
    response.set_content(result->dump(-1, ' ', false, json::error_handler_t::replace) + "\n",
                         json_type);
    return;
  }
  const json body = {{"schema", 1}, {"error", to_json(result.error())}};
  response.status = http_status(result.error().code);
  response.set_content(body.dump(-1, ' ', false, json::error_handler_t::replace) + "\n", json_type);
}

/// What the library itself refused: no such path, body too long, malformed request.
void answer_unrouted(const httplib::Request& request, httplib::Response& response) {
  if (!response.body.empty()) return;
  const int status = response.status;
  const auto code = status == 404 ? Errc::not_found : Errc::invalid_argument;
  const std::string what =
      status == 413   ? fmt::format("the body is longer than {} bytes", body_bytes_max)
      : status == 404 ? fmt::format("no such request: {} {}", request.method, request.path)
                      : "the HTTP request is malformed";
  const json body = {{"schema", 1},
                     {"error", to_json(Error{code, 0, what, "see docs/control-api.md"})}};
  response.set_content(body.dump(-1, ' ', false, json::error_handler_t::replace) + "\n", json_type);
}

void answer_exception(const httplib::Request& request,
                      httplib::Response& response,
                      std::exception_ptr exception) {
  std::string what = "unknown";
  try {
    std::rethrow_exception(std::move(exception));
  } catch (const std::exception& error) {
    what = error.what();
  } catch (...) {
  }
  log(LogLevel::error,
      "request_failed",
      "path={} error={}",
      log_value(request.path),
      log_value(what));
  answer(response, fail(Errc::io_error, "internal error: {}", what));
}

using Request = const httplib::Request&;
using Response = httplib::Response&;

/// The volume's name in the path; it reaches no path of a file before it is known or checked.
std::string name_of(Request request) {
  return request.matches[1].str();
}

void add_volume_actions(httplib::Server& server, ControlContext& context) {
  using Action = ControlApi::Answer (ControlApi::*)(const std::string&, const std::string&);
  using Verb = ControlApi::Answer (ControlApi::*)(const std::string&);
  const auto post = [&](const std::string& verb, Action action) {
    server.Post("/v1/volumes/([^/]+)/" + verb,
                [&context, action](Request request, Response response) {
                  ControlApi api(context);
                  answer(response, (api.*action)(name_of(request), request.body));
                });
  };
  const auto post_bare = [&](const std::string& verb, Verb action) {
    server.Post("/v1/volumes/([^/]+)/" + verb,
                [&context, action](Request request, Response response) {
                  ControlApi api(context);
                  answer(response, (api.*action)(name_of(request)));
                });
  };
  post_bare("activate", &ControlApi::activate);
  post_bare("deactivate", &ControlApi::deactivate);
  post_bare("restart", &ControlApi::restart);
  post("set", &ControlApi::set);
  post("resync", &ControlApi::resync);
  post("verify", &ControlApi::verify);
  post("readmit", &ControlApi::readmit);
  post("switchover", &ControlApi::switchover);
  post("handover", &ControlApi::handover);
  post_bare("handover/end", &ControlApi::handover_end);
  post("handover/take", &ControlApi::handover_take);
  post("promote", &ControlApi::promote);
  post("failover", &ControlApi::failover);
  post("rival", &ControlApi::rival);
  post("resolve", &ControlApi::resolve);
  post("vote/prepare", &ControlApi::vote_prepare);
  post("vote/accept", &ControlApi::vote_accept);
  post("vote/chosen", &ControlApi::vote_chosen);
  server.Get("/v1/volumes/([^/]+)/vote", [&context](Request request, Response response) {
    answer(response, ControlApi(context).vote(name_of(request)));
  });
  server.Get(
      "/v1/volumes/([^/]+)/handover/answered", [&context](Request request, Response response) {
        answer(
            response,
            ControlApi(context).handover_answered(name_of(request), request.get_param_value("id")));
      });
  server.Get("/v1/volumes/([^/]+)/log", [&context](Request request, Response response) {
    answer(response,
           ControlApi(context).log_count(name_of(request), request.get_param_value("after")));
  });
  server.Put("/v1/volumes/([^/]+)/members", [&context](Request request, Response response) {
    answer(response, ControlApi(context).members(name_of(request), request.body));
  });
}

void add_lost_writes(httplib::Server& server, ControlContext& context) {
  const char* const one = "/v1/volumes/([^/]+)/lost-writes/([^/]+)";
  server.Get("/v1/volumes/([^/]+)/lost-writes", [&context](Request request, Response response) {
    answer(response, ControlApi(context).lost_writes(name_of(request)));
  });
  server.Get(one, [&context](Request request, Response response) {
    answer(response,
           ControlApi(context).lost_file(
               name_of(request), request.matches[2].str(), request.get_param_value("at")));
  });
  server.Delete(one, [&context](Request request, Response response) {
    answer(response,
           ControlApi(context).remove_lost_file(
               name_of(request), request.matches[2].str(), request.get_param_value("uuid")));
  });
}

void add_routes(httplib::Server& server, ControlContext& context) {
  server.Get("/v1/host", [&context](Request /*request*/, Response response) {
    answer(response, ControlApi(context).host());
  });
  server.Get("/v1/volumes", [&context](Request /*request*/, Response response) {
    answer(response, ControlApi(context).volumes());
  });
  server.Post("/v1/volumes", [&context](Request request, Response response) {
    answer(response, ControlApi(context).create(request.body));
  });
  server.Get("/v1/volumes/([^/]+)", [&context](Request request, Response response) {
    answer(response, ControlApi(context).volume(name_of(request)));
  });
  server.Delete("/v1/volumes/([^/]+)", [&context](Request request, Response response) {
    answer(response, ControlApi(context).remove(name_of(request), request.get_param_value("uuid")));
  });
  add_volume_actions(server, context);
  add_lost_writes(server, context);
}

class HttpControlServer final : public ControlServer {
 public:
  HttpControlServer() {
    server_.new_task_queue = [] { return new httplib::ThreadPool(pool_threads); };
    server_.set_payload_max_length(body_bytes_max);
    // A connection that is kept alive would keep one of the few threads.
    server_.set_keep_alive_max_count(1);
    server_.set_error_handler(
        [](Request request, Response response) { answer_unrouted(request, response); });
    server_.set_exception_handler(
        [](Request request, Response response, std::exception_ptr exception) {
          answer_exception(request, response, std::move(exception));
        });
  }
  ~HttpControlServer() override { stop(); }
  HttpControlServer(const HttpControlServer&) = delete;
  HttpControlServer& operator=(const HttpControlServer&) = delete;

  Status bind_unix(const std::string& path);
  Status bind_tcp(const std::string& address);

  [[nodiscard]] const std::string& address() const override { return address_; }

  void serve(ControlContext& context) override {
    add_routes(server_, context);
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    // stop() before the loop runs would be lost.
    while (!server_.is_running())
      std::this_thread::yield();
  }

  void stop() override {
    if (thread_.joinable()) {
      server_.stop();
      thread_.join();
    }
    if (!unix_path_.empty()) ::unlink(unix_path_.c_str());
    unix_path_.clear();
  }

 private:
  httplib::Server server_;
  std::string address_;
  std::string unix_path_;
  std::thread thread_;
};

Status HttpControlServer::bind_unix(const std::string& path) {
  if (path.size() >= sizeof(sockaddr_un{}.sun_path)) {
    return fail(Errc::invalid_argument, "{}: too long for a socket", path);
  }
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return fail_errno(errno, "remove {}", path);
  server_.set_address_family(AF_UNIX);
  server_.set_socket_options([](int) {});
  errno = 0;
  if (!server_.bind_to_port(path, 80))
    return fail_errno(errno != 0 ? errno : EIO, "listen on {}", path);
  if (::chmod(path.c_str(), 0660) != 0) return fail_errno(errno, "chmod {}", path);
  unix_path_ = path;
  address_ = std::string(unix_prefix) + path;
  return {};
}

Status HttpControlServer::bind_tcp(const std::string& address) {
  const auto parts = split_host_port(address);
  if (!parts) return tl::unexpected(parts.error());
  // The library's default would let two daemons share a port.
  server_.set_socket_options([](int fd) {
    const int on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  });
  errno = 0;
  const int port = parts->port == 0 ? server_.bind_to_any_port(parts->host)
                   : server_.bind_to_port(parts->host, parts->port) ? parts->port
                                                                    : -1;
  if (port <= 0) {
    if (errno == EADDRINUSE) return fail(Errc::busy, "control={}: the port is in use", address);
    return fail_errno(errno != 0 ? errno : EIO, "control={}: cannot listen", address);
  }
  const bool v6 = parts->host.find(':') != std::string::npos;
  address_ =
      v6 ? fmt::format("[{}]:{}", parts->host, port) : fmt::format("{}:{}", parts->host, port);
  return {};
}

}  // namespace

Result<std::unique_ptr<ControlServer>> ControlServer::bind(const std::string& address) {
  auto server = std::make_unique<HttpControlServer>();
  if (address.starts_with(unix_prefix)) {
    RD_TRY(server->bind_unix(address.substr(unix_prefix.size())));
  } else {
    RD_TRY(server->bind_tcp(address));
  }
  return std::unique_ptr<ControlServer>(std::move(server));
}

int http_status(Errc code) {
  switch (code) {
    case Errc::invalid_argument:
    case Errc::protocol:
      return 400;
    case Errc::not_found:
      return 404;
    case Errc::refused:
    case Errc::exists:
    case Errc::busy:
    case Errc::stale_epoch:
    case Errc::diverged:
    case Errc::inconsistent:
    case Errc::too_far_behind:
    case Errc::version_mismatch:
      return 409;
    case Errc::unreachable:
      return 502;
    case Errc::timeout:
      return 504;
    case Errc::no_space:
      return 507;
    case Errc::not_supported:
      return 501;
    case Errc::corrupt:
    case Errc::io_error:
      return 500;
  }
  return 500;
}

}  // namespace replicad
