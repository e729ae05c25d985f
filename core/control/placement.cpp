#include "core/control/placement.h"

#include <algorithm>
#include <cmath>

#include "core/base/limits.h"
#include "core/control/text.h"

namespace replicad {

namespace {

constexpr double uptime_saturation_seconds = 7 * 86400;
constexpr std::uint64_t reserve_bytes_max = 10 * gib;

double clamp01(double value) {
  return std::isfinite(value) ? std::clamp(value, 0.0, 1.0) : 0.0;
}

/// 1 for none, 1/2 for `half`, towards 0 for many.
double fade(double value, double half) {
  return clamp01(half / (half + std::max(0.0, value)));
}

double ratio(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0.0 : clamp01(static_cast<double>(part) / static_cast<double>(whole));
}

std::uint64_t minus(std::uint64_t a, std::uint64_t b) {
  return a > b ? a - b : 0;
}

bool contains(const std::vector<std::string>& list, const std::string& item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

/// Major number of "1.2.3"; nullopt if it is not of that form.
std::optional<unsigned> major_of(const std::string& version) {
  unsigned major = 0;
  std::size_t digits = 0;
  while (digits < version.size() && version[digits] >= '0' && version[digits] <= '9') {
    if (digits == 4) return std::nullopt;
    major = major * 10 + static_cast<unsigned>(version[digits] - '0');
    ++digits;
  }
  if (digits == 0 || digits == version.size() || version[digits] != '.') return std::nullopt;
  return major;
}

void check_space(const HostFacts& facts, const PlacementRequest& request, HostScore& host) {
  if (request.primary_brings_images && facts.host == request.primary) return;
  const std::uint64_t reserve = reserve_bytes(facts.image_dir_bytes);
  if (minus(facts.image_dir_free_bytes, reserve) >= request.bytes) return;
  std::string text = fmt::format("{} free where its images are, {} needed and {} kept in reserve",
                                 format_bytes(facts.image_dir_free_bytes),
                                 format_bytes(request.bytes),
                                 format_bytes(reserve));
  const bool fits = facts.image_dir_free_bytes >= request.bytes;
  const bool is_named = contains(request.on, facts.host);
  const bool only_warn = request.overcommit || (is_named && fits);
  (only_warn ? host.warnings : host.rejected).push_back(std::move(text));
}

void check_facts(const HostFacts& facts, const PlacementRequest& request, HostScore& host) {
  const auto major = major_of(facts.version);
  if (!major || major != major_of(request.version)) {
    host.rejected.push_back(fmt::format(
        "it runs version {}, this is version {}", printable(facts.version), request.version));
  }
  if (facts.draining) host.rejected.emplace_back("it is draining: it takes no new volumes");
  if (facts.stream.empty())
    host.rejected.emplace_back("it has no stream port, so it can neither send nor receive");
  if (!(facts.cpus >= 1) || facts.memory_bytes == 0 || facts.image_dir_bytes == 0) {
    host.rejected.emplace_back("its metrics make no sense (no processor, memory or image space)");
  }
  check_space(facts, request, host);
}

HostScore judge(const HostReport& report, const PlacementRequest& request) {
  HostScore host;
  host.host = report.name;
  if (!report.facts) {
    host.rejected.push_back(
        fmt::format("it does not answer: {}", printable(report.facts.error().message)));
  } else {
    host.terms = score_terms(*report.facts, request.bytes, request.weights);
    for (const ScoreTerm& term : host.terms)
      host.total += term.score * term.weight;
    check_facts(*report.facts, request, host);
  }
  if (contains(request.without, report.name))
    host.rejected.emplace_back("it has a copy of the volume already");
  if (!request.on.empty() && !contains(request.on, report.name))
    host.rejected.emplace_back("it was not named");
  return host;
}

void sort_scores(std::vector<HostScore>& hosts) {
  std::sort(hosts.begin(), hosts.end(), [](const HostScore& a, const HostScore& b) {
    if (a.rejected.empty() != b.rejected.empty()) return a.rejected.empty();
    if (a.rejected.empty() && a.total != b.total) return a.total > b.total;
    return a.host < b.host;
  });
}

std::string rejected_list(const std::vector<HostScore>& hosts) {
  std::string text;
  for (const HostScore& host : hosts) {
    if (host.rejected.empty()) continue;
    if (!text.empty()) text += "; ";
    text += printable(host.host) + ": ";
    for (std::size_t i = 0; i < host.rejected.size(); ++i) {
      if (i > 0) text += ", ";
      text += host.rejected[i];
    }
  }
  return text;
}

std::optional<Error> unknown_name(const Placement& placement, const PlacementRequest& request) {
  std::vector<std::string> wanted = request.on;
  if (!request.primary.empty()) wanted.push_back(request.primary);
  for (const std::string& name : wanted) {
    if (placement.score_of(name) != nullptr) continue;
    return Error{Errc::not_found,
                 0,
                 fmt::format("host {} is not in the hosts list", printable(name)),
                 "see `replicactl hosts`; add it to --hosts or to the hosts file"};
  }
  return std::nullopt;
}

std::optional<Error> choose(Placement& placement, const PlacementRequest& request) {
  std::vector<std::string> usable;
  for (const HostScore& host : placement.hosts) {
    if (host.rejected.empty()) usable.push_back(host.host);
  }
  if (!request.primary.empty()) {
    const auto it = std::find(usable.begin(), usable.end(), request.primary);
    if (it == usable.end()) {
      return Error{Errc::refused,
                   0,
                   fmt::format("{} cannot be the primary: {}",
                               printable(request.primary),
                               rejected_list({*placement.score_of(request.primary)})),
                   "choose another --primary, or leave it to the score"};
    }
    std::rotate(usable.begin(), it, it + 1);
  }
  if (usable.size() < request.copies) {
    const std::string reasons = rejected_list(placement.hosts);
    return Error{Errc::refused,
                 0,
                 fmt::format("{} {} wanted, but only {} of {} hosts can take one{}{}",
                             request.copies,
                             request.copies == 1 ? "copy" : "copies",
                             usable.size(),
                             placement.hosts.size(),
                             reasons.empty() ? "" : "; ",
                             reasons),
                 usable.empty() ? "see `replicactl hosts`"
                                : fmt::format("--copies {} would do", usable.size())};
  }
  usable.resize(request.copies);
  placement.chosen = std::move(usable);
  return std::nullopt;
}

}  // namespace

double HostScore::group_score(const std::string& group) const {
  double sum = 0;
  double weight = 0;
  for (const ScoreTerm& term : terms) {
    if (term.group != group) continue;
    sum += term.score * term.weight;
    weight += term.weight;
  }
  return weight > 0 ? sum / weight : 0;
}

const HostScore* Placement::score_of(const std::string& host) const {
  const auto it =
      std::find_if(hosts.begin(), hosts.end(), [&](const HostScore& s) { return s.host == host; });
  return it == hosts.end() ? nullptr : &*it;
}

std::uint64_t reserve_bytes(std::uint64_t image_dir_bytes) {
  return std::min(image_dir_bytes / 20, reserve_bytes_max);
}

std::vector<ScoreTerm> score_terms(const HostFacts& facts,
                                   std::uint64_t bytes,
                                   const PlacementWeights& weights) {
  std::vector<ScoreTerm> terms;
  // A pressure the kernel does not measure drops out; its share goes to the others of the group.
  const double pressures =
      (facts.cpu_pressure_percent ? 0.25 : 0.0) + (facts.io_pressure_percent ? 0.25 : 0.0);
  const double load_share = 1.0 - pressures;
  const double load_per_cpu = facts.cpus >= 1 ? facts.load_1m / facts.cpus : facts.load_1m;
  terms.push_back({"load",
                   "load per cpu",
                   load_per_cpu,
                   "",
                   fade(load_per_cpu, 1.0),
                   weights.load * load_share});
  const auto add_pressure = [&](const char* name, const std::optional<double>& percent) {
    if (!percent) return;
    terms.push_back(
        {"load", name, *percent, "%", clamp01(1.0 - *percent / 100.0), weights.load * 0.25});
  };
  add_pressure("cpu pressure", facts.cpu_pressure_percent);
  add_pressure("io pressure", facts.io_pressure_percent);

  const double space_left = ratio(minus(facts.image_dir_free_bytes, bytes), facts.image_dir_bytes);
  const double memory_free = ratio(facts.memory_free_bytes, facts.memory_bytes);
  terms.push_back(
      {"capacity", "space left", space_left * 100, "%", space_left, weights.capacity * 0.5});
  terms.push_back(
      {"capacity", "memory free", memory_free * 100, "%", memory_free, weights.capacity * 0.5});

  const double uptime_days = std::max(0.0, facts.uptime_seconds) / 86400;
  const double uptime_score = clamp01(facts.uptime_seconds / uptime_saturation_seconds);
  terms.push_back(
      {"stability", "uptime", uptime_days, "days", uptime_score, weights.stability * 0.1});
  const auto add_count = [&](const char* name, double count, double half, double share) {
    terms.push_back({"stability", name, count, "", fade(count, half), weights.stability * share});
  };
  add_count("unclean restarts", facts.unclean_restarts, 1.0, 0.3);
  add_count("link losses", facts.link_losses, 4.0, 0.2);
  add_count("disk errors", facts.disk_errors, 0.5, 0.4);
  return terms;
}

Placement place(const std::vector<HostReport>& hosts, const PlacementRequest& request) {
  Placement placement;
  for (const HostReport& report : hosts)
    placement.hosts.push_back(judge(report, request));
  sort_scores(placement.hosts);
  placement.refusal = unknown_name(placement, request);
  if (!placement.refusal) placement.refusal = choose(placement, request);
  return placement;
}

std::vector<std::string> rank_hosts(const std::vector<HostReport>& hosts,
                                    const std::vector<std::string>& candidates) {
  std::vector<HostScore> scores;
  for (const HostReport& report : hosts) {
    if (!report.facts || !contains(candidates, report.name)) continue;
    HostScore& host = scores.emplace_back();
    host.host = report.name;
    for (const ScoreTerm& term : score_terms(*report.facts, 0, PlacementWeights())) {
      host.total += term.score * term.weight;
    }
  }
  sort_scores(scores);
  std::vector<std::string> names;
  names.reserve(scores.size());
  for (const HostScore& host : scores)
    names.push_back(host.host);
  return names;
}

}  // namespace replicad
