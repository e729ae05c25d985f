#pragma once
// QEMU's monitor in JSON (`-qmp unix:PATH,server=on,wait=off`), and a live migration over it. Main thread only.

#include <string>

#include <nlohmann/json.hpp>

#include "io/fd.h"
#include "tests/e2e/process.h"

namespace replicad::vm {

using e2e::Millis;
using nlohmann::json;

class Qmp {
 public:
  /// Waits for the socket.
  explicit Qmp(std::string path);

  /// What the command returns. Throws on its error.
  json ask(const std::string& command, const json& arguments = json::object());

 private:
  json next_line();

  std::string path_;
  Fd socket_;
  std::string received_;
};

struct MigrationTimes {
  Millis total{};
  Millis down{};  ///< neither VM ran
};

/// From now on `source` migrates to `uri`.
void begin_migration(Qmp& source, const std::string& uri);
/// "active", "pre-switchover", "completed", "failed", ..
std::string migration_state(Qmp& source);
void wait_migration(Qmp& source, const std::string& state);
MigrationTimes migration_times(Qmp& source);

}  // namespace replicad::vm
