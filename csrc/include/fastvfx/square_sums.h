// Sums of squares of short rows, the 9 taps of a filter: what demodulation needs of a weight.
#pragma once

#include "fastvfx/dtype.h"

namespace fastvfx {

struct SquareSums {
  DType dtype;  // float32 or float64
  int64_t rows, columns;
  const void* x;  // (rows, columns)
  void* sums;     // (rows)
  int threads;
};

}  // namespace fastvfx
