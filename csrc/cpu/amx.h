// Matrix products in the tile registers of AMX: bf16 in, float sums, sixteen times the rate of vdpbf16ps' one row.
//
//   C (m, n) float (+)= A (m, k) bf16 . B (k, n) bf16
// A lies row by row; B in pairs of rows side by side, element (k, j) at b[k / 2 * b_row + 2 * j + k % 2], as the pack_
// functions at the end write it, which need no more than AVX-512. Only where active_amx() holds (kernels.h) may
// products be made, or Tiles be used.
//
//   Tiles tiles(active_amx());                              // once per thread and piece of work, not per product
//   multiply_tiles(tiles, TileProduct{...});                // C in memory
//   multiply_tiles(tiles, product, room, [&](...) {...});   // blocks of up to 32 x 32 handed over in L1
#pragma once

#include "fastvfx/dtype.h"
#include "fastvfx/kernels.h"
#include "fastvfx/math.h"

// gcc 11 and clang 12 come with assemblers that know the instructions; the compiler itself need not.
#if defined(__AVX512BW__) && defined(__x86_64__) && \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 11))
#define FVX_AMX
#endif
#if defined(__AVX512BW__) && defined(__GNUC__)
#include <immintrin.h>
#endif

FVX_BEGIN_ISA

namespace {

// The tile registers of this thread. Their shapes are part of its state, which other libraries (oneDNN) set and may
// expect to find again: the destructor restores what the constructor found.
class Tiles {
#if defined(FVX_AMX)
 public:
  explicit Tiles(bool use) : used_(use) {
    if (used_) __asm__ volatile("sttilecfg %0" : "=m"(before_));
  }
  ~Tiles() {
    if (used_) load(before_);
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  bool used() const { return used_; }

  // C: rows x 16 floats (registers 0 to 3). A: rows x pairs (4, 5), B: pairs x 16 pairs (6, 7). Setting a shape clears
  // all registers and costs as much as a dozen products, so it is done only where the shape changes.
  void shape(int rows, int pairs) {
    if (rows == rows_ && pairs == pairs_) return;
    rows_ = rows, pairs_ = pairs;
    Config c{};
    c.palette = 1;
    for (int t = 0; t < 8; ++t) {
      c.bytes[t] = uint16_t(t == 4 || t == 5 ? 4 * pairs : 64);
      c.rows[t] = uint8_t(t < 6 ? rows : pairs);
    }
    load(c);
  }

 private:
  struct alignas(64) Config {
    uint8_t palette, start_row, zero[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  };
  static void load(const Config& c) { __asm__ volatile("ldtilecfg %0" ::"m"(c)); }

  const bool used_;
  Config before_;
  int rows_ = 0, pairs_ = 0;
#else
 public:
  explicit Tiles(bool) {}
  bool used() const { return false; }
#endif
};

#if defined(FVX_AMX)

constexpr int64_t kTileSide = 16;  // rows and columns of a tile of C
constexpr int64_t kBlockSide = 2 * kTileSide;

struct TileProduct {
  int64_t m, n, k;  // n: a multiple of 16; k: even, and tile_pairs(k) not 0
  const bf16* a;
  int64_t a_row;  // elements from one row to the next
  const bf16* b;
  int64_t b_row;  // elements from one pair of rows to the next
  float* c;
  int64_t c_row;
  bool accumulate;
};

// Pairs of k that one instruction takes, such that k is a whole number of steps; 0 if that needs too many steps.
inline int tile_pairs(int64_t k) {
  const int64_t pairs = k / 2;
  for (int64_t steps = (pairs + 15) / 16; steps * 8 <= pairs || steps == 1; ++steps) {
    if (pairs % steps == 0) return int(pairs / steps);
  }
  return 0;
}

// The register is part of the instruction, hence macros. All are barriers to the compiler: it sees no operand of them.
#define FVX_TILE_LOAD(t, from, stride) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t::"r"(from), "r"(int64_t(stride)) : "memory")
#define FVX_TILE_STORE(t, to, stride) \
  __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"(int64_t(stride)) : "memory")
#define FVX_TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t::: "memory")
#define FVX_TILE_ADD(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c::: "memory")

// One block of kRows x kColumns tiles, which stay in registers for the whole sum: two loads to two products, and a
// load takes half the time of a product.
template <int kRows, int kColumns>
void multiply_tile_block(const bf16* a, int64_t a_row, const bf16* b, int64_t b_row, int steps, int pairs, float* c,
                         int64_t c_row, bool accumulate) {
  const int64_t a_stride = 2 * a_row, b_stride = 2 * b_row, c_stride = 4 * c_row;
  const bf16* const a_low = a + kTileSide * a_row;
  float* const c_low = c + kTileSide * c_row;
  if (accumulate) {
    FVX_TILE_LOAD(0, c, c_stride);
    if constexpr (kColumns > 1) FVX_TILE_LOAD(1, c + kTileSide, c_stride);
    if constexpr (kRows > 1) FVX_TILE_LOAD(2, c_low, c_stride);
    if constexpr (kRows > 1 && kColumns > 1) FVX_TILE_LOAD(3, c_low + kTileSide, c_stride);
  } else {
    FVX_TILE_ZERO(0);
    if constexpr (kColumns > 1) FVX_TILE_ZERO(1);
    if constexpr (kRows > 1) FVX_TILE_ZERO(2);
    if constexpr (kRows > 1 && kColumns > 1) FVX_TILE_ZERO(3);
  }
  for (int s = 0; s < steps; ++s) {
    const int64_t k = 2 * int64_t(s) * pairs;
    const bf16* const rows = b + int64_t(s) * pairs * b_row;
    FVX_TILE_LOAD(6, rows, b_stride);
    FVX_TILE_LOAD(4, a + k, a_stride);
    FVX_TILE_ADD(0, 4, 6);
    if constexpr (kColumns > 1) {
      FVX_TILE_LOAD(7, rows + 2 * kTileSide, b_stride);
      FVX_TILE_ADD(1, 4, 7);
    }
    if constexpr (kRows > 1) {
      FVX_TILE_LOAD(5, a_low + k, a_stride);
      FVX_TILE_ADD(2, 5, 6);
      if constexpr (kColumns > 1) FVX_TILE_ADD(3, 5, 7);
    }
  }
  FVX_TILE_STORE(0, c, c_stride);
  if constexpr (kColumns > 1) FVX_TILE_STORE(1, c + kTileSide, c_stride);
  if constexpr (kRows > 1) FVX_TILE_STORE(2, c_low, c_stride);
  if constexpr (kRows > 1 && kColumns > 1) FVX_TILE_STORE(3, c_low + kTileSide, c_stride);
}

#undef FVX_TILE_LOAD
#undef FVX_TILE_STORE
#undef FVX_TILE_ZERO
#undef FVX_TILE_ADD

// Block by block: the sums of rows [row, row + rows) and columns [column, column + columns), at most 32 of each, go to
// place(row, column), p.c_row apart, and done(row, column, rows, columns) follows.
template <class Place, class Done>
void multiply_tiles(Tiles& tiles, const TileProduct& p, const Place& place, const Done& done) {
  const int pairs = tile_pairs(p.k);
  const int steps = int(p.k / 2 / pairs);
  for (int64_t row = 0; row < p.m;) {
    const int64_t left = p.m - row;
    const int64_t rows = left >= kBlockSide ? kBlockSide : left >= kTileSide ? kTileSide : left;
    tiles.shape(int(rows < kTileSide ? rows : kTileSide), pairs);
    const bf16* const a = p.a + row * p.a_row;
    for (int64_t column = 0; column < p.n; column += kBlockSide) {
      const int64_t columns = p.n - column < kBlockSide ? kTileSide : kBlockSide;
      const bf16* const b = p.b + 2 * column;
      float* const c = place(row, column);
      if (rows > kTileSide && columns > kTileSide) {
        multiply_tile_block<2, 2>(a, p.a_row, b, p.b_row, steps, pairs, c, p.c_row, p.accumulate);
      } else if (rows > kTileSide) {
        multiply_tile_block<2, 1>(a, p.a_row, b, p.b_row, steps, pairs, c, p.c_row, p.accumulate);
      } else if (columns > kTileSide) {
        multiply_tile_block<1, 2>(a, p.a_row, b, p.b_row, steps, pairs, c, p.c_row, p.accumulate);
      } else {
        multiply_tile_block<1, 1>(a, p.a_row, b, p.b_row, steps, pairs, c, p.c_row, p.accumulate);
      }
      done(row, column, rows, columns);
    }
    row += rows;
  }
}

inline void multiply_tiles(Tiles& tiles, const TileProduct& p) {
  multiply_tiles(
      tiles, p, [&](int64_t row, int64_t column) { return p.c + row * p.c_row + column; },
      [](int64_t, int64_t, int64_t, int64_t) {});
}

// out[j * out_row + i] = in[i * in_row + j] for a block of up to 16 x 16 elements of 32 bits.
inline void transpose_block(const uint32_t* in, int64_t in_row, int rows, int columns, uint32_t* out, int64_t out_row) {
  const __mmask16 read = __mmask16((1u << columns) - 1), written = __mmask16((1u << rows) - 1);
  __m512i x[16], y[16];
  FVX_UNROLL_ALL
  for (int i = 0; i < 16; ++i) {
    x[i] = i < rows ? _mm512_maskz_loadu_epi32(read, in + i * in_row) : _mm512_setzero_si512();
  }
  FVX_UNROLL_ALL
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  FVX_UNROLL_ALL
  for (int i = 0; i < 16; i += 4) {  // x[i + q]: column q of each 128 bits, rows i to i + 3
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
  FVX_UNROLL_ALL
  for (int q = 0; q < 4; ++q) {
    const __m512i even_low = _mm512_shuffle_i32x4(x[q], x[q + 4], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(x[q], x[q + 4], 0xdd);
    const __m512i even_high = _mm512_shuffle_i32x4(x[q + 8], x[q + 12], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(x[q + 8], x[q + 12], 0xdd);
    y[q] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    y[q + 8] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    y[q + 4] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    y[q + 12] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
  FVX_UNROLL_ALL
  for (int j = 0; j < 16; ++j) {
    if (j < columns) _mm512_mask_storeu_epi32(out + j * out_row, written, y[j]);
  }
}

// (rows, columns) elements of 32 bits, or pairs of bf16, to (columns, rows).
inline void transpose_pairs(const void* in, int64_t in_row, int64_t rows, int64_t columns, void* out, int64_t out_row) {
  const uint32_t* from = static_cast<const uint32_t*>(in);
  uint32_t* to = static_cast<uint32_t*>(out);
  for (int64_t i = 0; i < rows; i += 16) {
    for (int64_t j = 0; j < columns; j += 16) {
      transpose_block(from + i * in_row + j, in_row, int(rows - i < 16 ? rows - i : 16),
                      int(columns - j < 16 ? columns - j : 16), to + j * out_row + i, out_row);
    }
  }
}

// B from its transpose, (n, k) row by row with k even (the keys of attention): rows of B in pairs, b_row elements
// apart.
inline void pack_transposed(const bf16* in, int64_t in_row, int64_t n, int64_t k, bf16* b, int64_t b_row) {
  const int64_t pairs = k / 2;
  for (int64_t j = 0; j < n; j += 16) {
    for (int64_t i = 0; i < pairs; i += 16) {
      // Rows of pairs need not start at a multiple of four bytes: the loads are unaligned ones.
      const char* from = reinterpret_cast<const char*>(in + j * in_row + 2 * i);
      alignas(64) uint32_t block[16 * 16];
      const int rows = int(n - j < 16 ? n - j : 16), columns = int(pairs - i < 16 ? pairs - i : 16);
      for (int r = 0; r < rows; ++r) {
        _mm512_store_si512(block + 16 * r,
                           _mm512_maskz_loadu_epi32(__mmask16((1u << columns) - 1), from + 2 * int64_t(r) * in_row));
      }
      transpose_block(block, 16, rows, columns, reinterpret_cast<uint32_t*>(b + i * b_row + 2 * j), b_row / 2);
    }
  }
}

#endif  // FVX_AMX

#if defined(__AVX512BW__) && defined(__GNUC__)

// B from rows as they are, (k, n): rows 2i and 2i + 1 side by side; a missing last row is zero.
inline void pack_rows(const bf16* in, int64_t in_row, int64_t k, int64_t n, bf16* b, int64_t b_row) {
  for (int64_t i = 0; i < k; i += 2) {
    const bf16* const first = in + i * in_row;
    const bf16* const second = first + in_row;
    bf16* const to = b + i / 2 * b_row;
    for (int64_t j = 0; j < n; j += 16) {
      const __mmask16 some = __mmask16(n - j < 16 ? (1u << (n - j)) - 1 : 0xffffu);
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, first + j));
      const __m512i high =
          i + 1 < k ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, second + j)) : _mm512_setzero_si512();
      _mm512_mask_storeu_epi32(to + 2 * j, some, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

#endif

}  // namespace

FVX_END_ISA
