// Stands in for CUDA's header of this name when kernels are compiled for the emulator. Holds what the kernels of
// this library use: a kernel that needs more of the language adds it here.
#pragma once

#include <cmath>

#include "../emulator.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

#define threadIdx (::cuda_emulator::thread_index())
#define blockIdx (::cuda_emulator::block_index())
#define blockDim (::cuda_emulator::block_dim())
#define gridDim (::cuda_emulator::grid_dim())
constexpr int warpSize = 32;

// The place of a call, as a default argument.
#define FVX_PLACE ::cuda_emulator::Place place = ::cuda_emulator::Place::here()

inline void __syncthreads(FVX_PLACE) { ::cuda_emulator::meet(::cuda_emulator::Collective::barrier, 0, 0, 0, 0, place); }
inline int __syncthreads_count(int p, FVX_PLACE) {
  return int(::cuda_emulator::meet(::cuda_emulator::Collective::barrier_count, 0, p != 0, 0, 0, place));
}
inline int __syncthreads_and(int p, FVX_PLACE) {
  return int(::cuda_emulator::meet(::cuda_emulator::Collective::barrier_and, 0, p != 0, 0, 0, place));
}
inline int __syncthreads_or(int p, FVX_PLACE) {
  return int(::cuda_emulator::meet(::cuda_emulator::Collective::barrier_or, 0, p != 0, 0, 0, place));
}
inline void __syncwarp(unsigned mask = 0xffffffffu, FVX_PLACE) {
  ::cuda_emulator::meet(::cuda_emulator::Collective::sync, mask, 0, 0, 0, place);
}

#define FVX_SHUFFLE(name, kind, Distance)                                                                    \
  template <class T>                                                                                         \
  T name(unsigned mask, T x, Distance distance, int width = 32, FVX_PLACE) {                                 \
    return ::cuda_emulator::from_word<T>(::cuda_emulator::meet(                                              \
        ::cuda_emulator::Collective::kind, mask, ::cuda_emulator::to_word(x), int(distance), width, place)); \
  }
FVX_SHUFFLE(__shfl_sync, shuffle, int)
FVX_SHUFFLE(__shfl_up_sync, shuffle_up, unsigned)
FVX_SHUFFLE(__shfl_down_sync, shuffle_down, unsigned)
FVX_SHUFFLE(__shfl_xor_sync, shuffle_xor, int)
#undef FVX_SHUFFLE

inline unsigned __ballot_sync(unsigned mask, int p, FVX_PLACE) {
  return unsigned(::cuda_emulator::meet(::cuda_emulator::Collective::ballot, mask, p != 0, 0, 0, place));
}
inline int __any_sync(unsigned mask, int p, FVX_PLACE) {
  return int(::cuda_emulator::meet(::cuda_emulator::Collective::any, mask, p != 0, 0, 0, place));
}
inline int __all_sync(unsigned mask, int p, FVX_PLACE) {
  return int(::cuda_emulator::meet(::cuda_emulator::Collective::all, mask, p != 0, 0, 0, place));
}
template <class T>
unsigned __match_any_sync(unsigned mask, T x, FVX_PLACE) {
  return unsigned(
      ::cuda_emulator::meet(::cuda_emulator::Collective::match_any, mask, ::cuda_emulator::to_word(x), 0, 0, place));
}

#define FVX_REDUCE(name, T, kind)                                                                       \
  inline T name(unsigned mask, T x, FVX_PLACE) {                                                        \
    return T(::cuda_emulator::meet(::cuda_emulator::Collective::kind, mask, unsigned(x), 0, 0, place)); \
  }
FVX_REDUCE(__reduce_add_sync, unsigned, reduce_add)
FVX_REDUCE(__reduce_add_sync, int, reduce_add)
FVX_REDUCE(__reduce_min_sync, unsigned, reduce_min_unsigned)
FVX_REDUCE(__reduce_min_sync, int, reduce_min_signed)
FVX_REDUCE(__reduce_max_sync, unsigned, reduce_max_unsigned)
FVX_REDUCE(__reduce_max_sync, int, reduce_max_signed)
FVX_REDUCE(__reduce_and_sync, unsigned, reduce_and)
FVX_REDUCE(__reduce_or_sync, unsigned, reduce_or)
FVX_REDUCE(__reduce_xor_sync, unsigned, reduce_xor)
#undef FVX_REDUCE
#undef FVX_PLACE

inline void __threadfence() { ::cuda_emulator::fence(); }
inline void __threadfence_block() { ::cuda_emulator::fence(); }
inline void __nanosleep(unsigned) { ::cuda_emulator::give_way(); }

namespace cuda_emulator {

// Every atomic reads, changes and writes in one turn; returns what was there.
template <class T, class F>
T atomic(T* address, const F& change) {
  at_atomic();
  T before;
  __atomic_load(address, &before, __ATOMIC_RELAXED);  // as such, ThreadSanitizer knows that they do not race
  T after = change(before);
  __atomic_store(address, &after, __ATOMIC_RELAXED);
  return before;
}

// An atomic's operand must not take part in deducing its type: atomicAdd(unsigned long long*, 1) is good CUDA.
template <class T>
struct Operand {
  using type = T;
};
template <class T>
using operand_t = typename Operand<T>::type;

}  // namespace cuda_emulator

#define FVX_ATOMIC(name, expression)                                                               \
  template <class T>                                                                               \
  T name(T* address, ::cuda_emulator::operand_t<T> x) {                                            \
    return ::cuda_emulator::atomic(address, [&](T before) { return static_cast<T>(expression); }); \
  }
FVX_ATOMIC(atomicAdd, before + x)
FVX_ATOMIC(atomicSub, before - x)
FVX_ATOMIC(atomicMin, x < before ? x : before)
FVX_ATOMIC(atomicMax, before < x ? x : before)
FVX_ATOMIC(atomicAnd, before& x)
FVX_ATOMIC(atomicOr, before | x)
FVX_ATOMIC(atomicXor, before ^ x)
FVX_ATOMIC(atomicExch, (static_cast<void>(before), x))
#undef FVX_ATOMIC
template <class T>
T atomicCAS(T* address, ::cuda_emulator::operand_t<T> expected, ::cuda_emulator::operand_t<T> x) {
  return ::cuda_emulator::atomic(address, [&](T before) { return before == expected ? x : before; });
}

template <class T>
T __ldg(const T* address) {
  return *address;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline unsigned __float_as_uint(float x) { return ::cuda_emulator::from_word<unsigned>(::cuda_emulator::to_word(x)); }
inline int __float_as_int(float x) { return ::cuda_emulator::from_word<int>(::cuda_emulator::to_word(x)); }
inline float __uint_as_float(unsigned x) { return ::cuda_emulator::from_word<float>(x); }
inline float __int_as_float(int x) { return ::cuda_emulator::from_word<float>(unsigned(x)); }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t = nullptr) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
