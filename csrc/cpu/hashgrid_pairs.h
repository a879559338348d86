// Entries of two features each, four or eight points at a time.
#pragma once

#include "fastvfx/dtype.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__AVX2__) && defined(__F16C__) && defined(__FMA__)
#define FVX_GRID_AVX2
#endif
#if defined(FVX_GRID_AVX2) && defined(__AVX512F__) && defined(__AVX512VL__) && defined(__GNUC__)
#define FVX_GRID_AVX512
#endif

FVX_BEGIN_ISA

namespace {

#if defined(FVX_GRID_AVX2)
// Entries of four points, two features each. At 256 bits separate 64-bit loads beat the gather instruction on every
// processor measured (Zen 4: 5.3 against 7.0 ns a point and level).
inline __m256 load_pairs(const float* table, const uint32_t* index) {
  const double* entries = reinterpret_cast<const double*>(table);
  const __m128d a = _mm_loadh_pd(_mm_load_sd(entries + index[0]), entries + index[1]);
  const __m128d b = _mm_loadh_pd(_mm_load_sd(entries + index[2]), entries + index[3]);
  return _mm256_castpd_ps(_mm256_insertf128_pd(_mm256_castpd128_pd256(a), b, 1));
}
inline __m128i load_halves(const void* table, const uint32_t* index) {
  int pairs[4];
  for (int k = 0; k < 4; ++k) {
    __builtin_memcpy(pairs + k, static_cast<const char*>(table) + size_t(index[k]) * 4, 4);  // any alignment
  }
  return _mm_setr_epi32(pairs[0], pairs[1], pairs[2], pairs[3]);
}
inline __m256 load_pairs(const f16* table, const uint32_t* index) { return _mm256_cvtph_ps(load_halves(table, index)); }
inline __m256 load_pairs(const bf16* table, const uint32_t* index) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_halves(table, index)), 16));
}
inline __m256 twice_each(const float* w) {
  return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(w)), _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
}
#endif

#if defined(FVX_GRID_AVX512)
// The first points of a block, eight at a time, with one gather instruction a corner; returns how many. On Intel's
// cores the few micro-operations leave room to look ahead for more entries that are not in a cache (Sapphire Rapids:
// 1.35 against 1.62 ms for 2^17 points in a level); on Zen 4 they are slower than separate loads.
// What is left is waiting for lines that are not in L2: computing indices and weights in the same loop, in registers,
// made it no faster.
// index and weight: corner after corner, `pitch` points apart.
inline int gather_eights(const float* table, int corners, const uint32_t* index, const float* weight, int pitch, int n,
                         float* rows) {
  const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    __m512 sum = _mm512_setzero_ps();
    for (int c = 0; c < corners; ++c) {
      const __m256i at = _mm256_load_si256(reinterpret_cast<const __m256i*>(index + c * pitch + i));
      const __m512 entries = _mm512_castpd_ps(_mm512_i32gather_pd(at, table, 8));
      const __m512 w = _mm512_castps256_ps512(_mm256_load_ps(weight + c * pitch + i));
      sum = _mm512_fmadd_ps(entries, _mm512_permutexvar_ps(twice, w), sum);
    }
    _mm512_store_ps(rows + 2 * i, sum);
  }
  return i;
}
#endif

template <class T, int F>
constexpr bool has_pairs() {
#if defined(FVX_GRID_AVX2)
  return F == 2 && sizeof(T) <= 4;
#else
  return false;
#endif
}

}  // namespace

FVX_END_ISA
