// Occupancy bitfields: a grid of cells as bricks of 4 x 4 x 4 bits.
//
// A brick is one 64-bit word, so an empty brick is recognised, and skipped, with a single load. Bricks lie with z
// fastest, like the cells of a (X, Y, Z) tensor; cell (x, y, z) is bit 16 (x % 4) + 4 (y % 4) + z % 4 of the word of
// brick (x / 4, y / 4, z / 4). Cells of the last bricks that lie beyond the resolution are 0.
#pragma once

#include "fastvfx/config.h"

namespace fastvfx {

struct OccupancyPack {
  bool from_values;  // cells are float and compared with *threshold, else bytes compared with 0
  int64_t levels, res[3];
  const void* cells;       // (levels, X, Y, Z)
  const float* threshold;  // occupied: value > *threshold; NaN is not
  uint64_t* bits;          // (levels, words)
  int threads;
  void* stream;
};

struct OccupancyUnpack {
  int64_t levels, res[3];
  const uint64_t* bits;
  uint8_t* cells;  // (levels, X, Y, Z) 0 or 1
  int threads;
  void* stream;
};

}  // namespace fastvfx

FVX_BEGIN_ISA

FVX_HD int brick_bit(int x, int y, int z) { return ((x & 3) << 4) | ((y & 3) << 2) | (z & 3); }

FVX_HD int64_t bricks_of(int64_t cells) { return (cells + 3) >> 2; }

FVX_HD int64_t brick_words(const int64_t* res) { return bricks_of(res[0]) * bricks_of(res[1]) * bricks_of(res[2]); }

FVX_HD bool is_occupied(float value, float threshold) { return value > threshold; }
FVX_HD bool is_occupied(uint8_t value, float) { return value != 0; }

// The word of one brick of one level.
template <class Cell>
FVX_HD uint64_t pack_brick(const Cell* cells, const int64_t* res, int64_t brick, float threshold) {
  const int64_t ny = bricks_of(res[1]), nz = bricks_of(res[2]);
  const int64_t z0 = brick % nz * 4, y0 = brick / nz % ny * 4, x0 = brick / (nz * ny) * 4;
  uint64_t word = 0;
  for (int64_t x = x0; x < x0 + 4 && x < res[0]; ++x) {
    for (int64_t y = y0; y < y0 + 4 && y < res[1]; ++y) {
      const Cell* row = cells + (x * res[1] + y) * res[2];
      for (int64_t z = z0; z < z0 + 4 && z < res[2]; ++z) {
        word |= uint64_t(is_occupied(row[z], threshold)) << brick_bit(int(x), int(y), int(z));
      }
    }
  }
  return word;
}

FVX_END_ISA
