#include "replicad/json_fields.h"

#include <cmath>

#include "core/vote/record_json.h"

namespace replicad {

using nlohmann::json;

namespace {

constexpr int depth_max = 16;

struct TooDeep {};

const json& empty_list() {
  static const json list = json::array();
  return list;
}

const json& empty_object() {
  static const json object = json::object();
  return object;
}

}  // namespace

Result<json> parse_json_object(std::string_view text, Errc code) {
  const auto shallow = [](int depth, json::parse_event_t /*event*/, json& /*parsed*/) {
    if (depth > depth_max) throw TooDeep{};
    return true;
  };
  try {
    json value = json::parse(text.begin(), text.end(), shallow);
    if (!value.is_object()) return fail(code, "a JSON object is needed");
    return value;
  } catch (const json::exception& error) {
    return fail(code, "not valid JSON: {}", error.what());
  } catch (const TooDeep&) {
    return fail(code, "the JSON is nested deeper than {} levels", depth_max);
  }
}

FieldReader::FieldReader(const json& object, std::string where)
    : object_(object), where_(std::move(where)) {
  if (!object_.is_object()) reject("not an object");
}

std::string FieldReader::field_name(std::string_view name) const {
  return where_.empty() ? fmt::format("\"{}\"", name) : fmt::format("\"{}.{}\"", where_, name);
}

void FieldReader::reject(std::string_view what) {
  if (error_) return;
  error_ = where_.empty() ? std::string(what) : fmt::format("{}: {}", where_, what);
}

const json* FieldReader::find(const char* name, bool required) {
  known_.insert(name);
  const auto* fields = object_.get_ptr<const json::object_t*>();
  if (fields == nullptr) return nullptr;
  const auto found = fields->find(name);
  const bool absent = found == fields->end() || found->second.is_null();
  if (absent && required && !error_) error_ = fmt::format("field {} is missing", field_name(name));
  return absent ? nullptr : &found->second;
}

std::string FieldReader::text(const char* name, std::size_t bytes_max) {
  if (find(name, true) == nullptr) return {};
  return optional_text(name, bytes_max).value_or("");
}

std::optional<std::string> FieldReader::optional_text(const char* name, std::size_t bytes_max) {
  const json* value = find(name, false);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    if (!error_) error_ = fmt::format("field {} is not a string", field_name(name));
    return std::nullopt;
  }
  auto result = value->get<std::string>();
  if (result.size() > bytes_max || result.find('\0') != std::string::npos) {
    if (!error_) {
      error_ = fmt::format(
          "field {} has a zero byte or more than {} bytes", field_name(name), bytes_max);
    }
    return std::nullopt;
  }
  return result;
}

std::optional<std::uint64_t> FieldReader::check_number(const json* value,
                                                       const char* name,
                                                       std::uint64_t value_min,
                                                       std::uint64_t value_max) {
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_unsigned()) {
    if (!error_) error_ = fmt::format("field {} is not a whole number >= 0", field_name(name));
    return std::nullopt;
  }
  const auto result = value->get<std::uint64_t>();
  if (result < value_min || result > value_max) {
    if (!error_) {
      error_ = fmt::format(
          "field {} is {}, allowed are {} to {}", field_name(name), result, value_min, value_max);
    }
    return std::nullopt;
  }
  return result;
}

std::uint64_t FieldReader::number(const char* name,
                                  std::uint64_t value_min,
                                  std::uint64_t value_max) {
  return check_number(find(name, true), name, value_min, value_max).value_or(value_min);
}

std::optional<std::uint64_t> FieldReader::optional_number(const char* name,
                                                          std::uint64_t value_min,
                                                          std::uint64_t value_max) {
  return check_number(find(name, false), name, value_min, value_max);
}

double FieldReader::real(const char* name) {
  const json* value = find(name, true);
  if (value == nullptr) return 0;
  const double result = value->is_number() ? value->get<double>() : std::nan("");
  if (!std::isfinite(result)) {
    if (!error_) error_ = fmt::format("field {} is not a number", field_name(name));
    return 0;
  }
  return result;
}

bool FieldReader::boolean(const char* name) {
  if (find(name, true) == nullptr) return false;
  return boolean_or(name, false);
}

bool FieldReader::boolean_or(const char* name, bool fallback) {
  const json* value = find(name, false);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    if (!error_) error_ = fmt::format("field {} is not true or false", field_name(name));
    return fallback;
  }
  return value->get<bool>();
}

const json& FieldReader::list(const char* name, std::size_t items_max) {
  const json* value = find(name, true);
  if (value == nullptr) return empty_list();
  if (!value->is_array() || value->size() > items_max) {
    if (!error_) {
      error_ =
          fmt::format("field {} is not a list of at most {} items", field_name(name), items_max);
    }
    return empty_list();
  }
  return *value;
}

const json* FieldReader::optional_object(const char* name) {
  const json* value = find(name, false);
  if (value == nullptr) return nullptr;
  if (!value->is_object()) {
    if (!error_) error_ = fmt::format("field {} is not an object", field_name(name));
    return nullptr;
  }
  return value;
}

const json& FieldReader::object(const char* name) {
  find(name, true);
  const json* value = optional_object(name);
  return value == nullptr ? empty_object() : *value;
}

std::vector<std::string> FieldReader::texts(const char* name,
                                            std::size_t items_max,
                                            std::size_t bytes_max) {
  std::vector<std::string> result;
  for (const json& item : list(name, items_max)) {
    if (!item.is_string() || item.get_ref<const std::string&>().size() > bytes_max) {
      if (!error_)
        error_ = fmt::format("field {} holds something but short strings", field_name(name));
      return {};
    }
    result.push_back(item.get<std::string>());
  }
  return result;
}

Epoch FieldReader::epoch(const char* name) {
  FieldReader fields(object(name), where_.empty() ? name : where_ + "." + name);
  Epoch epoch;
  epoch.number = fields.number("number", 0, std::uint64_t{1} << 62);
  epoch.tag = static_cast<std::uint32_t>(fields.number("tag", 0, 0xffffffffU));
  if (const Status status = fields.finish_allow_unknown(); !status && !error_) {
    error_ = status.error().message;
  }
  return epoch;
}

HistoryPoint FieldReader::point(const char* name) {
  FieldReader fields(object(name), where_.empty() ? name : where_ + "." + name);
  HistoryPoint point;
  point.epoch = fields.epoch("epoch");
  point.sequence = fields.number("sequence", 0, std::uint64_t{1} << 62);
  const auto digest = digest_from_hex(fields.text("digest", 32));
  if (digest) point.digest = *digest;
  if (!digest) fields.reject("digest is not 32 hexadecimal digits");
  if (const Status status = fields.finish_allow_unknown(); !status && !error_) {
    error_ = status.error().message;
  }
  return point;
}

StateStamps FieldReader::stamps(const char* name) {
  const json* value = optional_object(name);
  if (value == nullptr) return {};
  auto stamps = stamps_from_json(*value);
  if (stamps) return std::move(*stamps);
  reject(stamps.error());
  return {};
}

Status FieldReader::finish_allow_unknown() const {
  if (error_) return fail(Errc::invalid_argument, "{}", *error_);
  return {};
}

Status FieldReader::finish() const {
  RD_TRY(finish_allow_unknown());
  for (const auto& item : object_.items()) {
    if (known_.find(item.key()) == known_.end()) {
      return fail(Errc::invalid_argument, "unknown field {}", field_name(item.key()));
    }
  }
  return {};
}

}  // namespace replicad
