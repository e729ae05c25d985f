#pragma once
// Voters and proposers of one volume in a network that loses, delays, repeats and reorders, with hosts
// that crash at any moment and keep only what was durable. What is chosen is found out by looking at
// all voters at once, which no proposer can.

#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "core/vote/proposer.h"

namespace replicad {

/// Bugs that the checks must find.
enum class PlantedBug {
  none,
  promise_not_durable,   ///< a crash makes a voter forget what it promised
  accept_below_promise,  ///< a voter accepts whatever comes
  own_tie_break,         ///< with an even number of voters everybody counts its own vote twice
  no_quorum_before,      ///< a change of voters needs only the new ones
  build_on_unchosen,     ///< what was only seen is taken for chosen
  put_back_votes,        ///< a voter whose state was put back goes on with that
  put_back_low_round,    ///< it comes back by a ballot like any other
  count
};

class VoteWorld {
 public:
  VoteWorld(std::uint32_t seed, PlantedBug bug);

  /// Faults and proposals. Returns what was violated; empty if nothing.
  std::string run(unsigned steps);
  /// No more faults: the recorded primary must get a new term. Returns what went wrong.
  std::string converge();

  [[nodiscard]] std::size_t chosen_count() const { return chosen_.size(); }
  [[nodiscard]] std::size_t done_count() const { return done_; }
  [[nodiscard]] std::size_t voter_changes() const { return voter_changes_; }
  /// States that were put back, and voters that came back from that.
  [[nodiscard]] std::size_t put_back_count() const { return put_back_; }
  [[nodiscard]] std::size_t come_back_count() const { return come_back_; }

 private:
  struct Host {
    VoterState voter;
    VoterState durable;
    std::unique_ptr<Proposer> proposer;
    bool backing_off = false;
    std::optional<VoterState> backup;
    bool put_back = false;   ///< an older copy: no vote until it has come back
    bool returning = false;  ///< the proposer is for that
  };
  using Payload = std::variant<PrepareRequest, AcceptRequest, ChosenNotice, ProposerEvent>;
  struct Message {
    std::string to;
    std::string from;
    Payload payload;
  };

  std::uint32_t below(std::uint32_t limit) { return static_cast<std::uint32_t>(random_() % limit); }
  bool chance(std::uint32_t percent) { return below(100) < percent; }
  std::string any_host() { return names_[below(static_cast<std::uint32_t>(names_.size()))]; }
  void fail_with(const std::string& what);
  void step();
  void propose(const std::string& name, RecordChange change);
  [[nodiscard]] RecordChange random_change(const std::string& name);
  [[nodiscard]] RecordChange watched(RecordChange change);
  void feed(const std::string& name, const ProposerEvent& event);
  void crash(const std::string& name);
  void wipe(const std::string& name);
  void use_backup(const std::string& name);
  void put_back(const std::string& name);
  void come_back(const std::string& name);
  void deliver();
  void handle(const Message& message);
  void answer(const Message& message, const ProposerEvent& event);
  void note_accept(const std::string& name, const AcceptRequest& request);
  void note_chosen(const Record& record);
  void note_done(const Record& record);

  std::mt19937 random_;
  PlantedBug bug_;
  bool faults_ = true;
  std::vector<std::string> names_;
  std::map<std::string, Host> hosts_;
  std::vector<Message> network_;
  std::vector<ProposerEffect> effects_;
  std::string violation_;

  std::map<Ballot, std::pair<Record, std::vector<std::string>>> accepts_;
  std::vector<std::pair<Record, Record>> built_;    ///< result and what it was built on
  std::map<std::uint64_t, Record> chosen_;          ///< by version
  std::map<std::uint64_t, std::string> primaries_;  ///< by epoch number
  std::size_t done_ = 0;
  std::size_t voter_changes_ = 0;
  std::size_t put_back_ = 0;
  std::size_t come_back_ = 0;
  std::string last_error_;
};

}  // namespace replicad
