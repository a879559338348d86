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

// From this size on a result is streamed.
constexpr int64_t kStreamedBytes = int64_t(24) << 20;

// Copies bytes from L1 to memory; whole aligned lines pass the caches. Before other threads may read: stream_fence().
inline void stream(const void* from, void* to, int64_t bytes) {
#if defined(__SSE2__)
  const char* in = static_cast<const char*>(from);
  char* out = static_cast<char*>(to);
  const int64_t ragged = int64_t(-reinterpret_cast<uintptr_t>(out) & 63);
  if (ragged >= bytes) {
    std::memcpy(out, in, size_t(bytes));
    return;
  }
  std::memcpy(out, in, size_t(ragged));
  int64_t i = ragged;
  for (; i + 64 <= bytes; i += 64) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out + i), _mm512_loadu_si512(in + i));
#elif defined(__AVX__)
    for (int k = 0; k < 64; k += 32) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(out + i + k),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i + k)));
    }
#else
    for (int k = 0; k < 64; k += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(out + i + k),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i + k)));
    }
#endif
  }
  std::memcpy(out + i, in + i, size_t(bytes - i));
#else
  std::memcpy(to, from, size_t(bytes));
#endif
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
    if (streaming_) stream(lines_, to, n * int64_t(sizeof(T)));
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
