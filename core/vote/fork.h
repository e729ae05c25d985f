#pragma once
// Two histories of one volume: what follows when a history that was opened by force meets a member of
// another one. Pure.

#include "core/vote/record.h"

namespace replicad {

enum class Meeting {
  same,     ///< one history
  part_of,  ///< what the other has is a part of this history: it may follow, and must not serve
  split,    ///< each has records that the other lacks: both stop until an operator chooses
};

/// `own`: of this member; `base`: the record that its history was opened on by force; `other`: the
/// record of the member met.
[[nodiscard]] Meeting meet(const Record& own, const Record& base, const Record& other);

/// For people: "history 1a2b3c4d, version 7, epoch 3, primary a".
[[nodiscard]] std::string describe_history(const Record& record);

}  // namespace replicad
