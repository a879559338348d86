// Compositing on the GPU: a group of 8, 16 or 32 lanes walks one ray, each lane one sample of the current chunk, so
// that loads are coalesced; transmittance is a product scan over the group. The group size follows the mean ray.
#include "fastvfx/composite.h"
#include "fastvfx/kernels.h"
#include "launch.h"

namespace fastvfx {
namespace cuda {
namespace {

using namespace ::fastvfx::device;

constexpr int kThreads = 256;

template <int kLanes>
struct Group {
  int lane;
  unsigned mask;

  __device__ Group() {
    lane = threadIdx.x % kLanes;
    mask = kLanes == 32 ? 0xffffffffu : ((1u << kLanes) - 1u) << (threadIdx.x % 32 / kLanes * kLanes);
  }

  template <class A>
  __device__ A sum(A x) const {
#pragma unroll
    for (int d = kLanes / 2; d > 0; d /= 2) x += __shfl_xor_sync(mask, x, d, kLanes);
    return x;
  }

  template <class A>
  __device__ A inclusive_product(A x) const {
#pragma unroll
    for (int d = 1; d < kLanes; d *= 2) {
      const A below = __shfl_up_sync(mask, x, d, kLanes);
      if (lane >= d) x *= below;
    }
    return x;
  }

  template <class A>
  __device__ A up(A x, A first) const {
    const A below = __shfl_up_sync(mask, x, 1, kLanes);
    return lane == 0 ? first : below;
  }

  template <class A>
  __device__ A down(A x, A last) const {
    const A above = __shfl_down_sync(mask, x, 1, kLanes);
    return lane == kLanes - 1 ? last : above;
  }

  template <class A>
  __device__ A from(A x, int source) const {
    return __shfl_sync(mask, x, source, kLanes);
  }

  // Index of the first lane where `p` holds, or kLanes.
  __device__ int first(bool p) const {
    const unsigned votes = (__ballot_sync(mask, p) & mask) >> (threadIdx.x % 32 / kLanes * kLanes);
    return votes ? __ffs(votes) - 1 : kLanes;
  }
};

// One lane's sample of a chunk. Lanes behind the ray's end or the early stop are dead: alpha 0, keep 1.
template <class A>
struct Sample {
  A value, dt, t, alpha, keep, T, T_next;
};

// Returns the number of live lanes; advances `trans` to the transmittance behind them.
template <class T, int kLanes, class A = acc_t<T>>
__device__ int load_chunk(const CompositeRays& a, const Group<kLanes>& group, int64_t first, int64_t end, A& trans,
                          Sample<A>& s) {
  const int64_t i = first + group.lane;
  const bool inside = i < end;
  s.value = s.dt = s.t = A(0);
  Opacity<A> o{A(0), A(1)};
  if (inside) {
    const A t0 = static_cast<const A*>(a.t_starts)[i], t1 = static_cast<const A*>(a.t_ends)[i];
    s.value = to_acc(static_cast<const T*>(a.values)[i]);
    s.dt = t1 - t0;
    s.t = A(0.5) * (t0 + t1);
    o = opacity_of(s.value, s.dt, a.alphas);
  }
  const A product = group.inclusive_product(o.keep);
  s.T_next = trans * product;
  s.T = trans * group.up(product, A(1));
  const int n = int(min_of<int64_t>(kLanes, end - first));
  const int live = min_of(n, group.first(s.T < A(a.early_stop_eps)));
  const bool is_live = group.lane < live;
  s.alpha = is_live ? o.alpha : A(0);
  s.keep = is_live ? o.keep : A(1);
  if (live > 0) trans = group.from(s.T_next, live - 1);
  return live;
}

template <class T, int kLanes, int kC>
__global__ void __launch_bounds__(kThreads) composite_fwd_kernel(const CompositeFwd a) {
  using A = acc_t<T>;
  const Group<kLanes> group;
  const int64_t n_groups = int64_t(gridDim.x) * (kThreads / kLanes);
  const int64_t c0 = int64_t(blockIdx.y) * kC;
  const bool lead = blockIdx.y == 0;  // writes what does not depend on the channel
  const T* rgbs = static_cast<const T*>(a.rgbs);
  for (int64_t ray = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kLanes; ray < a.n_rays; ray += n_groups) {
    Span span = samples_of_ray(a, ray);
    const bool valid = is_valid(a, span);
    if (!valid) span = {0, 0};  // such a ray is NaN: an error that shows, without a read back to raise it
    A rgb[kC];
#pragma unroll
    for (int c = 0; c < kC; ++c) rgb[c] = A(0);
    A trans = 1, sum_w = 0, sum_wt = 0, hit_t = 0;
    bool hit = false;
    int64_t done = span.begin;
    while (done < span.end) {
      Sample<A> s;
      const int n = int(min_of<int64_t>(kLanes, span.end - done));
      const int live = load_chunk<T, kLanes>(a, group, done, span.end, trans, s);
      const A w = s.T * s.alpha;
      const int64_t i = done + group.lane;
      if (group.lane < live) {
        sum_w += w;
        sum_wt += w * s.t;
#pragma unroll
        for (int c = 0; c < kC; ++c) {
          if (c0 + c < a.channels) rgb[c] += w * to_acc(rgbs[i * a.channels + c0 + c]);
        }
      }
      if (a.depth_mode == DepthMode::first_hit && !hit) {
        const int at = group.first(group.lane < live && is_hit(s.T, s.T_next, A(a.depth_threshold)));
        hit = at < kLanes;
        if (hit) hit_t = group.from(s.t, at);
      }
      if (lead && group.lane < live) {
        if (a.weights) static_cast<A*>(a.weights)[i] = w;
        if (a.transmittance) static_cast<A*>(a.transmittance)[i] = s.T;
      }
      done += live;
      if (live < n) break;
    }
    if (lead) {
      for (int64_t i = done + group.lane; i < span.end; i += kLanes) {
        if (a.weights) static_cast<A*>(a.weights)[i] = A(0);
        if (a.transmittance) static_cast<A*>(a.transmittance)[i] = A(0);
      }
    }
    const A nan = valid ? A(0) : A(bits_to_float(0x7fc00000u));
    sum_w = group.sum(sum_w) + nan;
    sum_wt = group.sum(sum_wt);
#pragma unroll
    for (int c = 0; c < kC; ++c) {
      const A total = group.sum(rgb[c]) + nan;
      if (group.lane == c % kLanes && c0 + c < a.channels) {
        const A* background = static_cast<const A*>(a.background);
        const A behind = background ? trans * background[ray * a.background_stride + c0 + c] : A(0);
        static_cast<A*>(a.rgb)[ray * a.channels + c0 + c] = total + behind;
      }
    }
    if (lead && group.lane == 0) {
      static_cast<A*>(a.opacity)[ray] = sum_w;
      static_cast<A*>(a.depth)[ray] = depth_of(a.depth_mode, sum_wt, sum_w, hit_t) + nan;
    }
  }
}

template <class T, int kLanes, class A = acc_t<T>>
__device__ void write_zero_gradients(const CompositeBwd& a, int64_t i) {
  static_cast<T*>(a.g_values)[i] = from_acc<T>(A(0));
  for (int64_t c = 0; c < a.channels; ++c) static_cast<T*>(a.g_rgbs)[i * a.channels + c] = from_acc<T>(A(0));
  if (a.g_t_starts) static_cast<A*>(a.g_t_starts)[i] = static_cast<A*>(a.g_t_ends)[i] = A(0);
}

// S_i = emitted_i + keep_i S_{i+1}: affine maps, composed from the last lane to the first.
template <int kLanes, class A>
__device__ void reverse_affine_scan(const Group<kLanes>& group, A& emitted, A& keep) {
#pragma unroll
  for (int d = 1; d < kLanes; d *= 2) {
    const A e = __shfl_down_sync(group.mask, emitted, d, kLanes);
    const A k = __shfl_down_sync(group.mask, keep, d, kLanes);
    if (group.lane + d < kLanes) {
      emitted += keep * e;
      keep *= k;
    }
  }
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads) composite_bwd_kernel(const CompositeBwd a) {
  using A = acc_t<T>;
  const Group<kLanes> group;
  const int64_t n_groups = int64_t(gridDim.x) * (kThreads / kLanes);
  const int64_t C = a.channels;
  const T* rgbs = static_cast<const T*>(a.rgbs);
  const A* g_rgb = static_cast<const A*>(a.g_rgb);
  const A* g_weights = static_cast<const A*>(a.g_weights);
  const A* g_transmittance = static_cast<const A*>(a.g_transmittance);
  for (int64_t ray = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kLanes; ray < a.n_rays; ray += n_groups) {
    const Span span = samples_of_ray(a, ray);
    if (!is_valid(a, span)) continue;
    const A* g_ray = g_rgb + ray * C;
    const A g_opacity = static_cast<const A*>(a.g_opacity)[ray];
    const DepthGrad<A> d = depth_gradient(a.depth_mode, static_cast<const A*>(a.depth)[ray],
                                          static_cast<const A*>(a.opacity)[ray], static_cast<const A*>(a.g_depth)[ray]);

    // Forward sweep: transmittance at the start of each chunk.
    A* checkpoints = static_cast<A*>(a.scratch) + checkpoint_of_ray(span, ray, kLanes);
    A trans = 1;
    int64_t done = span.begin;
    for (int64_t chunk = 0; done < span.end; ++chunk) {
      if (group.lane == 0) checkpoints[chunk] = trans;
      Sample<A> s;
      const int n = int(min_of<int64_t>(kLanes, span.end - done));
      const int live = load_chunk<T, kLanes>(a, group, done, span.end, trans, s);
      done += live;
      if (live < n) break;
    }
    __syncwarp(group.mask);
    for (int64_t i = done + group.lane; i < span.end; i += kLanes) write_zero_gradients<T, kLanes>(a, i);

    A suffix = 0;
    if (a.background) {
      const A* background = static_cast<const A*>(a.background) + ray * a.background_stride;
      for (int64_t c = group.lane; c < C; c += kLanes) suffix += g_ray[c] * background[c];
      suffix = group.sum(suffix);
    }
    if (a.g_background) {
      for (int64_t c = group.lane; c < C; c += kLanes) static_cast<A*>(a.g_background)[ray * C + c] = trans * g_ray[c];
    }

    // Backward sweep.
    for (int64_t chunk = (done - span.begin + kLanes - 1) / kLanes - 1; chunk >= 0; --chunk) {
      const int64_t first = span.begin + chunk * kLanes;
      A at_start = checkpoints[chunk];
      Sample<A> s;
      const int live = load_chunk<T, kLanes>(a, group, first, done, at_start, s);
      const bool is_live = group.lane < live;
      const int64_t i = first + group.lane;
      const A w = s.T * s.alpha;
      A G = g_opacity + d.scale * (s.t - d.shift);
      A emitted = 0;
      if (is_live) {
        for (int64_t c = 0; c < C; ++c) {
          G += g_ray[c] * to_acc(rgbs[i * C + c]);
          static_cast<T*>(a.g_rgbs)[i * C + c] = from_acc<T>(w * g_ray[c]);
        }
        if (g_weights) G += g_weights[i];
        emitted = s.alpha * G + (g_transmittance ? g_transmittance[i] : A(0));
      }
      A keep = s.keep;
      reverse_affine_scan(group, emitted, keep);
      const A S = emitted + keep * suffix;
      const A S_next = group.down(S, suffix);
      if (is_live) {
        const A g_alpha = s.T * (G - S_next);
        const SampleGrad<A> g = sample_gradient(g_alpha, s.value, s.dt, s.keep, a.alphas);
        static_cast<T*>(a.g_values)[i] = from_acc<T>(g.value);
        if (a.g_t_starts) {
          const A at_hit = is_hit(s.T, s.T_next, A(a.depth_threshold)) ? d.at_hit : A(0);
          const A g_mid = A(0.5) * (d.scale * w + at_hit);
          static_cast<A*>(a.g_t_starts)[i] = g_mid - g.dt;
          static_cast<A*>(a.g_t_ends)[i] = g_mid + g.dt;
        }
      }
      suffix = group.from(S, 0);
    }
  }
}

int lanes_for(const CompositeRays& a) {
  const int64_t mean = a.n_samples / (a.n_rays > 0 ? a.n_rays : 1);
  return mean <= 12 ? 8 : mean <= 24 ? 16 : 32;
}

template <class T, int kLanes>
void launch_fwd(const CompositeFwd& a) {
  dim3 grid(grid_for(a.n_rays, kThreads / kLanes));
  const auto stream = static_cast<cudaStream_t>(a.stream);
  if (a.channels <= 1) {
    composite_fwd_kernel<T, kLanes, 1><<<grid, kThreads, 0, stream>>>(a);
  } else if (a.channels <= 4) {
    composite_fwd_kernel<T, kLanes, 4><<<grid, kThreads, 0, stream>>>(a);
  } else {
    grid.y = unsigned(ceil_div(a.channels, 8));
    composite_fwd_kernel<T, kLanes, 8><<<grid, kThreads, 0, stream>>>(a);
  }
}

template <class T, int kLanes>
void launch_bwd(const CompositeBwd& a) {
  const auto stream = static_cast<cudaStream_t>(a.stream);
  composite_bwd_kernel<T, kLanes><<<grid_for(a.n_rays, kThreads / kLanes), kThreads, 0, stream>>>(a);
}

}  // namespace

void composite_fwd(const CompositeFwd& a) {
  if (a.n_rays == 0) return;
  const int lanes = lanes_for(a);
  FVX_DISPATCH_STORAGE(a.dtype, T, {
    if (lanes == 8) {
      launch_fwd<T, 8>(a);
    } else if (lanes == 16) {
      launch_fwd<T, 16>(a);
    } else {
      launch_fwd<T, 32>(a);
    }
  });
  check_launch("composite_fwd");
}

void composite_bwd(const CompositeBwd& a) {
  if (a.n_rays == 0) return;
  const int lanes = lanes_for(a);
  FVX_DISPATCH_STORAGE(a.dtype, T, {
    if (lanes == 8) {
      launch_bwd<T, 8>(a);
    } else if (lanes == 16) {
      launch_bwd<T, 16>(a);
    } else {
      launch_bwd<T, 32>(a);
    }
  });
  check_launch("composite_bwd");
}

}  // namespace cuda
}  // namespace fastvfx
