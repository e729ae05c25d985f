#include "tests/power/scenario.h"

#include <algorithm>
#include <cstring>

#include "replicad/trail_file.h"

namespace replicad {

namespace {

constexpr std::uint64_t image_bytes_each = 4 * mib;
const std::vector<std::uint64_t> disk_sizes{image_bytes_each};

std::unique_ptr<Reactor> recording_reactor() {
  auto ring = create_uring_ring(256);
  REQUIRE(ring.has_value());
  return create_reactor(create_recording_ring(std::move(*ring)));
}

/// A host whose disk is recorded, and its primary.
class RecordedHost {
 public:
  explicit RecordedHost(std::mt19937_64& random)
      : random_(random),
        reactor_(recording_reactor()),
        host_(reactor_, directory_.path(), disk_sizes),
        primary_(disk_sizes) {
    // Often so small that segments are used again and again.
    host_.change_state([&](VolumeState& state) {
      state.settings.log_bytes = (log_segments_min + random_() % 3) * segment_bytes_min;
    });
    host_.keep_state_file();
    recorder_.emplace(directory_.path());
    const Status opened = host_.open();
    REQUIRE(opened.has_value());
  }

  ReplicaHost& host() { return host_; }
  FakePrimary& primary() { return primary_; }
  void mark(const std::string& what, std::uint64_t value) { recorder_->mark(what, value); }

  void attach() {
    primary_.resume(host_);
    mark("epoch", primary_.epoch.number);
  }
  void change(std::size_t length_max) {
    const std::uint64_t offset = random_() % (image_bytes_each / 512 - 600) * 512;
    const std::size_t length = 1 + random_() % length_max;
    switch (random_() % 12) {
      case 0:
        primary_.trim(0, offset, length);
        break;
      case 1:
        primary_.zero(0, offset, length, false);
        break;
      case 2:
        primary_.flush();
        break;
      default:
        primary_.write_pattern(
            0, offset, length, random_(), random_() % 4 == 0 ? frame_flag_fua : 0);
    }
    primary_.send(primary_.history.back());
  }
  void wait_durable() {
    primary_.send(primary_.flush());
    const Sequence last = primary_.point.sequence;
    primary_.wait_marks([last](const Watermarks& at) { return at.durable >= last; });
    mark("durable", primary_.marks.durable);
  }
  ReplicaScenario finish() {
    host_.kill();
    primary_.disconnect();
    return {recorder_->finish(), std::move(primary_), image_bytes_each};
  }

 private:
  std::mt19937_64& random_;
  TempDirectory directory_;
  ReactorThread reactor_;
  ReplicaHost host_;
  FakePrimary primary_;
  std::optional<DiskRecorder> recorder_;
};

/// The primary's image after the first `count` frames.
std::vector<std::byte> image_at(const ReplicaScenario& scenario, Sequence count) {
  std::vector<std::byte> image(scenario.disk_bytes);
  for (Sequence i = 0; i < count; ++i) {
    const std::vector<std::byte>& frame = scenario.primary.history[i];
    const auto header = decode_header(
        std::span<const std::byte, frame_header_bytes>(frame.data(), frame_header_bytes));
    REQUIRE(header.has_value());
    std::byte* at = image.data() + header->range.offset_bytes;
    if (header->type == FrameType::write) {
      std::memcpy(at, frame.data() + frame_header_bytes, header->range.length_bytes);
    } else {
      std::memset(at, 0, header->range.length_bytes);
    }
  }
  return image;
}

std::optional<std::string> check_promises(const ReplicaScenario& scenario,
                                          const CrashState& crash,
                                          const VolumeState& state) {
  const auto promised = [&](const char* what) { return scenario.record.marked(what, crash.at); };
  if (state.epoch.number < promised("epoch")) {
    return fmt::format(
        "epoch {} was promised, {} is recorded", promised("epoch"), state.epoch.number);
  }
  if (const Sequence copied = promised("copied"); copied > 0) {
    if (!state.consistent || state.checkpoint.sequence < copied) {
      return fmt::format("copied up to {}, but the state says {} at {}",
                         copied,
                         state.consistent ? "consistent" : "inconsistent",
                         state.checkpoint.sequence);
    }
  }
  return std::nullopt;
}

/// Where the trail counts, it has every change between its base and the checkpoint.
std::optional<std::string> check_trail(const ReplicaScenario& scenario,
                                       const std::string& directory,
                                       const VolumeState& state) {
  if (!state.consistent || state.stage_bytes) return std::nullopt;
  const auto found = load_trail(directory, state.uuid, disk_sizes, state.checkpoint);
  if (!found) return std::nullopt;
  for (Sequence n = found->trail.base() + 1; n <= state.checkpoint.sequence; ++n) {
    const std::vector<std::byte>& frame = scenario.primary.history[n - 1];
    const auto header = decode_header(
        std::span<const std::byte, frame_header_bytes>(frame.data(), frame_header_bytes));
    REQUIRE(header.has_value());
    if (header->range.length_bytes == 0) continue;
    const auto changed = found->trail.changed_since(n - 1);
    const bool is_told = std::ranges::any_of(
        changed, [&](const Range& range) { return overlaps(range, header->range); });
    if (!is_told)
      return fmt::format("the trail from {} does not know of {}", found->trail.base(), n);
  }
  return std::nullopt;
}

/// A consistent replica: what the log proves, and what the image is when that has been applied.
std::optional<std::string> check_prefix(const ReplicaScenario& scenario,
                                        const CrashState& crash,
                                        ReplicaHost& host) {
  const HistoryPoint logged = host.status().logged;
  const auto& points = scenario.primary.points;
  if (logged.sequence >= points.size() || logged != points[logged.sequence])
    return fmt::format("the log ends at sequence {}, which is not of the history", logged.sequence);
  if (const Sequence durable = scenario.record.marked("durable", crash.at);
      logged.sequence < durable)
    return fmt::format("durable up to {} was reported, the log has {}", durable, logged.sequence);
  ReplicaStatus status;
  const bool ended = wait_until([&] {
    status = host.status();
    return (status.marks.applied == logged.sequence && !status.unstaging) ||
           status.state == "failed";
  });
  if (!ended || status.state == "failed")
    return fmt::format("applying ends at {} of {}", status.marks.applied, logged.sequence);
  if (host.image(0) != image_at(scenario, logged.sequence))
    return fmt::format("image and log are not the writes 1..{}", logged.sequence);
  return std::nullopt;
}

/// The images alone, before anything is recovered.
std::optional<std::string> check_promoted(const ReplicaScenario& scenario,
                                          const CrashState& crash) {
  const Sequence promoted = scenario.record.marked("promoted", crash.at);
  if (promoted == 0) return std::nullopt;
  if (crash.contents.at(crash.names.at("disk0.raw")) != image_at(scenario, promoted))
    return fmt::format("promoted at {}, but the image lacks something", promoted);
  return std::nullopt;
}

}  // namespace

ReplicaScenario record_stream(std::mt19937_64& random) {
  RecordedHost recorded(random);
  recorded.attach();
  for (int i = 0; i < 90; ++i) {
    recorded.change(250'000);
    if (random() % 6 == 0) recorded.wait_durable();
  }
  recorded.primary().wait_applied();
  recorded.host().kill();
  recorded.primary().disconnect();
  recorded.host().reopen();
  recorded.primary().epoch = {5, 99};
  recorded.attach();
  for (int i = 0; i < 60; ++i) {
    recorded.change(250'000);
    if (random() % 6 == 0) recorded.wait_durable();
  }
  recorded.wait_durable();
  recorded.primary().wait_applied();
  const HistoryPoint point = recorded.primary().point;
  REQUIRE(recorded.host().promote({7, 1}, point).has_value());
  recorded.mark("epoch", 7);
  recorded.mark("promoted", point.sequence);
  return recorded.finish();
}

namespace {

ReplicaScenario record_copying(std::mt19937_64& random, bool in_place) {
  RecordedHost recorded(random);
  FakePrimary& primary = recorded.primary();
  recorded.attach();
  for (int i = 0; i < 12; ++i)
    recorded.change(100'000);
  recorded.wait_durable();
  primary.disconnect();
  // What it does not get to see is in the copy.
  for (int i = 0; i < 12; ++i)
    primary.write_pattern(0, random() % 3 * mib, 200'000, random());
  primary.attach(recorded.host());
  primary.send(encode_start({.copy = true, .after = primary.point.sequence, .in_place = in_place}));
  recorded.mark("copying", 1);
  constexpr std::uint64_t piece = 256 * kib;
  for (std::uint64_t offset = 0; offset < image_bytes_each; offset += piece) {
    const auto begin = primary.images[0].begin() + static_cast<std::ptrdiff_t>(offset);
    const std::vector<std::byte> data(begin, begin + static_cast<std::ptrdiff_t>(piece));
    primary.send(primary.frame(FrameType::copy_data, {0, offset, piece}, data));
    primary.send(primary.write_pattern(0, random() % (3 * mib), 30'000, random()));
  }
  primary.finish_copy();
  recorded.mark("copied", primary.point.sequence);
  for (int i = 0; i < 6; ++i)
    recorded.change(100'000);
  recorded.wait_durable();
  primary.wait_applied();
  return recorded.finish();
}

}  // namespace

ReplicaScenario record_copy(std::mt19937_64& random) {
  return record_copying(random, true);
}

ReplicaScenario record_staged_copy(std::mt19937_64& random) {
  ReplicaScenario scenario = record_copying(random, false);
  scenario.stays_consistent = true;
  return scenario;
}

std::optional<std::string> check_replica(ReactorThread& reactor,
                                         const ReplicaScenario& scenario,
                                         const CrashState& crash) {
  const TempDirectory directory;
  crash.write_to(directory.path());
  auto state = StateStore::load(directory.path() + "/state");
  if (!state) return fmt::format("the state file: {}", state.error().message);
  state->disks[0].path = directory.path() + "/disk0.raw";
  // The file is a new one; that its content is what the mark says is looked at all the same.
  state->disks[0].mark.identity.clear();
  state->disks[0].mark.modified_ns.reset();
  if (auto broken = check_promises(scenario, crash, *state)) return broken;
  if (auto broken = check_promoted(scenario, crash)) return broken;
  if (auto broken = check_trail(scenario, directory.path(), *state)) return broken;
  const bool consistent = state->consistent;
  if (!consistent && scenario.stays_consistent) return "it is inconsistent";
  ReplicaHost host(reactor, directory.path(), std::move(*state));
  const Status opened = host.open();
  if (!opened) return fmt::format("it does not open: {}", opened.error().message);
  return consistent ? check_prefix(scenario, crash, host) : std::nullopt;
}

std::optional<std::string> find_failure(const ReplicaScenario& scenario,
                                        int count,
                                        const IgnoredSync& ignored,
                                        std::mt19937_64& random) {
  ReactorThread reactor;
  for (int i = 0; i < count; ++i) {
    const Moment at = 1 + random() % scenario.record.last;
    const auto kind = static_cast<CrashKind>(random() % crash_kinds);
    const CrashState crash = make_crash_state(scenario.record, at, kind, ignored, random);
    if (auto broken = check_replica(reactor, scenario, crash)) {
      return fmt::format(
          "power lost at {} of {}, {}: {}", at, scenario.record.last, to_text(kind), *broken);
    }
  }
  return std::nullopt;
}

bool was_named(const DiskRecord& record, FileId file, const std::string& prefix) {
  for (const auto& [name, id] : record.names) {
    if (id == file && name.starts_with(prefix)) return true;
  }
  return std::any_of(
      record.operations.begin(), record.operations.end(), [&](const DiskOperation& operation) {
        return operation.file == file &&
               (operation.name.starts_with(prefix) || operation.target.starts_with(prefix));
      });
}

}  // namespace replicad
