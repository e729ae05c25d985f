#include "ctl/cluster.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <thread>

#include "core/base/limits.h"
#include "core/base/names.h"
#include "core/control/failover_view.h"
#include "core/control/text.h"

namespace replicad::ctl {

namespace {

constexpr std::size_t threads_max = 32;
constexpr std::size_t hosts_learnt_max = 256;

/// Runs function(0) .. function(count-1), many at a time; returns when all are done.
void run_parallel(std::size_t count, const std::function<void(std::size_t)>& function) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t index = next++; index < count; index = next++)
      function(index);
  };
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < std::min(count, threads_max); ++i)
    threads.emplace_back(work);
  work();
  for (std::thread& thread : threads)
    thread.join();
}

Error wrong_name(const HostAddress& host, const std::string& name) {
  return Error{Errc::refused,
               0,
               fmt::format("the daemon at {} calls itself '{}', not '{}'",
                           printable(host.address),
                           printable(name),
                           printable(host.name)),
               "correct the hosts list"};
}

/// GETs `path` of hosts[from..] at once.
std::vector<Result<nlohmann::json>> get_all(const std::vector<HostAddress>& hosts,
                                            std::size_t from,
                                            const std::string& path,
                                            const Timeouts& timeouts) {
  std::vector<Result<nlohmann::json>> answers(hosts.size() - from,
                                              Result<nlohmann::json>(nlohmann::json()));
  run_parallel(answers.size(), [&](std::size_t index) {
    answers[index] = call_api(hosts[from + index].address, {"GET", path, nullptr}, timeouts).body;
  });
  return answers;
}

Result<VolumeView> read_volume(const HostAddress& host, const nlohmann::json& json) {
  Result<VolumeView> volume = parse_volume(json);
  if (volume && volume->host != host.name) return tl::unexpected(wrong_name(host, volume->host));
  return volume;
}

Status read_volume_list(const HostAddress& host,
                        const nlohmann::json& answer,
                        std::map<std::string, Result<VolumeView>>& volumes) {
  const auto list = answer.find("volumes");
  if (list == answer.end() || !list->is_array()) {
    return fail(Errc::protocol, "unexpected answer: field 'volumes' is not a list");
  }
  for (const nlohmann::json& item : *list) {
    const auto name = item.is_object() ? item.find("name") : item.end();
    const std::string text =
        item.is_object() && name != item.end() && name->is_string() ? name->get<std::string>() : "";
    if (!is_valid_name(text))
      return fail(Errc::protocol, "unexpected answer: a volume has no valid name");
    volumes.insert_or_assign(text, read_volume(host, item));
  }
  return {};
}

}  // namespace

bool Cluster::learn(const VolumeView& volume) {
  bool learnt = false;
  for (const MemberView& member : volume.members) {
    const bool known = std::any_of(
        hosts_.begin(), hosts_.end(), [&](const HostAddress& h) { return h.name == member.host; });
    if (known || !is_valid_name(member.host) || !parse_address(member.control)) continue;
    if (hosts_.size() >= hosts_learnt_max) break;
    hosts_.push_back({member.host, member.control});
    learnt = true;
  }
  return learnt;
}

Status Cluster::discover() {
  std::vector<HostAddress> seeds;
  std::vector<HostAddress> named;
  for (const HostAddress& host : hosts_)
    (host.name.empty() ? seeds : named).push_back(host);
  if (seeds.empty()) return {};
  hosts_ = named;
  for (HostAddress& seed : seeds) {
    const ApiAnswer host = call_api(seed.address, {"GET", "/v1/host", nullptr}, timeouts_);
    if (!host.body) {
      return with_hint(
          fail(host.body.error().code, "{}", host.body.error().message),
          "say where the hosts are: --hosts NAME=ADDRESS,... or a hosts file (--hosts-file)");
    }
    const auto facts = parse_host(*host.body);
    if (!facts) return tl::unexpected(facts.error());
    if (!is_valid_name(facts->host))
      return fail(Errc::protocol, "{} gives no valid name", printable(seed.address));
    seed.name = facts->host;
    hosts_.push_back(seed);
  }
  // The members of the volumes found there; those that do not answer show up when they are asked.
  return ask_volumes().map([](const VolumesAnswer&) {});
}

std::vector<HostReport> Cluster::ask_hosts() {
  const auto answers = get_all(hosts_, 0, "/v1/host", timeouts_);
  std::vector<HostReport> reports;
  for (std::size_t i = 0; i < hosts_.size(); ++i) {
    Result<HostFacts> facts =
        answers[i] ? parse_host(*answers[i]) : tl::unexpected(answers[i].error());
    if (facts && facts->host != hosts_[i].name)
      facts = tl::unexpected(wrong_name(hosts_[i], facts->host));
    reports.push_back({hosts_[i].name, hosts_[i].address, std::move(facts)});
  }
  return reports;
}

std::vector<MemberReport> Cluster::ask_volume(const std::string& name) {
  std::vector<MemberReport> reports;
  // Members of members are members: the second round learns no more than a stale list at the first
  // might hide.
  while (reports.size() < hosts_.size()) {
    const std::size_t from = reports.size();
    const auto answers = get_all(hosts_, from, "/v1/volumes/" + name, timeouts_);
    for (std::size_t i = 0; i < answers.size(); ++i) {
      const HostAddress& host = hosts_[from + i];
      Result<VolumeView> volume =
          answers[i] ? read_volume(host, *answers[i]) : tl::unexpected(answers[i].error());
      reports.push_back({host.name, host.address, std::move(volume)});
    }
    for (std::size_t i = from; i < reports.size(); ++i) {
      if (reports[i].volume) learn(*reports[i].volume);
    }
  }
  return reports;
}

void Cluster::ask_losses(const std::string& name, std::vector<MemberReport>& reports) const {
  for (const LogQuestion& question : log_questions(reports)) {
    const std::string path = fmt::format("/v1/volumes/{}/log?after={}", name, question.after);
    const ApiAnswer answer = call_api(question.address, {"GET", path, nullptr}, timeouts_);
    const auto losses =
        answer.body ? parse_log_count(*answer.body) : tl::unexpected(answer.body.error());
    if (!losses || !*losses) continue;
    const auto of = std::find_if(reports.begin(), reports.end(), [&](const MemberReport& report) {
      return report.host == question.of;
    });
    of->lacks = **losses;
  }
}

Result<VolumesAnswer> Cluster::ask_volumes() {
  VolumesAnswer all;
  std::vector<std::map<std::string, Result<VolumeView>>> lists;
  std::vector<Status> states;
  while (lists.size() < hosts_.size()) {
    const std::size_t from = lists.size();
    const auto answers = get_all(hosts_, from, "/v1/volumes", timeouts_);
    for (std::size_t i = 0; i < answers.size(); ++i) {
      auto& list = lists.emplace_back();
      states.push_back(answers[i] ? read_volume_list(hosts_[from + i], *answers[i], list)
                                  : Status(tl::unexpected(answers[i].error())));
    }
    for (std::size_t i = from; i < lists.size(); ++i) {
      for (const auto& [name, volume] : lists[i]) {
        if (volume) learn(*volume);
      }
    }
  }
  for (std::size_t i = 0; i < lists.size(); ++i) {
    if (!states[i]) {
      all.silent.emplace_back(hosts_[i], states[i].error());
    } else {
      all.hosts.push_back(hosts_[i]);
    }
    for (const auto& [name, volume] : lists[i])
      all.volumes[name];
  }
  if (all.hosts.empty()) {
    std::string text;
    for (const auto& [host, error] : all.silent) {
      text +=
          fmt::format("{}{}: {}", text.empty() ? "" : "; ", printable(host.name), error.message);
    }
    return with_hint(fail(Errc::unreachable, "no host answers: {}", text),
                     all.silent.front().second.hint);
  }
  for (auto& [name, reports] : all.volumes) {
    for (std::size_t i = 0; i < lists.size(); ++i) {
      const auto it = lists[i].find(name);
      Result<VolumeView> volume = fail(Errc::not_found, "there is no volume {}", name);
      if (it != lists[i].end()) {
        volume = it->second;
      } else if (!states[i]) {
        volume = tl::unexpected(states[i].error());
      }
      reports.push_back({hosts_[i].name, hosts_[i].address, std::move(volume)});
    }
  }
  return all;
}

}  // namespace replicad::ctl
