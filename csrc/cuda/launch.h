// Launch helpers shared by the CUDA kernels.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "fastvfx/config.h"

namespace fastvfx {
namespace cuda {

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("fastvfx: ") + kernel + ": " + cudaGetErrorString(error));
  }
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks for a grid-stride loop over `n` items.
inline unsigned grid_for(int64_t n, int per_block) {
  const int64_t blocks = ceil_div(n, per_block);
  return unsigned(blocks < (int64_t(1) << 30) ? blocks : (int64_t(1) << 30));
}

}  // namespace cuda
}  // namespace fastvfx
