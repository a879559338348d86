// Weighted sums of vectors that lie at a list of offsets: the inner loop of every FIR filter. Rows below each other
// make a vertical filter, overlapping pieces of one row a horizontal one, both at once a two-dimensional one.
//
// Two sums at a time share what they load: a window and the next one `shift` offsets further on, which are the phases
// of upsampling (shift 0) or neighbouring outputs of downsampling. With four vectors of columns that is eight
// independent chains of multiply-adds, what two units of latency four take, and six loads for eight of them.
#pragma once

#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "pack.h"

#if defined(__GNUC__)
#define FVX_UNROLL_8 _Pragma("GCC unroll 8")
#else
#define FVX_UNROLL_8
#endif

FVX_BEGIN_ISA

template <class A>
struct Taps {
  const A* at;
  int n;
};

// Columns are cut into units, which are the same for every instruction set, and units into blocks of vectors.
constexpr int kUnit = 16;
template <class A>
constexpr int kUnitVectors = kUnit / pack_size<A>;
template <class A>
constexpr int kBlockVectors = kUnitVectors<A> > 4 ? kUnitVectors<A> : 4;

template <class A>
FVX_HD pack_t<A> all_lanes(A x) {
  return x - pack_t<A>{};
}

// A vector that is used twice is loaded once: left to itself, gcc makes it a memory operand of both uses.
#if defined(__GNUC__) && defined(__AVX512F__)
#define FVX_LOADED(x) asm("" : "+v"(x))
#elif defined(__GNUC__) && defined(__SSE2__)
#define FVX_LOADED(x) asm("" : "+x"(x))
#else
#define FVX_LOADED(x)
#endif

template <bool first, bool second, int kV, class A>
FVX_HD void add_terms(const A* from, const int32_t* offsets, int begin, int end, const A* taps0, const A* taps1,
                      pack_t<A> (&sums)[2][kV]) {
  for (int k = begin; k < end; ++k) {
    const A* x = from + offsets[k];
    pack_t<A> w0{}, w1{};
    if (first) w0 = all_lanes(taps0[k]);
    if (second) w1 = all_lanes(taps1[k]);
    FVX_UNROLL_8
    for (int v = 0; v < kV; ++v) {
      pack_t<A> value = load_pack(x + v * pack_size<A>);
      if (first && second) FVX_LOADED(value);
      if (first) sums[0][v] += w0 * value;
      if (second) sums[1][v] += w1 * value;
    }
  }
}

// sums[0] of the window's first terms, and with `two` sums[1] of those from `shift` on.
template <bool two, int kV, class A>
FVX_HD void tap_sums(const A* from, const int32_t* offsets, Taps<A> t0, Taps<A> t1, int shift,
                     pack_t<A> (&sums)[2][kV]) {
  FVX_UNROLL_8
  for (int v = 0; v < kV; ++v) sums[0][v] = sums[1][v] = pack_t<A>{};
  if (!two) return add_terms<true, false>(from, offsets, 0, t0.n, t0.at, t0.at, sums);
  const A* taps1 = t1.at - shift;
  const int end1 = shift + t1.n;
  add_terms<true, false>(from, offsets, 0, shift < t0.n ? shift : t0.n, t0.at, taps1, sums);
  add_terms<true, true>(from, offsets, shift, t0.n < end1 ? t0.n : end1, t0.at, taps1, sums);
  if (end1 < t0.n) return add_terms<true, false>(from, offsets, end1, t0.n, t0.at, taps1, sums);
  add_terms<false, true>(from, offsets, shift > t0.n ? shift : t0.n, end1, t0.at, taps1, sums);
}

// The terms of a window of one row that is kept in `phases` pieces, `groups` apart: number i is element i / phases of
// piece i % phases.
struct RowWindow {
  int phases;
  int64_t groups;
  const int32_t* offsets;  // of the terms, the same again
};

#if defined(__AVX512F__)

// Lanes of x from number kBy on and, behind them, of `next`.
template <int kBy>
FVX_HD pack_t<float> shifted(pack_t<float> x, pack_t<float> next) {
  return _mm512_castsi512_ps(_mm512_maskz_alignr_epi32(0xffff, _mm512_castps_si512(next), _mm512_castps_si512(x), kBy));
}
template <int kBy>
FVX_HD pack_t<double> shifted(pack_t<double> x, pack_t<double> next) {
  return _mm512_castsi512_pd(_mm512_maskz_alignr_epi64(0xff, _mm512_castpd_si512(next), _mm512_castpd_si512(x), kBy));
}

// Terms of a row that lie side by side, `k` the number of the next one.
template <bool two, int kV, class A>
struct RowTerms {
  Taps<A> t0, t1;
  int shift, step, end;
  pack_t<A> x[kV + 1];

  // Those at lanes kBy and further on, as far as `x` goes.
  template <int kBy>
  FVX_HD int add(int by, int k, pack_t<A> (&sums)[2][kV]) const {
    if (by <= kBy) {
      const bool in0 = !two || k < t0.n, in1 = two && k >= shift && k - shift < t1.n;
      pack_t<A> y[kV];
      FVX_UNROLL_8
      for (int v = 0; v < kV; ++v) {
        y[v] = shifted<kBy>(x[v], x[v + 1]);
        if (two) FVX_LOADED(y[v]);
      }
      if (in0) {
        const pack_t<A> tap = all_lanes(t0.at[k]);
        FVX_UNROLL_8
        for (int v = 0; v < kV; ++v) sums[0][v] += tap * y[v];
      }
      if (in1) {
        const pack_t<A> tap = all_lanes(t1.at[k - shift]);
        FVX_UNROLL_8
        for (int v = 0; v < kV; ++v) sums[1][v] += tap * y[v];
      }
      k += step;
      if (k >= end) return k;
    }
    if constexpr (kBy + 1 < pack_size<A>) {
      return add<kBy + 1>(by, k, sums);
    } else {
      return k;
    }
  }
};

// tap_sums() for terms `first` and on of a row: `row` and the pieces begin at a cache line. Vectors overlap there; to
// load each across two lines costs two cycles or more, to shift what two whole loads brought costs one.
template <bool two, int kV, class A>
FVX_HD void row_sums(const A* row, const RowWindow& w, int first, Taps<A> t0, Taps<A> t1, int shift,
                     pack_t<A> (&sums)[2][kV]) {
  FVX_UNROLL_8
  for (int v = 0; v < kV; ++v) sums[0][v] = sums[1][v] = pack_t<A>{};
  constexpr int L = pack_size<A>;
  RowTerms<two, kV, A> terms{t0, t1, shift, w.phases, two && shift + t1.n > t0.n ? shift + t1.n : t0.n, {}};
  for (int start = 0; start < w.phases; ++start) {
    for (int k = start; k < terms.end;) {
      const int32_t at = w.offsets[first + k];
      FVX_UNROLL_8
      for (int v = 0; v <= kV; ++v) terms.x[v] = load_pack(row + at / L * L + v * L);
      k = terms.template add<0>(at % L, k, sums);
    }
  }
}

#else

template <bool two, int kV, class A>
FVX_HD void row_sums(const A* row, const RowWindow& w, int first, Taps<A> t0, Taps<A> t1, int shift,
                     pack_t<A> (&sums)[2][kV]) {
  tap_sums<two>(row, w.offsets + first, t0, t1, shift, sums);
}

#endif

// body(number of vectors as a constant, first column) over n columns, a multiple of kUnit.
template <class A, class Body>
FVX_HD void for_blocks(int64_t n, const Body& body) {
  constexpr int kV = kBlockVectors<A>, kU = kUnitVectors<A>;
  constexpr int64_t kStep = kV * pack_size<A>;
  int64_t at = 0;
  for (; at + kStep <= n; at += kStep) body(std::integral_constant<int, kV>(), at);
  const int rest = int((n - at) / pack_size<A>);
  if constexpr (kU < kV) {
    if (rest == kU) body(std::integral_constant<int, kU>(), at);
  }
  if constexpr (2 * kU < kV) {
    if (rest == 2 * kU) body(std::integral_constant<int, 2 * kU>(), at);
  }
  if constexpr (3 * kU < kV) {
    if (rest == 3 * kU) body(std::integral_constant<int, 3 * kU>(), at);
  }
}

FVX_END_ISA
