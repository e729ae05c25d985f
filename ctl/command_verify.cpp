// verify

// g++ 12 takes the any_cast inside Boost's typed_value::notify for one that may give null.
#pragma GCC diagnostic ignored "-Wnull-dereference"

#include <thread>

#include "core/base/names.h"
#include "core/control/members.h"
#include "core/control/plan.h"
#include "core/control/text.h"
#include "ctl/commands.h"
#include "ctl/executor.h"
#include "ctl/progress.h"
#include "ctl/table.h"
#include "ctl/volume_report.h"

namespace replicad::ctl {

namespace po = boost::program_options;
using Json = nlohmann::json;
using Clock = std::chrono::steady_clock;

namespace {

constexpr auto verify_poll_every = std::chrono::milliseconds(250);

/// Of the verify that was asked for: ids count from 1 with each export.
struct VerifyKey {
  std::string primary;
  std::uint64_t export_pid = 0;
  std::uint64_t id = 0;
};

/// The verify if `primary` still knows of it.
Result<const VerifyView*> find_verify(const VolumeView& primary, const VerifyKey& key) {
  const bool same_export =
      primary.host == key.primary && primary.nbd && primary.nbd->pid == key.export_pid;
  if (same_export && primary.verify && primary.verify->id == key.id) return &*primary.verify;
  return with_hint(
      fail(Errc::io_error,
           "{}",
           same_export ? "another verify has begun since, what this one found is gone"
                       : fmt::format("the export on {} has ended, and the verify with it",
                                     printable(key.primary))),
      fmt::format("give the command again; `replicactl status {}` shows what is served",
                  primary.name));
}

Result<VerifyView> wait_for_verify(Context& context, const VerifyKey& key, int progress_fd) {
  const auto deadline = Clock::now() + std::chrono::milliseconds(context.options().timeout_ms);
  Progress progress(context, "verify " + context.volume(), progress_fd);
  while (true) {
    const std::vector<MemberReport> reports = context.cluster().ask_volume(context.volume());
    const auto primary = find_primary(context.volume(), reports);
    if (!primary && primary.error().code != Errc::unreachable) {
      progress.finish();
      return tl::unexpected(primary.error());
    }
    if (primary) {
      const auto verify = find_verify(*(*primary)->volume, key);
      if (!verify) progress.finish();
      if (!verify) return tl::unexpected(verify.error());
      const VerifyProgress at = progress_of(**verify);
      progress.update(at.done_bytes, at.total_bytes);
      if ((*verify)->state != "running") {
        progress.finish();
        return **verify;
      }
    }
    if (context.options().timeout_ms > 0 && Clock::now() > deadline) {
      progress.finish();
      return with_hint(
          fail(Errc::timeout, "the verify is not done yet; it goes on"),
          fmt::format("`replicactl status {}` shows it, `replicactl verify {} --stop` ends it",
                      context.volume(),
                      context.volume()));
    }
    std::this_thread::sleep_for(verify_poll_every);
  }
}

void print_findings(Context& context, const VerifyView& verify) {
  std::ostream& out = context.terminal().out;
  Table table({"HOST", "DISK", ">OFFSET", ">LENGTH"});
  bool found = false;
  for (const VerifySideView& side : verify.replicas) {
    for (const VerifySideView::Found& range : side.ranges) {
      found = true;
      table.add_row({printable(side.host),
                     printable(range.disk),
                     fmt::format("{}", range.offset),
                     fmt::format("{}", range.length)});
    }
  }
  if (found) out << table.text();
  for (const VerifySideView& side : verify.replicas) {
    const std::string why = side.error ? ": " + printable(side.error->message) : std::string();
    const std::string text = fmt::format(
        "{} {}", printable(side.host), side.is_equal() ? "is equal" : side_text(side) + why);
    out << context.paint(text, side.is_equal() ? Tone::good : Tone::bad);
    if (side.is_equal() && side.repaired_blocks > 0)
      out << fmt::format(", {} block(s) repaired", side.repaired_blocks);
    out << '\n';
  }
  out << std::flush;
}

/// What to do about blocks that no compared replica has like the primary.
std::string alone_hint(const std::string& volume, const VerifyView& verify) {
  const auto compared = std::ranges::count(verify.replicas, "done", &VerifySideView::state);
  if (compared > 1) {
    return fmt::format(
        "none of the {} replicas has what the primary has in {} of them: its disk is the likelier "
        "culprit. `replicactl switchover {}` to a good copy first, then verify with --repair; here "
        "only --repair --force writes the primary's content over theirs",
        compared,
        verify.alone_blocks,
        volume);
  }
  return fmt::format(
      "one replica was compared, so nothing tells which side is right: see both hosts' kernel "
      "logs. "
      "If the primary's disk is at fault, `replicactl switchover {}` first; --repair --force "
      "writes "
      "the primary's content over the replica's",
      volume);
}

Status judge(const std::string& volume, const VerifyView& verify) {
  std::vector<std::string> wrong;
  std::uint64_t left = 0;
  std::uint64_t not_compared = 0;
  std::optional<Error> error = verify.error;
  for (const VerifySideView& side : verify.replicas) {
    if (side.is_equal()) continue;
    wrong.push_back(fmt::format("{} {}", printable(side.host), side_text(side)));
    left += side.left_blocks();
    not_compared += side.not_compared_blocks;
    if (!error) error = side.error;
  }
  if (wrong.empty()) return {};
  std::string hint;
  if (left > 0 && verify.alone_blocks > 0) {
    hint = alone_hint(volume, verify);
  } else if (left > 0 && !verify.repair) {
    hint = fmt::format("`replicactl verify {} --repair` lets the primary write them anew", volume);
  } else if (error) {
    hint = error->hint;
  } else if (not_compared > 0) {
    hint = "the replica was too far behind there, or the primary cannot read them; verify again";
  }
  std::string text;
  for (const std::string& part : wrong)
    text += (text.empty() ? "" : "; ") + part;
  if (error) text += ": " + printable(error->message);
  return with_hint(fail(left > 0 ? Errc::corrupt : Errc::io_error, "{}", text), hint);
}

Result<VerifyRequest> read_request(const OptionValues& values) {
  VerifyRequest request{.host = text_option(values, "host"),
                        .repair = values.count("repair") > 0,
                        .force = values.count("force") > 0,
                        .stop = values.count("stop") > 0};
  if (!request.host.empty() && !is_valid_name(request.host))
    return fail(Errc::invalid_argument, "--host takes a member's name");
  if (request.force && !request.repair)
    return fail(Errc::invalid_argument, "--force goes with --repair");
  if (request.stop && (request.repair || !request.host.empty()))
    return fail(Errc::invalid_argument, "--stop goes alone");
  return request;
}

}  // namespace

void add_verify_options(OptionSpecs& specs) {
  specs.add_options()(
      "host", po::value<std::string>()->value_name("HOST"), "with this replica (default: all)")(
      "repair", "write blocks that differ anew, with the primary's content")(
      "force", "with --repair: also blocks that no replica has like the primary")(
      "stop", "end the one that is under way")("no-wait", "do not wait for its end")(
      "progress", po::value<int>()->value_name("FD"), "write N/100 lines to this descriptor");
}

Status run_verify(Context& context, const OptionValues& values) {
  const auto request = read_request(values);
  if (!request) return tl::unexpected(request.error());
  const auto progress_fd = progress_option(values);
  if (!progress_fd) return tl::unexpected(progress_fd.error());
  const std::vector<MemberReport> reports = context.cluster().ask_volume(context.volume());
  const auto plan = plan_verify(context.volume(), *request, reports);
  if (!plan) return tl::unexpected(plan.error());
  if (request->force) {
    RD_TRY(context.confirm(
        fmt::format("write the primary's content of {} over what differs on every replica?",
                    context.volume())));
  }
  const VolumeView& primary = *(*find_primary(context.volume(), reports))->volume;
  std::optional<VerifyView> result;
  RD_TRY(
      run_plan(context, *plan, [&](const Step&, const Json& answer, PlanResult& record) -> Status {
        if (request->stop) return {};
        const auto id = answer.find("id");
        if (id == answer.end() || !id->is_number_unsigned())
          return fail(Errc::protocol, "unexpected answer: field 'id' is not a number");
        record.result = {{"verify", {{"id", *id}, {"state", "running"}}}};
        if (values.count("no-wait") > 0) return {};
        const VerifyKey key{primary.host, primary.nbd->pid, id->get<std::uint64_t>()};
        auto ended = wait_for_verify(context, key, *progress_fd);
        if (!ended) return tl::unexpected(ended.error());
        record.result = {{"verify", ended->raw}};
        result = std::move(*ended);
        return {};
      }));
  if (!result) return {};
  if (!context.options().json) print_findings(context, *result);
  return judge(context.volume(), *result);
}

}  // namespace replicad::ctl
