#pragma once
// Text for people: sizes, times, lists, and strings of unknown origin made safe to print. Pure, any
// thread.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace replicad {

/// `bytes` in the largest binary unit that leaves at least 1: "512 B", "1.5 MiB", "20 GiB".
[[nodiscard]] std::string format_bytes(std::uint64_t bytes);

/// `seconds` in at most two units: "0.3 s", "41 s", "2 m 5 s", "3 h 20 m", "12 d 4 h".
[[nodiscard]] std::string format_seconds(double seconds);

/// "a", "a and b", "a, b and c"; "none" for an empty list.
[[nodiscard]] std::string format_list(const std::vector<std::string>& items);

/// `text` with control characters (C0, DEL, C1) as \xNN and bytes that are no UTF-8 too, so that
/// nothing a daemon or a peer says can drive the terminal. Newlines count as control characters.
[[nodiscard]] std::string printable(std::string_view text);

}  // namespace replicad
