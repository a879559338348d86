// Intersecting rays with boxes on the GPU: a thread per pair, boxes fastest, so that writes are coalesced.
#include "fastvfx/aabb.h"
#include "fastvfx/kernels.h"
#include "launch.h"

namespace fastvfx {
namespace cuda {
namespace {

using namespace ::fastvfx::device;

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) aabb_kernel(const AabbFwd a) {
  const int64_t stride = int64_t(gridDim.x) * kThreads, n = a.n_rays * a.n_boxes;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    aabb_ray<T>(a, i / a.n_boxes, i % a.n_boxes);
  }
}

}  // namespace

void aabb_fwd(const AabbFwd& a) {
  const int64_t n = a.n_rays * a.n_boxes;
  if (n == 0) return;
  const auto stream = static_cast<cudaStream_t>(a.stream);
  if (a.dtype == DType::f64) {
    aabb_kernel<double><<<grid_for(n, kThreads), kThreads, 0, stream>>>(a);
  } else {
    aabb_kernel<float><<<grid_for(n, kThreads), kThreads, 0, stream>>>(a);
  }
  check_launch("aabb_fwd");
}

}  // namespace cuda
}  // namespace fastvfx
