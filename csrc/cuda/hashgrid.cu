// Multiresolution grid encoding on the GPU. The encoding and the gradient of the table run one thread per point and
// level, levels one after the other, so that the table of the level at work stays in L2. The gradient of the points
// runs one thread per point through all levels and needs no atomics. Entries are read and summed kF features at a time.
#include <type_traits>

#include "fastvfx/hashgrid.h"
#include "fastvfx/kernels.h"
#include "launch.h"

namespace fastvfx {
namespace cuda {
namespace {

using namespace ::fastvfx::device;

constexpr int kThreads = 256;

template <class T, int kF>
struct alignas(sizeof(T) * kF) Features {
  T f[kF];
};

template <int D, class A>
struct Position {
  A frac[D];
  uint32_t low[D];  // lattice coordinate times multiplier
};

template <int D, class A>
__device__ Position<D, A> position_in(const GridLevel& level, A shift, const A (&x)[D]) {
  Position<D, A> p;
#pragma unroll
  for (int d = 0; d < D; ++d) {
    const Axis<A> axis = axis_of(x[d], A(level.scale), shift);
    p.frac[d] = axis.frac;
    p.low[d] = lattice_of(axis.cell) * level.multipliers[d];
  }
  return p;
}

template <int D, class A>
__device__ uint32_t entry_of(const GridLevel& level, const Position<D, A>& p, int corner) {
  uint32_t sum = 0, mix = 0;
#pragma unroll
  for (int d = 0; d < D; ++d) {
    const uint32_t term = p.low[d] + (corner >> d & 1 ? level.multipliers[d] : 0u);
    sum += term;
    mix ^= term;
  }
  if (level.kind == GridIndex::hashed) return mix & (level.entries - 1);
  return sum < level.entries ? sum : sum % level.entries;
}

enum class Point { live, zero, nan };

template <int D, class A>
__device__ Point load_point(const HashGrid& a, int64_t i, A (&x)[D]) {
  bool finite = true, inside = true;
#pragma unroll
  for (int d = 0; d < D; ++d) {
    x[d] = static_cast<const A*>(a.x)[i * D + d];
    finite &= x[d] - x[d] == A(0);
    inside &= x[d] >= A(0) && x[d] <= A(1);
  }
  return !finite ? Point::nan : a.zero_outside && !inside ? Point::zero : Point::live;
}

template <int D, class A>
__device__ void weights_of(const HashGrid& a, const GridLevel& level, int64_t i, const A (&frac)[D], A (&w)[1 << D]) {
  if (a.interpolation == Interpolation::nearest) {
    w[0] = A(1);
#pragma unroll
    for (int c = 1; c < (1 << D); ++c) w[c] = A(0);
    return;
  }
  const bool smooth = a.interpolation == Interpolation::smoothstep;
  A t[D];
#pragma unroll
  for (int d = 0; d < D; ++d) t[d] = fade(frac[d], smooth);
  if (!a.direction) return corner_weights<D>(t, w);
  A dt[D];
#pragma unroll
  for (int d = 0; d < D; ++d) {
    dt[d] = A(level.scale) * fade_slope(frac[d], smooth) * static_cast<const A*>(a.direction)[i * D + d];
  }
  corner_weights_along<D>(t, dt, w);
}

template <class T, int D, int kF>
__global__ void __launch_bounds__(kThreads) hashgrid_fwd_kernel(const __grid_constant__ HashGridFwd a) {
  using A = acc_t<T>;
  using Entry = Features<T, kF>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.n_points) return;
  const int l = blockIdx.y;
  const GridLevel& level = a.levels[l];
  A x[D], w[1 << D];
  const Point state = load_point<D>(a, i, x);
  const Position<D, A> p = position_in<D, A>(level, A(a.shift), x);
  weights_of<D>(a, level, i, p.frac, w);
  const int corners = a.interpolation == Interpolation::nearest ? 1 : 1 << D;
  const int chunks = a.features / kF;
  const Entry* table = static_cast<const Entry*>(a.table) + level.offset * chunks;
  Entry* out = static_cast<Entry*>(a.out) + (i * a.n_levels + l) * chunks;
  for (int k = 0; k < chunks; ++k) {
    A sum[kF] = {};
#pragma unroll
    for (int c = 0; c < (1 << D); ++c) {
      if (c >= corners) break;
      const Entry e = table[int64_t(entry_of<D>(level, p, c)) * chunks + k];
#pragma unroll
      for (int f = 0; f < kF; ++f) sum[f] += w[c] * to_acc(e.f[f]);
    }
    Entry result;
    const A dead = state == Point::nan ? A(bits_to_float(0x7fc00000u)) : A(0);
#pragma unroll
    for (int f = 0; f < kF; ++f) result.f[f] = from_acc<T>(state == Point::live ? sum[f] : dead);
    out[k] = result;
  }
}

// One instruction for up to four floats where the GPU has it; 16-bit tables are summed in float too.
template <int kF>
__device__ void add_features(double* to, const double (&v)[kF]) {
#pragma unroll
  for (int f = 0; f < kF; ++f) atomicAdd(to + f, v[f]);
}
template <int kF>
__device__ void add_features(float* to, const float (&v)[kF]) {
#if __CUDA_ARCH__ >= 900
  if constexpr (kF == 4) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
                 : "memory");
    return;
  } else if constexpr (kF == 2) {
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(v[0]), "f"(v[1]) : "memory");
    return;
  }
#endif
#pragma unroll
  for (int f = 0; f < kF; ++f) atomicAdd(to + f, v[f]);
}

template <class T, int D, int kF>
__global__ void __launch_bounds__(kThreads) hashgrid_bwd_table_kernel(const __grid_constant__ HashGridBwdTable a) {
  using A = acc_t<T>;
  using Row = Features<T, kF>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.n_points) return;
  const int l = blockIdx.y;
  const GridLevel& level = a.levels[l];
  A x[D], w[1 << D];
  if (load_point<D>(a, i, x) != Point::live) return;
  const Position<D, A> p = position_in<D, A>(level, A(a.shift), x);
  weights_of<D>(a, level, i, p.frac, w);
  const int corners = a.interpolation == Interpolation::nearest ? 1 : 1 << D;
  const int chunks = a.features / kF;
  A* g_table = static_cast<A*>(a.g_table) + level.offset * a.features;
  const Row* g_out = static_cast<const Row*>(a.g_out) + (i * a.n_levels + l) * chunks;
  for (int k = 0; k < chunks; ++k) {
    const Row row = g_out[k];
#pragma unroll
    for (int c = 0; c < (1 << D); ++c) {
      if (c >= corners) break;
      A v[kF];
#pragma unroll
      for (int f = 0; f < kF; ++f) v[f] = w[c] * to_acc(row.f[f]);
      add_features<kF>(g_table + int64_t(entry_of<D>(level, p, c)) * a.features + k * kF, v);
    }
  }
}

template <class T, int D, int kF>
__global__ void __launch_bounds__(kThreads) hashgrid_bwd_x_kernel(const __grid_constant__ HashGridBwdX a) {
  using A = acc_t<T>;
  using Entry = Features<T, kF>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.n_points) return;
  A x[D], v[D], total[D] = {};
  const Point state = load_point<D>(a, i, x);
  if (a.direction) {
#pragma unroll
    for (int d = 0; d < D; ++d) v[d] = static_cast<const A*>(a.direction)[i * D + d];
  }
  const bool smooth = a.interpolation == Interpolation::smoothstep;
  const int chunks = a.features / kF;
  for (int l = 0; l < a.n_levels && state == Point::live; ++l) {
    const GridLevel& level = a.levels[l];
    const Position<D, A> p = position_in<D, A>(level, A(a.shift), x);
    const Entry* table = static_cast<const Entry*>(a.table) + level.offset * chunks;
    const Entry* g_out = static_cast<const Entry*>(a.g_out) + (i * a.n_levels + l) * chunks;
    A q[1 << D] = {};
    for (int k = 0; k < chunks; ++k) {
      const Entry row = g_out[k];
#pragma unroll
      for (int c = 0; c < (1 << D); ++c) {
        const Entry e = table[int64_t(entry_of<D>(level, p, c)) * chunks + k];
#pragma unroll
        for (int f = 0; f < kF; ++f) q[c] += to_acc(row.f[f]) * to_acc(e.f[f]);
      }
    }
    A g[D];
    if (a.direction) {
      position_gradient_along<D>(p.frac, v, q, A(level.scale), smooth, g);
    } else {
      position_gradient<D>(p.frac, q, A(level.scale), smooth, g);
    }
#pragma unroll
    for (int d = 0; d < D; ++d) total[d] += g[d];
  }
#pragma unroll
  for (int d = 0; d < D; ++d) static_cast<A*>(a.g_x)[i * D + d] = total[d];
}

// kF features at a time need pointers that are aligned to them; views into larger tensors may not be.
int features_at_once(const HashGrid& a, size_t bytes, const void* p, const void* q) {
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(p) | reinterpret_cast<uintptr_t>(q);
  int at_once = a.dtype == DType::f64 ? 1 : a.features < 4 ? a.features : 4;
  while (at_once > 1 && addresses % (bytes * size_t(at_once))) at_once /= 2;
  return at_once;
}

template <class Fn>
void with_dims(int dims, const Fn& fn) {
  switch (dims) {
    case 1:
      return fn(std::integral_constant<int, 1>{});
    case 2:
      return fn(std::integral_constant<int, 2>{});
    case 3:
      return fn(std::integral_constant<int, 3>{});
    default:
      return fn(std::integral_constant<int, 4>{});
  }
}

// fn(dims, features at once), both as integral constants. Few of the combinations are compiled: 4 at once where they
// are common, 2 for what else is not a curve.
template <class T, int kMost, class Fn>
void with_shape(const HashGrid& a, int at_once, const Fn& fn) {
  with_dims(a.dims, [&](auto d) {
    constexpr int D = decltype(d)::value;
    if constexpr (sizeof(T) < 8 && (D == 2 || D == 3) && kMost >= 4) {
      if (at_once >= 4) return fn(d, std::integral_constant<int, 4>{});
    }
    if constexpr (sizeof(T) < 8 && D > 1) {
      if (at_once >= 2) return fn(d, std::integral_constant<int, 2>{});
    }
    fn(d, std::integral_constant<int, 1>{});
  });
}

dim3 grid_of(const HashGrid& a, int levels) { return dim3(unsigned(ceil_div(a.n_points, kThreads)), unsigned(levels)); }

}  // namespace

void hashgrid_fwd(const HashGridFwd& a) {
  if (a.n_points == 0) return;
  const auto stream = static_cast<cudaStream_t>(a.stream);
  FVX_DISPATCH_STORAGE(a.dtype, T, {
    with_shape<T, 4>(a, features_at_once(a, sizeof(T), a.table, a.out), [&](auto d, auto f) {
      hashgrid_fwd_kernel<T, decltype(d)::value, decltype(f)::value>
          <<<grid_of(a, a.n_levels), kThreads, 0, stream>>>(a);
    });
  });
  check_launch("hashgrid_fwd");
}

void hashgrid_bwd_table(const HashGridBwdTable& a) {
  if (a.n_points == 0) return;
  const auto stream = static_cast<cudaStream_t>(a.stream);
  FVX_DISPATCH_STORAGE(a.dtype, T, {
    with_shape<T, 4>(a, features_at_once(a, sizeof(T), a.g_out, nullptr), [&](auto d, auto f) {
      hashgrid_bwd_table_kernel<T, decltype(d)::value, decltype(f)::value>
          <<<grid_of(a, a.n_levels), kThreads, 0, stream>>>(a);
    });
  });
  check_launch("hashgrid_bwd_table");
}

void hashgrid_bwd_x(const HashGridBwdX& a) {
  if (a.n_points == 0) return;
  const auto stream = static_cast<cudaStream_t>(a.stream);
  FVX_DISPATCH_STORAGE(a.dtype, T, {
    with_shape<T, 2>(a, features_at_once(a, sizeof(T), a.table, a.g_out), [&](auto d, auto f) {
      hashgrid_bwd_x_kernel<T, decltype(d)::value, decltype(f)::value><<<grid_of(a, 1), kThreads, 0, stream>>>(a);
    });
  });
  check_launch("hashgrid_bwd_x");
}

}  // namespace cuda
}  // namespace fastvfx
