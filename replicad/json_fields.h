#pragma once
// Strict reading of JSON that a user, a peer or a plugin sent: types, ranges, sizes, unknown
// fields. The first thing that is wrong is kept and returned by finish(), so that a reader is a
// plain list of fields. Any thread.

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/base/result.h"
#include "core/store/volume_state.h"
#include "core/vote/state_stamp.h"

namespace replicad {

/// Parses one JSON object. Errors: `code` with what is wrong (not JSON, nested deeper than 16, no
/// object).
[[nodiscard]] Result<nlohmann::json> parse_json_object(std::string_view text, Errc code);

class FieldReader {
 public:
  /// Reads the fields of `object`, which must outlive this. `where` names it in messages ("" for
  /// the top).
  explicit FieldReader(const nlohmann::json& object, std::string where = {});

  /// A string that must be there, at most `bytes_max` long.
  std::string text(const char* name, std::size_t bytes_max);
  /// The same, nullopt if absent or null.
  std::optional<std::string> optional_text(const char* name, std::size_t bytes_max);
  std::uint64_t number(const char* name, std::uint64_t value_min, std::uint64_t value_max);
  std::optional<std::uint64_t> optional_number(const char* name,
                                               std::uint64_t value_min,
                                               std::uint64_t value_max);
  /// Any finite number.
  double real(const char* name);
  bool boolean(const char* name);
  bool boolean_or(const char* name, bool fallback);
  /// A list of at most `items_max` items; empty if wrong.
  const nlohmann::json& list(const char* name, std::size_t items_max);
  /// An object, or null when it is absent, null or wrong.
  const nlohmann::json* optional_object(const char* name);
  const nlohmann::json& object(const char* name);
  std::vector<std::string> texts(const char* name, std::size_t items_max, std::size_t bytes_max);
  Epoch epoch(const char* name);
  HistoryPoint point(const char* name);
  /// None if absent: what another version tells.
  StateStamps stamps(const char* name);

  /// Notes a failure of the caller's own checks.
  void reject(std::string_view what);
  void reject(const Error& error) { reject(error.message); }
  [[nodiscard]] bool good() const { return !error_; }
  /// The first failure, as Errc::invalid_argument; also one if a field was never asked for.
  [[nodiscard]] Status finish() const;
  /// The same, but other fields may be there.
  [[nodiscard]] Status finish_allow_unknown() const;

 private:
  const nlohmann::json* find(const char* name, bool required);
  std::optional<std::uint64_t> check_number(const nlohmann::json* value,
                                            const char* name,
                                            std::uint64_t value_min,
                                            std::uint64_t value_max);
  [[nodiscard]] std::string field_name(std::string_view name) const;

  const nlohmann::json& object_;
  std::string where_;
  std::set<std::string, std::less<>> known_;
  std::optional<std::string> error_;
};

}  // namespace replicad
