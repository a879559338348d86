// Upsample, filter and downsample on the GPU. A block makes a tile of outputs from the pixels that it reads, which it
// holds in shared memory, with the filter beside them: nothing global, so that calls on any stream keep apart. A filter
// of rank one is found to be so by the block itself, as the host must not wait for its values, and run along y and x.
//
// Tiles have channels as a third axis, the fastest: one for planes, up to 32 for channels-last images.
#include "fastvfx/kernels.h"
#include "fastvfx/math.h"
#include "fastvfx/upfirdn2d.h"
#include "launch.h"

namespace fastvfx {
namespace cuda {
namespace {

using namespace ::fastvfx::device;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kSharedBytes = 40 << 10;     // at most, of the 48 KiB that need no permission
constexpr int kLargestFactored = 32 * 32;  // taps of a 2-D filter that is worth trying

// Outputs of a tile, the pixels that they read, and how many tiles there are.
struct Tiles {
  int height, width, channels;
  int in_h, in_w;
  int64_t down, across, deep, count;
  bool in_shared;  // else the pixels do not fit
};

// Along an axis of a tile: `tap` is that of the tile's first output, whose first pixel is number 0 of the tile.
template <int kUp, int kDown>
struct Axis {
  int taps, up_, down_, tap;
  __device__ int up() const { return kUp ? kUp : up_; }
  __device__ int down() const { return kDown ? kDown : down_; }
  // Of output `o` of the tile.
  __device__ upfirdn2d::Span span(int o) const {
    const int begin = o * down() - tap;
    const int first = (begin + up() - 1) / up();
    return {first, first * up() - begin};
  }
};

// y and x with f = y x^T within rounding, if there are any; run by the first warp. f (taps_y, taps_x).
template <class A>
__device__ bool factor(const A* f, int taps_y, int taps_x, A* y, A* x) {
  const A rounding = sizeof(A) == 8 ? A(8.9e-16) : A(4.8e-7);
  const int taps = taps_y * taps_x, lane = int(threadIdx.x);
  A largest = 0;
  int pivot = 0;
  for (int t = lane; t < taps; t += 32) {
    const A size = f[t] < 0 ? -f[t] : f[t];
    if (size > largest) largest = size, pivot = t;
  }
  for (int distance = 16; distance; distance /= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, largest, distance);
    const int at = __shfl_xor_sync(0xffffffffu, pivot, distance);
    if (other > largest || (other == largest && at < pivot)) largest = other, pivot = at;
  }
  const int pivot_y = pivot / taps_x, pivot_x = pivot % taps_x;
  for (int v = lane; v < taps_y; v += 32) y[v] = f[v * taps_x + pivot_x];
  for (int u = lane; u < taps_x; u += 32) x[u] = f[pivot_y * taps_x + u] / f[pivot];
  __syncwarp();
  bool good = largest > 0;
  for (int t = lane; t < taps; t += 32) {
    const A off = y[t / taps_x] * x[t % taps_x] - f[t];
    good = good && (off < 0 ? -off : off) <= rounding * (f[t] < 0 ? -f[t] : f[t]);
  }
  return __all_sync(0xffffffffu, good);
}

// The filter in the order of correlation into shared memory: y and x where it is separable, else f. Returns whether.
template <class A>
__device__ bool load_filter(const Upfirdn2dFwd& a, A* y, A* x, A* full, int* is_separable) {
  const A* f = static_cast<const A*>(a.f);
  const A gain = A(a.gain);
  if (a.separable) {
    for (int t = threadIdx.x; t < a.taps_x; t += kThreads) {
      const A tap = f[upfirdn2d::stored(t, a.taps_x, a.flip)];
      y[t] = gain * tap;
      x[t] = tap;
    }
    __syncthreads();
    return true;
  }
  const int taps = a.taps_y * a.taps_x;
  for (int t = threadIdx.x; t < taps; t += kThreads) {
    full[t] = gain * f[upfirdn2d::stored(t / a.taps_x, a.taps_y, a.flip) * a.taps_x +
                       upfirdn2d::stored(t % a.taps_x, a.taps_x, a.flip)];
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    const bool found = taps <= kLargestFactored && factor(full, a.taps_y, a.taps_x, y, x);
    if (threadIdx.x == 0) *is_separable = found;
  }
  __syncthreads();
  return *is_separable;
}

template <class T, int kUp, int kDown>
__global__ void __launch_bounds__(kThreads) upfirdn2d_fwd_kernel(const Upfirdn2dFwd a, const Tiles tiles) {
  using A = acc_t<T>;
  extern __shared__ __align__(16) char memory[];
  __shared__ int is_separable;
  A* tap_y = reinterpret_cast<A*>(memory);
  A* tap_x = tap_y + a.taps_y;
  A* taps = tap_x + a.taps_x;
  A* pixels = taps + (a.separable ? 0 : a.taps_y * a.taps_x);      // (in_h, in_w, channels)
  A* between = pixels + tiles.in_h * tiles.in_w * tiles.channels;  // (height, in_w, channels)
  const bool separable = load_filter(a, tap_y, tap_x, taps, &is_separable);
  const T* x = static_cast<const T*>(a.x);
  T* out = static_cast<T*>(a.out);
  const int64_t inner = a.channels_last ? a.channels : 1;
  const int channels = tiles.channels, row = tiles.in_w * channels, out_row = tiles.width * channels;

  for (int64_t tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
    const int64_t x0 = tile % tiles.across * tiles.width, y0 = tile / tiles.across % tiles.down * tiles.height;
    const int64_t rest = tile / (tiles.across * tiles.down);
    const int64_t c0 = rest % tiles.deep * channels, image = rest / tiles.deep;
    const upfirdn2d::Span first_y = upfirdn2d::span_of(y0, a.up_y, a.down_y, a.pad_y);
    const upfirdn2d::Span first_x = upfirdn2d::span_of(x0, a.up_x, a.down_x, a.pad_x);
    const Axis<kUp, kDown> axis_y{a.taps_y, a.up_y, a.down_y, first_y.tap};
    const Axis<kUp, kDown> axis_x{a.taps_x, a.up_x, a.down_x, first_x.tap};

    const T* from = x + image * a.in_h * a.in_w * inner;
    for (int e = threadIdx.x; e < tiles.in_h * row; e += kThreads) {
      const int64_t py = first_y.first + e / row, px = first_x.first + e % row / channels, c = c0 + e % channels;
      const bool there = py >= 0 && py < a.in_h && px >= 0 && px < a.in_w && c < inner;
      pixels[e] = there ? to_acc(from[(py * a.in_w + px) * inner + c]) : A(0);
    }
    __syncthreads();
    if (separable) {
      for (int e = threadIdx.x; e < tiles.height * row; e += kThreads) {
        const upfirdn2d::Span s = axis_y.span(e / row);
        const A* p = pixels + s.first * row + e % row;
        A sum = 0;
        for (int t = s.tap; t < a.taps_y; t += axis_y.up(), p += row) sum += tap_y[t] * *p;
        between[e] = sum;
      }
      __syncthreads();
    }
    for (int e = threadIdx.x; e < tiles.height * out_row; e += kThreads) {
      const int v = e / out_row, u = e % out_row / channels;
      const int64_t oy = y0 + v, ox = x0 + u, c = c0 + e % channels;
      if (oy >= a.out_h || ox >= a.out_w || c >= inner) continue;
      const upfirdn2d::Span s = axis_x.span(u);
      A sum = 0;
      if (separable) {
        const A* p = between + v * row + s.first * channels + e % channels;
        for (int t = s.tap; t < a.taps_x; t += axis_x.up(), p += channels) sum += tap_x[t] * *p;
      } else {
        const upfirdn2d::Span s_y = axis_y.span(v);
        const A* line = pixels + s_y.first * row + s.first * channels + e % channels;
        for (int t_y = s_y.tap; t_y < a.taps_y; t_y += axis_y.up(), line += row) {
          const A* p = line;
          for (int t = s.tap; t < a.taps_x; t += axis_x.up(), p += channels) sum += taps[t_y * a.taps_x + t] * *p;
        }
      }
      out[(image * a.out_h * a.out_w + oy * a.out_w + ox) * inner + c] = from_acc<T>(sum);
    }
    __syncthreads();  // before the pixels of the next tile
  }
}

// For filters that do not fit into shared memory: a thread an output, everything from global memory.
template <class T>
__global__ void __launch_bounds__(kThreads) upfirdn2d_fwd_direct_kernel(const Upfirdn2dFwd a) {
  using A = acc_t<T>;
  const A* f = static_cast<const A*>(a.f);
  const int64_t inner = a.channels_last ? a.channels : 1;
  const int64_t count = a.n * a.channels * a.out_h * a.out_w;
  for (int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x; e < count; e += int64_t(gridDim.x) * kThreads) {
    const int64_t c = e % inner, ox = e / inner % a.out_w, oy = e / (inner * a.out_w) % a.out_h;
    const T* image = static_cast<const T*>(a.x) + e / (inner * a.out_w * a.out_h) * a.in_h * a.in_w * inner;
    const upfirdn2d::Span s_y = upfirdn2d::span_of(oy, a.up_y, a.down_y, a.pad_y);
    const upfirdn2d::Span s_x = upfirdn2d::span_of(ox, a.up_x, a.down_x, a.pad_x);
    A sum = 0;
    int64_t py = s_y.first;
    for (int t_y = s_y.tap; t_y < a.taps_y; t_y += a.up_y, ++py) {
      if (py < 0 || py >= a.in_h) continue;
      const int v = upfirdn2d::stored(t_y, a.taps_y, a.flip);
      A line = 0;
      int64_t px = s_x.first;
      for (int t_x = s_x.tap; t_x < a.taps_x; t_x += a.up_x, ++px) {
        if (px < 0 || px >= a.in_w) continue;
        const int u = upfirdn2d::stored(t_x, a.taps_x, a.flip);
        const A tap = a.separable ? f[u] : f[int64_t(v) * a.taps_x + u];
        line += tap * to_acc(image[(py * a.in_w + px) * inner + c]);
      }
      sum += a.separable ? f[v] * line : line;
    }
    static_cast<T*>(a.out)[e] = from_acc<T>(A(a.gain) * sum);
  }
}

// Pixels along an axis that `outputs` neighbours read at most.
int pixels_of(int64_t outputs, int taps, int up, int down) { return int(((outputs - 1) * down + taps - 1) / up + 1); }

int64_t shared_bytes(const Upfirdn2dFwd& a, const Tiles& t, int64_t size) {
  const int64_t filter = int64_t(a.taps_y) + a.taps_x + (a.separable ? 0 : int64_t(a.taps_y) * a.taps_x);
  return (filter + (int64_t(t.in_h) + t.height) * t.in_w * t.channels) * size;
}

int power_of_two(int64_t n, int most) {
  int p = 1;
  while (p < n && p < most) p *= 2;
  return p;
}

Tiles tiles_for(const Upfirdn2dFwd& a, int64_t size) {
  Tiles t{};
  t.channels = a.channels_last ? power_of_two(a.channels, 32) : 1;
  t.width = power_of_two(a.out_w, a.channels_last ? 16 : 64);
  t.height = power_of_two(a.out_h, a.channels_last ? 16 : 32);
  while (true) {
    t.in_h = pixels_of(t.height, a.taps_y, a.up_y, a.down_y);
    t.in_w = pixels_of(t.width, a.taps_x, a.up_x, a.down_x);
    t.in_shared = shared_bytes(a, t, size) <= kSharedBytes;
    if (t.in_shared || (t.height == 1 && t.width == 1 && t.channels == 1)) break;
    int& longest = t.height >= t.width && t.height > 1 ? t.height : t.width > 1 ? t.width : t.channels;
    longest /= 2;
  }
  t.down = ceil_div(a.out_h, t.height);
  t.across = ceil_div(a.out_w, t.width);
  t.deep = a.channels_last ? ceil_div(a.channels, t.channels) : 1;
  t.count = t.down * t.across * t.deep * (a.channels_last ? a.n : a.n * a.channels);
  return t;
}

template <class T>
void forward(const Upfirdn2dFwd& a) {
  const auto stream = static_cast<cudaStream_t>(a.stream);
  const Tiles t = tiles_for(a, sizeof(acc_t<T>));
  if (!t.in_shared) {
    const unsigned blocks = grid_for(a.n * a.channels * a.out_h * a.out_w, kThreads);
    upfirdn2d_fwd_direct_kernel<T><<<blocks, kThreads, 0, stream>>>(a);
    return;
  }
  const size_t shared = size_t(shared_bytes(a, t, sizeof(acc_t<T>)));
  const unsigned blocks = grid_for(t.count, 1);
  const bool square = a.up_x == a.up_y && a.down_x == a.down_y;
  if (square && a.up_x == 2 && a.down_x == 1) {
    upfirdn2d_fwd_kernel<T, 2, 1><<<blocks, kThreads, shared, stream>>>(a, t);
  } else if (square && a.up_x == 1 && a.down_x == 2) {
    upfirdn2d_fwd_kernel<T, 1, 2><<<blocks, kThreads, shared, stream>>>(a, t);
  } else if (square && a.up_x == 1 && a.down_x == 1) {
    upfirdn2d_fwd_kernel<T, 1, 1><<<blocks, kThreads, shared, stream>>>(a, t);
  } else {
    upfirdn2d_fwd_kernel<T, 0, 0><<<blocks, kThreads, shared, stream>>>(a, t);
  }
}

// --- gradient to the filter: each block sums 16 taps over its part of the outputs, one thread adds the blocks' sums

constexpr int kTapsAtOnce = 16;

template <class T>
__global__ void __launch_bounds__(kThreads) upfirdn2d_bwd_f_kernel(const Upfirdn2dBwdF a) {
  using A = acc_t<T>;
  __shared__ A of_warp[kWarps * kTapsAtOnce];
  const T* g_out = static_cast<const T*>(a.g_out);
  const int taps = a.taps_y * a.taps_x, first_tap = int(blockIdx.y) * kTapsAtOnce;
  const int64_t inner = a.channels_last ? a.channels : 1;
  const int64_t count = a.n * a.channels * a.out_h * a.out_w;
  A sums[kTapsAtOnce] = {};
  for (int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x; e < count; e += int64_t(gridDim.x) * kThreads) {
    const int64_t c = e % inner, ox = e / inner % a.out_w, oy = e / (inner * a.out_w) % a.out_h;
    const T* image = static_cast<const T*>(a.x) + e / (inner * a.out_w * a.out_h) * a.in_h * a.in_w * inner;
    const upfirdn2d::Span s_y = upfirdn2d::span_of(oy, a.up_y, a.down_y, a.pad_y);
    const upfirdn2d::Span s_x = upfirdn2d::span_of(ox, a.up_x, a.down_x, a.pad_x);
    const A g = to_acc(g_out[e]);
    FVX_UNROLL_ALL
    for (int k = 0; k < kTapsAtOnce; ++k) {
      const int behind_y = (first_tap + k) / a.taps_x - s_y.tap, behind_x = (first_tap + k) % a.taps_x - s_x.tap;
      if (first_tap + k >= taps || behind_y < 0 || behind_x < 0 || behind_y % a.up_y || behind_x % a.up_x) continue;
      const int64_t py = s_y.first + behind_y / a.up_y, px = s_x.first + behind_x / a.up_x;
      if (py < 0 || py >= a.in_h || px < 0 || px >= a.in_w) continue;
      sums[k] += g * to_acc(image[(py * a.in_w + px) * inner + c]);
    }
  }
  FVX_UNROLL_ALL
  for (int k = 0; k < kTapsAtOnce; ++k) {
    for (int distance = 16; distance; distance /= 2) sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], distance);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32 * kTapsAtOnce + k] = sums[k];
  }
  __syncthreads();
  const int k = threadIdx.x;
  if (k >= kTapsAtOnce || first_tap + k >= taps) return;
  A sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += of_warp[w * kTapsAtOnce + k];
  static_cast<A*>(a.work)[int64_t(blockIdx.x) * taps + first_tap + k] = sum;
}

template <class A>
__global__ void __launch_bounds__(kThreads) upfirdn2d_bwd_f_sum_kernel(const Upfirdn2dBwdF a, int blocks) {
  const int taps = a.taps_y * a.taps_x;
  const int t = int(blockIdx.x) * kThreads + threadIdx.x;
  if (t >= taps) return;
  double sum = 0;
  for (int b = 0; b < blocks; ++b) sum += double(static_cast<const A*>(a.work)[int64_t(b) * taps + t]);
  const int at =
      upfirdn2d::stored(t / a.taps_x, a.taps_y, a.flip) * a.taps_x + upfirdn2d::stored(t % a.taps_x, a.taps_x, a.flip);
  static_cast<A*>(a.g_f)[at] = A(a.gain * sum);
}

template <class T>
void backward_to_filter(const Upfirdn2dBwdF& a) {
  const auto stream = static_cast<cudaStream_t>(a.stream);
  const int taps = a.taps_y * a.taps_x;
  const int64_t outputs = a.n * a.channels * a.out_h * a.out_w;
  // No more blocks than there is work for; one where there is none, to write zeros.
  const int blocks = int(max_of<int64_t>(1, min_of<int64_t>(kUpfirdn2dBlocks, ceil_div(outputs, kThreads))));
  upfirdn2d_bwd_f_kernel<T><<<dim3(blocks, unsigned(ceil_div(taps, kTapsAtOnce))), kThreads, 0, stream>>>(a);
  check_launch("upfirdn2d_bwd_f");
  upfirdn2d_bwd_f_sum_kernel<acc_t<T>><<<grid_for(taps, kThreads), kThreads, 0, stream>>>(a, blocks);
}

}  // namespace

void upfirdn2d_fwd(const Upfirdn2dFwd& a) {
  if (a.n * a.channels * a.out_h * a.out_w == 0) return;
  FVX_DISPATCH_STORAGE(a.dtype, T, forward<T>(a));
  check_launch("upfirdn2d_fwd");
}

void upfirdn2d_bwd_f(const Upfirdn2dBwdF& a) {
  FVX_DISPATCH_STORAGE(a.dtype, T, backward_to_filter<T>(a));
  check_launch("upfirdn2d_bwd_f");
}

}  // namespace cuda
}  // namespace fastvfx
