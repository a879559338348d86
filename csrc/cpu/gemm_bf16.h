// The bf16 half of gemm.h: in tiles where a product has them (amx.h), else vdpbf16ps, which adds two products a lane to
// a float at the rate of the float multiply-add. It is not part of x86-64-v4, so only these functions are compiled for
// it and has_bf16() says whether they may be called.
#pragma once

#include "gemm.h"

#if defined(__AVX512F__) && defined(__GNUC__)
#include <immintrin.h>
#define FVX_BF16 __attribute__((target("avx512bf16")))
#endif

FVX_BEGIN_ISA

namespace {

#if defined(FVX_BF16)

inline bool has_bf16() { return __builtin_cpu_supports("avx512bf16"); }

FVX_BF16 FVX_HD __m512bh bf16_lanes(__m512i bits) { return reinterpret_cast<__m512bh>(bits); }

template <int kRows, int kVectors, Finish finish, class C>
FVX_BF16 FVX_HD void multiply_block(const Product<bf16, C>& p, int64_t row, const bf16* b, int64_t b_row,
                                    int64_t column) {
  constexpr int L = 16;
  const bf16* a = p.a + row * p.a_row;
  const int64_t a_row = p.a_row, a_k = p.a_k, depth = p.depth;
  __m512 acc[kRows][kVectors];
  FVX_UNROLL for (int v = 0; v < kVectors; ++v) {
    const __m512 init = p.init ? _mm512_loadu_ps(p.init + column + v * L) : _mm512_setzero_ps();
    FVX_UNROLL for (int r = 0; r < kRows; ++r) acc[r][v] = init;
  }
  for (int64_t k = 0; k < depth; k += 2) {
    __m512bh w[kVectors];
    FVX_UNROLL for (int v = 0; v < kVectors; ++v) w[v] = bf16_lanes(_mm512_loadu_si512(b + k * b_row + v * 2 * L));
    FVX_UNROLL for (int r = 0; r < kRows; ++r) {
      int pair;
      __builtin_memcpy(&pair, a + r * a_row + k * a_k, sizeof pair);
      const __m512bh x = bf16_lanes(_mm512_set1_epi32(pair));
      FVX_UNROLL for (int v = 0; v < kVectors; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], w[v], x);
    }
  }
  FVX_UNROLL for (int r = 0; r < kRows; ++r) {
    C* c = p.c + (row + r) * p.c_row + column;
    FVX_UNROLL for (int v = 0; v < kVectors; ++v) {
      __m512 y = acc[r][v];
      if constexpr (finish == Finish::add) {
        _mm512_storeu_ps(c + v * L, _mm512_add_ps(y, _mm512_loadu_ps(c + v * L)));
      } else {
        if (finish == Finish::relu) y = __m512{} > y ? __m512{} : y;  // NaN stays
        if (finish == Finish::relu_mask) {
          // As integers bf16 compare with zero like the numbers that they stand for.
          const bf16* mask = p.mask + (row + r) * p.mask_row + column + v * L;
          const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask));
          y = _mm512_maskz_mov_ps(_mm256_cmpgt_epi16_mask(h, _mm256_setzero_si256()), y);
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + v * L), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(y)));
      }
    }
  }
}

template <int kVectors, Finish finish, class C>
FVX_BF16 FVX_NOINLINE void multiply_panel(const Product<bf16, C>& p, const bf16* b, int64_t b_row, int64_t column) {
  constexpr int kRows = kVectors >= 3 ? 6 : 8;
  int64_t row = 0;
  for (; row + kRows <= p.rows; row += kRows) multiply_block<kRows, kVectors, finish>(p, row, b, b_row, column);
  if (row + 4 <= p.rows) {
    multiply_block<4, kVectors, finish>(p, row, b, b_row, column);
    row += 4;
  }
  if (row + 2 <= p.rows) {
    multiply_block<2, kVectors, finish>(p, row, b, b_row, column);
    row += 2;
  }
  if (row < p.rows) multiply_block<1, kVectors, finish>(p, row, b, b_row, column);
}

#if defined(FVX_AMX)

// Sums of a block as they come from the tiles, `sums` with rows of kBlockSide, to where they belong in C.
template <Finish finish>
FVX_BF16 FVX_NOINLINE void finish_block(const Product<bf16>& p, const float* sums, int64_t row, int64_t column,
                                        int64_t rows, int64_t columns) {
  for (int64_t j = 0; j < columns; j += 16) {
    const __m512 init = p.init ? _mm512_loadu_ps(p.init + column + j) : _mm512_setzero_ps();
    for (int64_t r = 0; r < rows; ++r) {
      __m512 y = _mm512_add_ps(init, _mm512_load_ps(sums + r * kBlockSide + j));
      if (finish == Finish::relu) y = __m512{} > y ? __m512{} : y;  // NaN stays
      if (finish == Finish::relu_mask) {
        const bf16* mask = p.mask + (row + r) * p.mask_row + column + j;
        const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask));
        y = _mm512_maskz_mov_ps(_mm256_cmpgt_epi16_mask(h, _mm256_setzero_si256()), y);
      }
      bf16* const c = p.c + (row + r) * p.c_row + column + j;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(c), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(y)));
    }
  }
}

// False if this product is none for tiles.
template <Finish finish, class C>
bool multiply_panel_in_tiles(const Product<bf16, C>& p, const bf16* b, int64_t b_row, int64_t column, int64_t columns) {
  const int64_t depth = (p.depth + 1) / 2 * 2;
  if (!p.tiles || p.a_k != 1 || !tile_pairs(depth)) return false;
  TileProduct t{p.rows, columns, depth, p.a, p.a_row, b, 2 * b_row, nullptr, kBlockSide, false};
  if constexpr (finish == Finish::add) {
    t.c = p.c + column, t.c_row = p.c_row, t.accumulate = true;
    multiply_tiles(*p.tiles, t);
  } else {
    alignas(64) float sums[kBlockSide * kBlockSide];
    multiply_tiles(
        *p.tiles, t, [&](int64_t, int64_t) { return sums; },
        [&](int64_t row, int64_t j, int64_t rows, int64_t n) {
          finish_block<finish>(p, sums, row, column + j, rows, n);
        });
  }
  return true;
}

#endif
#endif

}  // namespace

FVX_END_ISA
