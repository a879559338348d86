// Blocks of 16-bit storage widened and rounded by the instructions that do so. Loops over to_acc() and from_acc()
// vectorise, but spend ten integer operations where these spend one.
#pragma once

#include "fastvfx/dtype.h"

#if defined(__AVX__) && defined(__GNUC__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__) && defined(__GNUC__)
#define FVX_CONVERTS_BF16
#endif

FVX_BEGIN_ISA

template <class T>
constexpr bool is_f16 = false;
template <>
constexpr bool is_f16<f16> = true;
template <class T>
constexpr bool is_bf16 = false;
template <>
constexpr bool is_bf16<bf16> = true;

template <class T>
inline void widen(const T* from, int n, acc_t<T>* to) {
  int i = 0;
#if defined(__F16C__) && defined(__GNUC__)
  if constexpr (is_f16<T>) {
#if defined(__AVX512F__)
    for (; i + 16 <= n; i += 16) {
      const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
      _mm512_storeu_ps(to + i, _mm512_maskz_cvtph_ps(0xffff, half));
    }
#else
    for (; i + 8 <= n; i += 8) {
      const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(half));
    }
#endif
  }
#endif
  FVX_SIMD
  for (int k = i; k < n; ++k) to[k] = to_acc(from[k]);
}

#if defined(FVX_CONVERTS_BF16)
// Not a part of x86-64-v4. Rounds like from_acc(), but takes subnormal numbers for 0.
__attribute__((target("avx512bf16"))) inline int round_pairs(const float* from, int n, bf16* to) {
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m512bh pair = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + 16), _mm512_loadu_ps(from + i));
    _mm512_storeu_si512(to + i, reinterpret_cast<__m512i>(pair));
  }
  return i;
}
#endif

template <class T>
inline void narrow(const acc_t<T>* from, int n, T* to) {
  int i = 0;
#if defined(__F16C__) && defined(__GNUC__)
  if constexpr (is_f16<T>) {
#if defined(__AVX512F__)
    for (; i + 16 <= n; i += 16) {
      const __m256i half = _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), half);
    }
#else
    for (; i + 8 <= n; i += 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
    }
#endif
  }
#endif
#if defined(FVX_CONVERTS_BF16)
  if constexpr (is_bf16<T>) {
    static const bool has_bf16 = __builtin_cpu_supports("avx512bf16");
    if (has_bf16) i = round_pairs(from, n, to);
  }
#endif
  FVX_SIMD
  for (int k = i; k < n; ++k) to[k] = from_acc<T>(from[k]);
}

FVX_END_ISA
