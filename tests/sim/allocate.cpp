// The memory of the simulator's program: malloc was more than a sixth of its instructions. One thread asks for
// small pieces by the ten thousand per seed and gives them back soon. Pieces of like size share a span; a free one
// remembers the next. Not in builds with sanitizers, which look at every piece themselves (CMakeLists.txt).
#ifdef RD_OWN_ALLOCATOR

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include <malloc.h>
#include <sys/mman.h>

namespace {

constexpr std::size_t step_bytes = 16;
constexpr std::size_t small_bytes_max =
    1024;  ///< up to here classes are a step apart, behind it a power of two
constexpr std::size_t piece_bytes_max = std::size_t{64} << 10;
constexpr std::size_t small_classes = small_bytes_max / step_bytes;
constexpr std::size_t span_bytes = std::size_t{256} << 10;
constexpr std::size_t spans_max = 16384;

constexpr std::size_t class_of(std::size_t bytes) {
  if (bytes <= small_bytes_max) return bytes == 0 ? 0 : (bytes - 1) / step_bytes;
  return small_classes + std::bit_width((bytes - 1) / small_bytes_max) - 1;
}
constexpr std::size_t piece_bytes(std::size_t kind) {
  if (kind < small_classes) return (kind + 1) * step_bytes;
  return small_bytes_max << (kind - small_classes + 1);
}
constexpr std::size_t classes = class_of(piece_bytes_max) + 1;
static_assert(class_of(small_bytes_max) == small_classes - 1);
static_assert(class_of(small_bytes_max + 1) == small_classes);
static_assert(piece_bytes(class_of(piece_bytes_max)) == piece_bytes_max);

struct Free {
  Free* next;
};
struct Class {
  Free* free = nullptr;
  std::byte* at = nullptr;  ///< not given out yet, up to `end`
  std::byte* end = nullptr;
};

constinit std::array<Class, classes> pool{};
constinit std::array<std::uint8_t, spans_max> span_class{};
constinit std::byte* base = nullptr;
constinit std::size_t spans = spans_max;  ///< none are left before the first piece is asked for
constinit bool begun = false;

[[nodiscard]] void* from_system(std::size_t bytes) {
  if (void* const got = std::malloc(bytes == 0 ? 1 : bytes)) return got;
  throw std::bad_alloc();
}

/// Address space; memory follows when it is touched.
void begin() {
  begun = true;
  // Large pieces come and go with each seed: what is free is not given back to the kernel.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  void* const space = ::mmap(nullptr,
                             spans_max * span_bytes,
                             PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                             -1,
                             0);
  if (space == MAP_FAILED) return;
  base = static_cast<std::byte*>(space);
  spans = 0;
}

[[gnu::noinline]] void* from_span(std::size_t kind) {
  Class& own = pool[kind];
  const std::size_t bytes = piece_bytes(kind);
  if (static_cast<std::size_t>(own.end - own.at) < bytes) {
    if (!begun) begin();
    if (spans == spans_max) return from_system(bytes);
    own.at = base + spans * span_bytes;
    own.end = own.at + span_bytes;
    span_class[spans++] = static_cast<std::uint8_t>(kind);
  }
  void* const piece = own.at;
  own.at += bytes;
  return piece;
}

}  // namespace

void* operator new(std::size_t bytes) {
  if (bytes > piece_bytes_max) return from_system(bytes);
  const std::size_t kind = class_of(bytes);
  Free* const first = pool[kind].free;
  if (first == nullptr) return from_span(kind);
  pool[kind].free = first->next;
  return first;
}

void operator delete(void* piece) noexcept {
  const auto offset = static_cast<std::size_t>(static_cast<std::byte*>(piece) - base);
  if (base == nullptr || offset >= spans_max * span_bytes) return std::free(piece);
  Class& own = pool[span_class[offset / span_bytes]];
  own.free = ::new (piece) Free{own.free};
}

void operator delete(void* piece, std::size_t /*bytes*/) noexcept {
  operator delete(piece);
}

#endif
