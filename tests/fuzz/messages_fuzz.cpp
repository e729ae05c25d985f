// The payload decoders. Byte 0 chooses the decoder. What is accepted must survive being encoded and
// read again.
#include <span>
#include <vector>

#include "core/base/check.h"
#include "core/wire/messages.h"
#include "tests/fuzz/fuzz.h"

namespace replicad {
namespace {

template <typename Decode, typename Encode>
void there_and_back(std::span<const std::byte> payload, Decode decode, Encode encode) {
  const auto message = decode(payload);
  if (!message) {
    RD_CHECK(message.error().code == Errc::protocol);
    RD_CHECK(!message.error().message.empty());
    return;
  }
  const std::vector<std::byte> frame = encode(*message);
  const auto again = decode(std::span(frame).subspan(frame_header_bytes));
  RD_CHECK(again.has_value());
  RD_CHECK(encode(*again) == frame);
}

void run(std::span<const std::byte> input) {
  if (input.empty()) return;
  const auto payload = input.subspan(1);
  switch (std::to_integer<unsigned>(input[0]) % 8) {
    case 0:
      return there_and_back(payload, decode_attach, encode_attach);
    case 1:
      return there_and_back(payload, decode_attached, encode_attached);
    case 2:
      return there_and_back(payload, decode_refuse, encode_refuse);
    case 3:
      return there_and_back(payload, decode_start, encode_start);
    case 4:
      return there_and_back(payload, decode_copy_end, encode_copy_end);
    case 5:
      return there_and_back(payload, decode_copy_done, encode_copy_done);
    case 6: {
      const auto encode = [](const Watermarks& marks) { return encode_watermarks(marks); };
      return there_and_back(payload, decode_watermarks, encode);
    }
    default: {
      const auto decode = [](std::span<const std::byte> bytes) {
        return decode_digest(FrameHeader{}, bytes);
      };
      return there_and_back(payload, decode, encode_digest);
    }
  }
}

}  // namespace
}  // namespace replicad

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  replicad::run(std::as_bytes(std::span(data, size)));
  return 0;
}
