#pragma once
// Where the hosts of a chaos run live: each has a network namespace of its own, on one bridge, and a
// small ext4 file system of its own. Needs root. Everything is taken down with the object.

#include <cstdint>
#include <string>
#include <vector>

namespace replicad::e2e {

class SmallWorld {
 public:
  /// Errors: HarnessError that says what of root, `ip netns` and loop devices is missing.
  SmallWorld(std::string directory,
             const std::vector<std::string>& hosts,
             std::uint64_t disk_bytes);
  SmallWorld(const SmallWorld&) = delete;
  SmallWorld& operator=(const SmallWorld&) = delete;
  ~SmallWorld();

  /// Put before a program that shall run on the host.
  [[nodiscard]] std::vector<std::string> launcher(const std::string& host) const;
  [[nodiscard]] std::string address(const std::string& host) const;
  /// Where the host's file system is mounted.
  [[nodiscard]] std::string disk(const std::string& host) const;

  /// Nobody reaches the host, and it reaches nobody.
  void isolate(const std::string& host);
  void reconnect(const std::string& host);
  /// What `from` sends to `to` is lost; the other direction is as it was.
  void cut(const std::string& from, const std::string& to);
  void mend(const std::string& from, const std::string& to);
  /// Fills the host's file system but for `left_bytes`.
  void fill_disk(const std::string& host, std::uint64_t left_bytes);
  void free_disk(const std::string& host);

 private:
  void build_network();
  void build_disk(const std::string& host, std::uint64_t bytes);
  void take_down();
  [[nodiscard]] std::string space_of(const std::string& host) const { return id_ + "-" + host; }
  [[nodiscard]] std::string link_of(const std::string& host) const { return id_ + host; }
  [[nodiscard]] std::size_t index_of(const std::string& host) const;

  std::string directory_;
  std::vector<std::string> hosts_;
  std::string id_;  ///< begins the names of all that is made
  unsigned subnet_ = 0;
};

}  // namespace replicad::e2e
