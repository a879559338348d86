// Real spherical harmonics as polynomials: arguments and the maths of one direction.
//
// With A_m + i B_m = (x + i y)^m and the polynomials N_lm(z) = K_lm d^m/dz^m P_l(z) (P_l Legendre's),
//   Y_l,m = N_lm(z) A_m,   Y_l,-m = N_lm(z) B_m,   column l^2 + l + m,
//   K_lm = sqrt((2l + 1) / 4 pi * (l - m)! / (l + m)!), times sqrt(2) for m > 0,
// orthonormal on the unit sphere, all signs positive. The factor (-1)^m of Condon and Shortley is x and y negated.
// Columns of equal m come from the stable recurrence N_lm = alpha z N_l-1,m - beta N_l-2,m, and their derivatives
// cost nothing: dN_lm/dz = gamma N_l,m+1, dA_m/dx = m A_m-1, dA_m/dy = -m B_m-1, dB_m/dx = m B_m-1, dB_m/dy = m A_m-1.
#pragma once

#include "fastvfx/dual.h"
#include "fastvfx/math.h"

namespace fastvfx {

struct SphericalHarmonicsRows {
  DType dtype;
  int64_t n;
  int degree;            // 1..8; degree^2 columns
  bool condon_shortley;  // signs (-1)^m
  bool unit_range;       // dirs are in [0, 1]^3 and stand for 2 dirs - 1
  const void* dirs;      // (n, 3)
  int threads;
  void* stream;
};

struct SphericalHarmonicsFwd : SphericalHarmonicsRows {
  void* out;  // (n, degree^2)
};

struct SphericalHarmonicsBwd : SphericalHarmonicsRows {
  const void* g_out;  // (n, degree^2)
  void* g_dirs;       // (n, 3)
};

// The gradient of SphericalHarmonicsBwd: gg_dirs is what comes in for its g_dirs.
struct SphericalHarmonicsBwdBwd : SphericalHarmonicsRows {
  const void* g_out;    // (n, degree^2)
  const void* gg_dirs;  // (n, 3)
  void* g_dirs;         // (n, 3)
  void* gg_out;         // (n, degree^2)
};

}  // namespace fastvfx

// Runs the body with the constant `kDegree`.
#define FVX_DISPATCH_SH_DEGREE(degree, kDegree, ...) \
  switch (degree) {                                  \
    case 1: {                                        \
      constexpr int kDegree = 1;                     \
      __VA_ARGS__;                                   \
      break;                                         \
    }                                                \
    case 2: {                                        \
      constexpr int kDegree = 2;                     \
      __VA_ARGS__;                                   \
      break;                                         \
    }                                                \
    case 3: {                                        \
      constexpr int kDegree = 3;                     \
      __VA_ARGS__;                                   \
      break;                                         \
    }                                                \
    case 4: {                                        \
      constexpr int kDegree = 4;                     \
      __VA_ARGS__;                                   \
      break;                                         \
    }                                                \
    case 5: {                                        \
      constexpr int kDegree = 5;                     \
      __VA_ARGS__;                                   \
      break;                                         \
    }                                                \
    case 6: {                                        \
      constexpr int kDegree = 6;                     \
      __VA_ARGS__;                                   \
      break;                                         \
    }                                                \
    case 7: {                                        \
      constexpr int kDegree = 7;                     \
      __VA_ARGS__;                                   \
      break;                                         \
    }                                                \
    case 8: {                                        \
      constexpr int kDegree = 8;                     \
      __VA_ARGS__;                                   \
      break;                                         \
    }                                                \
  }

FVX_BEGIN_ISA

namespace sh {

constexpr double sqrt_of(double x) {  // Newton's, at compile time
  double r = x > 1 ? x : 1;
  for (int i = 0; i < 60; ++i) r = 0.5 * (r + x / r);
  return r;
}

// N_mm, a constant: sqrt(2) sqrt((2m + 1) / (4 pi (2m)!)) (2m - 1)!! for m > 0.
constexpr double diagonal(int m) {
  double square = 1 / (4 * 3.14159265358979323846);
  for (int k = 1; k <= m; ++k) square *= (2 * k + 1) / (2.0 * k);
  return sqrt_of(m > 0 ? 2 * square : square);
}
constexpr double alpha(int l, int m) { return sqrt_of((4.0 * l * l - 1) / (l * l - m * m)); }
constexpr double beta(int l, int m) {
  return sqrt_of((2.0 * l + 1) * ((l - 1) * (l - 1) - m * m) / ((2.0 * l - 3) * (l * l - m * m)));
}
constexpr double gamma(int l, int m) { return sqrt_of((l + m + 1.0) * (l - m) * (m == 0 ? 0.5 : 1.0)); }

// n[l] = N_lm(z) for l = m .. kDegree - 1.
template <int kDegree, int m, int l = m, class V>
FVX_HD void legendre_column(V z, V (&n)[kDegree]) {
  using A = scalar_t<V>;
  using P = Number<part_t<V>>;
  if constexpr (l < kDegree) {
    if constexpr (l == m) {
      constexpr A c = A(diagonal(m));
      n[l] = Number<V>::constant(c);
    } else if constexpr (l == m + 1) {
      constexpr A c = A(alpha(l, m) * diagonal(m));
      n[l] = P::constant(c) * z;
    } else {
      constexpr A a = A(alpha(l, m)), b = A(beta(l, m));
      n[l] = (P::constant(a) * z) * n[l - 1] - P::constant(b) * n[l - 2];
    }
    legendre_column<kDegree, m, l + 1>(z, n);
  }
}

template <int kDegree, int m, int l = m, class V, class Out>
FVX_HD void write_column(const V (&n)[kDegree], const V& a, const V& b, const Out& out) {
  if constexpr (l < kDegree) {
    if constexpr (m == 0) {
      out(l * l + l, n[l]);
    } else {
      out(l * l + l + m, n[l] * a);
      out(l * l + l - m, n[l] * b);
    }
    write_column<kDegree, m, l + 1>(n, a, b, out);
  }
}

template <int kDegree, int m, class V, class Out>
FVX_HD void columns_from(const V& x, const V& y, const V& z, const V& a, const V& b, const Out& out) {
  if constexpr (m < kDegree) {
    V n[kDegree];
    legendre_column<kDegree, m>(z, n);
    write_column<kDegree, m>(n, a, b, out);
    columns_from<kDegree, m + 1>(x, y, z, x * a - y * b, x * b + y * a, out);
  }
}

// Sums over the column of equal m: dL/dA_m, dL/dB_m, and dL/dz added to `gz`.
template <int kDegree, int m, int l = m, class V, class In>
FVX_HD void column_gradient(const V (&n)[kDegree], const V (&next)[kDegree], const V& a, const V& b, const In& g, V& ga,
                            V& gb, V& gz) {
  using P = Number<part_t<V>>;
  if constexpr (l < kDegree) {
    const part_t<V> ga_l = g(l * l + l + m);
    if constexpr (m > 0) {
      const part_t<V> gb_l = g(l * l + l - m);
      ga = ga + ga_l * n[l];
      gb = gb + gb_l * n[l];
      if constexpr (l > m) {
        constexpr scalar_t<V> c = scalar_t<V>(gamma(l, m));
        gz = gz + (P::constant(c) * next[l]) * (ga_l * a + gb_l * b);
      }
    } else if constexpr (l > 0) {
      constexpr scalar_t<V> c = scalar_t<V>(gamma(l, 0));
      gz = gz + (P::constant(c) * ga_l) * next[l];
    }
    column_gradient<kDegree, m, l + 1>(n, next, a, b, g, ga, gb, gz);
  }
}

// `a`, `b` are A_m, B_m and `a1`, `b1` those of m - 1.
template <int kDegree, int m, class V, class In>
FVX_HD void gradient_from(const V& x, const V& y, const V& z, const V (&n)[kDegree], const V& a, const V& b,
                          const V& a1, const V& b1, const In& g, V (&gradient)[3]) {
  if constexpr (m < kDegree) {
    V next[kDegree];
    legendre_column<kDegree, m + 1>(z, next);
    V ga = Number<V>::constant(0), gb = ga;
    column_gradient<kDegree, m>(n, next, a, b, g, ga, gb, gradient[2]);
    if constexpr (m > 0) {
      const part_t<V> order = Number<part_t<V>>::constant(m);
      gradient[0] = gradient[0] + order * (a1 * ga + b1 * gb);
      gradient[1] = gradient[1] + order * (a1 * gb - b1 * ga);
    }
    gradient_from<kDegree, m + 1>(x, y, z, next, x * a - y * b, x * b + y * a, a, b, g, gradient);
  }
}

// out(column, Y) for all kDegree^2 columns.
template <int kDegree, class V, class Out>
FVX_HD void evaluate(const V& x, const V& y, const V& z, const Out& out) {
  columns_from<kDegree, 0>(x, y, z, Number<V>::constant(1), Number<V>::constant(0), out);
}

// gradient = sum over the columns of g(column) times the gradient of Y in (x, y, z).
template <int kDegree, class V, class In>
FVX_HD void evaluate_gradient(const V& x, const V& y, const V& z, const In& g, V (&gradient)[3]) {
  const V zero = Number<V>::constant(0), one = Number<V>::constant(1);
  gradient[0] = gradient[1] = gradient[2] = zero;
  V n[kDegree];
  legendre_column<kDegree, 0>(z, n);
  gradient_from<kDegree, 0>(x, y, z, n, one, zero, zero, zero, g, gradient);
}

// Inputs are scaled and shifted into the polynomials' own coordinates: p = scale * input + shift, per axis.
template <class A>
struct InputMap {
  A scale_xy, shift_xy, scale_z, shift_z;
};

template <class A>
FVX_HD InputMap<A> input_map(const SphericalHarmonicsRows& a) {
  const A scale = a.unit_range ? A(2) : A(1), shift = a.unit_range ? A(-1) : A(0);
  const A sign = a.condon_shortley ? A(-1) : A(1);
  return {sign * scale, sign * shift, scale, shift};
}

}  // namespace sh

FVX_END_ISA
