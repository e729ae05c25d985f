#include "tests/vm/qmp.h"

#include <array>

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io/net.h"

namespace replicad::vm {

using e2e::HarnessError;
using e2e::wait_until;

namespace {

/// Under TCG, on a machine that does other things as well.
constexpr Millis answer_patience(60'000);
constexpr Millis migration_patience(180'000);

}  // namespace

Qmp::Qmp(std::string path) : path_(std::move(path)) {
  wait_until("QEMU's monitor at " + path_, answer_patience, [this] {
    auto connected = connect_blocking("unix:" + path_, 1'000);
    if (connected) socket_ = std::move(*connected);
    return connected.has_value();
  });
  next_line();  // the greeting
  ask("qmp_capabilities");
}

json Qmp::next_line() {
  const auto end = std::chrono::steady_clock::now() + answer_patience;
  std::size_t at = received_.find('\n');
  for (; at == std::string::npos; at = received_.find('\n')) {
    const auto left = std::chrono::duration_cast<Millis>(end - std::chrono::steady_clock::now());
    pollfd ready{socket_.get(), POLLIN, 0};
    if (left.count() <= 0 || ::poll(&ready, 1, static_cast<int>(left.count())) <= 0)
      throw HarnessError("no answer of QEMU's monitor at " + path_);
    std::array<char, 4096> some{};
    const ssize_t got = ::read(socket_.get(), some.data(), some.size());
    if (got <= 0) throw HarnessError("QEMU's monitor has ended at " + path_);
    received_.append(some.data(), static_cast<std::size_t>(got));
  }
  const std::string line = received_.substr(0, at);
  received_.erase(0, at + 1);
  return json::parse(line);
}

json Qmp::ask(const std::string& command, const json& arguments) {
  const std::string text = json{{"execute", command}, {"arguments", arguments}}.dump() + "\n";
  if (::send(socket_.get(), text.data(), text.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(text.size()))
    throw HarnessError("QEMU's monitor has ended at " + path_);
  while (true) {
    const json line = next_line();
    if (line.contains("return")) return line["return"];
    if (line.contains("error")) throw HarnessError(fmt::format("{}: {}", command, line.dump()));
  }
}

void begin_migration(Qmp& source, const std::string& uri) {
  source.ask("migrate", {{"uri", uri}});
}

std::string migration_state(Qmp& source) {
  return source.ask("query-migrate").value("status", "none");
}

void wait_migration(Qmp& source, const std::string& state) {
  std::string last;
  try {
    wait_until("the migration is " + state, migration_patience, [&] {
      last = migration_state(source);
      const bool ended = last == "completed" || last == "failed" || last == "cancelled";
      if (ended && last != state) throw HarnessError("it is " + source.ask("query-migrate").dump());
      return last == state;
    });
  } catch (const HarnessError& error) {
    throw HarnessError(fmt::format("{} ({}, not {})", error.what(), last, state));
  }
}

MigrationTimes migration_times(Qmp& source) {
  const json answer = source.ask("query-migrate");
  return {Millis(answer.at("total-time").get<std::int64_t>()),
          Millis(answer.at("downtime").get<std::int64_t>())};
}

}  // namespace replicad::vm
