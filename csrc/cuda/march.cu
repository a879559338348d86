// Marching on the GPU: a thread walks a ray, once to count and once to write. The counts are summed over all rays in
// the same launch that makes them (a single pass with decoupled look-back, Merrill and Garland 2016), so that the
// places of the samples are known, in the order of the rays, without the host.
#include "fastvfx/kernels.h"
#include "fastvfx/march.h"
#include "launch.h"

namespace fastvfx {
namespace cuda {
namespace {

using namespace ::fastvfx::device;

constexpr int kThreads = march_block;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAll = 0xffffffffu;

// What a block tells those behind it: the sum of its own rays, then that of all rays up to its end.
constexpr unsigned long long kOwn = 1ull << 62, kUpTo = 2ull << 62, kValue = (1ull << 62) - 1;

__device__ int64_t warp_inclusive_sum(int64_t x, int lane) {
  for (int d = 1; d < 32; d *= 2) {
    const int64_t below = __shfl_up_sync(kAll, x, d);
    if (lane >= d) x += below;
  }
  return x;
}

// Sum of all blocks in front of `block`, by one warp: looks back 32 blocks at a time until one knows its prefix.
__device__ int64_t look_back(volatile unsigned long long* states, int64_t block, int lane) {
  int64_t sum = 0;
  for (int64_t last = block - 1; last >= 0; last -= 32) {
    const int64_t i = last - lane;
    unsigned long long state = kUpTo;  // in front of the first block: nothing
    if (i >= 0) {
      while ((state = states[i]) == 0) __nanosleep(20);
    }
    const unsigned known = __ballot_sync(kAll, (state & kUpTo) != 0);
    const int stop = known ? __ffs(known) - 1 : 31;
    int64_t value = lane <= stop ? int64_t(state & kValue) : 0;
    for (int d = 16; d > 0; d /= 2) value += __shfl_xor_sync(kAll, value, d);
    sum += value;
    if (known) break;
  }
  return sum;
}

template <class P, MarchMode kMode>
__global__ void __launch_bounds__(kThreads) count_kernel(const MarchCount a) {
  __shared__ int64_t shared_block, shared_prefix, warp_sums[kWarps];
  unsigned long long* ticket = reinterpret_cast<unsigned long long*>(a.scratch);
  volatile unsigned long long* states = ticket + 1;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // Blocks take numbers in the order in which they start: those in front of a block are running or done.
  if (threadIdx.x == 0) shared_block = int64_t(atomicAdd(ticket, 1ull));
  __syncthreads();
  const int64_t block = shared_block, ray = block * kThreads + threadIdx.x;

  int64_t count = 0;
  if (ray < a.n_rays) {
    const MarchRay r = load_jittered<P>(a, ray, mixed_seed_of(a));
    march_ray<P, kMode>(a, r, lattice_of<kMode>(a, r), [&](double k, double k_end) {
      const int64_t n = kMode == MarchMode::cells ? 1 : int64_t(k_end - k);
      count = min_of<int64_t>(count + n, a.max_samples);
      return count < a.max_samples;
    });
  }

  const int64_t inclusive = warp_inclusive_sum(count, lane);
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  if (warp == 0) {
    int64_t total = 0;
    for (int w = 0; w < kWarps; ++w) total += warp_sums[w];
    if (lane == 0 && block > 0) states[block] = kOwn | (unsigned long long)(total);
    const int64_t prefix = look_back(states, block, lane);
    if (lane == 0) {
      states[block] = kUpTo | (unsigned long long)(prefix + total);
      shared_prefix = prefix;
    }
  }
  __syncthreads();
  int64_t end = shared_prefix + inclusive;
  for (int w = 0; w < warp; ++w) end += warp_sums[w];
  if (ray < a.n_rays) a.offsets[ray + 1] = end;
  if (ray == 0) a.offsets[0] = 0;
}

template <class P, MarchMode kMode>
__global__ void __launch_bounds__(kThreads) write_kernel(const MarchWrite a) {
  const int64_t ray = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (ray >= a.n_rays) return;
  int64_t i = a.sums[ray];
  const int64_t last = a.sums[ray + 1];
  if (i == last || last > a.capacity) return;
  P* t_starts = static_cast<P*>(a.t_starts);
  P* t_ends = static_cast<P*>(a.t_ends);
  const MarchRay r = load_jittered<P>(a, ray, mixed_seed_of(a));
  const auto lattice = lattice_of<kMode>(a, r);
  march_ray<P, kMode>(a, r, lattice, [&](double begin, double end) {
    if constexpr (kMode == MarchMode::cells) {
      t_starts[i] = P(begin);
      t_ends[i] = P(end);
      a.ray_indices[i++] = int32_t(ray);
    } else {
      P t = P(lattice.t(begin));
      for (double k = begin; k < end && i < last; k += 1.0, ++i) {
        t_starts[i] = t;
        t_ends[i] = t = P(lattice.t(k + 1.0));
        a.ray_indices[i] = int32_t(ray);
      }
    }
    return i < last;
  });
}

// Offsets up to the last ray that fits, the number of those left out, and the padding.
template <class P>
__global__ void __launch_bounds__(kThreads) finish_kernel(const MarchWrite a) {
  __shared__ int64_t shared_fit;
  if (threadIdx.x == 0) shared_fit = rays_that_fit(a.sums, a.n_rays, a.capacity);
  __syncthreads();
  const int64_t fit = shared_fit, written = a.sums[fit];
  const int64_t first = int64_t(blockIdx.x) * kThreads + threadIdx.x, stride = int64_t(gridDim.x) * kThreads;
  for (int64_t ray = first; ray <= a.n_rays; ray += stride) a.offsets[ray] = ray <= fit ? a.sums[ray] : written;
  if (first == 0 && a.overflow) *a.overflow = a.n_rays - fit;
  for (int64_t i = written + first; i < a.capacity; i += stride) {
    static_cast<P*>(a.t_starts)[i] = P(0);
    static_cast<P*>(a.t_ends)[i] = P(0);
    a.ray_indices[i] = -1;
  }
}

}  // namespace

void march_count(const MarchCount& a) {
  const auto stream = static_cast<cudaStream_t>(a.stream);
  if (a.n_rays == 0) {
    cudaMemsetAsync(a.offsets, 0, sizeof(int64_t), stream);
    return check_launch("march_count");
  }
  cudaMemsetAsync(a.scratch, 0, sizeof(int64_t) * size_t(march_scratch_words(a.n_rays)), stream);
  const unsigned blocks = unsigned(ceil_div(a.n_rays, kThreads));
  FVX_DISPATCH_MARCH(a, P, kMode, count_kernel<P, kMode><<<blocks, kThreads, 0, stream>>>(a));
  check_launch("march_count");
}

void march_write(const MarchWrite& a) {
  const auto stream = static_cast<cudaStream_t>(a.stream);
  if (a.n_rays > 0) {
    const unsigned blocks = unsigned(ceil_div(a.n_rays, kThreads));
    FVX_DISPATCH_MARCH(a, P, kMode, write_kernel<P, kMode><<<blocks, kThreads, 0, stream>>>(a));
  }
  if (a.offsets) {
    const unsigned blocks = grid_for((a.n_rays > a.capacity ? a.n_rays : a.capacity) / 8 + 1, kThreads);
    if (a.dtype != DType::f64) {
      finish_kernel<float><<<blocks, kThreads, 0, stream>>>(a);
    } else {
      finish_kernel<double><<<blocks, kThreads, 0, stream>>>(a);
    }
  }
  check_launch("march_write");
}

}  // namespace cuda
}  // namespace fastvfx
