// Blocks of a large tensor on their way to memory and from it. Stores may go past the caches: an ordinary store first
// reads the line that it overwrites: a result too large to be found in a cache by whoever reads it next costs half as
// much memory traffic again.
#pragma once

#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "convert.h"

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

// memcpy past the caches. Before another thread reads: stream_fence().
inline void stream_copy(const void* from_, int64_t bytes, void* to_) {
  const char* from = static_cast<const char*>(from_);
  char* to = static_cast<char*>(to_);
  int64_t i = 0;
#if defined(__SSE2__)
  const int64_t head = int64_t(-reinterpret_cast<uintptr_t>(to) & uintptr_t(kStreamBytes - 1));
  if (head < bytes) {
    std::memcpy(to, from, size_t(head));
    for (i = head; i + kStreamBytes <= bytes; i += kStreamBytes) stream_once(from + i, to + i);
  }
#endif
  std::memcpy(to + i, from + i, size_t(bytes - i));
}

inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Where a loop puts up to kMost results: where they belong, or, if they are to be rounded or streamed, in L1 first.
template <class T, int kMost>
class Output {
  using A = acc_t<T>;
  static constexpr bool kRounds = sizeof(A) != sizeof(T);

 public:
  explicit Output(bool streaming) : streaming_(streaming) {}

  A* begin(T* to) {
    if constexpr (kRounds) return wide_;
    return reinterpret_cast<A*>(streaming_ ? lines_ : to);
  }
  void end(T* to, int n) {
    if constexpr (kRounds) narrow(wide_, n, streaming_ ? lines_ : to);
    if (streaming_) stream_copy(lines_, n * int64_t(sizeof(T)), to);
  }

 private:
  const bool streaming_;
  alignas(64) T lines_[kMost];
  alignas(64) A wide_[kRounds ? kMost : 1];
};

// Elements as numbers to compute with: those of memory, or widened copies.
template <class T, int kMost>
class Input {
  using A = acc_t<T>;

 public:
  const A* operator()(const T* from, int n) {
    if constexpr (sizeof(A) == sizeof(T)) {
      return from;
    } else {
      widen(from, n, wide_);
      return wide_;
    }
  }

 private:
  alignas(64) A wide_[sizeof(A) == sizeof(T) ? 1 : kMost];
};

FVX_END_ISA
