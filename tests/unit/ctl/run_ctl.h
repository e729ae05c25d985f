#pragma once
// Runs replicactl in this process, as a test sees it: exit code and what was printed.

#include <sstream>
#include <string>
#include <vector>

#include "ctl/run.h"
#include "tests/unit/control/facts.h"
#include "tests/unit/ctl/fake_host.h"

namespace replicad::ctl_test {

struct Outcome {
  int code = 0;
  std::string out;
  std::string err;

  /// The whole of stdout as JSON.
  [[nodiscard]] Json json() const {
    Json parsed = Json::parse(out, nullptr, false);
    REQUIRE_MESSAGE(!parsed.is_discarded(), out);
    return parsed;
  }
  [[nodiscard]] Json error() const {
    Json parsed = Json::parse(err, nullptr, false);
    REQUIRE_MESSAGE(!parsed.is_discarded(), err);
    return parsed;
  }
};

/// Without any terminal, unless `answer` is given: then stdin is one, and says that.
inline Outcome run_words(const std::vector<std::string>& words, const std::string& answer = {}) {
  std::istringstream in(answer);
  std::ostringstream out;
  std::ostringstream err;
  ctl::Terminal terminal{in, out, err, !answer.empty(), false, false};
  Outcome outcome;
  outcome.code = ctl::run_replicactl(words, terminal);
  outcome.out = out.str();
  outcome.err = err.str();
  return outcome;
}

/// Hosts a, b and c, and the volume vm1 on them as `options` say.
class Trio {
 public:
  explicit Trio(const control_test::VolumeOptions& options = {}) {
    for (const char* name : {"a", "b", "c"})
      hosts_.push_back(std::make_unique<FakeHost>(name));
    for (const auto& host : hosts_)
      host->set_volume(view(host->name(), options));
  }

  FakeHost& a() { return *hosts_[0]; }
  FakeHost& b() { return *hosts_[1]; }
  FakeHost& c() { return *hosts_[2]; }

  /// `vm1` as `name` says it, with the hosts' real addresses.
  [[nodiscard]] Json view(const std::string& name,
                          const control_test::VolumeOptions& options = {}) const {
    Json json = control_test::volume_json(name, options);
    for (Json& member : json["members"]) {
      for (const auto& host : hosts_) {
        if (member["host"] == host->name()) member["control"] = host->address();
      }
    }
    return json;
  }

  [[nodiscard]] std::string hosts() const {
    std::string list;
    for (const auto& host : hosts_)
      list += (list.empty() ? "" : ",") + host->entry();
    return list;
  }

  Outcome run(std::vector<std::string> words, const std::string& answer = {}) const {
    words.insert(words.begin(), {"--hosts", hosts()});
    return run_words(words, answer);
  }

  /// "host METHOD path" of all changes, by host.
  [[nodiscard]] std::vector<std::string> changes() const {
    std::vector<std::string> all;
    for (const auto& host : hosts_) {
      for (const std::string& change : host->changes())
        all.push_back(host->name() + " " + change);
    }
    return all;
  }

 private:
  std::vector<std::unique_ptr<FakeHost>> hosts_;
};

[[nodiscard]] inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace replicad::ctl_test
