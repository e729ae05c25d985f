// lost-writes

#include <ctime>
#include <filesystem>
#include <map>

#include <fcntl.h>
#include <unistd.h>

#include "core/base/limits.h"
#include "core/base/names.h"
#include "core/control/text.h"
#include "ctl/commands.h"
#include "ctl/table.h"
#include "io/file.h"

namespace replicad::ctl {

namespace po = boost::program_options;
using Json = nlohmann::json;

namespace {

constexpr std::size_t shown_bytes = 16;  ///< of a range's content
constexpr unsigned extract_directory_mode = 0755;
constexpr unsigned extract_file_mode = 0640;

/// Fields of an answer; what is missing or ill-typed is an error of the daemon's.
struct LostRange {
  std::string disk;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  bool zero = false;
  bool damaged = false;
  std::vector<std::byte> content;
};

tl::unexpected<Error> bad_answer(const std::string& host, const char* what) {
  return fail(Errc::protocol, "unexpected answer of {}: {}", printable(host), printable(what));
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

bool bytes_from_hex(const std::string& hex, std::vector<std::byte>& bytes) {
  if (hex.size() % 2 != 0) return false;
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    const int high = hex_digit(hex[i]);
    const int low = hex_digit(hex[i + 1]);
    if (high < 0 || low < 0) return false;
    bytes.push_back(static_cast<std::byte>(high * 16 + low));
  }
  return true;
}

Result<LostRange> range_from(const std::string& host, const Json& json) {
  try {
    LostRange range;
    range.disk = json.at("disk").get<std::string>();
    if (!json.at("offset").is_number_unsigned() || !json.at("length").is_number_unsigned()) {
      return bad_answer(host, "a range is no number");
    }
    range.offset = json.at("offset").get<std::uint64_t>();
    range.length = json.at("length").get<std::uint64_t>();
    range.zero = json.at("zero").get<bool>();
    range.damaged = json.at("damaged").get<bool>();
    const bool good = bytes_from_hex(json.at("content").get<std::string>(), range.content);
    const bool fits = range.offset <= disk_bytes_max && range.length <= disk_bytes_max &&
                      range.content.size() == (range.zero ? 0 : range.length);
    if (!good || !fits || !is_valid_name(range.disk)) {
      return bad_answer(host, "a range is not what it says");
    }
    return range;
  } catch (const Json::exception& error) {
    return bad_answer(host, error.what());
  }
}

std::string time_text(const Json& seconds) {
  if (!seconds.is_number_unsigned()) return "-";
  const auto time = static_cast<std::time_t>(seconds.get<std::uint64_t>());
  std::tm parts{};
  if (::gmtime_r(&time, &parts) == nullptr) return "-";
  return fmt::format("{:04}-{:02}-{:02} {:02}:{:02}:{:02}Z",
                     parts.tm_year + 1900,
                     parts.tm_mon + 1,
                     parts.tm_mday,
                     parts.tm_hour,
                     parts.tm_min,
                     parts.tm_sec);
}

std::string number_text(const Json& json, const char* name) {
  const auto it = json.find(name);
  return it != json.end() && it->is_number_unsigned() ? std::to_string(it->get<std::uint64_t>())
                                                      : "-";
}

std::string lost_text_of(const Json& json, const char* name) {
  return printable(text_of(json, name));
}

std::string epoch_text(const Json& json, const char* name) {
  const auto it = json.find(name);
  return it != json.end() && it->is_object() ? number_text(*it, "number") : "-";
}

std::string path_of(const std::string& volume, const std::string& rest) {
  return fmt::format("/v1/volumes/{}/lost-writes{}", volume, rest);
}

/// The hosts that have the volume; with --host that one.
Result<std::vector<MemberReport>> holders(Context& context, const std::string& host) {
  std::vector<MemberReport> found;
  Status status = fail(Errc::not_found, "no host that answers has a volume {}", context.volume());
  const std::vector<MemberReport> reports = context.cluster().ask_volume(context.volume());
  const bool exists = std::any_of(
      reports.begin(), reports.end(), [](const MemberReport& r) { return r.volume.has_value(); });
  if (exists && !host.empty())
    status = fail(Errc::not_found, "{} is no member of {}", host, context.volume());
  for (const MemberReport& report : reports) {
    if (!host.empty() && report.host != host) continue;
    if (report.volume) {
      found.push_back(report);
    } else if (!host.empty() || report.volume.error().code != Errc::not_found) {
      status = tl::unexpected(report.volume.error());
    }
  }
  if (found.empty()) return tl::unexpected(status.error());
  return found;
}

// --- the list

struct LostListing {
  Json files = Json::array();
  Json silent = Json::array();
};

Result<LostListing> list_files(Context& context, const std::vector<MemberReport>& reports) {
  LostListing listing;
  for (const MemberReport& report : reports) {
    const ApiAnswer answer = call_api(report.address,
                                      {"GET", path_of(context.volume(), ""), nullptr},
                                      context.cluster().timeouts());
    if (!answer.body) {
      listing.silent.push_back({{"host", report.host}, {"error", error_json(answer.body.error())}});
      continue;
    }
    const auto files = answer.body->find("files");
    if (files == answer.body->end() || !files->is_array())
      return bad_answer(report.host, "no list of files");
    for (Json file : *files) {
      if (!file.is_object()) return bad_answer(report.host, "a file is no object");
      file["host"] = report.host;
      listing.files.push_back(std::move(file));
    }
  }
  return listing;
}

void print_list(Context& context, const LostListing& listing) {
  auto& out = context.terminal().out;
  if (listing.files.empty()) {
    context.say("no lost writes");
  } else {
    Table table(
        {"HOST", ">FILE", "WHEN", ">EPOCH", ">NEW", "PRIMARY", ">RANGES", ">BYTES", "STATE"});
    for (const Json& file : listing.files) {
      const bool damaged = file.contains("damaged") && file["damaged"].is_string();
      const bool complete = file.contains("complete") && file["complete"] == true;
      table.add_row({lost_text_of(file, "host"),
                     number_text(file, "number"),
                     time_text(file.contains("begun_seconds") ? file["begun_seconds"] : Json()),
                     epoch_text(file, "term"),
                     epoch_text(file, "epoch"),
                     lost_text_of(file, "primary"),
                     number_text(file, "ranges"),
                     number_text(file, "bytes"),
                     damaged    ? lost_text_of(file, "damaged")
                     : complete ? std::string("kept")
                                : std::string("rewind under way")});
    }
    out << table.text() << std::flush;
  }
  for (const Json& host : listing.silent) {
    context.terminal().err << lost_text_of(host, "host") << ": "
                           << lost_text_of(host["error"], "message") << '\n';
  }
}

Status run_list_lost(Context& context, const std::vector<MemberReport>& reports) {
  const auto listing = list_files(context, reports);
  if (!listing) return tl::unexpected(listing.error());
  if (context.options().json) {
    context.print_json(
        {{"volume", context.volume()}, {"files", listing->files}, {"silent", listing->silent}});
  } else {
    print_list(context, *listing);
  }
  if (listing->silent.empty()) return {};
  return fail(Errc::unreachable, "{} of the hosts did not tell", listing->silent.size());
}

// --- one file

using RangeSink = std::function<Status(const LostRange&)>;

/// Reads the whole file, piece by piece. The last answer without its ranges.
Result<Json> read_lost_file(Context& context,
                            const MemberReport& report,
                            std::uint64_t number,
                            const RangeSink& sink) {
  std::uint64_t at = 0;
  for (;;) {
    const std::string rest =
        at == 0 ? fmt::format("/{}", number) : fmt::format("/{}?at={}", number, at);
    const ApiAnswer answer = call_api(report.address,
                                      {"GET", path_of(context.volume(), rest), nullptr},
                                      context.cluster().timeouts());
    if (!answer.body) return tl::unexpected(answer.body.error());
    Json body = *answer.body;
    if (!body.contains("ranges") || !body["ranges"].is_array() || !body.contains("next"))
      return bad_answer(report.host, "no list of ranges");
    for (const Json& item : body["ranges"]) {
      const auto range = range_from(report.host, item);
      if (!range) return tl::unexpected(range.error());
      RD_TRY(sink(*range));
    }
    if (!body["next"].is_number_unsigned()) {
      body.erase("ranges");
      body.erase("next");
      return body;
    }
    const auto next = body["next"].get<std::uint64_t>();
    if (next <= at) return bad_answer(report.host, "the file does not go on");
    at = next;
  }
}

std::string first_bytes(const LostRange& range) {
  if (range.damaged) return "damaged";
  if (range.zero) return "zeroes";
  std::string text;
  for (std::size_t i = 0; i < std::min(shown_bytes, range.content.size()); ++i)
    text += fmt::format("{:02x}", std::to_integer<unsigned>(range.content[i]));
  return text;
}

Status run_show_lost(Context& context, const MemberReport& report, std::uint64_t number) {
  Table table({"DISK", ">OFFSET", ">LENGTH", "FIRST-BYTES"});
  Json ranges = Json::array();
  const auto file = read_lost_file(context, report, number, [&](const LostRange& range) -> Status {
    if (context.options().json) {
      ranges.push_back({{"disk", range.disk},
                        {"offset", range.offset},
                        {"length", range.length},
                        {"zero", range.zero},
                        {"damaged", range.damaged},
                        {"first_bytes", range.zero ? "" : first_bytes(range)}});
    } else {
      table.add_row({range.disk,
                     std::to_string(range.offset),
                     std::to_string(range.length),
                     first_bytes(range)});
    }
    return {};
  });
  if (!file) return tl::unexpected(file.error());
  if (context.options().json) {
    Json answer = *file;
    answer["volume"] = context.volume();
    answer["ranges"] = std::move(ranges);
    context.print_json(std::move(answer));
  } else {
    context.terminal().out << table.text() << std::flush;
  }
  if (!file->contains("damaged") || !(*file)["damaged"].is_string()) return {};
  return fail(Errc::corrupt, "{}", lost_text_of(*file, "damaged"));
}

/// One sparse file per disk, with the old content where it was.
class Extraction {
 public:
  explicit Extraction(std::string directory) : directory_(std::move(directory)) {}

  Status take(const LostRange& range) {
    auto found = files_.find(range.disk);
    if (found == files_.end()) {
      const std::string path = directory_ + "/" + range.disk + ".raw";
      Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, extract_file_mode));
      if (!file.valid()) return fail_errno(errno, "create {}", path);
      found = files_.emplace(range.disk, std::move(file)).first;
    }
    map_ += fmt::format("{} {} {} {}\n",
                        range.disk,
                        range.offset,
                        range.length,
                        range.damaged ? "damaged"
                        : range.zero  ? "zero"
                                      : "data");
    const int fd = found->second.get();
    if (!range.zero) return write_all_at(fd, range.content, range.offset);
    // Only long enough: what was never written reads as zeroes.
    const off_t end = ::lseek(fd, 0, SEEK_END);
    const auto wanted = static_cast<off_t>(range.offset + range.length);
    if (end < wanted && ::ftruncate(fd, wanted) != 0)
      return fail_errno(errno, "enlarge the image of {}", range.disk);
    return {};
  }
  Status finish() {
    for (const auto& [disk, file] : files_) {
      if (::fsync(file.get()) != 0) return fail_errno(errno, "write the image of {}", disk);
    }
    return write_file_durably(directory_ + "/ranges.txt", map_);
  }

 private:
  std::string directory_;
  std::map<std::string, Fd> files_;
  std::string map_;
};

Status run_extract_lost(Context& context,
                        const MemberReport& report,
                        std::uint64_t number,
                        const std::string& directory) {
  if (context.options().dry_run) {
    context.say(fmt::format("would: write file {} of {} to {}/DISK.raw, {}/ranges.txt",
                            number,
                            printable(report.host),
                            directory,
                            directory));
    if (context.options().json) {
      context.print_json({{"volume", context.volume()},
                          {"host", report.host},
                          {"number", number},
                          {"directory", directory},
                          {"dry_run", true}});
    }
    return {};
  }
  RD_TRY(make_directories(directory, extract_directory_mode));
  Extraction extraction(directory);
  const auto file = read_lost_file(
      context, report, number, [&](const LostRange& range) { return extraction.take(range); });
  if (!file) return tl::unexpected(file.error());
  RD_TRY(extraction.finish());
  if (context.options().json) {
    Json answer = *file;
    answer["volume"] = context.volume();
    answer["directory"] = directory;
    context.print_json(std::move(answer));
  } else {
    context.say(fmt::format("{}/DISK.raw, {}/ranges.txt", directory, directory));
  }
  if (!file->contains("damaged") || !(*file)["damaged"].is_string()) return {};
  return fail(Errc::corrupt, "{}", lost_text_of(*file, "damaged"));
}

Status run_remove_lost(Context& context,
                       const MemberReport& report,
                       std::uint64_t number,
                       bool force) {
  if (!force) {
    return with_hint(fail(Errc::refused,
                          "file {} on {} is the only copy of these lost writes",
                          number,
                          printable(report.host)),
                     "look at it, or --extract it, then say --force");
  }
  const std::string path =
      path_of(context.volume(), fmt::format("/{}?uuid={}", number, report.volume->uuid));
  const bool dry_run = context.options().dry_run;
  if (!dry_run) {
    const ApiAnswer answer =
        call_api(report.address, {"DELETE", path, nullptr}, context.cluster().timeouts());
    if (!answer.body) return tl::unexpected(answer.body.error());
  }
  if (context.options().json) {
    context.print_json({{"volume", context.volume()},
                        {"host", report.host},
                        {"number", number},
                        {"dry_run", dry_run}});
  } else if (dry_run) {
    context.say(fmt::format(
        "would: {}: remove file {}  (DELETE {})", printable(report.host), number, path));
  } else {
    context.say("removed");
  }
  return {};
}

}  // namespace

void add_lost_writes_options(OptionSpecs& specs) {
  specs.add_options()(
      "host", po::value<std::string>()->value_name("HOST"), "only this host's files")(
      "file", po::value<std::uint64_t>()->value_name("N"), "show this file of HOST")(
      "extract",
      po::value<std::string>()->value_name("DIR"),
      "write its content to DIR: DISK.raw, sparse, and ranges.txt")(
      "remove", "remove the file (with --force)")("force", "it is the only copy: remove it");
}

Status run_lost_writes(Context& context, const OptionValues& values) {
  const std::string host = text_option(values, "host");
  const bool one = values.count("file") > 0;
  const std::string directory = text_option(values, "extract");
  const bool removes = values.count("remove") > 0;
  if (!host.empty() && !is_valid_name(host))
    return fail(Errc::invalid_argument, "--host: '{}' is no name of a host", printable(host));
  if (!one && (!directory.empty() || removes))
    return fail(Errc::invalid_argument, "--extract and --remove need --host HOST and --file N");
  if (one && host.empty()) return fail(Errc::invalid_argument, "--file needs --host HOST");
  if (!directory.empty() && removes)
    return fail(Errc::invalid_argument, "--extract or --remove, one after the other");
  const auto reports = holders(context, host);
  if (!reports) return tl::unexpected(reports.error());
  if (!one) return run_list_lost(context, *reports);
  const auto number = values["file"].as<std::uint64_t>();
  if (removes) {
    return run_remove_lost(context, reports->front(), number, values.count("force") > 0);
  }
  if (directory.empty()) return run_show_lost(context, reports->front(), number);
  return run_extract_lost(context, reports->front(), number, directory);
}

}  // namespace replicad::ctl
