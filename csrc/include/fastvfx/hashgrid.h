// Multiresolution grid encoding: arguments, and the maths of one point in one level.
//
// A point x lies at scale x + shift in the lattice of a level, g = floor of that, and its weights are per axis
// (1 - t_d, t_d) with t = s(frac), s(w) = w or w^2 (3 - 2w). Over the 2^D corners c of the cell
//   out = sum_c w_c(x) table[index(g + c)],   w_c = prod_d (c_d ? t_d : 1 - t_d).
// All derivatives are this sum with other weights. Along a direction v the weights become w'_c = sum_d v_d dw_c/dx_d;
// with q_c = g_out . table[index(g + c)], dL/dx = sum_c q_c grad w_c, and along v it is sum_c q_c (hess w_c) v. So the
// three kernels below, each with an optional direction, are the encoding, its gradient and the gradient of that.
#pragma once

#include "fastvfx/dual.h"
#include "fastvfx/math.h"

namespace fastvfx {

enum class Interpolation : int { nearest = 0, linear = 1, smoothstep = 2 };

// How a lattice point finds its entry; all arithmetic is unsigned and modulo 2^32.
enum class GridIndex : int {
  dense = 0,   // sum_d g_d m_d, which is below 2 entries for points in [0, 1]
  hashed = 1,  // xor_d g_d m_d, entries a power of two
  tiled = 2,   // sum_d g_d m_d, modulo entries
};

constexpr int kMaxGridDims = 4;
constexpr int kMaxGridLevels = 64;

struct GridLevel {
  int64_t offset;  // first entry
  float scale;
  uint32_t entries;
  uint32_t multipliers[kMaxGridDims];
  GridIndex kind;
};

// `A` below is the accumulation type of `dtype`: positions, directions and their gradients are stored in it.
struct HashGrid {
  DType dtype;  // of the table, the output and its gradient
  Interpolation interpolation;
  int dims, features, n_levels;
  bool zero_outside;  // points outside [0, 1] give 0, else they wrap around
  float shift;
  int64_t n_points;
  const void* x;          // (n_points, dims) A
  const void* direction;  // (n_points, dims) A, or null: the encoding itself rather than its derivative
  int threads;
  void* stream;
  GridLevel levels[kMaxGridLevels];
};

struct HashGridFwd : HashGrid {
  const void* table;  // (entries, features)
  void* out;          // (n_points, n_levels * features)
};

struct HashGridBwdTable : HashGrid {
  const void* g_out;  // (n_points, n_levels * features)
  // (entries, features). CPU: of `dtype`, need not be zeroed. CUDA: of A, zeroed.
  void* g_table;
};

struct HashGridBwdX : HashGrid {
  const void* table;
  const void* g_out;
  void* g_x;  // (n_points, dims) A
};

}  // namespace fastvfx

FVX_BEGIN_ISA

// Where one coordinate lies in a level.
template <class A>
struct Axis {
  A cell, frac;
};

template <class A>
FVX_HD Axis<A> axis_of(A x, A scale, A shift) {
  const A position = scale * x + shift;
#if defined(__CUDA_ARCH__)
  const A cell = ::floor(position);
#else
  const A cell = sizeof(A) == 8 ? A(__builtin_floor(position)) : A(__builtin_floorf(float(position)));
#endif
  return {cell, position - cell};
}

// Lattice coordinate. Far and NaN positions saturate like a GPU's conversion: what they read is harmless.
template <class A>
FVX_HD uint32_t lattice_of(A cell) {
  const A lo = A(-2147483648.0), hi = A(2147483520.0);  // the largest float below 2^31
  A c = cell > lo ? cell : lo;
  c = c < hi ? c : hi;
  return uint32_t(int32_t(c));
}

template <class A>
FVX_HD A fade(A w, bool smooth) {
  return smooth ? w * w * (A(3) - A(2) * w) : w;
}
template <class A>
FVX_HD A fade_slope(A w, bool smooth) {
  return smooth ? A(6) * w * (A(1) - w) : A(1);
}
template <class A>
FVX_HD A fade_curvature(A w, bool smooth) {
  return smooth ? A(6) - A(12) * w : A(0);
}

// Doubles the weights along one axis after another (recursion, so that every loop has a constant length and unrolls):
// corner c has bit d set where it lies above along axis d. dw_c are the derivatives with t_d moving by dt_d.
template <int D, int kAxis, bool kAlong, class A>
FVX_HD void multiply_weights(const A* t, const A* dt, A* w, A* dw) {
  if constexpr (kAxis < D) {
    constexpr int kHalf = 1 << kAxis;
    FVX_UNROLL_ALL
    for (int c = 0; c < kHalf; ++c) {
      if (kAlong) {
        dw[c + kHalf] = dw[c] * t[kAxis] + w[c] * dt[kAxis];
        dw[c] = dw[c] * (A(1) - t[kAxis]) - w[c] * dt[kAxis];
      }
      w[c + kHalf] = w[c] * t[kAxis];
      w[c] = w[c] * (A(1) - t[kAxis]);
    }
    multiply_weights<D, kAxis + 1, kAlong>(t, dt, w, dw);
  }
}

template <int D, class A>
FVX_HD void corner_weights(const A (&t)[D], A (&w)[1 << D]) {
  w[0] = A(1);
  multiply_weights<D, 0, false, A>(t, nullptr, w, nullptr);
}

template <int D, class A>
FVX_HD void corner_weights_along(const A (&t)[D], const A (&dt)[D], A (&dw)[1 << D]) {
  A w[1 << D];
  w[0] = A(1);
  dw[0] = A(0);
  multiply_weights<D, 0, true, A>(t, dt, w, dw);
}

// Folds the last axis away: q becomes the interpolation along it, differences[kAxis] its slope, and the slopes of later
// axes are interpolated too.
template <int D, int kAxis, class N>
FVX_HD void fold_axis(N* q, const N* t, N (*differences)[1 << (D - 1)]) {
  if constexpr (kAxis >= 0) {
    constexpr int kHalf = 1 << kAxis;
    FVX_UNROLL_ALL
    for (int c = 0; c < kHalf; ++c) {
      differences[kAxis][c] = q[c + kHalf] - q[c];
      q[c] = q[c] + t[kAxis] * differences[kAxis][c];
      FVX_UNROLL_ALL
      for (int e = kAxis + 1; e < D; ++e) {
        differences[e][c] = differences[e][c] + t[kAxis] * (differences[e][c + kHalf] - differences[e][c]);
      }
    }
    fold_axis<D, kAxis - 1, N>(q, t, differences);
  }
}

// slopes[d] = d/dt_d sum_c w_c q_c. Overwrites q.
template <int D, class N>
FVX_HD void fold_slopes(N (&q)[1 << D], const N (&t)[D], N (&slopes)[D]) {
  N differences[D][1 << (D - 1)];
  fold_axis<D, D - 1, N>(q, t, differences);
  FVX_UNROLL_ALL
  for (int d = 0; d < D; ++d) slopes[d] = differences[d][0];
}

// sum_c q_c grad w_c
template <int D, class A>
FVX_HD void position_gradient(const A (&frac)[D], A (&q)[1 << D], A scale, bool smooth, A (&g)[D]) {
  A t[D], slopes[D];
  FVX_UNROLL_ALL
  for (int d = 0; d < D; ++d) t[d] = fade(frac[d], smooth);
  fold_slopes<D>(q, t, slopes);
  FVX_UNROLL_ALL
  for (int d = 0; d < D; ++d) g[d] = scale * fade_slope(frac[d], smooth) * slopes[d];
}

// sum_c q_c (hess w_c) v
template <int D, class A>
FVX_HD void position_gradient_along(const A (&frac)[D], const A (&v)[D], const A (&q)[1 << D], A scale, bool smooth,
                                    A (&g)[D]) {
  Dual<A> t[D], folded[1 << D], slopes[D];
  FVX_UNROLL_ALL
  for (int d = 0; d < D; ++d) t[d] = {fade(frac[d], smooth), scale * fade_slope(frac[d], smooth) * v[d]};
  FVX_UNROLL_ALL
  for (int c = 0; c < (1 << D); ++c) folded[c] = {q[c], A(0)};
  fold_slopes<D>(folded, t, slopes);
  FVX_UNROLL_ALL
  for (int d = 0; d < D; ++d) {
    const A slope = scale * fade_slope(frac[d], smooth);
    const A bend = scale * scale * fade_curvature(frac[d], smooth) * v[d];
    g[d] = slope * slopes[d].d + bend * slopes[d].v;
  }
}

FVX_END_ISA
