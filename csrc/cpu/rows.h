// Rows of a matrix against tiles of 16 rows in columns: kernels compute 16 rows at once, one a lane, and memory holds
// rows. Transposing in registers, 4 x 4 a time, keeps both sides contiguous.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "fastvfx/dtype.h"

FVX_BEGIN_ISA

constexpr int kLanes = 16;

// tile[c * kLanes + r] -> rows[r * columns + c]
template <class A>
inline void rows_from_tile(const A* tile, int columns, A* rows) {
  for (int r = 0; r < kLanes; ++r) {
    for (int c = 0; c < columns; ++c) rows[r * columns + c] = tile[c * kLanes + r];
  }
}

// rows[r * columns + c] -> tile[c * kLanes + r]
template <class A>
inline void tile_from_rows(const A* rows, int columns, A* tile) {
  for (int c = 0; c < columns; ++c) {
    for (int r = 0; r < kLanes; ++r) tile[c * kLanes + r] = rows[r * columns + c];
  }
}

#if defined(__AVX512F__)

// The masked forms with every bit set are the plain instructions: gcc 12 warns inside its own header for the plain
// intrinsics. In each 128-bit lane k: columns c..c+3 of rows 4k..4k+3 become row 4k+j in register j.
inline void transpose_lanes(__m512& a, __m512& b, __m512& c, __m512& d) {
  const __m512 ab_lo = _mm512_maskz_unpacklo_ps(0xffff, a, b), ab_hi = _mm512_maskz_unpackhi_ps(0xffff, a, b);
  const __m512 cd_lo = _mm512_maskz_unpacklo_ps(0xffff, c, d), cd_hi = _mm512_maskz_unpackhi_ps(0xffff, c, d);
  a = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xff, _mm512_castps_pd(ab_lo), _mm512_castps_pd(cd_lo)));
  b = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xff, _mm512_castps_pd(ab_lo), _mm512_castps_pd(cd_lo)));
  c = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xff, _mm512_castps_pd(ab_hi), _mm512_castps_pd(cd_hi)));
  d = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xff, _mm512_castps_pd(ab_hi), _mm512_castps_pd(cd_hi)));
}

inline void store_lanes(float* row, int stride4, __m512 v) {
  _mm_storeu_ps(row, _mm512_maskz_extractf32x4_ps(0xf, v, 0));
  _mm_storeu_ps(row + stride4, _mm512_maskz_extractf32x4_ps(0xf, v, 1));
  _mm_storeu_ps(row + 2 * stride4, _mm512_maskz_extractf32x4_ps(0xf, v, 2));
  _mm_storeu_ps(row + 3 * stride4, _mm512_maskz_extractf32x4_ps(0xf, v, 3));
}

inline __m512 load_lanes(const float* row, int stride4) {
  __m512 v = _mm512_zextps128_ps512(_mm_loadu_ps(row));
  v = _mm512_maskz_insertf32x4(0xffff, v, _mm_loadu_ps(row + stride4), 1);
  v = _mm512_maskz_insertf32x4(0xffff, v, _mm_loadu_ps(row + 2 * stride4), 2);
  return _mm512_maskz_insertf32x4(0xffff, v, _mm_loadu_ps(row + 3 * stride4), 3);
}

template <>
inline void rows_from_tile<float>(const float* tile, int columns, float* rows) {
  int c = 0;
  for (; c + 4 <= columns; c += 4) {
    const float* t = tile + c * kLanes;
    __m512 v0 = _mm512_loadu_ps(t), v1 = _mm512_loadu_ps(t + 16), v2 = _mm512_loadu_ps(t + 32),
           v3 = _mm512_loadu_ps(t + 48);
    transpose_lanes(v0, v1, v2, v3);
    store_lanes(rows + c, 4 * columns, v0);
    store_lanes(rows + columns + c, 4 * columns, v1);
    store_lanes(rows + 2 * columns + c, 4 * columns, v2);
    store_lanes(rows + 3 * columns + c, 4 * columns, v3);
  }
  for (; c < columns; ++c) {
    for (int r = 0; r < kLanes; ++r) rows[r * columns + c] = tile[c * kLanes + r];
  }
}

template <>
inline void tile_from_rows<float>(const float* rows, int columns, float* tile) {
  int c = 0;
  for (; c + 4 <= columns; c += 4) {
    __m512 v0 = load_lanes(rows + c, 4 * columns), v1 = load_lanes(rows + columns + c, 4 * columns),
           v2 = load_lanes(rows + 2 * columns + c, 4 * columns), v3 = load_lanes(rows + 3 * columns + c, 4 * columns);
    transpose_lanes(v0, v1, v2, v3);
    float* t = tile + c * kLanes;
    _mm512_storeu_ps(t, v0);
    _mm512_storeu_ps(t + 16, v1);
    _mm512_storeu_ps(t + 32, v2);
    _mm512_storeu_ps(t + 48, v3);
  }
  for (; c < columns; ++c) {
    for (int r = 0; r < kLanes; ++r) tile[c * kLanes + r] = rows[r * columns + c];
  }
}

#elif defined(__SSE2__)

template <>
inline void rows_from_tile<float>(const float* tile, int columns, float* rows) {
  int c = 0;
  for (; c + 4 <= columns; c += 4) {
    for (int r = 0; r < kLanes; r += 4) {
      const float* t = tile + c * kLanes + r;
      __m128 v0 = _mm_loadu_ps(t), v1 = _mm_loadu_ps(t + kLanes), v2 = _mm_loadu_ps(t + 2 * kLanes),
             v3 = _mm_loadu_ps(t + 3 * kLanes);
      _MM_TRANSPOSE4_PS(v0, v1, v2, v3);
      float* row = rows + r * columns + c;
      _mm_storeu_ps(row, v0);
      _mm_storeu_ps(row + columns, v1);
      _mm_storeu_ps(row + 2 * columns, v2);
      _mm_storeu_ps(row + 3 * columns, v3);
    }
  }
  for (; c < columns; ++c) {
    for (int r = 0; r < kLanes; ++r) rows[r * columns + c] = tile[c * kLanes + r];
  }
}

template <>
inline void tile_from_rows<float>(const float* rows, int columns, float* tile) {
  int c = 0;
  for (; c + 4 <= columns; c += 4) {
    for (int r = 0; r < kLanes; r += 4) {
      const float* row = rows + r * columns + c;
      __m128 v0 = _mm_loadu_ps(row), v1 = _mm_loadu_ps(row + columns), v2 = _mm_loadu_ps(row + 2 * columns),
             v3 = _mm_loadu_ps(row + 3 * columns);
      _MM_TRANSPOSE4_PS(v0, v1, v2, v3);
      float* t = tile + c * kLanes + r;
      _mm_storeu_ps(t, v0);
      _mm_storeu_ps(t + kLanes, v1);
      _mm_storeu_ps(t + 2 * kLanes, v2);
      _mm_storeu_ps(t + 3 * kLanes, v3);
    }
  }
  for (; c < columns; ++c) {
    for (int r = 0; r < kLanes; ++r) tile[c * kLanes + r] = rows[r * columns + c];
  }
}

#endif

// The first `live` rows of the tile to `out`, rounded to T. `scratch` has room for the tile.
template <class T>
inline void store_rows(const acc_t<T>* tile, int columns, int live, T* out, acc_t<T>* scratch) {
  if constexpr (sizeof(T) == sizeof(acc_t<T>)) {
    if (live == kLanes) return rows_from_tile(tile, columns, out);
  }
  rows_from_tile(tile, columns, scratch);
  FVX_SIMD
  for (int i = 0; i < live * columns; ++i) out[i] = from_acc<T>(scratch[i]);
}

// `live` rows to the tile; the lanes behind them are 0.
template <class T>
inline void load_rows(const T* rows, int columns, int live, acc_t<T>* tile, acc_t<T>* scratch) {
  using A = acc_t<T>;
  if constexpr (sizeof(T) == sizeof(A)) {
    if (live == kLanes) return tile_from_rows(rows, columns, tile);
  }
  FVX_SIMD
  for (int i = 0; i < live * columns; ++i) scratch[i] = to_acc(rows[i]);
  for (int i = live * columns; i < kLanes * columns; ++i) scratch[i] = A(0);
  tile_from_rows(scratch, columns, tile);
}

FVX_END_ISA
