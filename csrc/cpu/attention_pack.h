// Rows of q, k and v on their way from tensors to operands: gathered, converted, turned by rotary embedding, and freed
// of what is not finite.
//
// A product over many pairs of query and key multiplies those that are not allowed as well, by zero: a NaN among them
// would spread. So rows are copied with zeros in place of NaN and infinity, and whoever attends such a row is told of
// it separately.
#pragma once

#include "attention_tile.h"
#include "convert.h"
#include "gemm.h"

FVX_BEGIN_ISA

namespace {

FVX_HD int not_finite(float x) { return (float_to_bits(x) & 0x7f800000u) == 0x7f800000u; }
FVX_HD int not_finite(double x) { return !(x - x == 0); }
FVX_HD int not_finite(bf16 x) { return (x.bits & 0x7f80u) == 0x7f80u; }

template <class E>
bool all_finite(const E* x, int64_t n) {
  int bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t i = 0; i < n; ++i) bad |= not_finite(x[i]);
  return !bad;
}

#if defined(__AVX512BW__) && defined(__GNUC__)
// Zero times what is not finite is NaN.
inline bool any_nan(__m512 x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
inline bool any_nan(__m512d x) { return _mm512_cmp_pd_mask(x, x, _CMP_UNORD_Q); }
#elif defined(__GNUC__)
template <class V>
bool any_nan(V x) {
  bool any = false;
  for (size_t l = 0; l < sizeof(V) / sizeof(x[0]); ++l) any |= x[l] != x[l];
  return any;
}
#else
template <class V>
bool any_nan(V x) {
  return x != x;
}
#endif

#if defined(__AVX512BW__) && defined(__GNUC__)
inline float sum_lanes(__m512 x) { return _mm512_reduce_add_ps(x); }
inline double sum_lanes(__m512d x) { return _mm512_reduce_add_pd(x); }
#elif defined(__GNUC__)
template <class V>
auto sum_lanes(V x) {
  auto sum = x[0];
  for (size_t l = 1; l < sizeof(V) / sizeof(x[0]); ++l) sum += x[l];
  return sum;
}
#else
template <class V>
V sum_lanes(V x) {
  return x;
}
#endif

template <class T>
acc_t<T> dot(const T* a, const T* b, int64_t n) {
  using A = acc_t<T>;
  using S = Simd<A>;
  int64_t c = 0;
  typename S::V sums{};
  for (; c + S::kLanes <= n; c += S::kLanes) {
    A wide[2][S::kLanes];
    if constexpr (std::is_same_v<T, A>) {
      sums += S::load(a + c) * S::load(b + c);
    } else {
      widen(a + c, S::kLanes, wide[0]), widen(b + c, S::kLanes, wide[1]);
      sums += S::load(wide[0]) * S::load(wide[1]);
    }
  }
  A sum = sum_lanes(sums);
  for (; c < n; ++c) sum += to_acc(a[c]) * to_acc(b[c]);
  return sum;
}

// Copies n numbers; false if some are not finite.
template <class E>
bool copy_finite(const E* from, int64_t n, E* to) {
  using S = Simd<E>;
  int64_t c = 0;
  typename S::V zeros{};
  for (; c + S::kLanes <= n; c += S::kLanes) {
    const typename S::V x = S::load(from + c);
    zeros += x * typename S::V{};
    S::store(to + c, x);
  }
  bool finite = !any_nan(zeros);
  for (; c < n; ++c) to[c] = from[c], finite &= !not_finite(from[c]);
  return finite;
}
inline bool copy_finite(const bf16* from, int64_t n, bf16* to) {
  int64_t c = 0;
  bool finite = true;
#if defined(__AVX512BW__) && defined(__GNUC__)
  const __m512i top = _mm512_set1_epi16(0x7f80);
  __mmask32 bad = 0;
  for (; c + 32 <= n; c += 32) {
    const __m512i x = _mm512_loadu_si512(from + c);
    bad |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(x, top), top);
    _mm512_storeu_si512(to + c, x);
  }
  finite = !bad;
#endif
  for (; c < n; ++c) to[c] = from[c], finite &= !not_finite(from[c]);
  return finite;
}

// Turns pairs of channels by angles given as cosine and sine; kBack: by the negative angles.
template <bool kBack, class A>
void turn(A* x, int64_t dim, const A* table, bool halves) {
  const int64_t n = dim / 2;
  if (halves) {
    A* y = x + n;
    FVX_SIMD
    for (int64_t i = 0; i < n; ++i) {
      const A c = table[2 * i], s = kBack ? -table[2 * i + 1] : table[2 * i + 1], a = x[i], b = y[i];
      x[i] = a * c - b * s, y[i] = a * s + b * c;
    }
  } else {
    FVX_SIMD
    for (int64_t i = 0; i < n; ++i) {
      const A c = table[2 * i], s = kBack ? -table[2 * i + 1] : table[2 * i + 1], a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * c - b * s, x[2 * i + 1] = a * s + b * c;
    }
  }
}

// n channels of one token as operands of type E, zeros up to `width`. False if some were not finite: there `to` is 0.
template <class E, class T>
bool pack_row(const T* from, int64_t n, int64_t width, E* to, const acc_t<T>* table, bool halves, acc_t<T>* room) {
  using A = acc_t<T>;
  bool finite;
  if (table) {
    widen(from, int(n), room);
    turn<false>(room, n, table, halves);
    narrow<E>(room, int(n), to);
    finite = all_finite(to, n);
  } else if constexpr (sizeof(T) == sizeof(E)) {
    finite = copy_finite(from, n, to);
  } else {
    widen(from, int(n), to);
    finite = all_finite(to, n);
  }
  for (int64_t i = n; i < width; ++i) to[i] = from_acc<E>(A(0));
  if (finite) return true;
  for (int64_t i = 0; i < n; ++i) {
    if (not_finite(to[i])) to[i] = from_acc<E>(A(0));
  }
  return false;
}

template <class T>
const T* row_of(const AttentionTensor& x, int64_t batch, int64_t token, int64_t head) {
  return static_cast<const T*>(x.data) + batch * x.batch + token * x.token + head * x.head;
}

// A block's keys or values, `width` apart. bad[i] tells which rows were not finite; returns how many.
template <class E, class T>
int pack_keys(const KeyBlock& block, const AttentionTensor& x, int64_t batch, int64_t head, int64_t n, int64_t width,
              const acc_t<T>* tables, bool halves, E* to, acc_t<T>* room, bool* bad) {
  const T* base = row_of<T>(x, batch, 0, head);
  int n_bad = 0;
  for (int i = 0; i < block.n; ++i) {
    const int64_t token = block.token[i];
    const acc_t<T>* table = tables ? tables + token * n : nullptr;
    bad[i] = !pack_row(base + token * x.token, n, width, to + i * width, table, halves, room);
    n_bad += bad[i];
  }
  return n_bad;
}

}  // namespace

FVX_END_ISA
