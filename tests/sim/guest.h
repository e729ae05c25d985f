#pragma once
// The guest: several requests at once, overlapping, with a patient driver that sends what was not answered again to
// whichever export serves next.

#include <deque>
#include <map>
#include <memory>
#include <optional>

#include "tests/sim/options.h"
#include "tests/sim/oracle.h"

namespace replicad::sim {

class Cluster;
class Plugin;

class Guest {
 public:
  Guest(Cluster& cluster, World& world, const Options& options, GuestHistory& history);

  void start();
  void connect(const std::shared_ptr<Plugin>& plugin);
  void disconnect(const Plugin* plugin);
  void on_answer(const GuestOp& op, bool failed);
  void on_read(const GuestOp& op, bool failed, const std::vector<Stamp>& got);
  /// No new requests.
  void finish() { finished_ = true; }
  [[nodiscard]] bool is_idle() const { return open_.empty(); }
  [[nodiscard]] bool has_written_all() const { return written_ >= options_.writes; }
  [[nodiscard]] unsigned written() const { return written_; }
  [[nodiscard]] std::string describe() const;

 private:
  void think();
  void issue();
  void send(const GuestOp& op);
  void close(const GuestOp& op, bool failed);
  [[nodiscard]] Range draw_range();
  void clean_up(GuestOp& op);
  void begin_anew();

  Cluster& cluster_;
  World& world_;
  const Options& options_;
  GuestHistory& history_;
  std::weak_ptr<Plugin> plugin_;
  std::map<std::uint64_t, GuestOp> open_;
  std::uint64_t next_id_ = 1;
  unsigned written_ = 0;
  std::deque<Range> recent_;         ///< written lately, and not cleaned since
  std::optional<std::size_t> host_;  ///< that it was served by last
  std::uint64_t origin_ = 0;         ///< block behind which it writes most
  bool thinking_ = false;
  bool finished_ = false;
};

}  // namespace replicad::sim
