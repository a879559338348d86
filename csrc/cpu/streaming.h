// Stores that go past the caches: a large result is not read into them before it is overwritten, which would cost as
// much again as writing it.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <cstdint>

#include "fastvfx/config.h"

FVX_BEGIN_ISA

#if defined(__AVX512F__)
constexpr int64_t kStreamBytes = 64;
inline void stream_once(const char* from, char* to) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
}
#elif defined(__AVX__)
constexpr int64_t kStreamBytes = 32;
inline void stream_once(const char* from, char* to) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
#elif defined(__SSE2__)
constexpr int64_t kStreamBytes = 16;
inline void stream_once(const char* from, char* to) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
#endif

// memcpy past the caches. Before another thread reads, stream_fence().
inline void stream_copy(const void* from_, int64_t bytes, void* to_) {
  const char* from = static_cast<const char*>(from_);
  char* to = static_cast<char*>(to_);
  int64_t i = 0;
#if defined(__SSE2__)
  const int64_t ahead = -int64_t(reinterpret_cast<uintptr_t>(to) % kStreamBytes);
  const int64_t head = ahead ? kStreamBytes + ahead : 0;
  if (head < bytes) {
    if (head) __builtin_memcpy(to, from, size_t(head));
    for (i = head; i + kStreamBytes <= bytes; i += kStreamBytes) stream_once(from + i, to + i);
  }
#endif
  if (i < bytes) __builtin_memcpy(to + i, from + i, size_t(bytes - i));
}

inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

FVX_END_ISA
