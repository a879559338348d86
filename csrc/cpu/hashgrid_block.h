// A block of points in one level, in L1-resident arrays: where its corners are and what they weigh (vector loops over
// points), then loads from or sums into the table (memory-bound loops over points and corners). The first half depends
// on the dimension, the second on the features and the storage type, so neither is compiled for every combination.
#pragma once

#include "fastvfx/hashgrid.h"
#include "hashgrid_pairs.h"
#include "processor.h"

FVX_BEGIN_ISA

namespace {

constexpr int kBlock = 64;
constexpr int kMaxCorners = 1 << kMaxGridDims;
constexpr int kMaxFeatures = 8;

enum class Point : uint8_t { live, zero, nan };

template <class A>
struct GridBlock {
  alignas(64) uint32_t index[kMaxCorners][kBlock];
  alignas(64) A weight[kMaxCorners][kBlock];
  alignas(64) A rows[kBlock * kMaxFeatures];  // outputs or their gradients, (n, features)
  int n;
  bool wide_gathers;  // the processor likes them, and indices are below 2^31
  bool all_inside;
  Point points[kBlock];  // only where not all_inside
};

// Coordinates of a block's points axis by axis, so that vector loops read them in one piece: x[d * pitch + i], the
// direction likewise.
template <class A>
struct Points {
  const A* x;
  const A* direction;
  int64_t pitch;
};

// ---------------------------------------------------------------------------------------------- by dimension

template <int D, class A>
bool all_in_unit_cube(const Points<A>& p, int n) {
  int outside = 0;
  for (int d = 0; d < D; ++d) {
    const A* x = p.x + d * p.pitch;
#pragma omp simd reduction(| : outside)
    for (int i = 0; i < n; ++i) outside |= !((x[i] >= A(0)) & (x[i] <= A(1)));
  }
  return !outside;
}

template <int D, class A>
void classify(const Points<A>& p, bool zero_outside, GridBlock<A>& b) {
  for (int i = 0; i < b.n; ++i) {
    bool finite = true, inside = true;
    for (int d = 0; d < D; ++d) {
      const A x = p.x[d * p.pitch + i];
      finite &= x - x == A(0);
      inside &= x >= A(0) && x <= A(1);
    }
    b.points[i] = !finite ? Point::nan : zero_outside && !inside ? Point::zero : Point::live;
  }
}

template <int D, class A, GridIndex kKind, bool kInside, bool kNearest>
void corner_indices(const GridLevel& level, A shift, const Points<A>& p, GridBlock<A>& b) {
  constexpr int kCorners = kNearest ? 1 : 1 << D;
  const A scale = A(level.scale);
  const uint32_t entries = level.entries;
  const A* const x = p.x;
  const int64_t pitch = p.pitch;
  uint32_t m[D];
  for (int d = 0; d < D; ++d) m[d] = level.multipliers[d];
  const int n = b.n;
  FVX_SIMD
  for (int i = 0; i < n; ++i) {
    uint32_t low[D];
    FVX_UNROLL_ALL
    for (int d = 0; d < D; ++d) {
      const A cell = axis_of(x[d * pitch + i], scale, shift).cell;
      low[d] = m[d] * (kInside ? uint32_t(int32_t(cell)) : lattice_of(cell));
    }
    FVX_UNROLL_ALL
    for (int c = 0; c < kCorners; ++c) {
      uint32_t index = 0;
      FVX_UNROLL_ALL
      for (int d = 0; d < D; ++d) {
        const uint32_t term = c >> d & 1 ? low[d] + m[d] : low[d];
        index = kKind == GridIndex::hashed ? index ^ term : index + term;
      }
      if (kKind == GridIndex::hashed) {
        index &= entries - 1;
      } else if (kKind == GridIndex::dense && kInside) {
        const uint32_t wrapped = index - entries;  // huge if index < entries
        index = index < wrapped ? index : wrapped;
      }
      b.index[c][i] = index;
    }
  }
  if (kKind == GridIndex::hashed || (kKind == GridIndex::dense && kInside)) return;
  for (int c = 0; c < kCorners; ++c) {
    for (int i = 0; i < n; ++i) b.index[c][i] %= entries;
  }
}

template <int D, class A, bool kNearest>
void corner_indices(const GridLevel& level, A shift, const Points<A>& p, GridBlock<A>& b) {
  if (level.kind == GridIndex::hashed) {
    if (b.all_inside) return corner_indices<D, A, GridIndex::hashed, true, kNearest>(level, shift, p, b);
    return corner_indices<D, A, GridIndex::hashed, false, kNearest>(level, shift, p, b);
  }
  if (level.kind == GridIndex::dense && b.all_inside) {
    return corner_indices<D, A, GridIndex::dense, true, kNearest>(level, shift, p, b);
  }
  return corner_indices<D, A, GridIndex::tiled, false, kNearest>(level, shift, p, b);
}

// What a vector loop does for one point stands in a function of its own: arrays that are declared inside a `simd` loop
// and passed on by reference keep gcc from vectorising it.
template <int D, class A, bool kAlong>
FVX_HD void weigh_point(const A* x, const A* v, int64_t pitch, A scale, A shift, bool smooth, A* weight) {
  A t[D], dt[D], w[1 << D];
  FVX_UNROLL_ALL
  for (int d = 0; d < D; ++d) {
    const A frac = axis_of(x[d * pitch], scale, shift).frac;
    t[d] = fade(frac, smooth);
    if (kAlong) dt[d] = scale * fade_slope(frac, smooth) * v[d * pitch];
  }
  if (kAlong) {
    corner_weights_along<D>(t, dt, w);
  } else {
    corner_weights<D>(t, w);
  }
  FVX_UNROLL_ALL
  for (int c = 0; c < (1 << D); ++c) weight[c * kBlock] = w[c];
}

template <int D, class A, bool kAlong>
void weigh(const HashGrid& a, const GridLevel& level, const Points<A>& p, GridBlock<A>& b) {
  const A scale = A(level.scale), shift = A(a.shift);
  const A *const x = p.x, *const v = kAlong ? p.direction : p.x;
  A* const weight = b.weight[0];
  const int64_t pitch = p.pitch;
  const int n = b.n;
  if (a.interpolation == Interpolation::smoothstep) {
    FVX_SIMD
    for (int i = 0; i < n; ++i) weigh_point<D, A, kAlong>(x + i, v + i, pitch, scale, shift, true, weight + i);
  } else {
    FVX_SIMD
    for (int i = 0; i < n; ++i) weigh_point<D, A, kAlong>(x + i, v + i, pitch, scale, shift, false, weight + i);
  }
}

// Fills index, and weight if wanted, for `n` points.
template <int D, class A>
void locate(const HashGrid& a, const GridLevel& level, const Points<A>& p, int n, bool weights, GridBlock<A>& b) {
  b.n = n;
  b.wide_gathers = on_intel() && level.entries <= 1u << 31;
  b.all_inside = all_in_unit_cube<D>(p, n);
  if (!b.all_inside) classify<D>(p, a.zero_outside, b);
  if (a.interpolation == Interpolation::nearest) {
    corner_indices<D, A, true>(level, A(a.shift), p, b);
    for (int i = 0; i < n; ++i) b.weight[0][i] = A(1);
    return;
  }
  corner_indices<D, A, false>(level, A(a.shift), p, b);
  if (!weights) return;
  if (a.direction) {
    weigh<D, A, true>(a, level, p, b);
  } else {
    weigh<D, A, false>(a, level, p, b);
  }
}

template <int D, class A, bool kAlong>
FVX_HD void position_gradient_of_point(const A* x, const A* v, int64_t pitch, A scale, A shift, bool smooth,
                                       const A* weight, A* g) {
  A frac[D], direction[D], q[1 << D], slopes[D];
  FVX_UNROLL_ALL
  for (int d = 0; d < D; ++d) {
    frac[d] = axis_of(x[d * pitch], scale, shift).frac;
    if (kAlong) direction[d] = v[d * pitch];
  }
  FVX_UNROLL_ALL
  for (int c = 0; c < (1 << D); ++c) q[c] = weight[c * kBlock];
  if (kAlong) {
    position_gradient_along<D>(frac, direction, q, scale, smooth, slopes);
  } else {
    position_gradient<D>(frac, q, scale, smooth, slopes);
  }
  FVX_UNROLL_ALL
  for (int d = 0; d < D; ++d) g[d * kBlock] = slopes[d];
}

// Adds the level's share of dL/dx to g_x[d * pitch + i]; b.weight holds q_c.
template <int D, class A, bool kAlong>
void add_position_gradients(const HashGrid& a, const GridLevel& level, const Points<A>& p, const GridBlock<A>& b,
                            A* g_x) {
  const A scale = A(level.scale), shift = A(a.shift);
  const bool smooth = a.interpolation == Interpolation::smoothstep;
  const A *const x = p.x, *const v = kAlong ? p.direction : p.x, *const weight = b.weight[0];
  const int64_t pitch = p.pitch;
  const int n = b.n;
  alignas(64) A g[D * kBlock];
  FVX_SIMD
  for (int i = 0; i < n; ++i) {
    position_gradient_of_point<D, A, kAlong>(x + i, v + i, pitch, scale, shift, smooth, weight + i, g + i);
  }
  if (!b.all_inside) {
    for (int i = 0; i < n; ++i) {
      for (int d = 0; d < D && b.points[i] != Point::live; ++d) g[d * kBlock + i] = A(0);
    }
  }
  for (int d = 0; d < D; ++d) {
    FVX_SIMD
    for (int i = 0; i < n; ++i) g_x[d * pitch + i] += g[d * kBlock + i];
  }
}

template <int D, class A>
void add_position_gradients(const HashGrid& a, const GridLevel& level, const Points<A>& p, const GridBlock<A>& b,
                            A* g_x) {
  if (a.direction) {
    add_position_gradients<D, A, true>(a, level, p, b, g_x);
  } else {
    add_position_gradients<D, A, false>(a, level, p, b, g_x);
  }
}

// From points side by side to axes side by side, and back.
template <int D, class A>
void split_axes(const A* rows, int64_t n, A* axes, int64_t pitch) {
  for (int64_t i = 0; i < n; ++i) {
    FVX_UNROLL_ALL
    for (int d = 0; d < D; ++d) axes[d * pitch + i] = rows[i * D + d];
  }
}
template <int D, class A>
void join_axes(const A* axes, int64_t pitch, int64_t n, A* rows) {
  for (int64_t i = 0; i < n; ++i) {
    FVX_UNROLL_ALL
    for (int d = 0; d < D; ++d) rows[i * D + d] = axes[d * pitch + i];
  }
}

// ---------------------------------------------------------------------------------- by features and storage type

// rows = sum_c weight_c table[index_c]
template <class T, int F>
void gather(const void* level_table, int corners, GridBlock<acc_t<T>>& b) {
  using A = acc_t<T>;
  const T* table = static_cast<const T*>(level_table);
  int i = 0;
#if defined(FVX_GRID_AVX512)
  if constexpr (F == 2 && sizeof(T) == 4) {
    if (b.wide_gathers) {
      i = gather_eights(reinterpret_cast<const float*>(table), corners, b.index[0], b.weight[0], kBlock, b.n,
                        reinterpret_cast<float*>(b.rows));
    }
  }
#endif
#if defined(FVX_GRID_AVX2)
  if constexpr (has_pairs<T, F>()) {
    for (; i + 4 <= b.n; i += 4) {
      __m256 sum = _mm256_setzero_ps();
      for (int c = 0; c < corners; ++c) {
        sum = _mm256_fmadd_ps(load_pairs(table, b.index[c] + i), twice_each(b.weight[c] + i), sum);
      }
      _mm256_storeu_ps(b.rows + 2 * i, sum);
    }
  }
#endif
  for (; i < b.n; ++i) {
    A sum[F] = {};
    for (int c = 0; c < corners; ++c) {
      const T* entry = table + int64_t(b.index[c][i]) * F;
      const A w = b.weight[c][i];
      for (int f = 0; f < F; ++f) sum[f] += w * to_acc(entry[f]);
    }
    for (int f = 0; f < F; ++f) b.rows[i * F + f] = sum[f];
  }
  if (b.all_inside) return;
  for (i = 0; i < b.n; ++i) {
    if (b.points[i] == Point::live) continue;
    const A value = b.points[i] == Point::nan ? A(bits_to_float(0x7fc00000u)) : A(0);
    for (int f = 0; f < F; ++f) b.rows[i * F + f] = value;
  }
}

// weight_c = rows . table[index_c], the q_c of hashgrid.h
template <class T, int F>
void dot(const void* level_table, int corners, GridBlock<acc_t<T>>& b) {
  using A = acc_t<T>;
  const T* table = static_cast<const T*>(level_table);
  int i = 0;
#if defined(FVX_GRID_AVX2)
  if constexpr (has_pairs<T, F>()) {
    const __m256i even = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    for (; i + 4 <= b.n; i += 4) {
      const __m256 g = _mm256_loadu_ps(b.rows + 2 * i);
      for (int c = 0; c < corners; ++c) {
        const __m256 product = _mm256_mul_ps(load_pairs(table, b.index[c] + i), g);
        const __m256 sum = _mm256_add_ps(product, _mm256_movehdup_ps(product));
        _mm_storeu_ps(b.weight[c] + i, _mm256_castps256_ps128(_mm256_permutevar8x32_ps(sum, even)));
      }
    }
  }
#endif
  for (; i < b.n; ++i) {
    for (int c = 0; c < corners; ++c) {
      const T* entry = table + int64_t(b.index[c][i]) * F;
      A sum = 0;
      for (int f = 0; f < F; ++f) sum += b.rows[i * F + f] * to_acc(entry[f]);
      b.weight[c][i] = sum;
    }
  }
}

// One row of features in a register, where a pair fits into half of one.
template <class A, int F>
struct Row {
  A f[F];
  FVX_HD explicit Row(const A* from) { __builtin_memcpy(f, from, sizeof(f)); }
  FVX_HD void add_to(A* entry, A w) const {
    for (int k = 0; k < F; ++k) entry[k] += w * f[k];
  }
};
#if defined(__SSE2__)
template <>
struct Row<float, 2> {
  __m128 f;
  FVX_HD explicit Row(const float* from) : f(_mm_castpd_ps(_mm_load_sd(reinterpret_cast<const double*>(from)))) {}
  FVX_HD void add_to(float* entry, float w) const {
    double* place = reinterpret_cast<double*>(entry);
    const __m128 sum = _mm_add_ps(_mm_castpd_ps(_mm_load_sd(place)), _mm_mul_ps(f, _mm_set1_ps(w)));
    _mm_store_sd(place, _mm_castps_pd(sum));
  }
};
#endif

template <class A, int F, int kCorners>
void scatter_whole(A* g_table, const GridBlock<A>& b) {
  for (int i = 0; i < b.n; ++i) {
    const Row<A, F> row(b.rows + i * F);
    FVX_UNROLL_ALL
    for (int c = 0; c < kCorners; ++c) row.add_to(g_table + size_t(b.index[c][i]) * F, b.weight[c][i]);
  }
}

// g_table[index_c] += weight_c rows, points in order, corners in order: the result does not depend on how the entries
// are divided among threads. Entries from `lo` to `hi` only; `g_table` starts at `lo`.
template <class A, int F>
void scatter(A* g_table, uint32_t lo, uint32_t hi, bool whole, int corners, const GridBlock<A>& b) {
  if (whole) {
    switch (corners) {
      case 1:
        return scatter_whole<A, F, 1>(g_table, b);
      case 2:
        return scatter_whole<A, F, 2>(g_table, b);
      case 4:
        return scatter_whole<A, F, 4>(g_table, b);
      case 8:
        return scatter_whole<A, F, 8>(g_table, b);
      default:
        return scatter_whole<A, F, 16>(g_table, b);
    }
  }
  // Which corners are ours is as good as random: listing them without a branch first costs less than mispredictions.
  uint16_t mine[kBlock * kMaxCorners];
  int count = 0;
  for (int i = 0; i < b.n; ++i) {
    for (int c = 0; c < corners; ++c) {
      mine[count] = uint16_t(c * kBlock + i);
      count += b.index[c][i] - lo < hi - lo;
    }
  }
  const uint32_t* index = b.index[0];
  const A* weight = b.weight[0];
  for (int k = 0; k < count; ++k) {
    const int at = mine[k];
    Row<A, F>(b.rows + at % kBlock * F).add_to(g_table + size_t(index[at] - lo) * F, weight[at]);
  }
}

template <class T, int F>
void load_rows(const void* from, int64_t stride, GridBlock<acc_t<T>>& b) {
  const T* rows = static_cast<const T*>(from);
  if (sizeof(T) == sizeof(b.rows[0]) && stride == F) {
    __builtin_memcpy(b.rows, rows, size_t(b.n) * F * sizeof(T));
    return;
  }
  for (int i = 0; i < b.n; ++i) {
    FVX_UNROLL_ALL
    for (int f = 0; f < F; ++f) b.rows[i * F + f] = to_acc(rows[i * stride + f]);
  }
}

template <class T, int F>
void store_rows(void* to, int64_t stride, const GridBlock<acc_t<T>>& b) {
  T* rows = static_cast<T*>(to);
  if (sizeof(T) == sizeof(b.rows[0]) && stride == F) {
    __builtin_memcpy(rows, b.rows, size_t(b.n) * F * sizeof(T));
    return;
  }
  for (int i = 0; i < b.n; ++i) {
    FVX_UNROLL_ALL
    for (int f = 0; f < F; ++f) rows[i * stride + f] = from_acc<T>(b.rows[i * F + f]);
  }
}

// Points that are dead (outside, not finite) give nothing: not even NaN * 0.
template <class A>
void silence_dead_points(int corners, int features, GridBlock<A>& b) {
  if (b.all_inside) return;
  for (int i = 0; i < b.n; ++i) {
    if (b.points[i] == Point::live) continue;
    for (int c = 0; c < corners; ++c) b.weight[c][i] = A(0);
    for (int f = 0; f < features; ++f) b.rows[i * features + f] = A(0);
  }
}

// ---------------------------------------------------------------------------------------------------- choice

template <class A>
struct ByDimension {
  void (*locate)(const HashGrid&, const GridLevel&, const Points<A>&, int, bool, GridBlock<A>&);
  void (*add_position_gradients)(const HashGrid&, const GridLevel&, const Points<A>&, const GridBlock<A>&, A*);
  void (*split_axes)(const A*, int64_t, A*, int64_t);
  void (*join_axes)(const A*, int64_t, int64_t, A*);
};

template <int D, class A>
ByDimension<A> with_dimension() {
  return {locate<D, A>, add_position_gradients<D, A>, split_axes<D, A>, join_axes<D, A>};
}

template <class A>
ByDimension<A> by_dimension(int dims) {
  switch (dims) {
    case 1:
      return with_dimension<1, A>();
    case 2:
      return with_dimension<2, A>();
    case 3:
      return with_dimension<3, A>();
    default:
      return with_dimension<4, A>();
  }
}

template <class T>
struct ByFeatures {
  using A = acc_t<T>;
  void (*gather)(const void*, int, GridBlock<A>&);
  void (*dot)(const void*, int, GridBlock<A>&);
  void (*scatter)(A*, uint32_t, uint32_t, bool, int, const GridBlock<A>&);
  void (*load_rows)(const void*, int64_t, GridBlock<A>&);
  void (*store_rows)(void*, int64_t, const GridBlock<A>&);
};

template <class T, int F>
ByFeatures<T> with_features() {
  return {gather<T, F>, dot<T, F>, scatter<acc_t<T>, F>, load_rows<T, F>, store_rows<T, F>};
}

template <class T>
ByFeatures<T> by_features(int features) {
  switch (features) {
    case 1:
      return with_features<T, 1>();
    case 2:
      return with_features<T, 2>();
    case 4:
      return with_features<T, 4>();
    default:
      return with_features<T, 8>();
  }
}

}  // namespace

FVX_END_ISA
