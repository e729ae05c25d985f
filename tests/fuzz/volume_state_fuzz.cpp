// The state file. Mode 0: any bytes. Else: the input is the document, behind a first line with the
// right checksum.
#include <span>
#include <string>

#include "core/base/check.h"
#include "core/store/volume_state.h"
#include "tests/fuzz/fuzz.h"

namespace replicad {
namespace {

void run(std::span<const std::byte> input) {
  if (input.empty()) return;
  std::string content(reinterpret_cast<const char*>(input.data()) + 1, input.size() - 1);
  if (input[0] != std::byte{0}) {
    const std::uint32_t crc = crc32c(std::as_bytes(std::span(content)));
    content.insert(0, fmt::format("replicad-state 1 {:08x} {}\n", crc, content.size()));
  }
  const auto state = decode_volume_state(content);
  if (!state) {
    RD_CHECK(state.error().code == Errc::corrupt || state.error().code == Errc::version_mismatch);
    RD_CHECK(!state.error().message.empty());
    return;
  }
  RD_CHECK(check_volume_state(*state).has_value());
  const auto again = decode_volume_state(encode_volume_state(*state));
  RD_CHECK(again.has_value());
  RD_CHECK(*again == *state);
}

}  // namespace
}  // namespace replicad

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  replicad::run(std::as_bytes(std::span(data, size)));
  return 0;
}
