// Rows of images under a FIR filter. Whatever the factors and the direction, an output row is a weighted sum of shifted
// rows (`weighted_sum`): filtering along y shifts by whole rows, filtering along x by pixels. Upsampling computes the
// outputs of each phase as a row of their own and merges these (`merge_row`), downsampling splits its input into rows
// that hold every step-th pixel (`split_row`), so that no lane of a vector is wasted on a zero or a dropped pixel.
//
// A row is `inner` numbers a pixel: 1 for planes, the channels for channels-last images.
#pragma once

#include "fastvfx/upfirdn2d.h"
#include "pack.h"
#include "scratch.h"
#include "stream.h"

FVX_BEGIN_ISA

namespace fir {

// Packs summed side by side: as many as registers hold, so that a weight is read once for all of them.
#if defined(__AVX512F__)
constexpr int kUnroll = 8;
#else
constexpr int kUnroll = 4;
#endif

// Buffers end this many numbers behind their last: whole packs may be read and written.
constexpr int64_t kSlack = 16;

template <class A>
FVX_HD int64_t whole_packs(int64_t n) {
  return (n + pack_size<A> - 1) / pack_size<A> * pack_size<A>;
}

// `kCount` rows, or `count` if that is 0.
template <int kCount, int kPacks, class A>
FVX_HD void weighted_packs(const A* const* rows, const A* weights, int count, int64_t e, A* out) {
  constexpr int64_t lanes = pack_size<A>;
  pack_t<A> sum[kPacks];
  FVX_UNROLL_ALL
  for (int p = 0; p < kPacks; ++p) sum[p] = weights[0] * load_pack(rows[0] + e + p * lanes);
  FVX_UNROLL_ALL
  for (int k = 1; k < (kCount ? kCount : count); ++k) {
    const A* row = rows[k] + e;
    const A weight = weights[k];
    FVX_UNROLL_ALL
    for (int p = 0; p < kPacks; ++p) sum[p] += weight * load_pack(row + p * lanes);
  }
  FVX_UNROLL_ALL
  for (int p = 0; p < kPacks; ++p) store_pack(out + e + p * lanes, sum[p]);
}

template <int kCount, class A>
inline void weighted_sum_of(const A* const* rows_, const A* weights_, int count, int64_t n, A* out) {
  constexpr int64_t lanes = pack_size<A>;
  // Copies, so that the compiler sees that `out` does not overwrite them and keeps them in registers.
  const A* own_rows[kCount ? kCount : 1];
  A own_weights[kCount ? kCount : 1];
  for (int k = 0; k < kCount; ++k) own_rows[k] = rows_[k], own_weights[k] = weights_[k];
  const A* const* rows = kCount ? own_rows : rows_;
  const A* weights = kCount ? own_weights : weights_;

  int64_t e = 0;
  for (; e + kUnroll * lanes <= n; e += kUnroll * lanes) weighted_packs<kCount, kUnroll>(rows, weights, count, e, out);
  for (; e + lanes <= n; e += lanes) weighted_packs<kCount, 1>(rows, weights, count, e, out);
  if (e < n && n >= lanes) {  // the last pack again, further to the left
    weighted_packs<kCount, 1>(rows, weights, count, n - lanes, out);
    return;
  }
  for (; e < n; ++e) {
    A sum = weights[0] * rows[0][e];
    for (int k = 1; k < (kCount ? kCount : count); ++k) sum += weights[k] * rows[k][e];
    out[e] = sum;
  }
}

// out[e] = sum_k weights[k] rows[k][e] for e < n; `out` is none of the rows.
template <class A>
inline void weighted_sum(const A* const* rows, const A* weights, int count, int64_t n, A* out) {
  switch (count) {
    case 0:
      for (int64_t e = 0; e < n; ++e) out[e] = A(0);
      return;
    case 1:
      return weighted_sum_of<1>(rows, weights, count, n, out);
    case 2:
      return weighted_sum_of<2>(rows, weights, count, n, out);
    case 3:
      return weighted_sum_of<3>(rows, weights, count, n, out);
    case 4:
      return weighted_sum_of<4>(rows, weights, count, n, out);
    case 6:
      return weighted_sum_of<6>(rows, weights, count, n, out);
    default:
      return weighted_sum_of<0>(rows, weights, count, n, out);
  }
}

// sums[k] = sum_e g[e] rows[k][e] for e < n.
template <int kCount, class A>
inline void dot_products(const A* g, const A* const* rows, int64_t n, A* sums) {
  constexpr int64_t lanes = pack_size<A>;
  pack_t<A> sum[kCount] = {};
  int64_t e = 0;
  for (; e + lanes <= n; e += lanes) {
    const pack_t<A> v = load_pack(g + e);
    FVX_UNROLL_ALL
    for (int k = 0; k < kCount; ++k) sum[k] += v * load_pack(rows[k] + e);
  }
  for (int k = 0; k < kCount; ++k) {
    A parts[lanes];
    store_pack(parts, sum[k]);
    sums[k] = 0;
    for (int l = 0; l < lanes; ++l) sums[k] += parts[l];
    for (int64_t i = e; i < n; ++i) sums[k] += g[i] * rows[k][i];
  }
}

// --- rows in and out
// --------------------------------------------------------------------------------------------------

template <class T>
inline void load_row(const T* from, int64_t n, acc_t<T>* to) {
  FVX_SIMD
  for (int64_t i = 0; i < n; ++i) to[i] = to_acc(from[i]);
}

// Rounded to T; `stream` past the caches.
template <class T>
inline void store_row(const acc_t<T>* from, int64_t n, T* to, bool stream) {
  if constexpr (sizeof(T) == sizeof(acc_t<T>)) {
    if (stream) return stream_copy(from, n * int64_t(sizeof(T)), to);
    __builtin_memcpy(to, from, size_t(n) * sizeof(T));
  } else if (!stream) {
    FVX_SIMD
    for (int64_t i = 0; i < n; ++i) to[i] = from_acc<T>(from[i]);
  } else {
    constexpr int64_t kBlock = 512;
    alignas(64) T rounded[kBlock];
    for (int64_t i = 0; i < n; i += kBlock) {
      const int64_t live = n - i < kBlock ? n - i : kBlock;
      FVX_SIMD
      for (int64_t j = 0; j < live; ++j) rounded[j] = from_acc<T>(from[i + j]);
      stream_copy(rounded, live * int64_t(sizeof(T)), to + i);
    }
  }
}

template <int kWays, class A>
inline void split_lanes(const A* row, int64_t n, int64_t pitch, A* to) {
  FVX_SIMD
  for (int64_t i = 0; i < n; ++i) {
    FVX_UNROLL_ALL
    for (int w = 0; w < kWays; ++w) to[w * pitch + i] = row[i * kWays + w];
  }
}

// to[w * pitch + i * inner + c] = row[(i * ways + w) * inner + c] for i < n.
template <class A>
inline void split_row(const A* row, int ways, int64_t inner, int64_t n, int64_t pitch, A* to) {
  if (inner == 1 && ways == 2) return split_lanes<2>(row, n, pitch, to);
  if (inner == 1 && ways == 4) return split_lanes<4>(row, n, pitch, to);
  for (int64_t i = 0; i < n; ++i) {
    for (int w = 0; w < ways; ++w) {
      const A* from = row + (i * ways + w) * inner;
      A* target = to + w * pitch + i * inner;
      FVX_SIMD
      for (int64_t c = 0; c < inner; ++c) target[c] = from[c];
    }
  }
}

template <int kWays, class A>
inline void merge_lanes(const A* rows, int64_t pitch, int64_t n, A* to) {
  FVX_SIMD
  for (int64_t i = 0; i < n; ++i) {
    FVX_UNROLL_ALL
    for (int w = 0; w < kWays; ++w) to[i * kWays + w] = rows[w * pitch + i];
  }
}

// The first `n` pixels of out[i * ways + w] = rows[w * pitch + i], rounded to T. Each of the rows may be read up to the
// next whole pixel of the last.
template <class T>
inline void merge_row(const acc_t<T>* rows, int ways, int64_t inner, int64_t pitch, int64_t n, T* out, bool stream) {
  using A = acc_t<T>;
  if (ways == 1) return store_row(rows, n * inner, out, stream);
  if (inner > 1) {
    for (int64_t p = 0; p < n; ++p)
      store_row(rows + (p % ways) * pitch + p / ways * inner, inner, out + p * inner, stream);
    return;
  }
  constexpr int64_t kBlock = 512;
  if (ways > kBlock) {
    for (int64_t p = 0; p < n; ++p) out[p] = from_acc<T>(rows[(p % ways) * pitch + p / ways]);
    return;
  }
  alignas(64) A merged[kBlock];
  const int64_t rounds = kBlock / ways;
  for (int64_t i = 0; i * ways < n; i += rounds) {
    const int64_t left = n - i * ways, live = left < rounds * ways ? left : rounds * ways;
    const int64_t count = (live + ways - 1) / ways;
    if (ways == 2) {
      merge_lanes<2>(rows + i, pitch, count, merged);
    } else if (ways == 4) {
      merge_lanes<4>(rows + i, pitch, count, merged);
    } else {
      for (int64_t j = 0; j < count; ++j) {
        for (int w = 0; w < ways; ++w) merged[j * ways + w] = rows[w * pitch + i + j];
      }
    }
    store_row<T>(merged, live, out + i * ways, stream);
  }
}

// --- one axis
// ---------------------------------------------------------------------------------------------------------

// The outputs of an axis in rounds of `phases`: output round * phases + r starts at pixel first + round * step and sums
// over `count` pixels. That is up and down without their common divisor.
template <class A>
class Polyphase {
 public:
  struct Phase {
    int64_t first;
    int tap, count;
    const A* weights;  // (count), of the taps tap, tap + up, ...
  };

  const int phases, step;
  int most = 0;  // pixels that any output sums over

  // `taps` in the order of correlation.
  Polyphase(const A* taps, int n_taps, int up, int down, int64_t pad)
      : phases(up / common_divisor(up, down)), step(down / common_divisor(up, down)), weights_(n_taps), of_(phases) {
    A* next = weights_.data();
    for (int r = 0; r < phases; ++r) {
      const upfirdn2d::Span s = upfirdn2d::span_of(r, up, down, pad);
      Phase& phase = of_.data()[r];
      phase = {s.first, s.tap, upfirdn2d::count_of(s.tap, n_taps, up), next};
      for (int k = 0; k < phase.count; ++k) *next++ = taps[s.tap + k * up];
      if (phase.count > most) most = phase.count;
    }
  }

  const Phase& of(int r) const { return of_.data()[r]; }

  // How far behind the first pixel of phase 0 that of phase r is; and how many pixels a round reads.
  int64_t shift(int r) const { return of(r).first - of(0).first; }
  int64_t reach() const {
    int64_t end = 0;
    for (int r = 0; r < phases; ++r) end = shift(r) + of(r).count > end ? shift(r) + of(r).count : end;
    return end;
  }

 private:
  static int common_divisor(int a, int b) { return b ? common_divisor(b, a % b) : a; }

  Scratch<A> weights_;
  Scratch<Phase> of_;
};

}  // namespace fir

FVX_END_ISA
