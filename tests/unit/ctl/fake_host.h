#pragma once
// A replicad that is only its control API: answers with the shapes of docs/control-api.md from
// values that a test sets, keeps count of what it was asked, and can be told to fail.

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <httplib.h>
#include <nlohmann/json.hpp>
#include <sys/socket.h>

namespace replicad::ctl_test {

using Json = nlohmann::json;

class FakeHost {
 public:
  /// Listens on a free TCP port, or on a unix socket at `socket_path`.
  explicit FakeHost(std::string name, const std::string& socket_path = {})
      : name_(std::move(name)), host_(host_json()) {
    server_.Get("/v1/host", [this](const auto& request, auto& response) {
      answer(request, response, [this](const auto&) { return host_; });
    });
    server_.Get("/v1/volumes", [this](const auto& request, auto& response) {
      answer(request, response, [this](const auto&) {
        Json list = Json::array();
        for (const auto& [key, volume] : volumes_)
          list.push_back(volume);
        return Json{{"schema", 1}, {"volumes", list}};
      });
    });
    server_.Get(R"(/v1/volumes/([^/]+))", [this](const auto& request, auto& response) {
      answer(request, response, [this](const httplib::Request& r) { return volume(r.matches[1]); });
    });
    server_.Post("/v1/volumes", [this](const auto& request, auto& response) {
      answer(request, response, [this](const httplib::Request& r) { return create(r); });
    });
    server_.Delete(R"(/v1/volumes/([^/]+))", [this](const auto& request, auto& response) {
      answer(request, response, [this](const httplib::Request& r) {
        Json found = volume(r.matches[1]);
        if (found.contains("error") && !found["error"].is_null()) return found;
        volumes_.erase(r.matches[1]);
        return Json{{"schema", 1}};
      });
    });
    const auto page = [this](const auto& request, auto& response) {
      answer(request, response, [this](const httplib::Request& r) {
        const auto it = pages_.find(r.method + " " + r.target);
        return it != pages_.end() ? it->second : volume("");
      });
    };
    server_.Get(R"(/v1/volumes/[^/]+/lost-writes(/.*)?)", page);
    server_.Delete(R"(/v1/volumes/[^/]+/lost-writes/.*)", page);
    const auto act = [this](const auto& request, auto& response) {
      answer(request, response, [this](const httplib::Request& r) {
        const auto it = answers_.find(r.matches[2]);
        return it != answers_.end() ? it->second : Json{{"schema", 1}};
      });
    };
    server_.Post(R"(/v1/volumes/([^/]+)/([a-z]+))", act);
    server_.Put(R"(/v1/volumes/([^/]+)/([a-z]+))", act);
    listen(socket_path);
  }
  FakeHost(const FakeHost&) = delete;
  FakeHost& operator=(const FakeHost&) = delete;
  ~FakeHost() { stop(); }

  /// From here on nobody answers at its address.
  void stop() {
    server_.stop();
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    stopped_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const std::string& address() const { return address_; }
  [[nodiscard]] std::string entry() const { return name_ + "=" + address_; }

  void set_host(const std::string& pointer, const Json& value) {
    const std::lock_guard lock(mutex_);
    host_[Json::json_pointer(pointer)] = value;
  }
  void set_volume(Json volume) {
    const std::lock_guard lock(mutex_);
    const auto key = volume.at("name").get<std::string>();
    volumes_[key] = std::move(volume);
  }
  [[nodiscard]] bool has_volume(const std::string& name) {
    const std::lock_guard lock(mutex_);
    return volumes_.contains(name);
  }
  /// Answer of POST or PUT /v1/volumes/NAME/`action`.
  void set_answer(const std::string& action, Json answer) {
    const std::lock_guard lock(mutex_);
    answers_[action] = std::move(answer);
  }
  /// Answer of a request for lost writes, by "METHOD target" (with its query).
  void set_page(const std::string& method_and_target, Json answer) {
    const std::lock_guard lock(mutex_);
    pages_[method_and_target] = std::move(answer);
  }
  /// Requests with this "METHOD path" end with this error and do nothing.
  void fail_with(const std::string& method_and_path,
                 int status,
                 const std::string& code,
                 const std::string& message) {
    const std::lock_guard lock(mutex_);
    failures_[method_and_path] = {
        status,
        Json{{"schema", 1}, {"error", {{"code", code}, {"message", message}, {"hint", ""}}}}};
  }
  /// Every answer is this text with status 200.
  void say_only(const std::string& text) {
    const std::lock_guard lock(mutex_);
    only_ = std::make_unique<std::string>(text);
  }
  /// After a request with this "METHOD path" that is its volume.
  void set_volume_after(const std::string& method_and_path, Json volume) {
    const std::lock_guard lock(mutex_);
    volumes_after_[method_and_path] = std::move(volume);
  }
  /// Requests with this "METHOD path" are carried out, and answered only when the host is stopped.
  void hang_after(const std::string& method_and_path) {
    const std::lock_guard lock(mutex_);
    hanging_ = method_and_path;
  }
  /// Called after the n-th request (1, 2, ..) was answered.
  void on_request(std::function<void(std::size_t)> function) {
    const std::lock_guard lock(mutex_);
    on_request_ = std::move(function);
  }

  /// "METHOD path" of all requests that change something.
  [[nodiscard]] std::vector<std::string> changes() {
    const std::lock_guard lock(mutex_);
    return changes_;
  }
  /// How many changes were asked for; also while a request hangs.
  [[nodiscard]] std::size_t changes_now() const { return change_count_; }
  [[nodiscard]] Json last_body() {
    const std::lock_guard lock(mutex_);
    return last_body_;
  }

 private:
  [[nodiscard]] Json host_json() const {
    return {{"schema", 1},
            {"host", name_},
            {"version", REPLICAD_VERSION},
            {"stream", "127.0.0.1:7400"},
            {"control", ""},
            {"image_dir", "/images"},
            {"metrics",
             {{"cpus", 4},
              {"load_1m", 0.4},
              {"cpu_pressure_percent", 1.0},
              {"io_pressure_percent", nullptr},
              {"memory_bytes", 8589934592ULL},
              {"memory_free_bytes", 4294967296ULL},
              {"image_dir_bytes", 107374182400ULL},
              {"image_dir_free_bytes", 64424509440ULL},
              {"uptime_seconds", 604800.0},
              {"unclean_restarts", 0.0},
              {"link_losses", 0.0},
              {"disk_errors", 0.0}}},
            {"volumes", {{"primary", 1}, {"replica", 2}}}};
  }

  void listen(const std::string& socket_path) {
    if (socket_path.empty()) {
      const int port = server_.bind_to_any_port("127.0.0.1");
      REQUIRE(port > 0);
      address_ = "127.0.0.1:" + std::to_string(port);
    } else {
      server_.set_address_family(AF_UNIX);
      REQUIRE(server_.bind_to_port(socket_path, 80));
      address_ = "unix:" + socket_path;
    }
    host_["control"] = address_;
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    while (!server_.is_running())
      std::this_thread::yield();
  }

  [[nodiscard]] Json volume(const std::string& name) const {
    const auto it = volumes_.find(name);
    if (it != volumes_.end()) return it->second;
    return {{"schema", 1},
            {"error",
             {{"code", "not_found"}, {"message", "there is no volume " + name}, {"hint", ""}}}};
  }

  Json create(const httplib::Request& request) {
    const Json body = Json::parse(request.body);
    volumes_[body.at("name").get<std::string>()] = {{"name", body.at("name")}, {"error", nullptr}};
    return {{"schema", 1}};
  }

  template <typename Function>
  void answer(const httplib::Request& request, httplib::Response& response, Function function) {
    std::unique_lock lock(mutex_);
    const std::string key = request.method + " " + request.path;
    if (request.method != "GET") {
      ++change_count_;
      changes_.push_back(request.method + " " + request.target);
      last_body_ = request.body.empty() ? Json() : Json::parse(request.body);
    }
    Json body;
    response.status = 200;
    if (const auto it = failures_.find(key); it != failures_.end()) {
      response.status = it->second.first;
      body = it->second.second;
    } else {
      body = function(request);
      if (body.contains("error") && body["error"].is_object() && !body.contains("role"))
        response.status = 404;
    }
    if (const auto it = volumes_after_.find(key); it != volumes_after_.end()) {
      volumes_[it->second.at("name").get<std::string>()] = it->second;
    }
    response.set_content(only_ ? *only_ : body.dump(), "application/json");
    if (on_request_) on_request_(++requests_);
    if (key != hanging_) return;
    stopped_.wait(lock, [this] { return stopping_; });
    // No answer: the connection ends in the middle of one.
    response.body.clear();
    response.set_content_provider(
        100, "application/json", [](std::size_t, std::size_t, httplib::DataSink&) {
          return false;
        });
  }

  std::mutex mutex_;
  std::condition_variable stopped_;
  bool stopping_ = false;
  std::string name_;
  std::string address_;
  Json host_;
  std::map<std::string, Json> volumes_;
  std::map<std::string, Json> volumes_after_;
  std::map<std::string, Json> answers_;
  std::map<std::string, Json> pages_;
  std::map<std::string, std::pair<int, Json>> failures_;
  std::unique_ptr<std::string> only_;
  std::string hanging_;
  std::function<void(std::size_t)> on_request_;
  std::size_t requests_ = 0;
  std::vector<std::string> changes_;
  Json last_body_;
  std::atomic<std::size_t> change_count_{0};
  httplib::Server server_;
  std::thread thread_;
};

}  // namespace replicad::ctl_test
