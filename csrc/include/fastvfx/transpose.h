// Matrices transposed: images from planes to pixels of channels and back.
#pragma once

#include "fastvfx/dtype.h"

namespace fastvfx {

// to[b][c][r] = from[b][r][c]; what is behind the rows of `to` is set to 0, up to their pitch.
struct Transpose {
  int64_t batch, rows, columns;
  int64_t from_pitch, to_pitch;  // of rows: at least `columns` and at least `rows`
  const float* from;             // (batch, rows, from_pitch)
  float* to;                     // (batch, columns, to_pitch)
  int threads;
};

}  // namespace fastvfx
