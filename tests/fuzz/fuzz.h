#pragma once
// What a fuzz target and the corpus replay share. Byte 0 of an input chooses a mode, the rest is
// the data.

#include <cstddef>
#include <cstdint>

// The name is libFuzzer's. NOLINTNEXTLINE(readability-identifier-naming)
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
