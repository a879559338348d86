// Elementary functions shared by host and device. The host ones are branch-free so that loops over them vectorise
// at every instruction-set level: a call of libm's expf inside a loop costs about ten times as much.
#pragma once

#include <cmath>

#include "fastvfx/dtype.h"

FVX_BEGIN_ISA

template <class T>
FVX_HD T min_of(T a, T b) {
  return b < a ? b : a;
}
template <class T>
FVX_HD T max_of(T a, T b) {
  return a < b ? b : a;
}

// e = exp(x) and e - 1, both to about 1 ulp for x <= 0 and |x| small: alpha = 1 - exp(-tau) must keep its relative
// precision for thin samples, and exp(-tau) its own for thick ones, so one is not derived from the other.
template <class T>
struct ExpPair {
  T e, em1;
};

FVX_HD ExpPair<double> exp_pair(double x) { return {::exp(x), ::expm1(x)}; }

// x = n ln2 + r, |r| <= ln2/2; expm1(r) = r + r^2 q(r), a Taylor polynomial whose first dropped term is below 2^-27;
// then exp(x) = 2^n + 2^n expm1(r). Below -87.3 the result would be subnormal: it is 0, like its consumers want it.
FVX_HD ExpPair<float> exp_pair(float x) {
#if defined(__CUDA_ARCH__)
  return {::expf(x), ::expm1f(x)};
#else
  const float lo = -87.33654f;
  float c = x > 88.72283f ? 88.72283f : x;  // comparisons written so that NaN passes through
  c = c < lo ? lo : c;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (c * 1.44269504f + magic) - magic;
  float r = c - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float q = 1.98412698e-4f;
  q = q * r + 1.38888889e-3f;
  q = q * r + 8.33333333e-3f;
  q = q * r + 4.16666667e-2f;
  q = q * r + 1.66666667e-1f;
  q = q * r + 0.5f;
  const float m = r + (r * r) * q;
  // 2^n in two halves: n can be 128, whose power of two is no float.
  const int32_t ni = int32_t(n);
  const int32_t half = ni >> 1;
  const float s0 = bits_to_float(uint32_t(half + 127) << 23);
  const float s1 = bits_to_float(uint32_t(ni - half + 127) << 23);
  float e = (s0 + s0 * m) * s1;
  const float s = s0 * s1;
  float em1 = s * m + (s - 1.0f);
  e = x < lo ? 0.0f : e;
  const float inf = bits_to_float(0x7f800000u);
  e = x > 88.72283f ? inf : e;
  em1 = x > 88.0f ? e : em1;
  return {e, em1};
#endif
}

FVX_HD double exp_of(double x) { return ::exp(x); }
FVX_HD float exp_of(float x) { return exp_pair(x).e; }

FVX_END_ISA
