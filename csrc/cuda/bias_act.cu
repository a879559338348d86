// Bias, activation, gain and clamp on the GPU. A thread owns 16 bytes across and takes steps down: of a planar tensor
// some pixels, channel after channel; of an interleaved one some channels, pixel after pixel. Sums over what a thread
// owns are taken on the way, the others at the end; both leave partial sums that a second kernel adds up in a fixed
// order, so that results do not depend on when a block ran.
#include "fastvfx/bias_act.h"
#include "fastvfx/kernels.h"
#include "launch.h"

namespace fastvfx {
namespace cuda {
namespace {

using namespace ::fastvfx::device;
using bias_act::Kind;
using bias_act::Options;
using bias_act::slope_needs_z;

constexpr int kThreads = 256;
constexpr int kSteps = 32;
constexpr int64_t kMostBlocks = int64_t(1) << 30;  // beyond it blocks take several turns

// How threads share a tensor out.
struct Walk {
  bool interleaved;
  int64_t images, channels, pixels;
  int width;        // elements of a thread, side by side
  int across;       // threads side by side; whole warps if planar
  int down;         // rows of threads, each a pixel of its own; 1 if planar
  int64_t tiles;    // blocks side by side
  int64_t chunks;   // blocks one below the other
  int64_t columns;  // threads that have elements, side by side

  int64_t blocks() const { return images * chunks * tiles; }
  // Partial sums of one image and channel.
  FVX_HD int64_t of_channel() const { return interleaved ? chunks * down : tiles * (across / 32); }
  // Partial sums of all images and channels, and room that keeps what comes behind them on 16 bytes.
  int64_t of_channels() const { return ceil_div(images * channels * of_channel(), 16) * 16; }
  // Partial sums of one pixel.
  FVX_HD int64_t of_pixel() const { return interleaved ? columns : chunks; }
};

Walk walk_of(const BiasAct& a) {
  const int size = a.dtype == DType::f64 ? 8 : a.dtype == DType::f32 ? 4 : 2;
  const int64_t side = a.interleaved ? a.channels : a.pixels, below = a.interleaved ? a.pixels : a.channels;
  Walk w{};
  w.interleaved = a.interleaved;
  w.images = a.images;
  w.channels = a.channels;
  w.pixels = a.pixels;
  w.width = side % (16 / size) == 0 ? 16 / size : 1;
  w.columns = side / w.width;
  const int64_t across = a.interleaved ? w.columns : ceil_div(w.columns, 32) * 32;
  w.across = int(across < kThreads ? across : kThreads);
  w.down = a.interleaved ? kThreads / w.across : 1;
  w.tiles = ceil_div(w.columns, w.across);
  w.chunks = ceil_div(below, int64_t(w.down) * kSteps);
  return w;
}

// One thread's elements in one step.
struct Spot {
  int64_t image, chunk, tile, c, p, at;
  bool live;
};
__device__ Spot spot_of(const Walk& w, int64_t block, int step) {
  Spot s;
  s.tile = block % w.tiles;
  s.chunk = block / w.tiles % w.chunks;
  s.image = block / w.tiles / w.chunks;
  const int64_t side = (s.tile * w.across + threadIdx.x) * w.width;
  const int64_t below = (s.chunk * kSteps + step) * w.down + threadIdx.y;
  s.c = w.interleaved ? side : below;
  s.p = w.interleaved ? below : side;
  s.live = s.c < w.channels && s.p < w.pixels;
  s.at = w.interleaved ? (s.image * w.pixels + s.p) * w.channels + s.c : (s.image * w.channels + s.c) * w.pixels + s.p;
  return s;
}

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth < 16 ? sizeof(T) * kWidth : 16) Pack {
  T v[kWidth];
};

// Elements of a spot in the type of the sums.
template <class A, int kWidth>
struct Row {
  A v[kWidth];

  __device__ A& operator[](int k) { return v[k]; }
  __device__ A operator[](int k) const { return v[k]; }
};
template <class T, int kWidth>
__device__ Row<acc_t<T>, kWidth> load(const void* from, int64_t at) {
  const auto pack = *reinterpret_cast<const Pack<T, kWidth>*>(static_cast<const T*>(from) + at);
  Row<acc_t<T>, kWidth> r;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) r[k] = to_acc(pack.v[k]);
  return r;
}
template <class T, int kWidth>
__device__ void store(void* to, int64_t at, const Row<acc_t<T>, kWidth>& r) {
  Pack<T, kWidth> pack;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) pack.v[k] = from_acc<T>(r[k]);
  *reinterpret_cast<Pack<T, kWidth>*>(static_cast<T*>(to) + at) = pack;
}

// A coefficient of each element: `side` if it changes from one to the next, else the same for all; `missing` if null.
template <class A, int kWidth>
__device__ Row<A, kWidth> coefficient(const void* from, int64_t at, bool side, A missing) {
  if (from && side) return load<A, kWidth>(from, at);
  const A same = from ? static_cast<const A*>(from)[at] : missing;
  Row<A, kWidth> r;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) r[k] = same;
  return r;
}
template <class A, int kWidth>
__device__ Row<A, kWidth> scale_at(const void* scale, const Walk& w, const Spot& s) {
  return coefficient<A, kWidth>(scale, s.image * w.channels + s.c, w.interleaved, A(1));
}
// noise + b
template <class A, int kWidth>
__device__ Row<A, kWidth> offset_at(const void* noise, bool per_image, const void* b, const Walk& w, const Spot& s) {
  Row<A, kWidth> r = coefficient<A, kWidth>(b, s.c, w.interleaved, A(0));
  const Row<A, kWidth> n =
      coefficient<A, kWidth>(noise, (per_image ? s.image * w.pixels : 0) + s.p, !w.interleaved, A(0));
#pragma unroll
  for (int k = 0; k < kWidth; ++k) r[k] += n[k];
  return r;
}

// What slopes and curves are functions of: stored results, or z.
template <class T, int kWidth>
__device__ Row<acc_t<T>, kWidth> argument_at(const BiasAct& a, const void* y, const void* any, const Walk& w,
                                             const Spot& s) {
  using A = acc_t<T>;
  if (y || !slope_needs_z(a.act, a.alpha)) return load<T, kWidth>(y ? y : any, s.at);
  Row<A, kWidth> z = load<T, kWidth>(a.x, s.at);
  const Row<A, kWidth> scale = scale_at<A, kWidth>(a.scale, w, s);
  const Row<A, kWidth> offset = offset_at<A, kWidth>(a.noise, a.noise_per_image, a.b, w, s);
#pragma unroll
  for (int k = 0; k < kWidth; ++k) z[k] = z[k] * scale[k] + offset[k];
  return z;
}

template <Kind kKind, class A, int kWidth>
__device__ void activate(Row<A, kWidth>& z, const Options<A>& o) {
#pragma unroll
  for (int k = 0; k < kWidth; ++k) z[k] = o.template result<kKind>(z[k]);
}

enum class Order { slope, curve };

template <Order order, Kind kKind, bool from_z, class A, int kWidth>
__device__ void differentiate(Row<A, kWidth>& r, const Options<A>& o) {
#pragma unroll
  for (int k = 0; k < kWidth; ++k) {
    r[k] = order == Order::slope ? o.template slope_at<kKind, from_z>(r[k]) : o.template curve_at<kKind, from_z>(r[k]);
  }
}
template <Order order, class A, int kWidth>
__device__ Row<A, kWidth> derivative(const BiasAct& a, const void* y, Row<A, kWidth> r, const Options<A>& o) {
  if (!y && slope_needs_z(a.act, a.alpha)) {
    FVX_DISPATCH_KIND_OF_Z(a.act, (differentiate<order, kKind, true>(r, o)));
  } else {
    FVX_DISPATCH_KIND(a.act, (differentiate<order, kKind, false>(r, o)));
  }
  return r;
}

// Where the partial sums of g_z, of g_z x and of g_z over channels are; null if not wanted.
template <class A>
struct Partial {
  A* of_z;
  A* of_x;
  A* of_pixels;
};

// Adds what a thread's steps yield to the partial sums. `finish` after the last step.
template <class A, int kWidth>
class Sums {
 public:
  __device__ Sums(const Walk& w, const Partial<A>& to) : w_(w), to_(to), z_{}, x_{} {}

  // All threads of a block take every step; those that are not live bring zeros.
  __device__ void add(const Spot& s, const Row<A, kWidth>& g_z, const Row<A, kWidth>& x) {
    A of_z = 0, of_x = 0;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      of_z += g_z[k];
      of_x += g_z[k] * x[k];
      z_[k] += g_z[k];
      x_[k] += g_z[k] * x[k];
    }
    if (w_.interleaved) {
      if (to_.of_pixels && s.live) {
        to_.of_pixels[(s.image * w_.pixels + s.p) * w_.columns + s.c / w_.width] = of_z;
      }
      return;
    }
    if (to_.of_z) put(to_.of_z, s, of_z);
    if (to_.of_x) put(to_.of_x, s, of_x);
  }

  __device__ void finish(const Spot& first) {
    if (w_.interleaved) {
      if (first.c >= w_.channels) return;
      const int64_t row = (first.image * w_.chunks + first.chunk) * w_.down + threadIdx.y;
      if (to_.of_z) store<A, kWidth>(to_.of_z, row * w_.channels + first.c, z_);
      if (to_.of_x) store<A, kWidth>(to_.of_x, row * w_.channels + first.c, x_);
    } else if (to_.of_pixels && first.p < w_.pixels) {
      store<A, kWidth>(to_.of_pixels, (first.chunk * w_.images + first.image) * w_.pixels + first.p, z_);
    }
  }

 private:
  __device__ void put(A* to, const Spot& s, A sum) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 != 0 || s.c >= w_.channels) return;
    to[(s.image * w_.channels + s.c) * w_.of_channel() + s.tile * (w_.across / 32) + threadIdx.x / 32] = sum;
  }

  const Walk& w_;
  const Partial<A>& to_;
  Row<A, kWidth> z_, x_;  // over the steps
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) bias_act_fwd_kernel(const BiasActFwd a, const Walk w) {
  using A = acc_t<T>;
  const auto o = Options<A>::template of<T>(a);
  for (int64_t block = blockIdx.x; block < w.images * w.chunks * w.tiles; block += gridDim.x) {
    for (int step = 0; step < kSteps; ++step) {
      const Spot s = spot_of(w, block, step);
      if (!s.live) break;
      Row<A, kWidth> z = load<T, kWidth>(a.x, s.at);
      const Row<A, kWidth> scale = scale_at<A, kWidth>(a.scale, w, s);
      const Row<A, kWidth> offset = offset_at<A, kWidth>(a.noise, a.noise_per_image, a.b, w, s);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) z[k] = z[k] * scale[k] + offset[k];
      FVX_DISPATCH_KIND(a.act, activate<kKind>(z, o));
      store<T, kWidth>(a.y, s.at, z);
    }
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    bias_act_bwd_kernel(const BiasActBwd a, const Walk w, const Partial<acc_t<T>> to) {
  using A = acc_t<T>;
  const auto o = Options<A>::template of<T>(a);
  for (int64_t block = blockIdx.x; block < w.images * w.chunks * w.tiles; block += gridDim.x) {
    Sums<A, kWidth> sums(w, to);
    for (int step = 0; step < kSteps; ++step) {
      const Spot s = spot_of(w, block, step);
      Row<A, kWidth> g_z{}, x{};
      if (s.live) {
        g_z = derivative<Order::slope>(a, a.y, argument_at<T, kWidth>(a, a.y, a.g_y, w, s), o);
        const Row<A, kWidth> g_y = load<T, kWidth>(a.g_y, s.at), scale = scale_at<A, kWidth>(a.scale, w, s);
        Row<A, kWidth> g_x;
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          g_z[k] *= g_y[k];
          g_x[k] = g_z[k] * scale[k];
        }
        store<T, kWidth>(a.g_x, s.at, g_x);
        if (to.of_x) x = load<T, kWidth>(a.x, s.at);
      }
      sums.add(s, g_z, x);
    }
    sums.finish(spot_of(w, block, 0));
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    bias_act_bwd_bwd_kernel(const BiasActBwdBwd a, const Walk w, const Partial<acc_t<T>> to) {
  using A = acc_t<T>;
  const auto o = Options<A>::template of<T>(a);
  for (int64_t block = blockIdx.x; block < w.images * w.chunks * w.tiles; block += gridDim.x) {
    Sums<A, kWidth> sums(w, to);
    for (int step = 0; step < kSteps; ++step) {
      const Spot s = spot_of(w, block, step);
      Row<A, kWidth> g_z{}, gg_x{};
      if (s.live) {
        const Row<A, kWidth> r = argument_at<T, kWidth>(a, a.y, a.g_y, w, s), g_y = load<T, kWidth>(a.g_y, s.at);
        gg_x = load<T, kWidth>(a.gg_x, s.at);
        Row<A, kWidth> q = offset_at<A, kWidth>(a.gg_noise, a.noise_per_image, a.gg_b, w, s);
        const Row<A, kWidth> scale = scale_at<A, kWidth>(a.scale, w, s);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) q[k] += gg_x[k] * scale[k];
        Row<A, kWidth> gg_scale{};
        if (a.gg_scale) {
          gg_scale = scale_at<A, kWidth>(a.gg_scale, w, s);
          const Row<A, kWidth> x = load<T, kWidth>(a.x, s.at);
#pragma unroll
          for (int k = 0; k < kWidth; ++k) q[k] += x[k] * gg_scale[k];
        }
        if (a.g_r) {
          Row<A, kWidth> g_r = derivative<Order::curve>(a, a.y, r, o);
#pragma unroll
          for (int k = 0; k < kWidth; ++k) g_r[k] *= g_y[k] * q[k];
          store<T, kWidth>(a.g_r, s.at, g_r);
        }
        g_z = derivative<Order::slope>(a, a.y, r, o);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          q[k] *= g_z[k];
          g_z[k] *= g_y[k];
          gg_scale[k] *= g_z[k];
        }
        store<T, kWidth>(a.gg_y, s.at, q);
        if (a.g_x) store<T, kWidth>(a.g_x, s.at, gg_scale);
      }
      sums.add(s, g_z, gg_x);
    }
    sums.finish(spot_of(w, block, 0));
  }
}

// out[i] = sum over o < outer and k < inner of from[i / minor * major_stride + i % minor * minor_stride +
// o * outer_stride + k * inner_stride], taken by `lanes` threads, 1 or 32.
template <class A>
struct Total {
  A* out;
  const A* from;
  int64_t n, minor, major_stride, minor_stride, outer, outer_stride, inner, inner_stride;
  int lanes;
};
template <class A>
__global__ void __launch_bounds__(kThreads) bias_act_total_kernel(const Total<A> t) {
  const int64_t per_block = blockDim.x / t.lanes;
  const int lane = int(threadIdx.x) % t.lanes;
  for (int64_t first = blockIdx.x * per_block; first < t.n; first += gridDim.x * per_block) {
    const int64_t i = first + threadIdx.x / t.lanes;
    A sum = 0;
    if (i < t.n) {
      const A* from = t.from + i / t.minor * t.major_stride + i % t.minor * t.minor_stride;
      for (int64_t j = lane; j < t.outer * t.inner; j += t.lanes) {
        sum += from[j / t.inner * t.outer_stride + j % t.inner * t.inner_stride];
      }
    }
    for (int d = t.lanes / 2; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (lane == 0 && i < t.n) t.out[i] = sum;
  }
}

unsigned blocks_for(int64_t n) { return unsigned(n < kMostBlocks ? n : kMostBlocks); }

template <class A>
void add_up(Total<A> t, cudaStream_t stream) {
  t.lanes = t.outer * t.inner >= 32 ? 32 : 1;
  bias_act_total_kernel<A><<<blocks_for(ceil_div(t.n, kThreads / t.lanes)), kThreads, 0, stream>>>(t);
}

template <class A>
void add_up(const Walk& w, const Partial<A>& p, A* g_scale, A* g_noise, A* g_b, cudaStream_t stream) {
  const int64_t N = w.images, C = w.channels, P = w.pixels, K = w.of_channel(), J = w.of_pixel();
  const int64_t image = C * K, channel = w.interleaved ? 1 : K, one = w.interleaved ? C : 1;  // strides
  if (g_scale) add_up<A>({g_scale, p.of_x, N * C, C, image, channel, 1, 0, K, one, 0}, stream);
  if (g_b) add_up<A>({g_b, p.of_z, C, C, 0, channel, N, image, K, one, 0}, stream);
  if (!g_noise) return;
  add_up<A>({g_noise, p.of_pixels, N * P, 1, w.interleaved ? J : 1, 0, 1, 0, J, w.interleaved ? 1 : N * P, 0}, stream);
}

template <class A>
Partial<A> partial_of(const Walk& w, void* sums, bool of_z, bool of_x, bool of_pixels) {
  const int64_t size = w.of_channels();
  A* next = static_cast<A*>(sums);
  Partial<A> p{};
  if (of_z) {
    p.of_z = next;
    next += size;
  }
  if (of_x) {
    p.of_x = next;
    next += size;
  }
  if (of_pixels) p.of_pixels = next;
  return p;
}

// Runs the body with `kWidth` bound to the width of the walk.
#define FVX_DISPATCH_WIDTH(width, T, ...)       \
  if ((width) == 1) {                           \
    constexpr int kWidth = 1;                   \
    __VA_ARGS__;                                \
  } else {                                      \
    constexpr int kWidth = 16 / int(sizeof(T)); \
    __VA_ARGS__;                                \
  }

bool is_empty(const BiasAct& a) { return a.images * a.channels * a.pixels == 0; }

}  // namespace

int64_t bias_act_sums(const BiasAct& a, bool g_scale, bool g_noise, bool g_b) {
  if (is_empty(a)) return 0;
  const Walk w = walk_of(a);
  return w.of_channels() * (int(g_scale) + int(g_b)) + (g_noise ? w.images * w.pixels * w.of_pixel() : 0);
}

void bias_act_fwd(const BiasActFwd& a) {
  if (is_empty(a)) return;
  const Walk w = walk_of(a);
  const auto stream = static_cast<cudaStream_t>(a.stream);
  const dim3 grid(blocks_for(w.blocks())), block(w.across, w.down);
  FVX_DISPATCH_STORAGE(a.dtype, T, {
    FVX_DISPATCH_WIDTH(w.width, T, (bias_act_fwd_kernel<T, kWidth><<<grid, block, 0, stream>>>(a, w)));
  });
  check_launch("bias_act_fwd");
}

void bias_act_bwd(const BiasActBwd& a) {
  if (is_empty(a)) return;
  const Walk w = walk_of(a);
  const auto stream = static_cast<cudaStream_t>(a.stream);
  const dim3 grid(blocks_for(w.blocks())), block(w.across, w.down);
  FVX_DISPATCH_STORAGE(a.dtype, T, {
    using A = acc_t<T>;
    const auto p = partial_of<A>(w, a.sums, a.g_b != nullptr, a.g_scale != nullptr, a.g_noise != nullptr);
    FVX_DISPATCH_WIDTH(w.width, T, (bias_act_bwd_kernel<T, kWidth><<<grid, block, 0, stream>>>(a, w, p)));
    add_up(w, p, static_cast<A*>(a.g_scale), static_cast<A*>(a.g_noise), static_cast<A*>(a.g_b), stream);
  });
  check_launch("bias_act_bwd");
}

void bias_act_bwd_bwd(const BiasActBwdBwd& a) {
  if (is_empty(a)) return;
  const Walk w = walk_of(a);
  const auto stream = static_cast<cudaStream_t>(a.stream);
  const dim3 grid(blocks_for(w.blocks())), block(w.across, w.down);
  FVX_DISPATCH_STORAGE(a.dtype, T, {
    using A = acc_t<T>;
    const auto p = partial_of<A>(w, a.sums, false, a.g_scale != nullptr, false);
    FVX_DISPATCH_WIDTH(w.width, T, (bias_act_bwd_bwd_kernel<T, kWidth><<<grid, block, 0, stream>>>(a, w, p)));
    add_up<A>(w, p, static_cast<A*>(a.g_scale), nullptr, nullptr, stream);
  });
  check_launch("bias_act_bwd_bwd");
}

}  // namespace cuda
}  // namespace fastvfx
