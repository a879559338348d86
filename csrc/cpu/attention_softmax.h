// The softmax of a block of scores, (keys, lanes): greatest score and sum of weights of each lane, kept in registers
// while the keys go by. Exponents are of 2, and whatever scores are to be multiplied by goes into one multiply-add.
#pragma once

#include <cmath>

#include "attention_products.h"

FVX_BEGIN_ISA

namespace {

template <class A>
constexpr A kNone = A(-__builtin_inf());

template <class A>
constexpr A kLog2e = A(1.4426950408889634074);

template <class A>
constexpr A kLn2 = A(0.69314718055994530942);

template <class A>
using Lanes = typename Simd<A>::V;

template <class V>
FVX_HD V max_lanes(V a, V b) {
  return a < b ? b : a;  // a where b is NaN
}

// 2^x of a score less the greatest of its row, or less its log-sum-exp: x is at most about 0. NaN passes through; what
// is below 2^-126 is 0. On [0, 1) the polynomial, a minimax one of degree 5, is within 7.5e-8.
#if defined(__AVX512DQ__) && defined(__GNUC__)
FVX_HD __m512 exp2_of_score(__m512 x) {
  const __m512 r = _mm512_reduce_ps(x, 0x09);  // x - floor(x); 0 of an infinity
  __m512 p = _mm512_set1_ps(1.87757669e-3f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.98934063e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.58263175e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.40153611e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.93153083e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.9999994e-1f));
  return _mm512_scalef_ps(p, x);  // p 2^floor(x)
}
#elif defined(__GNUC__)
FVX_HD Lanes<float> exp2_of_score(Lanes<float> x) {
  typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
  const Lanes<float> lo = Lanes<float>{} - 126.0f;
  const Lanes<float> c = x < lo ? lo : x;
  const Lanes<float> shifted = (c - 0.5f) + 12582912.0f;  // 1.5 * 2^23: the integer stands in the low bits
  const Lanes<float> r = c - (shifted - 12582912.0f);     // of [0, 1]
  Lanes<float> p = Lanes<float>{} + 1.87757669e-3f;
  p = p * r + 8.98934063e-3f;
  p = p * r + 5.58263175e-2f;
  p = p * r + 2.40153611e-1f;
  p = p * r + 6.93153083e-1f;
  p = p * r + 9.9999994e-1f;
  const Integers power = (reinterpret_cast<Integers>(shifted) << 23) + 0x3f800000;
  return x < lo ? Lanes<float>{} : p * reinterpret_cast<Lanes<float> >(power);
}
#else
FVX_HD float exp2_of_score(float x) { return std::exp2(x); }
#endif
#if defined(__GNUC__)
FVX_HD Lanes<double> exp2_of_score(Lanes<double> x) {
  for (int l = 0; l < Simd<double>::kLanes; ++l) x[l] = std::exp2(x[l]);
  return x;
}
#else
FVX_HD double exp2_of_score(double x) { return std::exp2(x); }
#endif

// done(number of vectors as a constant, lane) for up to four vectors of lanes at a time.
template <class A, class Done>
FVX_HD void each_lanes(int lanes, const Done& done) {
  constexpr int L = Simd<A>::kLanes;
  int l = 0;
  for (; l + 4 * L <= lanes; l += 4 * L) done(std::integral_constant<int, 4>(), l);
  for (; l < lanes; l += L) done(std::integral_constant<int, 1>(), l);
}

// top = max(top, unit * the greatest score) of each lane; unit is positive, or NaN.
template <class A>
void raise_top(const A* scores, int n, int lanes, const A* unit, A* top) {
  using S = Simd<A>;
  each_lanes<A>(lanes, [&](auto vectors, int first) {
    constexpr int N = decltype(vectors)::value, L = S::kLanes;
    Lanes<A> most[N];
    FVX_UNROLL for (int v = 0; v < N; ++v) most[v] = S::splat(kNone<A>);
    const A* row = scores + first;
    for (int i = 0; i < n; ++i, row += lanes) {
      FVX_UNROLL for (int v = 0; v < N; ++v) most[v] = max_lanes(most[v], S::load(row + v * L));
    }
    FVX_UNROLL for (int v = 0; v < N; ++v) {
      const int l = first + v * L;
      S::store(top + l, max_lanes(S::load(top + l), most[v] * S::load(unit + l)));
    }
  });
}

// Scores become 2^(unit * score - shift), whose sums are added to `total`.
template <class A>
void weigh(A* scores, int n, int lanes, const A* unit, const A* shift, A* total) {
  using S = Simd<A>;
  each_lanes<A>(lanes, [&](auto vectors, int first) {
    constexpr int N = decltype(vectors)::value, L = S::kLanes;
    Lanes<A> sum[N], times[N], less[N];
    FVX_UNROLL for (int v = 0; v < N; ++v) {
      sum[v] = S::load(total + first + v * L);
      times[v] = S::load(unit + first + v * L), less[v] = S::load(shift + first + v * L);
    }
    A* row = scores + first;
    for (int i = 0; i < n; ++i, row += lanes) {
      FVX_UNROLL for (int v = 0; v < N; ++v) {
        const Lanes<A> w = exp2_of_score(S::load(row + v * L) * times[v] - less[v]);
        S::store(row + v * L, w);
        sum[v] += w;
      }
    }
    FVX_UNROLL for (int v = 0; v < N; ++v) S::store(total + first + v * L, sum[v]);
  });
}

// Backwards: scores become weights p = 2^(unit * score - lse), and g, gradients of the weights, those of the scores,
// p (g - delta). Both are 0 where the score is -inf, whatever lse is.
template <class A>
void differentiate(A* scores, A* g, int n, int lanes, const A* unit, const A* lse, const A* delta) {
  using S = Simd<A>;
  each_lanes<A>(lanes, [&](auto vectors, int first) {
    constexpr int N = decltype(vectors)::value, L = S::kLanes;
    Lanes<A> times[N], less[N], minus[N];
    FVX_UNROLL for (int v = 0; v < N; ++v) {
      const int l = first + v * L;
      times[v] = S::load(unit + l), less[v] = S::load(lse + l), minus[v] = S::load(delta + l);
    }
    for (int i = 0; i < n; ++i) {
      A *const w = scores + int64_t(i) * lanes + first, *const to = g + int64_t(i) * lanes + first;
      FVX_UNROLL for (int v = 0; v < N; ++v) {
        const Lanes<A> s = S::load(w + v * L), zero{};
        const Lanes<A> p = exp2_of_score(s * times[v] - less[v]);
        const Lanes<A> d = p * (S::load(to + v * L) - minus[v]);
        S::store(w + v * L, s == S::splat(kNone<A>) ? zero : p);
        S::store(to + v * L, s == S::splat(kNone<A>) ? zero : d);
      }
    }
  });
}

#if defined(FVX_BF16_OPERANDS)

// Two rows of sums as one of pairs.
FVX_BF16 FVX_HD __m512i interleaved(__m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even)));
}

// The same, with the weights as a right operand: rows in pairs, zeros up to `padded_n` rows. Scores stay as they are.
FVX_BF16 inline void weigh_in_pairs(const float* scores, int n, int padded_n, int lanes, const float* unit,
                                    const float* shift, float* total, bf16* pairs) {
  for (int l = 0; l < lanes; l += 16) {
    const __m512 times = _mm512_loadu_ps(unit + l), less = _mm512_loadu_ps(shift + l);
    __m512 even_sum = _mm512_loadu_ps(total + l), odd_sum = _mm512_setzero_ps();
    const float* row = scores + l;
    bf16* to = pairs + 2 * l;
    int i = 0;
    for (; i + 2 <= n; i += 2, row += 2 * lanes, to += 2 * lanes) {
      const __m512 even = exp2_of_score(_mm512_fmsub_ps(_mm512_loadu_ps(row), times, less));
      const __m512 odd = exp2_of_score(_mm512_fmsub_ps(_mm512_loadu_ps(row + lanes), times, less));
      even_sum = _mm512_add_ps(even_sum, even), odd_sum = _mm512_add_ps(odd_sum, odd);
      _mm512_storeu_si512(to, interleaved(even, odd));
    }
    if (i < n) {
      const __m512 even = exp2_of_score(_mm512_fmsub_ps(_mm512_loadu_ps(row), times, less));
      even_sum = _mm512_add_ps(even_sum, even);
      _mm512_storeu_si512(to, interleaved(even, _mm512_setzero_ps()));
      i += 2, to += 2 * lanes;
    }
    for (; i < padded_n; i += 2, to += 2 * lanes) _mm512_storeu_si512(to, _mm512_setzero_si512());
    _mm512_storeu_ps(total + l, _mm512_add_ps(even_sum, odd_sum));
  }
}

// differentiate() with rounded results, (n, lanes): `weights` and `g_rows`, and the latter as a right operand,
// `g_pairs`, zeros up to `padded_n` rows.
FVX_BF16 inline void differentiate_in_pairs(const float* scores, const float* g, int n, int padded_n, int lanes,
                                            const float* unit, const float* lse, const float* delta, bf16* weights,
                                            bf16* g_rows, bf16* g_pairs) {
  const __m512 none = _mm512_set1_ps(kNone<float>);
  for (int l = 0; l < lanes; l += 16) {
    const __m512 times = _mm512_loadu_ps(unit + l), less = _mm512_loadu_ps(lse + l), minus = _mm512_loadu_ps(delta + l);
    for (int i = 0; i < padded_n; i += 2) {
      __m512 d[2];
      FVX_UNROLL for (int r = 0; r < 2; ++r) {
        d[r] = _mm512_setzero_ps();
        if (i + r >= n) continue;
        const int64_t at = int64_t(i + r) * lanes + l;
        const __m512 s = _mm512_loadu_ps(scores + at);
        const __mmask16 some = _mm512_cmp_ps_mask(s, none, _CMP_NEQ_UQ);
        const __m512 p = _mm512_maskz_mov_ps(some, exp2_of_score(_mm512_fmsub_ps(s, times, less)));
        d[r] = _mm512_maskz_mul_ps(some, p, _mm512_sub_ps(_mm512_loadu_ps(g + at), minus));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + at), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(p)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(g_rows + at),
                            reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(d[r])));
      }
      _mm512_storeu_si512(g_pairs + int64_t(i) * lanes + 2 * l, interleaved(d[0], d[1]));
    }
  }
}

#endif

}  // namespace

FVX_END_ISA
