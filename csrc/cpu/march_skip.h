// A copy of the bitfield, made for one march, in which empty bricks say how far empty space reaches. It takes as long
// as marching some hundred rays and saves visiting empty bricks one by one.
#pragma once

#include "march_log.h"
#include "parallel.h"

FVX_BEGIN_ISA

// Words that also say how far away the next occupied brick is. An empty brick's word has `magic` in its low half and
// in its high half the number of bricks around it, in every direction, that are empty too; at most `most`. With the
// plain bitfield both are 0.
struct SkipWords {
  const uint64_t* words;
  uint32_t magic, most;
};

constexpr uint32_t kSkipMagic = 0x5bd1e995u, kSkipMost = 7;

// grown = reached, and everything next to it along an axis of `n` rows of `length` bytes.
inline void grow_rows(const uint8_t* reached, int64_t n, int64_t length, uint8_t* grown) {
  for (int64_t row = 0; row < n; ++row) {
    const uint8_t* here = reached + row * length;
    const uint8_t* before = row > 0 ? here - length : here;
    const uint8_t* behind = row + 1 < n ? here + length : here;
    FVX_SIMD
    for (int64_t i = 0; i < length; ++i) grown[row * length + i] = uint8_t(here[i] | before[i] | behind[i]);
  }
}

// Of one level; false if memory is short or an occupied brick looks like an empty one's word.
inline bool skip_words_of_level(const uint64_t* bits, const int64_t* res, uint64_t* words) {
  const int64_t nx = bricks_of(res[0]), ny = bricks_of(res[1]), nz = bricks_of(res[2]), n = nx * ny * nz;
  uint8_t* reached = static_cast<uint8_t*>(std::malloc(size_t(3 * n)));
  if (!reached) return false;
  uint8_t *scratch = reached + n, *rings = reached + 2 * n;
  bool ok = true;
  for (int64_t i = 0; i < n; ++i) reached[i] = bits[i] != 0;
  for (int64_t i = 0; i < n; ++i) rings[i] = 0;
  for (uint32_t ring = 0; ring < kSkipMost; ++ring) {
    for (int64_t row = 0; row < nx * ny; ++row) {  // along z
      const uint8_t* here = reached + row * nz;
      uint8_t* grown = scratch + row * nz;
      for (int64_t z = 0; z < nz; ++z) grown[z] = here[z];
      for (int64_t z = 1; z < nz; ++z) grown[z] |= here[z - 1];
      for (int64_t z = 1; z < nz; ++z) grown[z - 1] |= here[z];
    }
    for (int64_t x = 0; x < nx; ++x) grow_rows(scratch + x * ny * nz, ny, nz, reached + x * ny * nz);
    grow_rows(reached, nx, ny * nz, scratch);
    uint8_t any = 0;
    for (int64_t i = 0; i < n; ++i) {
      reached[i] = scratch[i];
      rings[i] = uint8_t(rings[i] + (scratch[i] ^ 1));
      any |= scratch[i] ^ 1;
    }
    if (!any) break;
  }
  for (int64_t i = 0; i < n; ++i) {
    const bool alike = bits[i] != 0 && uint32_t(bits[i]) == kSkipMagic && (bits[i] >> 32) <= kSkipMost;
    ok = ok && !alike;
    words[i] = bits[i] ? bits[i] : uint64_t(rings[i]) << 32 | kSkipMagic;
  }
  std::free(reached);
  return ok;
}

// The words to walk: the copy, in `buffer`, or the bitfield itself where the copy does not pay or cannot be made.
inline SkipWords make_skip_words(const MarchRays& a, Growing<uint64_t>& buffer) {
  const int64_t words = brick_words(a.res);
  const SkipWords plain{a.bits, 0, 0};
  if (a.n_rays * 16 < a.levels * words || !buffer.reserve(a.levels * words)) return plain;
  bool ok = true;
  parallel_for(a.threads, a.levels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t level = begin; level < end; ++level) {
      if (!skip_words_of_level(a.bits + level * words, a.res, buffer.data + level * words)) ok = false;
    }
  });
  return ok ? SkipWords{buffer.data, kSkipMagic, kSkipMost} : plain;
}

FVX_END_ISA
