#include "replicad/lost_writes.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/log.h"
#include "io/file.h"
#include "replicad/host_metrics.h"

namespace replicad {

namespace {

constexpr unsigned lost_directory_mode = 0750;
constexpr unsigned lost_file_mode = 0640;
/// Set aside at a time, so that most records find room without asking.
constexpr std::uint64_t set_aside_step = 4 * mib;
// Without room for its state file a host can neither vote nor remember what it promised.
constexpr std::uint64_t left_free_bytes = 4 * mib;
/// Without so much a rewind does not begin.
constexpr std::uint64_t first_set_aside = 1 * mib;

Status check_content(const FrameHeader& header,
                     int file,
                     const std::string& path,
                     std::uint64_t offset,
                     std::vector<std::byte>& content) {
  content.resize(header.payload_bytes);
  if (const Status read = read_all_at(file, content, offset); !read) {
    return fail(Errc::corrupt, "{}: {}", path, read.error().message);
  }
  return check_payload(header, content);
}

}  // namespace

std::string lost_directory(const std::string& volume_dir) {
  return volume_dir + "/lost-writes";
}

Result<std::vector<std::uint64_t>> list_lost_files(const std::string& directory) {
  std::vector<std::uint64_t> numbers;
  std::error_code error;
  for (std::filesystem::directory_iterator at(directory, error), end; !error && at != end;
       at.increment(error)) {
    if (const auto number = lost_number_from_name(at->path().filename().string()))
      numbers.push_back(*number);
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    return fail_errno(error.value(), "read {}", directory);
  }
  std::ranges::sort(numbers);
  return numbers;
}

LostTotals lost_totals(const std::string& directory) {
  LostTotals totals;
  const auto numbers = list_lost_files(directory);
  if (!numbers) return totals;
  for (const std::uint64_t number : *numbers) {
    struct stat info {};
    if (::stat((directory + "/" + lost_file_name(number)).c_str(), &info) != 0) continue;
    ++totals.files;
    totals.bytes += static_cast<std::uint64_t>(info.st_size);
  }
  return totals;
}

// --- reading

Result<LostFileReader> LostFileReader::open(const std::string& directory, std::uint64_t number) {
  std::string path = directory + "/" + lost_file_name(number);
  Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return fail_errno(errno, "open {}", path);
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) return fail_errno(errno, "stat {}", path);
  LostFileReader reader(std::move(file), std::move(path));
  reader.file_bytes_ = static_cast<std::uint64_t>(info.st_size);
  std::vector<std::byte> bytes(lost_header_bytes);
  RD_TRY(read_all_at(reader.file_.get(), bytes, 0));
  auto header = decode_lost_header(bytes);
  if (!header) return fail(header.error().code, "{}: {}", reader.path_, header.error().message);
  reader.header_ = std::move(*header);
  return reader;
}

Result<std::optional<LostFileReader::Record>> LostFileReader::next(bool with_content) {
  if (offset_ == file_bytes_) return std::nullopt;
  const auto damaged = [this](const std::string& what) {
    return fail(Errc::corrupt, "{} at byte {}: {}", path_, offset_, what);
  };
  if (offset_ < lost_header_bytes || offset_ > file_bytes_ ||
      file_bytes_ - offset_ < frame_header_bytes) {
    return damaged("no record fits in what is left");
  }
  std::array<std::byte, frame_header_bytes> bytes{};
  RD_TRY(read_all_at(file_.get(), bytes, offset_));
  const auto header = decode_lost_record(header_, bytes);
  if (!header) return damaged(header.error().message);
  if (header->payload_bytes > file_bytes_ - offset_ - frame_header_bytes) {
    return damaged("the record is cut off");
  }
  Record record;
  record.range = header->range;
  record.is_zero = header->type == FrameType::copy_zero;
  if (with_content && !record.is_zero) {
    const Status good =
        check_content(*header, file_.get(), path_, offset_ + frame_header_bytes, record.content);
    record.is_damaged = !good;
  }
  offset_ += frame_header_bytes + header->payload_bytes;
  return record;
}

void remove_empty_lost_files(const std::string& directory, std::uint64_t first) {
  const auto numbers = list_lost_files(directory);
  if (!numbers) return;
  for (const std::uint64_t number : *numbers) {
    const std::string path = directory + "/" + lost_file_name(number);
    struct stat info {};
    if (number < first || ::stat(path.c_str(), &info) != 0) continue;
    if (static_cast<std::uint64_t>(info.st_size) > lost_header_bytes) continue;
    if (::unlink(path.c_str()) != 0)
      log(LogLevel::warn, "lost_writes_not_tidied", "path={} errno={}", path, errno);
  }
}

Status mark_saved(const std::string& directory, std::uint64_t first, BlockMap& saved) {
  const auto numbers = list_lost_files(directory);
  if (!numbers) return tl::unexpected(numbers.error());
  for (const std::uint64_t number : *numbers) {
    if (number < first) continue;
    // What is changed because its old content is kept must not lose that with power.
    if (!secure_file(directory + "/" + lost_file_name(number))) continue;
    auto reader = LostFileReader::open(directory, number);
    while (reader) {
      const auto record = reader->next(true);
      if (!record || !*record) break;
      if (!(*record)->is_damaged) saved.mark((*record)->range);
    }
  }
  return {};
}

// --- writing

LostFileWriter::LostFileWriter(std::string directory, std::uint64_t number)
    : directory_(std::move(directory)),
      path_(directory_ + "/" + lost_file_name(number)),
      number_(number) {}

Result<std::unique_ptr<LostFileWriter>> LostFileWriter::create(const std::string& directory,
                                                               const LostHeader& header) {
  const std::string parent = directory.substr(0, directory.rfind('/'));
  RD_TRY(make_directories(directory, lost_directory_mode));
  RD_TRY(sync_directory(parent));
  const auto numbers = list_lost_files(directory);
  if (!numbers) return tl::unexpected(numbers.error());
  const std::uint64_t number = numbers->empty() ? 1 : numbers->back() + 1;
  if (number > lost_files_max) return fail(Errc::no_space, "{} is full of files", directory);
  std::unique_ptr<LostFileWriter> writer(new LostFileWriter(directory, number));
  writer->file_ =
      Fd(::open(writer->path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, lost_file_mode));
  if (!writer->file_.valid()) return fail_errno(errno, "create {}", writer->path_);
  RD_TRY(writer->set_aside(first_set_aside));
  RD_TRY(writer->write(encode_lost_header(header)));
  RD_TRY(writer->sync());
  RD_TRY(sync_directory(directory));
  return writer;
}

LostFileWriter::~LostFileWriter() {
  if (!file_.valid()) return;
  // What does not work here costs space only. Another file may have the name by now.
  struct stat mine {};
  struct stat named {};
  const bool is_mine = ::fstat(file_.get(), &mine) == 0 && ::stat(path_.c_str(), &named) == 0 &&
                       mine.st_ino == named.st_ino;
  if (::ftruncate(file_.get(), static_cast<off_t>(bytes_)) != 0 ||
      (records_ == 0 && is_mine && ::unlink(path_.c_str()) != 0)) {
    log(LogLevel::warn, "lost_writes_not_tidied", "path={} errno={}", path_, errno);
  }
}

Status LostFileWriter::with_space_hint(Status status) const {
  if (status || status.error().code != Errc::no_space) return status;
  const auto free = free_bytes(directory_);
  Error error = status.error();
  error.message = fmt::format("no space to keep what only this host has, {} bytes free: {}",
                              free.value_or(0),
                              error.message);
  error.hint = fmt::format(
      "make room in {} (of which the last {} bytes stay free for the state of volumes): the rewind "
      "goes on by itself, and nothing is overwritten that is not kept",
      directory_,
      left_free_bytes);
  return tl::unexpected(std::move(error));
}

Status LostFileWriter::set_aside(std::uint64_t bytes) {
  if (bytes_ + bytes <= set_aside_bytes_) return {};
  const std::uint64_t wanted = bytes_ + bytes;
  for (const std::uint64_t until : {wanted + set_aside_step, wanted}) {
    const auto free = free_bytes(directory_);
    if (free && *free < until - set_aside_bytes_ + left_free_bytes) {
      errno = ENOSPC;
      continue;
    }
    if (::fallocate(file_.get(),
                    FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(set_aside_bytes_),
                    static_cast<off_t>(until - set_aside_bytes_)) == 0) {
      set_aside_bytes_ = until;
      return {};
    }
    // A file system that cannot promise it says so when it is written.
    if (errno == EOPNOTSUPP || errno == ENOSYS) return {};
    if (errno != ENOSPC && errno != EDQUOT) break;
  }
  return with_space_hint(fail_errno(errno, "{} more bytes for {}", bytes, path_));
}

Status LostFileWriter::write(std::span<const std::byte> bytes) {
  RD_TRY(with_space_hint(write_all_at(file_.get(), bytes, bytes_)));
  bytes_ += bytes.size();
  dirty_ = true;
  return {};
}

Status LostFileWriter::append(const Range& range, std::span<const std::byte> content) {
  const FrameHeader header = lost_record(range, content);
  RD_TRY(set_aside(frame_header_bytes + header.payload_bytes));
  std::array<std::byte, frame_header_bytes> bytes{};
  encode_header(header, bytes);
  RD_TRY(write(bytes));
  if (header.payload_bytes > 0) RD_TRY(write(content));
  ++records_;
  return {};
}

Status LostFileWriter::sync() {
  if (!dirty_) return {};
  // Not dirty any more even if it fails: a sync that is tried again could succeed without the data.
  dirty_ = false;
  if (::fdatasync(file_.get()) != 0) return fail_errno(errno, "fdatasync {}", path_);
  return {};
}

}  // namespace replicad
