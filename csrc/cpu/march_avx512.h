// The walk of march.h for 16 parts of rays at a time, 32 in flight: each lane takes the next part as soon as its own is
// done. Every lane computes what walk() computes, to the bit.
#pragma once

#include "march_log.h"
#include "march_skip.h"

#if defined(__AVX512F__)
// gcc 12 takes the deliberately undefined operands inside its own intrinsics for mistakes (its bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

FVX_BEGIN_ISA

// Parts of the rays of a tile, by component, padded for loads of a full vector.
struct Lanes {
  static constexpr int capacity = 2048;
  static constexpr int padded = capacity + 16;
  int size = 0;
  alignas(64) float a[3][padded], b[3][padded], inverse[3][padded], shifted[3][padded];
  alignas(64) float begin[padded], end[padded];
  alignas(64) int32_t level_offset[padded];  // of the level's first word
  alignas(64) int32_t count[padded];         // out: kept steps
};

constexpr int kFewestIdle = 3;  // lanes that wait before they are given new parts together

struct WalkGrid {
  const uint64_t* words;
  __m512i magic, most, ny, nz, last[3], max_count;
};

struct WalkState {
  __m512 j, end, a[3], b[3], inverse[3], shifted[3];
  __m512i part, offset, count;
  __mmask16 live;
};

struct StretchLog {
  uint32_t* begins;
  uint32_t* parts_lengths;
  int64_t size;
};

FVX_HD void store_counts(const WalkState& s, unsigned which, Lanes& lanes) {
  alignas(64) int32_t part[16], count[16];
  _mm512_store_si512(part, s.part);
  _mm512_store_si512(count, s.count);
  for (; which; which &= which - 1) {
    const int lane = __builtin_ctz(which);
    lanes.count[part[lane]] = count[lane];
  }
}

FVX_HD void take(__m512& lane, __mmask16 taken, const float* from) {
  lane = _mm512_mask_expand_ps(lane, taken, _mm512_loadu_ps(from));
}

FVX_HD void take_parts(WalkState& s, Lanes& lanes, int& next) {
  while (s.live != 0xffff && next < lanes.size) {
    const unsigned idle = 0xffffu & ~unsigned(s.live);
    const int n = min_of(__builtin_popcount(idle), lanes.size - next);
    const __mmask16 taken = __mmask16(_pdep_u32((1u << n) - 1u, idle));
    store_counts(s, taken, lanes);
    for (int i = 0; i < 3; ++i) {
      take(s.a[i], taken, lanes.a[i] + next);
      take(s.b[i], taken, lanes.b[i] + next);
      take(s.inverse[i], taken, lanes.inverse[i] + next);
      take(s.shifted[i], taken, lanes.shifted[i] + next);
    }
    take(s.j, taken, lanes.begin + next);
    take(s.end, taken, lanes.end + next);
    s.offset = _mm512_mask_expand_epi32(s.offset, taken, _mm512_loadu_si512(lanes.level_offset + next));
    const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    s.part = _mm512_mask_expand_epi32(s.part, taken, _mm512_add_epi32(iota, _mm512_set1_epi32(next)));
    s.count = _mm512_mask_mov_epi32(s.count, taken, _mm512_setzero_si512());
    next += n;
    s.live = _mm512_mask_cmp_ps_mask(s.live | taken, s.j, s.end, _CMP_LT_OQ);
  }
}

// Eight loads and inserts: on Zen 4 faster than the gather instruction, elsewhere as fast.
FVX_HD __m512i load_words(const uint64_t* bits, __m256i index) {
  const __m128i low = _mm256_castsi256_si128(index), high = _mm256_extracti128_si256(index, 1);
  const auto pair = [bits](int64_t two) {
    const auto* first = reinterpret_cast<const __m128i*>(bits + uint32_t(two));
    return _mm_insert_epi64(_mm_loadl_epi64(first), int64_t(bits[uint64_t(two) >> 32]), 1);
  };
  const __m128i p0 = pair(_mm_cvtsi128_si64(low)), p1 = pair(_mm_extract_epi64(low, 1));
  const __m128i p2 = pair(_mm_cvtsi128_si64(high)), p3 = pair(_mm_extract_epi64(high, 1));
  const __m256i first = _mm256_inserti128_si256(_mm256_castsi128_si256(p0), p1, 1);
  const __m256i second = _mm256_inserti128_si256(_mm256_castsi128_si256(p2), p3, 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

// `reach` is 4 for each empty brick beyond the cell's own.
FVX_HD __m512 exits(__m512i cell, __m512i mask, __m512i reach, __m512 b, __m512 shifted, __m512 inverse) {
  const __mmask16 down = _mm512_movepi32_mask(_mm512_castps_si512(b));
  const __m512i up = _mm512_add_epi32(_mm512_or_si512(cell, mask), _mm512_add_epi32(reach, _mm512_set1_epi32(1)));
  const __m512i plane = _mm512_mask_sub_epi32(up, down, _mm512_andnot_si512(mask, cell), reach);
  return _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(plane), shifted), inverse);
}

FVX_HD void walk_once(WalkState& s, const WalkGrid& g, StretchLog& log) {
  const __m512i zero = _mm512_setzero_si512(), one = _mm512_set1_epi32(1), three = _mm512_set1_epi32(3);
  __m512i cell[3];
  for (int i = 0; i < 3; ++i) {
    cell[i] = _mm512_cvttps_epi32(_mm512_add_ps(s.a[i], _mm512_mul_ps(s.b[i], s.j)));
    cell[i] = _mm512_min_epi32(_mm512_max_epi32(cell[i], zero), g.last[i]);
  }
  __m512i index =
      _mm512_add_epi32(_mm512_mullo_epi32(_mm512_srli_epi32(cell[0], 2), g.ny), _mm512_srli_epi32(cell[1], 2));
  index = _mm512_add_epi32(_mm512_mullo_epi32(index, g.nz), _mm512_srli_epi32(cell[2], 2));
  index = _mm512_add_epi32(index, s.offset);
  const __m512i first = load_words(g.words, _mm512_castsi512_si256(index));
  const __m512i second = load_words(g.words, _mm512_extracti64x4_epi64(index, 1));
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i low = _mm512_permutex2var_epi32(first, evens, second);
  const __m512i high = _mm512_permutex2var_epi32(first, _mm512_or_si512(evens, one), second);

  // uniform_mask(): whole bricks, then blocks of 2 x 2 x 2, whose bits come to lie in 0x330033 of half a word.
  const __m512i ones = _mm512_set1_epi32(-1), block_bits = _mm512_set1_epi32(0x330033);
  const __mmask16 is_empty = _mm512_mask_cmple_epu32_mask(_mm512_cmpeq_epi32_mask(low, g.magic), high, g.most);
  const __mmask16 is_brick = _mm512_cmpeq_epi32_mask(_mm512_and_si512(low, high), ones) | is_empty;
  const __mmask16 in_high = _mm512_test_epi32_mask(cell[0], _mm512_set1_epi32(2));
  const __m512i half = _mm512_mask_mov_epi32(low, in_high, high);
  // Bits 4, 2 and 0 of `at` are the lowest bits of x, y and z, bits 3 and 1 the next of y and z.
  const __m512i at = _mm512_or_si512(
      _mm512_slli_epi32(_mm512_and_si512(cell[0], one), 4),
      _mm512_or_si512(_mm512_slli_epi32(_mm512_and_si512(cell[1], three), 2), _mm512_and_si512(cell[2], three)));
  const __m512i shift = _mm512_and_si512(at, _mm512_set1_epi32(10));
  const __m512i block = _mm512_and_si512(_mm512_srlv_epi32(half, shift), block_bits);
  const __mmask16 is_block = _mm512_testn_epi32_mask(block, block) | _mm512_cmpeq_epi32_mask(block, block_bits);
  const __m512i bit_in_block = _mm512_and_si512(at, _mm512_set1_epi32(21));
  const __mmask16 candidates = s.live & __mmask16(~is_empty);
  const __mmask16 kept = _mm512_mask_test_epi32_mask(candidates, _mm512_srlv_epi32(block, bit_in_block), one);
  const __m512i mask = _mm512_mask_mov_epi32(_mm512_maskz_mov_epi32(is_block, one), is_brick, three);
  const __m512i reach = _mm512_maskz_slli_epi32(is_empty, high, 2);

  __m512 next = _mm512_min_ps(exits(cell[0], mask, reach, s.b[0], s.shifted[0], s.inverse[0]),
                              exits(cell[1], mask, reach, s.b[1], s.shifted[1], s.inverse[1]));
  next = _mm512_min_ps(next, exits(cell[2], mask, reach, s.b[2], s.shifted[2], s.inverse[2]));
  next = _mm512_roundscale_ps(next, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
  next = _mm512_max_ps(next, _mm512_add_ps(s.j, _mm512_set1_ps(1.0f)));
  next = _mm512_min_ps(next, s.end);

  // What is kept must fit the log's 16 bits; a stretch that is cut goes on in the next round.
  const __m512 longest = _mm512_add_ps(s.j, _mm512_set1_ps(65535.0f));
  next = _mm512_mask_min_ps(next, kept, next, longest);
  const __m512i length = _mm512_cvttps_epi32(_mm512_sub_ps(next, s.j));
  const __m512i part_length = _mm512_or_si512(_mm512_slli_epi32(length, 16), s.part);
  _mm512_storeu_si512(log.begins + log.size, _mm512_maskz_compress_epi32(kept, _mm512_cvttps_epi32(s.j)));
  _mm512_storeu_si512(log.parts_lengths + log.size, _mm512_maskz_compress_epi32(kept, part_length));
  log.size += __builtin_popcount(kept);
  s.count = _mm512_mask_add_epi32(s.count, kept, s.count, length);
  s.j = _mm512_mask_mov_ps(s.j, s.live, next);
  s.live = _mm512_mask_cmp_ps_mask(s.live, s.j, s.end, _CMP_LT_OQ);
  s.live = _mm512_mask_cmplt_epi32_mask(s.live, s.count, g.max_count);
}

static void walk_lanes(const MarchRays& a, const SkipWords& skip, Lanes& lanes, Growing<uint32_t>& begins,
                       Growing<uint32_t>& parts_lengths) {
  const auto all = [](int64_t x) { return _mm512_set1_epi32(int(x)); };
  const WalkGrid grid{skip.words,
                      all(skip.magic),
                      all(skip.most),
                      all(bricks_of(a.res[1])),
                      all(bricks_of(a.res[2])),
                      {all(a.res[0] - 1), all(a.res[1] - 1), all(a.res[2] - 1)},
                      all(min_of<int64_t>(a.max_samples, INT32_MAX))};
  WalkState two[2];
  __builtin_memset(static_cast<void*>(two), 0, sizeof(two));
  for (WalkState& s : two) s.part = all(Lanes::capacity);  // a place that nobody reads
  int next = 0;
  StretchLog log{nullptr, nullptr, 0};
  while (true) {
    for (WalkState& s : two) {
      if (__builtin_popcount(s.live) <= 16 - kFewestIdle) take_parts(s, lanes, next);
    }
    if (!(two[0].live | two[1].live)) break;
    if (!begins.reserve(log.size + 32) || !parts_lengths.reserve(log.size + 32)) break;
    log.begins = begins.data;
    log.parts_lengths = parts_lengths.data;
    walk_once(two[0], grid, log);
    walk_once(two[1], grid, log);
  }
  begins.size = parts_lengths.size = log.size;
  for (const WalkState& s : two) store_counts(s, 0xffffu, lanes);
}

FVX_END_ISA

#endif
