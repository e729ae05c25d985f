// What goes wrong in a run of chaos.
#include <algorithm>
#include <csignal>

#include <fmt/format.h>

#include "tests/chaos/chaos_run.h"

namespace replicad::e2e {

void ChaosRun::inject() {
  const std::uint64_t dice = draw(100);
  if (dice < 18) return kill_daemon(any_host());
  if (dice < 30) return kill_export();
  if (dice < 48) {
    const auto found = cluster_.find_export("vm1", "vda");
    return kill_host(found && draw(3) != 0 ? found->host : any_host());
  }
  if (dice < 56) return pause_daemon(any_host());
  if (dice < 62) return pause_export();
  if (dice < 72) return isolate(any_host());
  if (dice < 80) {
    const std::string from = any_host();
    const std::string to = any_host();
    if (from != to) cut(from, to);
    return;
  }
  if (dice < 88) return fill_disk(any_copy());
  switch_over();
}

void ChaosRun::until(Millis from, Millis to, std::function<void()> undo) {
  const auto span = static_cast<std::uint64_t>((to - from).count());
  endings_.push_back({Clock::now() + from + Millis(draw(span + 1)), std::move(undo)});
}

void ChaosRun::end_faults(bool all) {
  const auto now = Clock::now();
  std::vector<Ending> due;
  std::erase_if(endings_, [&](const Ending& ending) {
    const bool is_due = all || ending.at <= now;
    if (is_due) due.push_back(ending);
    return is_due;
  });
  for (const Ending& ending : due)
    ending.undo();
  // Some end only when another one has.
  if (all && !endings_.empty()) end_faults(true);
}

/// Export pid on the host; 0 if there is none, or its daemon cannot tell.
pid_t ChaosRun::export_of(const std::string& host) {
  if (down_.contains(host) || stopped_.contains(host)) return 0;
  const auto view = cluster_.host(host).get("/v1/volumes/vm1");
  if (!view || !view->contains("export") || !view->at("export").is_object()) return 0;
  return view->at("export").at("pid").get<pid_t>();
}

void ChaosRun::start_daemon(const std::string& host) {
  if (!down_.contains(host)) return;
  cluster_.host(host).launch();
  down_.erase(host);
}

void ChaosRun::kill_daemon(const std::string& host) {
  if (down_.contains(host) || stopped_.contains(host)) return;
  say("kill -9 of replicad on " + host);
  note("kills of replicad");
  cluster_.host(host).kill9();
  down_.insert(host);
  until(Millis(50), Millis(3000), [this, host] { start_daemon(host); });
}

void ChaosRun::kill_export() {
  const auto found = cluster_.find_export("vm1", "vda");
  const pid_t pid = found ? export_of(found->host) : 0;
  if (pid == 0) return;
  say("kill -9 of the export on " + found->host);
  note("kills of the export");
  ::kill(pid, SIGKILL);
}

void ChaosRun::kill_host(const std::string& host) {
  if (down_.contains(host) || stopped_.contains(host)) return;
  const pid_t pid = export_of(host);
  say(fmt::format("kill -9 of all on {}{}", host, pid == 0 ? "" : ", the primary"));
  note(pid == 0 ? "kills of replicad" : "kills of the primary's host");
  if (pid != 0) ::kill(pid, SIGKILL);
  cluster_.host(host).kill9();
  down_.insert(host);
  until(Millis(500), Millis(8000), [this, host] { start_daemon(host); });
}

void ChaosRun::pause_daemon(const std::string& host) {
  if (down_.contains(host) || stopped_.contains(host)) return;
  say("SIGSTOP of replicad on " + host);
  note("pauses of replicad");
  cluster_.host(host).signal(SIGSTOP);
  stopped_.insert(host);
  until(Millis(100), Millis(5000), [this, host] {
    cluster_.host(host).signal(SIGCONT);
    stopped_.erase(host);
  });
}

void ChaosRun::pause_export() {
  const auto found = cluster_.find_export("vm1", "vda");
  const pid_t pid = found ? export_of(found->host) : 0;
  if (pid == 0) return;
  say("SIGSTOP of the export on " + found->host);
  note("pauses of the export");
  ::kill(pid, SIGSTOP);
  until(Millis(100), Millis(5000), [pid] { ::kill(pid, SIGCONT); });
}

void ChaosRun::isolate(const std::string& host) {
  say(host + " is isolated");
  note("isolations");
  world_.isolate(host);
  until(Millis(200), Millis(6000), [this, host] { world_.reconnect(host); });
}

void ChaosRun::cut(const std::string& from, const std::string& to) {
  say(fmt::format("what {} sends to {} is lost", from, to));
  note("one-way cuts");
  world_.cut(from, to);
  until(Millis(200), Millis(6000), [this, from, to] { world_.mend(from, to); });
}

void ChaosRun::fill_disk(const std::string& host) {
  say("the disk of " + host + " is full");
  note("full disks");
  world_.fill_disk(host, draw(4) * (128 << 10));
  until(Millis(500), Millis(4000), [this, host] { world_.free_disk(host); });
}

}  // namespace replicad::e2e
