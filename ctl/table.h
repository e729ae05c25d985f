#pragma once
// Columns for people: headed, two spaces apart, no lines drawn, so that awk can take them apart.
// Pure.

#include <string>
#include <vector>

namespace replicad::ctl {

struct Cell {
  // NOLINTNEXTLINE(google-explicit-constructor)
  Cell(std::string cell_text) : text(std::move(cell_text)) {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  Cell(const char* cell_text) : text(cell_text) {}
  Cell(std::string cell_text, std::string cell_painted)
      : text(std::move(cell_text)), painted(std::move(cell_painted)) {}

  std::string text;     ///< what its width is taken from; an empty one prints as "-"
  std::string painted;  ///< the same with colours; empty = plain
};

class Table {
 public:
  /// A heading that begins with '>' aligns its column to the right.
  explicit Table(std::vector<std::string> headings);

  void add_row(std::vector<Cell> cells);
  /// All lines, each with newline and `indent` spaces before it.
  [[nodiscard]] std::string text(std::size_t indent = 0) const;

 private:
  std::vector<std::string> headings_;
  std::vector<bool> right_;
  std::vector<std::vector<Cell>> rows_;
};

}  // namespace replicad::ctl
