// Frequency encoding on the GPU. Forward: a thread keeps one (coordinate, frequency) and goes down the rows, so that
// what column it writes is worked out once; neighbouring threads write neighbouring columns. Backward: a thread per
// coordinate, which sums over its frequencies.
#include "fastvfx/frequency.h"
#include "fastvfx/kernels.h"
#include "launch.h"

namespace fastvfx {
namespace cuda {
namespace {

using namespace ::fastvfx::device;

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 13;  // enough to fill any GPU; beyond it threads go down more rows

// Work item `p` of a row in the order of its columns.
struct Wave {
  int d, f;
};
__device__ Wave wave_of(const FrequencyRows& a, int p) {
  if (a.layout == FrequencyLayout::torch_ngp) return {p % a.dims, p / a.dims};
  return {p / a.n_frequencies, p % a.n_frequencies};
}

template <class T>
__global__ void __launch_bounds__(kThreads) frequency_fwd_kernel(const FrequencyFwd a) {
  using A = acc_t<T>;
  const frequency::Columns c = frequency::columns_of(a);
  const T* x = static_cast<const T*>(a.x);
  T* out = static_cast<T*>(a.out);
  const int64_t first = int64_t(blockIdx.x) * blockDim.y + threadIdx.y, step = int64_t(gridDim.x) * blockDim.y;
  for (int p = threadIdx.x; p < a.dims * a.n_frequencies; p += blockDim.x) {
    const Wave w = wave_of(a, p);
    const int column = c.first + w.d * c.per_dim + w.f * c.per_frequency;
    const bool passes = a.include_input && w.f == 0;
    const A power = frequency::power_of_two<A>(w.f);
    for (int64_t row = first; row < a.n; row += step) {
      const T raw = x[row * a.dims + w.d];
      const SinCos<A> value = frequency::wave(frequency::half_turns(to_acc(raw), a.layout), power);
      T* to = out + row * c.count;
      to[column] = from_acc<T>(value.sin);
      to[column + c.to_cos] = from_acc<T>(value.cos);
      if (passes) to[c.input + w.d] = raw;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) frequency_bwd_kernel(const FrequencyBwd a) {
  using A = acc_t<T>;
  const frequency::Columns c = frequency::columns_of(a);
  const A factor = frequency::factor_of<A>(a.layout);
  const T* x = static_cast<const T*>(a.x);
  const int64_t first = int64_t(blockIdx.x) * blockDim.y + threadIdx.y, step = int64_t(gridDim.x) * blockDim.y;
  for (int d = threadIdx.x; d < a.dims; d += blockDim.x) {
    for (int64_t row = first; row < a.n; row += step) {
      const T* g = static_cast<const T*>(a.g_out) + row * c.count;
      const frequency::HalfTurns<A> t = frequency::half_turns(to_acc(x[row * a.dims + d]), a.layout);
      A g_x = a.include_input ? to_acc(g[c.input + d]) : A(0);
      for (int f = 0; f < a.n_frequencies; ++f) {
        const A power = frequency::power_of_two<A>(f);
        const SinCos<A> value = frequency::wave(t, power);
        const T* at = g + c.first + d * c.per_dim + f * c.per_frequency;
        g_x += factor * power * (to_acc(at[0]) * value.cos - to_acc(at[c.to_cos]) * value.sin);
      }
      static_cast<T*>(a.g_x)[row * a.dims + d] = from_acc<T>(g_x);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) frequency_bwd_bwd_kernel(const FrequencyBwdBwd a) {
  using A = acc_t<T>;
  const frequency::Columns c = frequency::columns_of(a);
  const A factor = frequency::factor_of<A>(a.layout);
  const T* x = static_cast<const T*>(a.x);
  const int64_t first = int64_t(blockIdx.x) * blockDim.y + threadIdx.y, step = int64_t(gridDim.x) * blockDim.y;
  for (int d = threadIdx.x; d < a.dims; d += blockDim.x) {
    for (int64_t row = first; row < a.n; row += step) {
      const T* g = static_cast<const T*>(a.g_out) + row * c.count;
      T* gg = static_cast<T*>(a.gg_out) + row * c.count;
      const T raw = static_cast<const T*>(a.gg_x)[row * a.dims + d];
      const frequency::HalfTurns<A> t = frequency::half_turns(to_acc(x[row * a.dims + d]), a.layout);
      A g_x = 0;
      if (a.include_input) gg[c.input + d] = raw;
      for (int f = 0; f < a.n_frequencies; ++f) {
        const A power = frequency::power_of_two<A>(f), rate = factor * power;
        const SinCos<A> value = frequency::wave(t, power);
        const int column = c.first + d * c.per_dim + f * c.per_frequency;
        const A change = to_acc(raw) * rate;  // of the argument
        g_x -= change * rate * (to_acc(g[column]) * value.sin + to_acc(g[column + c.to_cos]) * value.cos);
        gg[column] = from_acc<T>(change * value.cos);
        gg[column + c.to_cos] = from_acc<T>(-change * value.sin);
      }
      static_cast<T*>(a.g_x)[row * a.dims + d] = from_acc<T>(g_x);
    }
  }
}

// Blocks of `items` threads across, as many rows as fit down.
struct Shape {
  dim3 grid, block;
};
Shape shape_for(int64_t n, int items) {
  const int across = items < kThreads ? items : kThreads, down = kThreads / across;
  const int64_t blocks = ceil_div(n, down);
  return {dim3(unsigned(blocks < kMaxBlocks ? blocks : kMaxBlocks)), dim3(across, down)};
}

}  // namespace

void frequency_fwd(const FrequencyFwd& a) {
  if (a.n == 0) return;
  const Shape s = shape_for(a.n, a.dims * a.n_frequencies);
  const auto stream = static_cast<cudaStream_t>(a.stream);
  FVX_DISPATCH_STORAGE(a.dtype, T, (frequency_fwd_kernel<T><<<s.grid, s.block, 0, stream>>>(a)));
  check_launch("frequency_fwd");
}

void frequency_bwd(const FrequencyBwd& a) {
  if (a.n == 0) return;
  const Shape s = shape_for(a.n, a.dims);
  const auto stream = static_cast<cudaStream_t>(a.stream);
  FVX_DISPATCH_STORAGE(a.dtype, T, (frequency_bwd_kernel<T><<<s.grid, s.block, 0, stream>>>(a)));
  check_launch("frequency_bwd");
}

void frequency_bwd_bwd(const FrequencyBwdBwd& a) {
  if (a.n == 0) return;
  const Shape s = shape_for(a.n, a.dims);
  const auto stream = static_cast<cudaStream_t>(a.stream);
  FVX_DISPATCH_STORAGE(a.dtype, T, (frequency_bwd_bwd_kernel<T><<<s.grid, s.block, 0, stream>>>(a)));
  check_launch("frequency_bwd_bwd");
}

}  // namespace cuda
}  // namespace fastvfx
