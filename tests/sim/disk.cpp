#include "tests/sim/disk.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "core/base/check.h"
#include "core/base/checksum.h"
#include "core/base/endian.h"

namespace replicad::sim {

namespace {

constexpr Stamp garbage_bit = Stamp{1} << 63;

}  // namespace

void put_stamps(std::span<const Stamp> stamps, std::span<std::byte> to) {
  RD_CHECK(to.size() == stamps.size() * block_bytes);
  std::byte* at = to.data();
  for (const Stamp stamp : stamps) {
    for (std::size_t i = 0; i < block_bytes; i += sizeof stamp, at += sizeof stamp)
      store_le(at, stamp);
  }
}

Blocks stamps_of(std::span<const std::byte> bytes) {
  RD_CHECK(bytes.size() % block_bytes == 0);
  Blocks stamps;
  stamps.reserve(bytes.size() / block_bytes);
  for (std::size_t i = 0; i < bytes.size(); i += block_bytes)
    stamps.push_back(load_le<Stamp>(bytes.data() + i));
  return stamps;
}

std::vector<Digest> sums_of(const Blocks& image, const Range& range) {
  constexpr std::size_t stamps_max = compare_block_bytes / block_bytes;
  std::vector<Digest> sums;
  std::array<std::byte, compare_block_bytes> bytes{};
  const std::size_t end = range.end_bytes() / block_bytes;
  for (std::size_t at = range.offset_bytes / block_bytes; at < end; at += stamps_max) {
    const std::size_t count = std::min(stamps_max, end - at);
    const auto part = std::span(bytes).first(count * block_bytes);
    put_stamps(std::span(image).subspan(at, count), part);
    sums.push_back(block_sum(part));
  }
  return sums;
}

// --- images

void Image::write(std::size_t first, std::span<const Stamp> stamps) {
  ++last_id_;
  for (std::size_t i = 0; i < stamps.size(); ++i) {
    cache_[first + i] = stamps[i];
    pending_.push_back({last_id_, first + i, stamps[i]});
  }
}

void Image::write_through(std::size_t first, std::span<const Stamp> stamps) {
  const std::size_t end = first + stamps.size();
  std::erase_if(pending_, [&](const Pending& p) { return p.block >= first && p.block < end; });
  std::ranges::copy(stamps, cache_.begin() + static_cast<std::ptrdiff_t>(first));
  std::ranges::copy(stamps, stable_.begin() + static_cast<std::ptrdiff_t>(first));
}

void Image::end_sync(std::uint64_t begun) {
  for (const Pending& pending : pending_) {
    if (pending.id <= begun) stable_[pending.block] = pending.stamp;
  }
  lose_sync(begun);
}

void Image::lose_sync(std::uint64_t begun) {
  std::erase_if(pending_, [&](const Pending& pending) { return pending.id <= begun; });
}

void Image::drop_cache() {
  end_sync(last_id_);
  cache_ = stable_;
}

void Image::lose_power(Random& random, bool garbage) {
  for (const Pending& pending : pending_) {
    const auto fate = random.below(8);
    if (fate < 4) stable_[pending.block] = pending.stamp;
    if (fate == 4 && garbage) stable_[pending.block] = garbage_bit | random.next();
  }
  pending_.clear();
  cache_ = stable_;
}

// --- files

void File::write(std::size_t offset, std::span<const std::byte> data) {
  RD_CHECK(offset + data.size() <= cache_.size());
  std::memcpy(cache_.data() + offset, data.data(), data.size());
  dirty_.push_back({++last_id_, offset, offset + data.size()});
}

void File::zero_tail(std::size_t offset) {
  std::fill(cache_.begin() + static_cast<std::ptrdiff_t>(offset), cache_.end(), std::byte{0});
  dirty_.push_back({++last_id_, offset, cache_.size()});
}

void File::end_sync(std::uint64_t begun) {
  for (const Dirty& dirty : dirty_) {
    if (dirty.id > begun) continue;
    std::memcpy(stable_.data() + dirty.begin, cache_.data() + dirty.begin, dirty.end - dirty.begin);
  }
  lose_sync(begun);
}

void File::lose_sync(std::uint64_t begun) {
  std::erase_if(dirty_, [&](const Dirty& dirty) { return dirty.id <= begun; });
}

void File::lose_power(Random& random, bool garbage) {
  for (const Dirty& dirty : dirty_) {
    // A sector that the write shares with an earlier, synced one keeps that part.
    for (std::size_t at = dirty.begin; at < dirty.end;) {
      const std::size_t end = std::min(dirty.end, (at / block_bytes + 1) * block_bytes);
      const auto fate = random.below(8);
      if (fate < 4) std::memcpy(stable_.data() + at, cache_.data() + at, end - at);
      if (fate == 4 && garbage) {
        std::fill(stable_.begin() + static_cast<std::ptrdiff_t>(at),
                  stable_.begin() + static_cast<std::ptrdiff_t>(end),
                  static_cast<std::byte>(random.next()));
      }
      at = end;
    }
  }
  dirty_.clear();
  cache_ = stable_;
}

// --- names

std::shared_ptr<File> Directory::find(const std::string& name) const {
  const auto found = cache_.find(name);
  return found == cache_.end() ? nullptr : found->second;
}

void Directory::apply(const Change& change, Names& names) {
  if (!change.from.empty()) names.erase(change.from);
  if (!change.to.empty()) names[change.to] = change.file;
}

void Directory::add(Change change) {
  apply(change, cache_);
  pending_.push_back(std::move(change));
}

void Directory::create(const std::string& name, std::shared_ptr<File> file) {
  add({{}, name, std::move(file)});
}

void Directory::rename(const std::string& from, const std::string& to) {
  add({from, to, cache_.at(from)});
}

void Directory::remove(const std::string& name) {
  add({name, {}, nullptr});
}

void Directory::end_sync(std::size_t begun) {
  while (done_ < begun && !pending_.empty()) {
    apply(pending_.front(), stable_);
    pending_.erase(pending_.begin());
    ++done_;
  }
}

void Directory::lose_power(Random& random, bool garbage) {
  end_sync(done_ + random.below(pending_.size() + 1));
  done_ += pending_.size();
  pending_.clear();
  cache_ = stable_;
  for (const auto& [name, file] : cache_)
    file->lose_power(random, garbage);
}

// --- for recovery

Status RecoveryFiles::attempt(const std::string& name) const {
  if (fails_()) return fail_errno(EIO, "log file {}", name);
  return {};
}

Result<std::vector<std::string>> RecoveryFiles::list() {
  RD_TRY(attempt("directory"));
  std::vector<std::string> names;
  for (const auto& [name, file] : directory_.names())
    names.push_back(name);
  return names;
}

Result<std::uint64_t> RecoveryFiles::open(const std::string& name) {
  RD_TRY(attempt(name));
  return directory_.find(name)->size();
}

Status RecoveryFiles::read(const std::string& name, std::span<std::byte> to, std::uint64_t offset) {
  RD_TRY(attempt(name));
  const auto bytes = directory_.find(name)->bytes();
  if (offset + to.size() > bytes.size()) return fail(Errc::corrupt, "{} is too short", name);
  std::ranges::copy(bytes.subspan(offset, to.size()), to.begin());
  return {};
}

Status RecoveryFiles::read_medium(const std::string& name,
                                  std::span<std::byte> to,
                                  std::uint64_t offset) {
  RD_TRY(attempt(name));
  std::ranges::copy(directory_.find(name)->stable().subspan(offset, to.size()), to.begin());
  return {};
}

Status RecoveryFiles::write(const std::string& name,
                            std::span<const std::byte> from,
                            std::uint64_t offset) {
  RD_TRY(attempt(name));
  directory_.find(name)->write(offset, from);
  return {};
}

Status RecoveryFiles::zero_tail(const std::string& name, std::uint64_t offset) {
  RD_TRY(attempt(name));
  directory_.find(name)->zero_tail(offset);
  return {};
}

Status RecoveryFiles::remove(const std::string& name) {
  RD_TRY(attempt(name));
  if (directory_.find(name)) directory_.remove(name);
  return {};
}

Status RecoveryFiles::sync_file(const std::string& name) {
  File& file = *directory_.find(name);
  Status synced = attempt(name);
  if (synced) {
    file.end_sync(file.begin_sync());
  } else {
    file.lose_sync(file.begin_sync());
  }
  return synced;
}

Status RecoveryFiles::sync_names() {
  RD_TRY(attempt("directory"));
  directory_.end_sync(directory_.begin_sync());
  return {};
}

}  // namespace replicad::sim
