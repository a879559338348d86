// Register-blocked matrix product for operands that sit in L1/L2: the inner kernel of the small networks.
//
//   C[r][j] = finish(init[j] + sum_k a[r * a_row + k * a_k] * b[k * b_row + j])
// A block of rows times up to kPanel vectors of columns stays in registers for the whole sum: 6 x 4 vectors with 32
// registers, 6 x 2 with 16. Each step loads the columns once and each row's element as a broadcast, so that there
// are two to three multiply-adds to a load. On Zen 4 this runs at 90 % of the FMA peak.
#pragma once

#include <type_traits>

#include "amx.h"
#include "fastvfx/math.h"

FVX_BEGIN_ISA

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kPanel = 4;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kPanel = 2;
#else
constexpr int kVectorBytes = 16;
constexpr int kPanel = 2;
#endif

#if defined(__GNUC__)
#define FVX_UNROLL _Pragma("GCC unroll 8")
#define FVX_NOINLINE __attribute__((noinline))
template <class A>
struct Simd {
  static constexpr int kLanes = kVectorBytes / int(sizeof(A));
  typedef A V __attribute__((vector_size(kVectorBytes)));
  typedef A Unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(A)), may_alias));
  static FVX_HD V load(const A* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static FVX_HD void store(A* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }
  static FVX_HD V splat(A x) { return x - V{}; }
};
#else
#define FVX_UNROLL
#define FVX_NOINLINE
template <class A>
struct Simd {
  static constexpr int kLanes = 1;
  using V = A;
  static FVX_HD V load(const A* p) { return *p; }
  static FVX_HD void store(A* p, V v) { *p = v; }
  static FVX_HD V splat(A x) { return x; }
};
#endif

// Lanes are those of the sums, for 16-bit elements too.
template <class E>
constexpr int64_t round_to_lanes(int64_t n) {
  constexpr int64_t L = Simd<acc_t<E>>::kLanes;
  return (n + L - 1) / L * L;
}

enum class Finish { store, relu, relu_mask, add };

// Elements of the depth that one multiply-add takes; `a` and the rows of `b` hold them side by side.
template <class E>
constexpr int kTuple = sizeof(E) == 2 ? 2 : 1;

// E: what is multiplied; sums are taken in acc_t<E>. C: what the sums are stored as.
template <class E, class C = E>
struct Product {
  int64_t rows, columns, depth;  // columns: a multiple of the lanes
  const E* a;
  int64_t a_row, a_k;
  const E* b;
  int64_t b_row;         // 0: b is packed in panels, see pack_panels()
  const acc_t<E>* init;  // (columns) or null
  C* c;
  int64_t c_row;
  const E* mask;  // relu_mask: C is zero where mask <= 0
  int64_t mask_row;
  Tiles* tiles;  // bf16: of this thread, where AMX may be used, or null
};

template <int kRows, int kVectors, Finish finish, class A, std::enable_if_t<kTuple<A> == 1, int> = 0>
FVX_HD void multiply_block(const Product<A>& p, int64_t row, const A* b, int64_t b_row, int64_t column) {
  using S = Simd<A>;
  using V = typename S::V;
  constexpr int L = S::kLanes;
  const A* a = p.a + row * p.a_row;
  const int64_t a_row = p.a_row, a_k = p.a_k, depth = p.depth;
  V acc[kRows][kVectors];
  FVX_UNROLL for (int v = 0; v < kVectors; ++v) {
    const V init = p.init ? S::load(p.init + column + v * L) : V{};
    FVX_UNROLL for (int r = 0; r < kRows; ++r) acc[r][v] = init;
  }
  for (int64_t k = 0; k < depth; ++k) {
    V w[kVectors];
    FVX_UNROLL for (int v = 0; v < kVectors; ++v) w[v] = S::load(b + k * b_row + v * L);
    FVX_UNROLL for (int r = 0; r < kRows; ++r) {
      const V x = S::splat(a[r * a_row + k * a_k]);
      FVX_UNROLL for (int v = 0; v < kVectors; ++v) acc[r][v] += x * w[v];
    }
  }
  FVX_UNROLL for (int r = 0; r < kRows; ++r) {
    A* c = p.c + (row + r) * p.c_row + column;
    FVX_UNROLL for (int v = 0; v < kVectors; ++v) {
      V y = acc[r][v];
      if (finish == Finish::relu) y = V{} > y ? V{} : y;  // NaN stays
      if (finish == Finish::relu_mask) {
        y = S::load(p.mask + (row + r) * p.mask_row + column + v * L) <= V{} ? V{} : y;
      }
      if (finish == Finish::add) y += S::load(c + v * L);
      S::store(c + v * L, y);
    }
  }
}

template <int kVectors, Finish finish, class A, std::enable_if_t<kTuple<A> == 1, int> = 0>
FVX_NOINLINE void multiply_panel(const Product<A>& p, const A* b, int64_t b_row, int64_t column) {
  constexpr int kRows = kVectors >= kPanel || kVectors == 3 ? 6 : 8;
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

}  // namespace

FVX_END_ISA

#include "gemm_bf16.h"

FVX_BEGIN_ISA

namespace {

template <Finish finish, class E, class C>
void multiply(const Product<E, C>& p) {
  constexpr int64_t L = Simd<acc_t<E>>::kLanes, kStep = kTuple<E> * L;
  const int64_t vectors = p.columns / L;
  const int64_t depth = (p.depth + kTuple<E> - 1) / kTuple<E>;
  for (int64_t v = 0; v < vectors; v += kPanel) {
    const int64_t width = vectors - v < kPanel ? vectors - v : kPanel;
    const E* b = p.b + v * kStep * (p.b_row ? 1 : depth);
    const int64_t b_row = p.b_row ? p.b_row : width * L;
#if defined(FVX_AMX)
    if constexpr (kTuple<E> == 2) {
      if (multiply_panel_in_tiles<finish>(p, b, b_row, v * L, width * L)) continue;
    }
#endif
    switch (width) {
      case 1:
        multiply_panel<1, finish>(p, b, b_row, v * L);
        break;
      case 2:
        multiply_panel<2, finish>(p, b, b_row, v * L);
        break;
      case 3:
        multiply_panel<3, finish>(p, b, b_row, v * L);
        break;
      default:
        multiply_panel<kPanel, finish>(p, b, b_row, v * L);
    }
  }
}

// The (depth, columns) matrix `at(k, j)` panel by panel, zeros up to whole vectors and tuples. Returns the end of what
// it wrote: packed_size() elements.
template <class E, class At>
E* pack_panels(int64_t depth, int64_t columns, E* out, const At& at) {
  constexpr int64_t kWidth = kPanel * Simd<acc_t<E>>::kLanes;
  const int64_t padded = round_to_lanes<E>(columns);
  for (int64_t first = 0; first < padded; first += kWidth) {
    const int64_t width = padded - first < kWidth ? padded - first : kWidth;
    for (int64_t k = 0; k < depth; k += kTuple<E>) {
      for (int64_t j = first; j < first + width; ++j) {
        for (int64_t t = k; t < k + kTuple<E>; ++t) {
          *out++ = from_acc<E>(j < columns && t < depth ? at(t, j) : acc_t<E>(0));
        }
      }
    }
  }
  return out;
}

template <class E>
int64_t packed_size(int64_t depth, int64_t columns) {
  return (depth + kTuple<E> - 1) / kTuple<E> * kTuple<E> * round_to_lanes<E>(columns);
}

}  // namespace

FVX_END_ISA
