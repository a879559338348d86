// Tiles of 16 by 16 in registers, four of them side by side: whole lines are written, and several in a row are read.
#include "fastvfx/transpose.h"

#include "fastvfx/math.h"
#include "parallel.h"
#include "rows.h"

FVX_BEGIN_ISA

namespace {

constexpr int64_t kColumns = 64, kRows = 1024;  // of a task

// A whole tile, or the part of one.
void tile(const float* from, int64_t from_pitch, float* to, int64_t to_pitch, int64_t rows, int64_t columns) {
#if defined(__AVX512F__)
  if (rows == kLanes && columns == kLanes && from_pitch < (1 << 27)) {
    for (int c = 0; c < kLanes; c += 4) {
      const float* at = from + c;
      __m512 v[4];
      for (int j = 0; j < 4; ++j) v[j] = load_lanes(at + j * from_pitch, int(4 * from_pitch));
      transpose_lanes(v[0], v[1], v[2], v[3]);
      for (int j = 0; j < 4; ++j) _mm512_storeu_ps(to + (c + j) * to_pitch, v[j]);
    }
    return;
  }
#endif
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) to[c * to_pitch + r] = from[r * from_pitch + c];
  }
}

}  // namespace

void transpose(const Transpose& a) {
  const int64_t column_blocks = (a.columns + kColumns - 1) / kColumns, row_blocks = (a.rows + kRows - 1) / kRows;
  parallel_for(a.threads, a.batch * column_blocks * row_blocks, 1, [&](int64_t task, int64_t) {
    const int64_t batch = task / (column_blocks * row_blocks);
    const int64_t first_column = task / row_blocks % column_blocks * kColumns, first_row = task % row_blocks * kRows;
    const int64_t end_column = min_of(a.columns, first_column + kColumns), end_row = min_of(a.rows, first_row + kRows);
    const float* from = a.from + batch * a.rows * a.from_pitch;
    float* to = a.to + batch * a.columns * a.to_pitch;
    for (int64_t r = first_row; r < end_row; r += kLanes) {
      for (int64_t c = first_column; c < end_column; c += kLanes) {
        tile(from + r * a.from_pitch + c, a.from_pitch, to + c * a.to_pitch + r, a.to_pitch,
             min_of<int64_t>(kLanes, end_row - r), min_of<int64_t>(kLanes, end_column - c));
      }
    }
    if (end_row < a.rows) return;
    for (int64_t c = first_column; c < end_column; ++c) {
      for (int64_t r = a.rows; r < a.to_pitch; ++r) to[c * a.to_pitch + r] = 0;
    }
  });
}

FVX_END_ISA
