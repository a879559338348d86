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

// e = exp(x) within 1.1 ulp and e - 1 within 1.8 (every float tried): alpha = 1 - exp(-tau) must keep its relative
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

// log(1 + u) for 0 <= u <= 1: 2 atanh(u / (2 + u)), whose argument is at most 1/3; the first dropped term is 1e-9.
FVX_HD double log1p_unit(double u) { return ::log1p(u); }
FVX_HD float log1p_unit(float u) {
  const float s = u / (2.0f + u), s2 = s * s;
  float p = 1.0f / 13;
  p = p * s2 + 1.0f / 11;
  p = p * s2 + 1.0f / 9;
  p = p * s2 + 1.0f / 7;
  p = p * s2 + 1.0f / 5;
  p = p * s2 + 1.0f / 3;
  return 2.0f * (s + s * (s2 * p));
}

// 1 / (1 + e^-x)
template <class A>
FVX_HD A sigmoid_of(A x) {
  return A(1) / (A(1) + exp_of(-x));
}

// From e^(-2|x|) - 1, which keeps its relative precision at 0 and cannot overflow.
template <class A>
FVX_HD A tanh_of(A x) {
  const A em1 = exp_pair(x < A(0) ? 2 * x : -2 * x).em1;
  const A t = em1 / (A(2) + em1);
  return x < A(0) ? t : -t;
}

// log(1 + e^x)
template <class A>
FVX_HD A softplus_of(A x) {
  return (x < A(0) ? A(0) : x) + log1p_unit(exp_of(x < A(0) ? x : -x));
}

template <class T>
struct SinCos {
  T sin, cos;
};

// Sine and cosine of pi (hi + lo), |lo| at most half an ulp of hi: lo carries what the argument's own rounding would
// lose. Whole turns are taken off exactly, hi and lo each on its own, so that the size of the argument costs no
// precision: errors are below 0.65 ulp of 1 (every float up to 4096 tried), and sin keeps its relative precision at 0.
// Polynomials: minimax on |r| <= 1/4, truncation below 0.06 ulp. Branch-free; infinities give NaN.
FVX_HD SinCos<float> sincospi(float hi, float lo) {
  const float h = hi - 2.0f * ::rintf(0.5f * hi);  // in [-1, 1]
  const float l = lo - 2.0f * ::rintf(0.5f * lo);
  const float q = ::rintf(2.0f * (h + l));
  const float r = (h - 0.5f * q) + l;  // the first difference is exact
  const float z = r * r;
  float s = -5.8900429e-1f;
  s = s * z + 2.54976043f;
  s = s * z + -5.16770767f;
  s = s * z + -9.76212914e-8f;  // pi minus its float
  s = r * 3.14159274f + r * s;
  float c = 2.31426451e-1f;
  c = c * z + -1.33505814f;
  c = c * z + 4.05870789f;
  c = c * z + -4.93480217f;
  c = c * z + 1.0f;
  // A quarter turn swaps the two; half a turn negates both.
  const int32_t n = int32_t(q);
  const bool swap = (n & 1) != 0;
  const uint32_t sin_sign = uint32_t(n & 2) << 30;
  const uint32_t cos_sign = uint32_t((n + 1) & 2) << 30;
  return {bits_to_float(float_to_bits(swap ? c : s) ^ sin_sign), bits_to_float(float_to_bits(swap ? s : c) ^ cos_sign)};
}

FVX_HD SinCos<double> sincospi(double hi, double lo) {
  const double h = hi - 2.0 * ::rint(0.5 * hi);
  const double l = lo - 2.0 * ::rint(0.5 * lo);
  const double q = ::rint(2.0 * (h + l));
  const double r = (h - 0.5 * q) + l;
#if defined(__CUDA_ARCH__)
  const double s = ::sinpi(r), c = ::cospi(r);
#else
  const double s = ::sin(3.14159265358979323846 * r), c = ::cos(3.14159265358979323846 * r);
#endif
  const int32_t n = int32_t(q);
  const bool swap = (n & 1) != 0;
  const double sin = swap ? c : s, cos = swap ? s : c;
  return {(n & 2) ? -sin : sin, ((n + 1) & 2) ? -cos : cos};
}

FVX_END_ISA
