#include "core/store/image_mark.h"

#include <algorithm>

#include <doctest/doctest.h>

#include "core/base/limits.h"

namespace replicad {
namespace {

ImageMark sample_mark() {
  ImageMark mark;
  mark.identity = "inode=5 born=7";
  mark.modified_ns = 99;
  mark.samples = {{0, {1, 2}}, {8192, {3, 4}}};
  return mark;
}

ImageLook same(const ImageMark& mark) {
  ImageLook look{mark.identity, mark.modified_ns, {}};
  for (const ImageSample& sample : mark.samples)
    look.sums.push_back(sample.sum);
  return look;
}

bool says(const std::optional<std::string>& why, const std::string& word) {
  return why && why->find(word) != std::string::npos;
}

TEST_CASE("image mark: another file, another time of change and other content are told") {
  const ImageMark mark = sample_mark();
  CHECK_FALSE(why_another_image(mark, same(mark), {}));
  ImageLook look = same(mark);
  look.identity = "inode=6 born=7";
  CHECK(says(why_another_image(mark, look, {}), "another file or device (inode=6 born=7)"));
  look = same(mark);
  look.modified_ns = 100;
  CHECK(says(why_another_image(mark, look, {}), "somebody has written to it"));
  look = same(mark);
  look.sums[1].low ^= 1;
  CHECK(says(why_another_image(mark, look, {}), "offset 8192"));
  // Changed by right since: by what the log holds behind the checkpoint.
  CHECK_FALSE(why_another_image(mark, look, {false, true}));
  CHECK(says(why_another_image(mark, look, {true, false}), "offset 8192"));
}

TEST_CASE("image mark: what is not on record says nothing") {
  const ImageMark mark = sample_mark();
  ImageMark part = mark;
  part.identity.clear();
  part.modified_ns.reset();
  ImageLook look{"inode=6 born=7", 100, {}};
  CHECK_FALSE(why_another_image(part, look, {}));
  CHECK_FALSE(why_another_image(ImageMark{}, same(mark), {}));
  // A device has no time of its last change.
  part = mark;
  part.modified_ns.reset();
  look = same(mark);
  look.modified_ns.reset();
  CHECK_FALSE(why_another_image(part, look, {}));
}

TEST_CASE("image mark: the last writes and blocks over the whole disk are sampled, each once") {
  const std::vector<std::uint64_t> recent{5 * mib + 100, 5 * mib, 0, 7 * mib};
  const auto offsets = choose_samples(16 * mib, recent);
  CHECK(offsets[0] == 5 * mib);
  CHECK(offsets[1] == 0);
  CHECK(offsets[2] == 7 * mib);
  // Those at 0, 5 and 7 MiB belong to both.
  CHECK(offsets.size() == 16);
  CHECK(std::ranges::count(offsets, 15 * mib) == 1);
  std::vector<std::uint64_t> many;
  for (std::uint64_t i = 1; i <= 100; ++i)
    many.push_back(i * 8192);
  CHECK(choose_samples(gib, many).size() == 32);
  // Of a tiny disk every block; its last one may be short.
  CHECK(choose_samples(512, {}) == std::vector<std::uint64_t>{0});
  CHECK(choose_samples(12288, {}) == std::vector<std::uint64_t>{0, 4096, 8192});
  CHECK(sample_range(1, 8192, 8192 + 512) == Range{1, 8192, 512});
  CHECK(sample_range(0, 0, 512) == Range{0, 0, 512});
}

}  // namespace
}  // namespace replicad
