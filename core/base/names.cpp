#include "core/base/names.h"

#include <algorithm>

#include "core/base/limits.h"

namespace replicad {

namespace {

bool is_name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
}

}  // namespace

bool is_valid_name(std::string_view name) {
  if (name.empty() || name.size() > volume_name_bytes_max) return false;
  const char first = name.front();
  const bool starts_well = (first >= 'a' && first <= 'z') || (first >= '0' && first <= '9');
  return starts_well && std::ranges::all_of(name, is_name_character);
}

}  // namespace replicad
