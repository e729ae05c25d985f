// P7 over crashes: wherever a member's image differs from the primary's, the
// frames in the ring, the dirty map, or the activity file of the term before
// say so. RD_SEED=n replays one run.

#include <array>
#include <map>
#include <random>

#include "tests/plugin/activity_term.h"

namespace replicad {
namespace {

constexpr std::size_t regions = 12;
/// The last change of each region, by its sequence.
using Versions = std::array<Sequence, regions>;

struct Reached {
  int streams = 0;
  int resyncs = 0;
  int continued = 0;
  int wholes = 0;
  int crashes = 0;
  int stops = 0;
  int cooled = 0;
};

class Run {
 public:
  explicit Run(std::uint64_t seed) : random_(seed) { open({{1, 1}, 100, {5, 6}}, false); }

  void step() {
    Member& member = members_[chance(50) ? "b" : "c"];
    const std::string host = &member == &members_["b"] ? "b" : "c";
    const auto what = random_() % 100;
    if (what < 35) {
      write(random_() % regions);
    } else if (what < 50) {
      if (!member.is_attached) attach(host, member);
    } else if (what < 70) {
      if (member.is_streaming) take(host, member);
    } else if (what < 76) {
      if (member.is_attached) lose(host, member, chance(50));
    } else if (what < 94) {
      const std::size_t before = term_->activity->hot_regions();
      for (int pass = 0; pass < 5; ++pass)
        cool();
      if (term_->activity->hot_regions() < before) ++reached.cooled;
    } else if (what < 97) {
      crash(chance(50));
    } else {
      stop();
    }
  }

  Reached reached;

 private:
  struct Member {
    bool is_attached = false;
    bool is_streaming = false;
    bool is_consistent = true;
    std::optional<Epoch> resync;
    HistoryPoint base;
    HistoryPoint logged{{1, 1}, 100, {5, 6}};
    HistoryPoint durable{{1, 1}, 100, {5, 6}};
    Versions image{};
    Versions durable_image{};
  };

  bool chance(unsigned percent) { return random_() % 100 < percent; }

  void open(const HistoryPoint& history, bool unclean) {
    ++number_;
    term_ = std::make_unique<PrimaryTerm>(temp_, number_, history, unclean, ring_bytes_min);
    history_ = {{history.sequence, {history, regions}}};
  }
  void write(std::size_t region) {
    if (!term_->write(region * region_bytes, mib)) return;
    const HistoryPoint point = term_->primary->history();
    image_[region] = point.sequence;
    history_[point.sequence] = {point, region};
  }
  void sync_images() { durable_image_ = image_; }
  void cool() {
    term_->activity->cool({.look = [this](const auto& function) { function(*term_->primary); },
                           .sync_images =
                               [this] {
                                 sync_images();
                                 return true;
                               }});
  }

  void attach(const std::string& host, Member& member) {
    const PeerIndex peer = term_->primary->find_peer(host).value();
    AttachedMessage message;
    message.consistent = member.is_consistent;
    message.resync = member.resync;
    message.logged = member.is_consistent ? member.logged
                     : member.resync      ? member.base
                                          : HistoryPoint{};
    message.durable = member.is_consistent ? member.durable.sequence : 0;
    term_->step(primary_event::PeerAttached{peer, message});
    member.is_attached = true;
    if (start_of(peer)) return begin(host, member);
    // A copy that waits its time.
    std::vector<PrimaryEffect> effects;
    term_->primary->step(
        primary_event::Tick{}, boot_time_now() + std::chrono::hours(1) * ++ticks_, effects);
    term_->effects = effects;
    if (start_of(peer)) begin(host, member);
  }
  [[nodiscard]] const StartMessage* start_of(PeerIndex peer) const {
    for (const PrimaryEffect& effect : term_->effects) {
      const auto* start = std::get_if<primary_effect::StartPeer>(&effect);
      if (start != nullptr && start->peer == peer) return &start->message;
    }
    return nullptr;
  }
  void begin(const std::string& host, Member& member) {
    const PeerIndex peer = term_->primary->find_peer(host).value();
    const StartMessage start = *start_of(peer);
    if (!start.copy) {
      ++reached.streams;
      member.is_streaming = true;
      return;
    }
    std::shared_ptr<const ResyncPlan> plan;
    for (const PrimaryEffect& effect : term_->effects) {
      const auto* run = std::get_if<primary_effect::RunCopy>(&effect);
      if (run != nullptr && run->peer == peer) plan = run->plan;
    }
    REQUIRE(plan);
    ++(start.keep ? member.is_consistent ? reached.resyncs : reached.continued : reached.wholes);
    copy(host, member, start, *plan);
  }
  void copy(const std::string& host,
            Member& member,
            const StartMessage& start,
            const ResyncPlan& plan) {
    const PeerIndex peer = term_->primary->find_peer(host).value();
    if (start.keep) {
      if (member.is_consistent) {
        member.base = member.logged;
        member.durable_image = member.image;  // the log is applied and synced first
      }
      member.resync = term_->primary->epoch();
    } else {
      member.resync.reset();
    }
    member.is_consistent = false;
    const bool ends = chance(70);
    for (std::size_t region = 0; region < regions; ++region) {
      const Range range{0, region * region_bytes, region_bytes};
      const bool is_planned = plan.send.overlaps_any(range) || plan.compare.overlaps_any(range);
      INFO(host, " region ", region, " has ", member.image[region], " not ", image_[region]);
      REQUIRE((is_planned || member.image[region] == image_[region]));
      if (is_planned && (ends || chance(50))) member.image[region] = image_[region];
    }
    if (!ends) return lose(host, member, chance(50));
    term_->step(primary_event::CopyEnding{peer});
    const auto point = term_->primary->copy_end(peer);
    REQUIRE(point.has_value());
    member.is_consistent = true;
    member.resync.reset();
    member.logged = member.durable = *point;
    member.durable_image = member.image;
    if (chance(10)) return lose(host, member, false);  // copy_done does not arrive
    term_->step(primary_event::CopyDone{peer, *point});
    member.is_streaming = true;
  }

  /// Takes some frames, makes some of them durable, reports.
  void take(const std::string& host, Member& member) {
    const PeerIndex peer = term_->primary->find_peer(host).value();
    const auto window = term_->primary->take(peer, 1 + random_() % (4 * mib));
    term_->step(primary_event::PeerSent{peer, window.end_bytes - window.begin_bytes});
    const HistoryPoint taken = term_->primary->taken_point(peer);
    for (auto at = history_.upper_bound(member.logged.sequence);
         at != history_.end() && at->first <= taken.sequence;
         ++at) {
      member.image[at->second.second] = at->first;
    }
    member.logged = taken;
    if (chance(50)) {
      member.durable = taken;
      member.durable_image = member.image;
    }
    term_->step(primary_event::PeerMarks{peer,
                                         {taken.sequence,
                                          taken.sequence,
                                          member.durable.sequence,
                                          taken.sequence,
                                          taken.digest,
                                          taken.digest}});
    if (taken == term_->primary->history()) CHECK(member.image == image_);
  }
  void lose(const std::string& host, Member& member, bool host_crashes) {
    member.is_attached = member.is_streaming = false;
    if (host_crashes && member.is_consistent) {
      member.logged = member.durable;
      member.image = member.durable_image;
    } else if (host_crashes) {
      for (std::size_t region = 0; region < regions; ++region) {
        if (chance(50)) member.image[region] = member.durable_image[region];
      }
    }
    member.durable_image = member.image;
    member.durable = member.logged;
    term_->lose(host);
  }
  void end_sessions() {
    for (auto& [host, member] : members_)
      if (member.is_attached) lose(host, member, false);
  }
  void crash(bool host) {
    ++reached.crashes;
    end_sessions();
    for (std::size_t region = 0; host && region < regions; ++region) {
      if (chance(50)) image_[region] = durable_image_[region];
    }
    // Else the kernel's memory stays what it was, and is not on the disk yet.
    if (host) sync_images();
    open(behind_crash(number_ + 1), true);
  }
  void stop() {
    ++reached.stops;
    sync_images();
    REQUIRE(term_->finish().has_value());
    const HistoryPoint point = term_->primary->history();
    end_sessions();
    open(point, false);
  }

  std::mt19937_64 random_;
  TempPath temp_;
  std::uint64_t number_ = 1;
  int ticks_ = 0;
  std::unique_ptr<PrimaryTerm> term_;
  std::map<Sequence, std::pair<HistoryPoint, std::size_t>> history_;  ///< of this term
  Versions image_{};
  Versions durable_image_{};
  std::map<std::string, Member> members_{{"b", {}}, {"c", {}}};
};

TEST_CASE("activity: wherever images differ, something says so, over any crashes") {
  const char* given = std::getenv("RD_SEED");
  const std::uint64_t first =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  Reached all;
  const int runs = given != nullptr ? 1 : 60;
  for (int i = 0; i < runs; ++i) {
    const std::uint64_t seed = first + static_cast<std::uint64_t>(i);
    CAPTURE(seed);
    Run run(seed);
    for (int step = 0; step < 400; ++step)
      run.step();
    all.streams += run.reached.streams;
    all.resyncs += run.reached.resyncs;
    all.continued += run.reached.continued;
    all.wholes += run.reached.wholes;
    all.crashes += run.reached.crashes;
    all.stops += run.reached.stops;
    all.cooled += run.reached.cooled;
  }
  MESSAGE("RD_SEED=",
          first,
          " streams ",
          all.streams,
          ", resyncs ",
          all.resyncs,
          ", continued ",
          all.continued,
          ", whole ",
          all.wholes,
          ", crashes ",
          all.crashes,
          ", stops ",
          all.stops,
          ", cooled ",
          all.cooled);
  if (given != nullptr) return;
  CHECK(all.streams > runs);
  CHECK(all.resyncs > 4 * runs);
  CHECK(all.continued > runs / 2);
  CHECK(all.crashes > runs);
  CHECK(all.stops > runs);
  CHECK(all.cooled > runs);
}

}  // namespace
}  // namespace replicad
