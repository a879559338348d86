// Macros that let one source serve every instruction set and both processors.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FVX_HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define FVX_HD __forceinline
#else
#define FVX_HD inline __attribute__((always_inline))
#endif

// Every CPU source is compiled once per instruction-set level with FVX_ISA naming that level, and everything that
// could be emitted as an inline function lives in the namespace of that name. Without it the linker would keep a
// single copy of an inline function for all levels, and that copy may hold AVX-512 code (numpy#25274). For the same
// reason kernels use no std containers or algorithms.
#if !defined(FVX_ISA)
#if defined(__CUDACC__)
#define FVX_ISA device
#else
#define FVX_ISA generic
#endif
#endif

#define FVX_BEGIN_ISA \
  namespace fastvfx { \
  namespace FVX_ISA {
#define FVX_END_ISA \
  }                 \
  }

#if defined(_OPENMP) || defined(__GNUC__)
#define FVX_SIMD _Pragma("omp simd")
#else
#define FVX_SIMD
#endif

// For loops over corners and axes inside a vector loop, which vectorise only once they are unrolled.
#if defined(__CUDACC__) || defined(__clang__)
#define FVX_UNROLL_ALL _Pragma("unroll")
#elif defined(__GNUC__)
#define FVX_UNROLL_ALL _Pragma("GCC unroll 16")
#else
#define FVX_UNROLL_ALL
#endif
