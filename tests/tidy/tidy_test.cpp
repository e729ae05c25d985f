#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace replicad {
namespace {

namespace fs = std::filesystem;

struct SourceFile {
  std::string path;  ///< relative to the root of the tree
  std::vector<std::string> lines;
};

std::vector<std::string> lines_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);)
    lines.push_back(line);
  return lines;
}

bool has_extension(const fs::path& path, std::initializer_list<std::string_view> extensions) {
  return std::ranges::find(extensions, path.extension().string()) != extensions.end();
}

std::vector<SourceFile> read_tree(std::initializer_list<std::string_view> extensions) {
  const fs::path root = RD_SOURCE_DIR;
  std::vector<SourceFile> files;
  for (const char* folder : {"core", "io", "nbd-plugin", "replicad", "ctl", "tests", "docs"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      if (!entry.is_regular_file() || !has_extension(entry.path(), extensions)) continue;
      files.push_back({fs::relative(entry.path(), root).string(), lines_of(entry.path())});
    }
  }
  REQUIRE(files.size() > 5);
  return files;
}

const std::vector<SourceFile>& code_files() {
  static const std::vector<SourceFile> files = read_tree({".h", ".cpp"});
  return files;
}

std::string place(const SourceFile& file, std::size_t line) {
  return fmt::format("{}:{}", file.path, line + 1);
}

/// The code of a line: without what follows "//".
std::string code_of(const std::string& line) {
  return line.substr(0, line.find("//"));
}

/// Every place where `pattern` is found in the code of files whose path `applies`.
template <typename Applies>
std::vector<std::string> find_all(const std::regex& pattern, Applies applies) {
  std::vector<std::string> places;
  for (const SourceFile& file : code_files()) {
    if (!applies(file.path)) continue;
    for (std::size_t i = 0; i < file.lines.size(); ++i) {
      if (std::regex_search(code_of(file.lines[i]), pattern)) {
        places.push_back(fmt::format("{}: {}", place(file, i), file.lines[i]));
      }
    }
  }
  return places;
}

void check_none(const std::vector<std::string>& places) {
  for (const std::string& where : places)
    FAIL_CHECK(where);
}

bool is_core(const std::string& path) {
  return path.starts_with("core/");
}

TEST_CASE("tidy: core does no I/O, reads no clock, draws no random bits and starts no thread") {
  check_none(find_all(
      std::regex(R"(::now\(\)|\bclock_gettime\b|\bgettimeofday\b|\btime\(nullptr\))"), is_core));
  check_none(find_all(
      std::regex(
          R"(\brandom_device\b|\bgetrandom\b|\brand\(\)|\bstd::(this_thread|thread|jthread)\b)"),
      is_core));
  check_none(find_all(
      std::regex(
          R"(#include <(sys/.*|unistd\.h|fcntl\.h|thread|random|mutex|condition_variable|fstream|filesystem|future)>)"),
      is_core));
}

TEST_CASE("tidy: core iterates over no unordered container and keys none by pointer") {
  check_none(find_all(std::regex(R"(\bunordered_(map|set|multimap|multiset)\b)"), is_core));
  check_none(find_all(std::regex(R"(\b(map|set)<[^,>]*\*)"), is_core));
}

TEST_CASE("tidy: only io includes liburing") {
  check_none(find_all(std::regex(R"(#include <liburing)"), [](const std::string& path) {
    return !path.starts_with("io/") && !path.starts_with("tests/");
  }));
}

// Which folders of the tree a folder may include from; an upward call would not link either.
TEST_CASE("tidy: includes point downwards") {
  const std::vector<std::pair<std::string, std::string>> forbidden = {
      {"core/base/", "core/(wire|store|repl|control)/|io/|nbd-plugin/|replicad/|ctl/"},
      {"core/wire/", "core/(store|repl|control)/|io/|nbd-plugin/|replicad/|ctl/"},
      {"core/store/", "core/(repl|control)/|io/|nbd-plugin/|replicad/|ctl/"},
      {"core/repl/", "core/control/|io/|nbd-plugin/|replicad/|ctl/"},
      {"core/control/", "core/(wire|store|repl)/|io/|nbd-plugin/|replicad/|ctl/"},
      {"io/", "core/(repl|control)/|nbd-plugin/|replicad/|ctl/"},
      {"nbd-plugin/", "replicad/|ctl/"},
      {"replicad/", "nbd-plugin/|ctl/"},
      {"ctl/", "nbd-plugin/|replicad/|core/(repl|store)/"},
  };
  for (const auto& [folder, targets] : forbidden) {
    const std::string from = folder;
    check_none(find_all(std::regex("#include \"(" + targets + ")"),
                        [&from](const std::string& path) { return path.starts_with(from); }));
  }
}

TEST_CASE("tidy: no using namespace, and errno text comes from errno_to_error") {
  const auto everywhere = [](const std::string& path) { return !path.starts_with("tests/tidy/"); };
  check_none(find_all(std::regex(R"(\busing namespace\b)"), everywhere));
  check_none(find_all(std::regex(R"(\bstrerror\()"), [](const std::string& path) {
    return !path.starts_with("tests/") && path != "core/base/result.cpp";
  }));
}

TEST_CASE("tidy: tests wait for conditions, they do not sleep for a fixed time") {
  // The wait loops of fixtures and the load generators have the only ones.
  check_none(
      find_all(std::regex(R"(\b(sleep_for|usleep|nanosleep)\b)"), [](const std::string& path) {
        return path.starts_with("tests/") && path.ends_with("_test.cpp") &&
               !path.starts_with("tests/tidy/");
      }));
}

TEST_CASE("tidy: every source file is in the build") {
  std::ifstream commands(RD_COMPILE_COMMANDS);
  std::set<std::string> built;
  for (const auto& entry : nlohmann::json::parse(commands)) {
    const fs::path file = entry.at("file").get<std::string>();
    built.insert(fs::relative(file, RD_SOURCE_DIR).string());
    if (file.parent_path().filename() != "Unity") continue;
    // Several sources compiled at once: the file includes them.
    for (const std::string& line : lines_of(file)) {
      std::smatch included;
      if (std::regex_search(line, included, std::regex("#include \"([^\"]+)\""))) {
        built.insert(fs::relative(included[1].str(), RD_SOURCE_DIR).string());
      }
    }
  }
  REQUIRE(built.size() > 10);
  for (const SourceFile& file : code_files()) {
    if (file.path.ends_with(".cpp") && !built.contains(file.path))
      FAIL_CHECK("not built: " << file.path);
  }
}

TEST_CASE("tidy: a note about later work names its issue") {
  const std::regex bare(R"(\b(TODO|FIXME|XXX|HACK)\b)");
  const std::regex named(R"(\bTODO\(#[0-9]+\):)");
  for (const SourceFile& file : code_files()) {
    if (file.path.starts_with("tests/tidy/")) continue;
    for (std::size_t i = 0; i < file.lines.size(); ++i) {
      if (std::regex_search(file.lines[i], bare) && !std::regex_search(file.lines[i], named)) {
        FAIL_CHECK(place(file, i) << ": " << file.lines[i]);
      }
    }
  }
}

TEST_CASE("tidy: code lines are at most 100 columns wide, comment lines 120") {
  for (const SourceFile& file : code_files()) {
    for (std::size_t i = 0; i < file.lines.size(); ++i) {
      const auto is_start = [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80U; };
      const auto width = std::ranges::count_if(file.lines[i], is_start);
      // Golden bytes and patterns are not broken into pieces.
      if (file.lines[i].find("R\"(") != std::string::npos) continue;
      const bool is_comment = code_of(file.lines[i]).find_first_not_of(' ') == std::string::npos;
      if (width > (is_comment ? 120 : 100))
        FAIL_CHECK(place(file, i) << ": " << width << " columns");
    }
  }
}

TEST_CASE("tidy: no trailing blanks, no tabs in code, no carriage returns") {
  for (const SourceFile& file : read_tree({".h", ".cpp", ".md", ".sh", ".txt", ".pod"})) {
    for (std::size_t i = 0; i < file.lines.size(); ++i) {
      const std::string& line = file.lines[i];
      if (!line.empty() && (line.back() == ' ' || line.back() == '\t' || line.back() == '\r')) {
        FAIL_CHECK(place(file, i) << ": trailing blank");
      }
      const bool is_code = file.path.ends_with(".cpp") || file.path.ends_with(".h");
      if (is_code && line.find('\t') != std::string::npos) FAIL_CHECK(place(file, i) << ": tab");
    }
  }
}

struct LongFunction {
  std::string where;
  std::size_t lines = 0;
};

/// Functions by layout: clang-format puts the closing brace of what begins at column 0 at column 0
/// again.
std::vector<LongFunction> functions_longer_than(std::size_t limit) {
  std::vector<LongFunction> found;
  const std::regex opens(
      R"(^[A-Za-z_].*\) (const |noexcept |override )*\{$|^    .*\) (const |noexcept )*\{$)");
  for (const SourceFile& file : code_files()) {
    for (std::size_t i = 0; i < file.lines.size(); ++i) {
      if (!std::regex_search(file.lines[i], opens) || file.lines[i].starts_with("TEST_CASE"))
        continue;
      std::size_t end = i;
      while (end < file.lines.size() && !file.lines[end].starts_with("}"))
        ++end;
      const bool at_column_0 = file.lines[i].front() != ' ';
      if (at_column_0 && end - i + 1 > limit) found.push_back({place(file, i), end - i + 1});
      if (at_column_0) i = end;
    }
  }
  return found;
}

// A ratchet: the longest one is the table of replicactl's commands.
TEST_CASE("tidy: no function is longer than 140 lines") {
  for (const LongFunction& function : functions_longer_than(140)) {
    FAIL_CHECK(function.where << ": " << function.lines << " lines");
  }
}

TEST_CASE("tidy: no file is longer than 800 lines, no test 1000") {
  for (const SourceFile& file : code_files()) {
    const std::size_t limit = file.path.starts_with("tests/") ? 1000 : 800;
    if (file.lines.size() > limit) FAIL_CHECK(file.path << ": " << file.lines.size() << " lines");
  }
}

TEST_CASE("tidy: every header is guarded and says what it is") {
  for (const SourceFile& file : code_files()) {
    if (!file.path.ends_with(".h")) continue;
    REQUIRE(file.lines.size() > 2);
    if (file.lines[0] != "#pragma once")
      FAIL_CHECK(file.path << ": #pragma once is not the first line");
    if (!file.lines[1].starts_with("// ")) FAIL_CHECK(file.path << ": no first comment");
  }
}

/// All test sources as one text, in which string literals that the compiler joins are joined.
std::string test_sources() {
  std::string text;
  for (const SourceFile& file : code_files()) {
    if (!file.path.ends_with("_test.cpp")) continue;
    for (const std::string& line : file.lines)
      text += line + "\n";
  }
  return std::regex_replace(text, std::regex("\"\\s+\""), "");
}

std::set<std::string> test_names() {
  const std::string sources = test_sources();
  const std::regex test_case(R"rx(TEST_CASE\w*\(\s*(?:\w+,\s*)?"([^"]+)")rx");
  std::set<std::string> names;
  for (std::sregex_iterator at(sources.begin(), sources.end(), test_case), end; at != end; ++at)
    names.insert((*at)[1]);
  return names;
}

/// `name` is a test, or one of each mode ("name (sync)"), or the first words of several ("name: ...").
bool is_test(const std::set<std::string>& tests, const std::string& name) {
  const auto begins = [&tests](const std::string& words) {
    const auto at = tests.lower_bound(words);
    return at != tests.end() && at->starts_with(words);
  };
  return tests.contains(name) || begins(name + " (") || begins(name + ": ");
}

std::vector<std::string> matches_of(const std::string& text, const std::regex& pattern) {
  std::vector<std::string> found;
  for (std::sregex_iterator at(text.begin(), text.end(), pattern), end; at != end; ++at)
    found.push_back((*at)[1]);
  return found;
}

TEST_CASE("tidy: every test that the fault model and the order rules name is there") {
  const std::set<std::string> tests = test_names();
  REQUIRE(tests.size() > 500);
  CHECK(is_test(tests, "tidy: no function is longer than 140 lines"));
  CHECK_FALSE(is_test(tests, "tidy: no function is longer"));
  std::string simulator;
  for (const SourceFile& file : code_files()) {
    if (!file.path.starts_with("tests/sim/")) continue;
    for (const std::string& line : file.lines)
      simulator += line + "\n";
  }
  const fs::path docs = fs::path(RD_SOURCE_DIR) / "docs";
  std::vector<std::string> lines = lines_of(docs / "fault-model.md");
  std::ranges::copy(lines_of(docs / "testing.md"), std::back_inserter(lines));
  std::size_t count = 0;
  for (const std::string& line : lines) {
    for (const std::string& name : matches_of(line, std::regex("`([a-z][a-z _-]*: [^`]+)`"))) {
      ++count;
      if (!is_test(tests, name)) FAIL_CHECK(name << ": no such test");
    }
    // sim (`fault`, "a place reached"): a fault, a planted bug or a place that the simulator knows.
    for (const std::string& named : matches_of(line, std::regex(R"(\bsim \(([^)]*)\))"))) {
      for (const std::string& word : matches_of(named, std::regex("[`\"]([^`\"]+)[`\"]"))) {
        if (simulator.find(word) == std::string::npos)
          FAIL_CHECK(word << ": the simulator has no such fault or place");
      }
    }
  }
  CHECK(count > 200);
}

// In the last column of each table; a model alone shows a rule, not the code.
TEST_CASE("tidy: every fault of docs/fault-model.md is shown by something") {
  std::size_t rows = 0;
  for (const std::string& line : lines_of(fs::path(RD_SOURCE_DIR) / "docs/fault-model.md")) {
    if (!line.starts_with("| ") || line.starts_with("| fault |") || line.starts_with("| first |"))
      continue;
    ++rows;
    const std::string body = line.substr(0, line.rfind('|'));
    const std::string shown = body.substr(body.rfind('|') + 1);
    const bool names_test = std::regex_search(
        shown, std::regex("`[a-z][a-z _-]*: |\\bsim\\b|the e2e tests of `|fuzz targets?\\b"));
    if (!names_test) FAIL_CHECK("no test is named: " << line.substr(0, 60));
  }
  CHECK(rows > 60);
}

}  // namespace
}  // namespace replicad
