// Packed rays: samples of ray r are [offsets[r], offsets[r + 1]).
#pragma once

#include "fastvfx/config.h"

namespace fastvfx {

struct CheckOffsets {
  const int64_t* offsets;  // (n_rays + 1)
  int64_t n_rays;
  int64_t* first_bad;  // out: the first ray whose end lies before its start, or -1
};

}  // namespace fastvfx
