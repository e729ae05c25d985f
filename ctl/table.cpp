#include "ctl/table.h"

#include <algorithm>

#include "core/base/check.h"

namespace replicad::ctl {

namespace {

/// Code points, which is the width of what is printed here.
std::size_t width(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char byte) {
    return (static_cast<unsigned char>(byte) & 0xc0U) != 0x80U;
  }));
}

}  // namespace

Table::Table(std::vector<std::string> headings) : headings_(std::move(headings)) {
  for (std::string& heading : headings_) {
    right_.push_back(heading.starts_with('>'));
    if (right_.back()) heading.erase(0, 1);
  }
}

void Table::add_row(std::vector<Cell> cells) {
  RD_CHECK(cells.size() == headings_.size());
  for (Cell& cell : cells) {
    if (cell.text.empty()) cell = Cell("-");
  }
  rows_.push_back(std::move(cells));
}

std::string Table::text(std::size_t indent) const {
  std::vector<std::vector<Cell>> lines;
  lines.emplace_back(headings_.begin(), headings_.end());
  lines.insert(lines.end(), rows_.begin(), rows_.end());
  std::vector<std::size_t> widths(headings_.size(), 0);
  for (const std::vector<Cell>& line : lines) {
    for (std::size_t i = 0; i < line.size(); ++i)
      widths[i] = std::max(widths[i], width(line[i].text));
  }
  std::string all;
  for (const std::vector<Cell>& line : lines) {
    std::string out(indent, ' ');
    for (std::size_t i = 0; i < line.size(); ++i) {
      const std::string padding(widths[i] - width(line[i].text), ' ');
      const std::string& shown = line[i].painted.empty() ? line[i].text : line[i].painted;
      const bool last = i + 1 == line.size();
      if (right_[i]) {
        out += padding + shown;
      } else {
        out += shown + (last ? "" : padding);
      }
      if (!last) out += "  ";
    }
    all += out + "\n";
  }
  return all;
}

}  // namespace replicad::ctl
