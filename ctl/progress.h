#pragma once
// How far a long job is: a bar on a terminal, else a line every ten seconds, and N/100 on a
// descriptor for scripts.

#include <chrono>
#include <cstdint>
#include <string>

#include "ctl/commands.h"
#include "ctl/context.h"

namespace replicad::ctl {

/// The value of --progress, -1 without one. Errors: Errc::invalid_argument if it is no descriptor to write to.
[[nodiscard]] Result<int> progress_option(const OptionValues& values);

class Progress {
 public:
  using Clock = std::chrono::steady_clock;

  /// `progress_fd`: where "N/100" lines go, -1 = nowhere. Otherwise everything goes to stderr;
  /// nothing with --quiet.
  Progress(Context& context, std::string label, int progress_fd);

  /// `total_bytes` 0 = not known yet.
  void update(std::uint64_t done_bytes,
              std::uint64_t total_bytes,
              Clock::time_point now = Clock::now());
  /// Ends the line of the bar.
  void finish();

 private:
  void write_percent(unsigned percent);
  [[nodiscard]] std::string figures(Clock::time_point now) const;

  Terminal& terminal_;
  bool shown_;
  bool bar_;
  std::string label_;
  int progress_fd_;
  Clock::time_point start_;
  std::uint64_t first_bytes_ = 0;
  Clock::time_point shown_at_;
  std::uint64_t done_bytes_ = 0;
  std::uint64_t total_bytes_ = 0;
  int percent_ = -1;
  std::size_t line_length_ = 0;
};

}  // namespace replicad::ctl
