// The matrix products of attention for operands of float, double and bf16.
//
// Lanes are queries throughout: scores are (keys, lanes), so that softmax runs down the columns without a horizontal
// sum, keys and values are left operands as they lie in memory, and only the queries of a tile are transposed, once.
// In bf16 a right operand lies in pairs of rows side by side (amx.h), and products run in tiles or by vdpbf16ps.
#pragma once

#include "amx.h"
#include "attention_pack.h"
#include "gemm.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

// bf16 operands need the packing of amx.h, whichever instruction then multiplies.
#if defined(FVX_AMX) && defined(FVX_BF16)
#define FVX_BF16_OPERANDS
#endif

FVX_BEGIN_ISA

namespace {

template <class E>
constexpr bool is_pairs = is_bf16<E>;

// Rows are this much longer than they are wide, at most.
template <class E>
int64_t padded(int64_t n) {
  return is_pairs<E> ? round_up(n, 32) : round_to_lanes<E>(n);
}

// out[j * out_row + i] = in[i * in_row + j]
template <class A>
void transpose(const A* in, int64_t in_row, int64_t rows, int64_t columns, A* out, int64_t out_row) {
#if defined(FVX_AMX)
  if constexpr (sizeof(A) == 4) return transpose_pairs(in, in_row, rows, columns, out, out_row);
#endif
  int64_t i = 0;
#if defined(__SSE2__)
  if constexpr (sizeof(A) == 4) {
    for (; i + 4 <= rows; i += 4) {
      int64_t j = 0;
      for (; j + 4 <= columns; j += 4) {
        const A* from = in + i * in_row + j;
        A* to = out + j * out_row + i;
        __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + in_row), c = _mm_loadu_ps(from + 2 * in_row),
               d = _mm_loadu_ps(from + 3 * in_row);
        _MM_TRANSPOSE4_PS(a, b, c, d);
        _mm_storeu_ps(to, a), _mm_storeu_ps(to + out_row, b);
        _mm_storeu_ps(to + 2 * out_row, c), _mm_storeu_ps(to + 3 * out_row, d);
      }
      for (; j < columns; ++j) {
        for (int64_t k = i; k < i + 4; ++k) out[j * out_row + k] = in[k * in_row + j];
      }
    }
  }
#endif
  for (; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) out[j * out_row + i] = in[i * in_row + j];
  }
}

// A left operand: element (row, depth) at data[row * row_step + depth * depth_step].
template <class E>
struct Left {
  const E* data;
  int64_t row, depth;
};

// The matrix products of one thread.
template <class E>
struct Products {
  using A = acc_t<E>;
  Tiles* tiles;

  // c (m, n) (+)= left (m, k) . right (k, n); n a multiple of kLaneStep, k as padded by whoever packed.
  template <bool kAdd>
  void multiply_into(int64_t m, int64_t n, int64_t k, Left<E> left, const E* right, int64_t right_row, A* c,
                     int64_t c_row) const {
    if constexpr (!is_pairs<E>) {
      const Product<E> p{m,         n,       k, left.data, left.row, left.depth, right,
                         right_row, nullptr, c, c_row,     nullptr,  0,          nullptr};
      multiply<kAdd ? Finish::add : Finish::store>(p);
    } else {
#if defined(FVX_BF16_OPERANDS)
      if (tiles->used()) {
        return multiply_tiles(*tiles, TileProduct{m, n, k, left.data, left.row, right, right_row, c, c_row, kAdd});
      }
      for (int64_t i = 0; i < m && !kAdd; ++i) __builtin_memset(c + i * c_row, 0, size_t(n) * sizeof(A));
      multiply<Finish::add>(Product<bf16, float>{m, n, k, left.data, left.row, 1, right, right_row / 2, nullptr, c,
                                                 c_row, nullptr, 0, nullptr});
#endif
    }
  }

  // Right operand of the transpose of rows (n, k): (k, n), its rows right_row apart.
  static int64_t right_row(int64_t n) { return is_pairs<E> ? 2 * n : n; }
  static int64_t right_size(int64_t k, int64_t n) { return k * n; }
  static void pack_right_transposed(const E* rows, int64_t row, int64_t n, int64_t k, E* right) {
    if constexpr (is_pairs<E>) {
#if defined(FVX_BF16_OPERANDS)
      pack_transposed(rows, row, n, k, right, right_row(n));
#endif
    } else {
      transpose(rows, row, n, k, right, n);
    }
  }

  // Right operand of rows (k, n) of operands as they are.
  static const E* right_of_rows([[maybe_unused]] const E* rows, [[maybe_unused]] int64_t row,
                                [[maybe_unused]] int64_t k, [[maybe_unused]] int64_t n, [[maybe_unused]] E* room) {
    if constexpr (is_pairs<E>) {
#if defined(FVX_BF16_OPERANDS)
      pack_rows(rows, row, k, n, room, right_row(n));
#endif
      return room;
    } else {
      return rows;
    }
  }

  // Right operand of sums (k, n), k made `padded_k` with zeros.
  static const E* right_of_sums([[maybe_unused]] A* sums, [[maybe_unused]] int64_t k, [[maybe_unused]] int64_t padded_k,
                                [[maybe_unused]] int64_t n, [[maybe_unused]] E* room) {
    if constexpr (is_pairs<E>) {
#if defined(FVX_BF16_OPERANDS)
      round_into_pairs(sums, k, padded_k, n, room);
#endif
      return room;
    } else {
      return sums;
    }
  }

  // Left operand of sums (m, k).
  static Left<E> left_of_sums([[maybe_unused]] A* sums, [[maybe_unused]] int64_t m, [[maybe_unused]] int64_t k,
                              [[maybe_unused]] E* room) {
    if constexpr (is_pairs<E>) {
      narrow<E>(sums, int(m * k), room);
      return {room, k, 1};
    } else {
      return {sums, k, 1};
    }
  }

  // Left operand of the transpose of rows (k, m), k made `padded_k` with zeros.
  static Left<E> left_transposed([[maybe_unused]] const E* rows, [[maybe_unused]] int64_t row,
                                 [[maybe_unused]] int64_t k, [[maybe_unused]] int64_t padded_k,
                                 [[maybe_unused]] int64_t m, [[maybe_unused]] E* pairs, [[maybe_unused]] E* room) {
    if constexpr (is_pairs<E>) {
#if defined(FVX_BF16_OPERANDS)
      pack_rows(rows, row, k, m, pairs, 2 * m);
      transpose_pairs(pairs, m, (k + 1) / 2, m, room, padded_k / 2);
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = (k + 1) / 2 * 2; j < padded_k; ++j) room[i * padded_k + j] = bf16{0};
      }
#endif
      return {room, padded_k, 1};
    } else {
      return {rows, 1, row};
    }
  }

 private:
#if defined(FVX_BF16_OPERANDS)
  FVX_BF16 static void round_into_pairs(const float* sums, int64_t k, int64_t padded_k, int64_t n, bf16* to) {
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                                6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int64_t i = 0; i < padded_k; i += 2) {
      for (int64_t j = 0; j < n; j += 16) {
        const __m512 low = i < k ? _mm512_loadu_ps(sums + i * n + j) : _mm512_setzero_ps();
        const __m512 high = i + 1 < k ? _mm512_loadu_ps(sums + (i + 1) * n + j) : _mm512_setzero_ps();
        const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
        _mm512_storeu_si512(to + i * n + 2 * j, _mm512_permutexvar_epi16(interleave, both));
      }
    }
  }
#endif
};

}  // namespace

FVX_END_ISA
