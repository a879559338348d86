// Packing and unpacking occupancy bitfields on the GPU: a thread per brick, a thread per cell.
#include "fastvfx/kernels.h"
#include "fastvfx/occupancy.h"
#include "launch.h"

namespace fastvfx {
namespace cuda {
namespace {

using namespace ::fastvfx::device;

constexpr int kThreads = 256;

template <class Cell>
__global__ void __launch_bounds__(kThreads) pack_kernel(const OccupancyPack a) {
  const int64_t words = brick_words(a.res), cells = a.res[0] * a.res[1] * a.res[2];
  const float threshold = a.from_values ? *a.threshold : 0.0f;
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < a.levels * words; i += stride) {
    a.bits[i] = pack_brick(static_cast<const Cell*>(a.cells) + i / words * cells, a.res, i % words, threshold);
  }
}

__global__ void __launch_bounds__(kThreads) unpack_kernel(const OccupancyUnpack a) {
  const int64_t words = brick_words(a.res), ny = bricks_of(a.res[1]), nz = bricks_of(a.res[2]);
  const int64_t n = a.levels * a.res[0] * a.res[1] * a.res[2];
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    const int64_t z = i % a.res[2], row = i / a.res[2];
    const int64_t y = row % a.res[1], x = row / a.res[1] % a.res[0], level = row / (a.res[1] * a.res[0]);
    const uint64_t word = a.bits[level * words + ((x >> 2) * ny + (y >> 2)) * nz + (z >> 2)];
    a.cells[i] = uint8_t((word >> brick_bit(int(x), int(y), int(z))) & 1);
  }
}

}  // namespace

void occupancy_pack(const OccupancyPack& a) {
  const int64_t n = a.levels * brick_words(a.res);
  if (n == 0) return;
  const auto stream = static_cast<cudaStream_t>(a.stream);
  if (a.from_values) {
    pack_kernel<float><<<grid_for(n, kThreads), kThreads, 0, stream>>>(a);
  } else {
    pack_kernel<uint8_t><<<grid_for(n, kThreads), kThreads, 0, stream>>>(a);
  }
  check_launch("occupancy_pack");
}

void occupancy_unpack(const OccupancyUnpack& a) {
  const int64_t n = a.levels * a.res[0] * a.res[1] * a.res[2];
  if (n == 0) return;
  unpack_kernel<<<grid_for(n, kThreads), kThreads, 0, static_cast<cudaStream_t>(a.stream)>>>(a);
  check_launch("occupancy_unpack");
}

}  // namespace cuda
}  // namespace fastvfx
