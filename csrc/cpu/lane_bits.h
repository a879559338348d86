// Comparisons of packs as bits, one a lane, and choices by such bits.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "pack.h"

FVX_BEGIN_ISA

#if defined(__AVX512F__)

// !(x > y): also where either is NaN.
FVX_HD uint32_t not_above(pack_t<float> x, pack_t<float> y) { return _mm512_cmp_ps_mask(x, y, _CMP_NGT_UQ); }
FVX_HD uint32_t not_above(pack_t<double> x, pack_t<double> y) { return _mm512_cmp_pd_mask(x, y, _CMP_NGT_UQ); }

// `yes` in lanes whose bit is set.
FVX_HD pack_t<float> choose(uint32_t bits, pack_t<float> yes, pack_t<float> no) {
  return _mm512_mask_mov_ps(no, __mmask16(bits), yes);
}
FVX_HD pack_t<double> choose(uint32_t bits, pack_t<double> yes, pack_t<double> no) {
  return _mm512_mask_mov_pd(no, __mmask8(bits), yes);
}

// x > y ? x : y and x < y ? x : y, lane by lane: y where either is NaN.
FVX_HD pack_t<float> larger(pack_t<float> x, pack_t<float> y) { return _mm512_maskz_max_ps(0xffff, x, y); }
FVX_HD pack_t<double> larger(pack_t<double> x, pack_t<double> y) { return _mm512_maskz_max_pd(0xff, x, y); }
FVX_HD pack_t<float> smaller(pack_t<float> x, pack_t<float> y) { return _mm512_maskz_min_ps(0xffff, x, y); }
FVX_HD pack_t<double> smaller(pack_t<double> x, pack_t<double> y) { return _mm512_maskz_min_pd(0xff, x, y); }

#elif defined(__GNUC__)

template <int bytes>
struct LaneInt;
template <>
struct LaneInt<4> {
  typedef int32_t type __attribute__((vector_size(FVX_PACK_BYTES)));
  static FVX_HD type bit_of_lane() {
    type lanes;
    for (int l = 0; l < FVX_PACK_BYTES / 4; ++l) lanes[l] = 1 << l;
    return lanes;
  }
};
template <>
struct LaneInt<8> {
  typedef int64_t type __attribute__((vector_size(FVX_PACK_BYTES)));
  static FVX_HD type bit_of_lane() {
    type lanes;
    for (int l = 0; l < FVX_PACK_BYTES / 8; ++l) lanes[l] = int64_t(1) << l;
    return lanes;
  }
};

FVX_HD uint32_t sign_bits(LaneInt<4>::type m) {
#if defined(__AVX__)
  return uint32_t(_mm256_movemask_ps(__m256(m)));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_ps(__m128(m)));
#else
  uint32_t bits = 0;
  for (int l = 0; l < FVX_PACK_BYTES / 4; ++l) bits |= uint32_t(m[l] < 0) << l;
  return bits;
#endif
}
FVX_HD uint32_t sign_bits(LaneInt<8>::type m) {
#if defined(__AVX__)
  return uint32_t(_mm256_movemask_pd(__m256d(m)));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_pd(__m128d(m)));
#else
  uint32_t bits = 0;
  for (int l = 0; l < FVX_PACK_BYTES / 8; ++l) bits |= uint32_t(m[l] < 0) << l;
  return bits;
#endif
}

FVX_HD uint32_t not_above(pack_t<float> x, pack_t<float> y) { return sign_bits(~LaneInt<4>::type(x > y)); }
FVX_HD uint32_t not_above(pack_t<double> x, pack_t<double> y) { return sign_bits(~LaneInt<8>::type(x > y)); }

template <class P>
FVX_HD P choose(uint32_t bits, P yes, P no) {
  using Int = LaneInt<sizeof(yes[0])>;
  const typename Int::type ones = Int::bit_of_lane();
  return ((typename Int::type{} + int32_t(bits)) & ones) != 0 ? yes : no;
}
template <class P>
FVX_HD P larger(P x, P y) {
  return x > y ? x : y;
}
template <class P>
FVX_HD P smaller(P x, P y) {
  return x < y ? x : y;
}

#else  // packs of one

template <class P>
FVX_HD uint32_t not_above(P x, P y) {
  return x > y ? 0u : 1u;
}
template <class P>
FVX_HD P choose(uint32_t bits, P yes, P no) {
  return bits & 1 ? yes : no;
}
template <class P>
FVX_HD P larger(P x, P y) {
  return x > y ? x : y;
}
template <class P>
FVX_HD P smaller(P x, P y) {
  return x < y ? x : y;
}

#endif

FVX_END_ISA
