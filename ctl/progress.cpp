#include "ctl/progress.h"

#include <algorithm>

#include <fcntl.h>
#include <unistd.h>

#include "core/control/text.h"

namespace replicad::ctl {

namespace {

constexpr auto line_every = std::chrono::seconds(10);
constexpr auto bar_every = std::chrono::milliseconds(200);
constexpr unsigned bar_columns = 30;

}  // namespace

Result<int> progress_option(const OptionValues& values) {
  if (values.count("progress") == 0) return -1;
  const int fd = values["progress"].as<int>();
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags >= 0 && (flags & O_ACCMODE) != O_RDONLY) return fd;
  return with_hint(
      fail(Errc::invalid_argument, "--progress={}: no descriptor that is open for writing", fd),
      "open it in the shell, as in: replicactl ... --progress=3 3>progress.txt");
}

Progress::Progress(Context& context, std::string label, int progress_fd)
    : terminal_(context.terminal()),
      shown_(!context.options().quiet && !context.options().json),
      bar_(context.terminal().err_is_tty),
      label_(std::move(label)),
      progress_fd_(progress_fd),
      start_(Clock::now()),
      shown_at_(start_) {}

void Progress::update(std::uint64_t done_bytes, std::uint64_t total_bytes, Clock::time_point now) {
  if (total_bytes_ == 0) {
    first_bytes_ = done_bytes;
    start_ = now;
  }
  total_bytes_ = total_bytes;
  done_bytes_ = std::min(done_bytes, total_bytes);
  if (total_bytes == 0) return;
  const auto percent =
      static_cast<int>(static_cast<double>(done_bytes_) * 100.0 / static_cast<double>(total_bytes));
  const bool moved = percent != percent_;
  percent_ = percent;
  if (moved) write_percent(static_cast<unsigned>(percent));
  if (!shown_) return;
  if (bar_) {
    if (!moved && now - shown_at_ < bar_every) return;
    const auto filled = static_cast<unsigned>(percent) * bar_columns / 100;
    std::string line = fmt::format("{} [{}{}] {}",
                                   label_,
                                   std::string(filled, '#'),
                                   std::string(bar_columns - filled, '.'),
                                   figures(now));
    const std::size_t length = line.size();
    if (length < line_length_) line.append(line_length_ - length, ' ');
    line_length_ = length;
    terminal_.err << '\r' << line << std::flush;
  } else {
    if (percent < 100 && now - shown_at_ < line_every) return;
    if (percent == 100 && !moved) return;
    terminal_.err << label_ << ": " << figures(now) << '\n' << std::flush;
  }
  shown_at_ = now;
}

void Progress::finish() {
  if (shown_ && bar_ && line_length_ > 0) terminal_.err << '\n' << std::flush;
  line_length_ = 0;
}

void Progress::write_percent(unsigned percent) {
  if (progress_fd_ < 0) return;
  const std::string text = fmt::format("{}/100\n", percent);
  // A reader that has gone does not end the job.
  if (::write(progress_fd_, text.data(), text.size()) < 0) progress_fd_ = -1;
}

std::string Progress::figures(Clock::time_point now) const {
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const std::uint64_t moved = done_bytes_ > first_bytes_ ? done_bytes_ - first_bytes_ : 0;
  std::string text =
      fmt::format("{}%  {} of {}", percent_, format_bytes(done_bytes_), format_bytes(total_bytes_));
  if (seconds > 0.2 && moved > 0) {
    const double rate = static_cast<double>(moved) / seconds;
    text += fmt::format("  {}/s", format_bytes(static_cast<std::uint64_t>(rate)));
    const double left = static_cast<double>(total_bytes_ - done_bytes_) / rate;
    if (done_bytes_ < total_bytes_) text += fmt::format("  {} left", format_seconds(left));
  }
  return text;
}

}  // namespace replicad::ctl
