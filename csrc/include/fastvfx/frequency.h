// Frequency encoding: arguments, column layouts and the maths of one coordinate at one frequency.
//
//   sin(c 2^f x), cos(c 2^f x),   f = 0 .. n_frequencies - 1,   c = pi, 1 or 2 pi.
// Arguments are kept in units of pi, where the products by c / pi and 2^f are exact for c = pi and 2 pi (for c = 1 as
// two numbers of which the second is the rounding of the first), and whole turns are taken off exactly.
#pragma once

#include "fastvfx/math.h"

namespace fastvfx {

// Whose order of columns and whose factor c. D coordinates, F frequencies, `s` sines and `c` cosines:
//   tcnn        c = pi     for each d, for each f: s, c; the input in front, if at all
//   torch_ngp   c = 1      the input; for each f: s of each d, c of each d
//   nerfstudio  c = 2 pi   for each d, for each f: s; likewise c; the input behind, if at all
enum class FrequencyLayout : int { tcnn = 0, torch_ngp = 1, nerfstudio = 2 };

struct FrequencyRows {
  DType dtype;
  FrequencyLayout layout;
  bool include_input;
  int64_t n;
  int dims, n_frequencies;
  const void* x;  // (n, dims)
  int threads;
  void* stream;
};

struct FrequencyFwd : FrequencyRows {
  void* out;  // (n, columns)
};

struct FrequencyBwd : FrequencyRows {
  const void* g_out;  // (n, columns)
  void* g_x;          // (n, dims)
};

// The gradient of FrequencyBwd: gg_x is what comes in for its g_x.
struct FrequencyBwdBwd : FrequencyRows {
  const void* g_out;  // (n, columns)
  const void* gg_x;   // (n, dims)
  void* g_x;          // (n, dims)
  void* gg_out;       // (n, columns)
};

}  // namespace fastvfx

FVX_BEGIN_ISA

namespace frequency {

// sin of coordinate d at frequency f is column first + d * per_dim + f * per_frequency, its cos `to_cos` further on;
// coordinate d itself is column input + d.
struct Columns {
  int count, first, per_dim, per_frequency, to_cos, input;
};

FVX_HD Columns columns_of(const FrequencyRows& a) {
  const int D = a.dims, F = a.n_frequencies;
  const int passed = a.include_input ? D : 0;
  const int count = 2 * D * F + passed;
  if (a.layout == FrequencyLayout::tcnn) return {count, passed, 2 * F, 2, 1, 0};
  if (a.layout == FrequencyLayout::torch_ngp) return {count, passed, 1, 2 * D, D, 0};
  return {count, 0, F, 1, D * F, 2 * D * F};
}

// c of the layout.
template <class A>
FVX_HD A factor_of(FrequencyLayout layout) {
  if (layout == FrequencyLayout::tcnn) return A(3.14159265358979323846);
  return layout == FrequencyLayout::torch_ngp ? A(1) : A(6.28318530717958647692);
}

// c x / pi as the sum of two numbers.
template <class A>
struct HalfTurns {
  A hi, lo;
};

FVX_HD HalfTurns<float> over_pi(float x) {
#if defined(__CUDA_ARCH__)
  const float hi = x * 0.318309873f;
  return {hi, ::fmaf(x, 0.318309873f, -hi) + x * 1.28413e-8f};
#else
  const double product = double(x) * 0.31830988618379067154;
  const float hi = float(product);
  return {hi, float(product - double(hi))};
#endif
}
FVX_HD HalfTurns<double> over_pi(double x) {
  const double hi = x * 0.31830988618379067154;
  return {hi, ::fma(x, 0.31830988618379067154, -hi) + x * -1.9678676675182486e-17};
}

template <class A>
FVX_HD HalfTurns<A> half_turns(A x, FrequencyLayout layout) {
  if (layout == FrequencyLayout::torch_ngp) return over_pi(x);
  return {layout == FrequencyLayout::tcnn ? x : A(2) * x, A(0)};
}

// Coordinate t at 2^f = `power`.
template <class A>
FVX_HD SinCos<A> wave(HalfTurns<A> t, A power) {
  return sincospi(t.hi * power, t.lo * power);
}

template <class A>
FVX_HD A power_of_two(int f) {
  return A(uint64_t(1) << f);
}

}  // namespace frequency

FVX_END_ISA
