// Storage types. Half and bfloat16 are only ever stored: every sum is taken in float (double for double).
#pragma once

#include "fastvfx/config.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fastvfx {

// Codes that the Python side passes; fastvfx/_ops/_common.py holds the same table.
enum class DType : int { f64 = 0, f32 = 1, f16 = 2, bf16 = 3 };

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using acc_t = typename Accumulate<T>::type;

}  // namespace fastvfx

FVX_BEGIN_ISA

FVX_HD float bits_to_float(uint32_t u) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(u);
#else
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
#endif
}

FVX_HD uint32_t float_to_bits(float f) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(f);
#else
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  return u;
#endif
}

FVX_HD double to_acc(double x) { return x; }
FVX_HD float to_acc(float x) { return x; }

FVX_HD float to_acc(bf16 x) { return bits_to_float(uint32_t(x.bits) << 16); }

// Branch-free, so that loops over it vectorise: a half's exponent and mantissa shifted into place are the value
// times 2^-112, exactly, subnormals included.
FVX_HD float to_acc(f16 x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;
  const float scaled = bits_to_float(magnitude) * 5.192296858534828e+33f;  // 2^112
  const uint32_t special = magnitude | 0x7f800000u;                        // inf and NaN keep their payload
  const uint32_t result = magnitude >= 0x0f800000u ? special : float_to_bits(scaled);
  return bits_to_float(result | sign);
#endif
}

template <class T>
FVX_HD T from_acc(acc_t<T> x);

template <>
FVX_HD double from_acc<double>(double x) {
  return x;
}
template <>
FVX_HD float from_acc<float>(float x) {
  return x;
}

// Round to nearest, ties to even; NaN stays a quiet NaN.
template <>
FVX_HD bf16 from_acc<bf16>(float x) {
  const uint32_t u = float_to_bits(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const uint32_t nan = (u >> 16) | 0x40u;
  return bf16{uint16_t((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
}

template <>
FVX_HD f16 from_acc<f16>(float x) {
#if defined(__CUDA_ARCH__)
  return f16{__half_as_ushort(__float2half_rn(x))};
#else
  const uint32_t u = float_to_bits(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t a = u & 0x7fffffffu;
  // Normal range: rebias the exponent by 112 and round the 13 dropped bits to even.
  const uint32_t normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
  // Below 2^-14: adding 0.5 aligns the value so that the float adder itself rounds to the half's last place.
  const uint32_t subnormal = float_to_bits(bits_to_float(a) + 0.5f) - 0x3f000000u;
  uint32_t r = a < 0x38800000u ? subnormal : normal;
  r = a >= 0x477ff000u ? 0x7c00u : r;
  r = a > 0x7f800000u ? 0x7e00u : r;
  return f16{uint16_t(r | sign)};
#endif
}

FVX_END_ISA

// Runs the body with `T` bound to the storage type of `code`.
#define FVX_DISPATCH_STORAGE(code, T, ...) \
  switch (code) {                          \
    case ::fastvfx::DType::f64: {          \
      using T = double;                    \
      __VA_ARGS__;                         \
      break;                               \
    }                                      \
    case ::fastvfx::DType::f32: {          \
      using T = float;                     \
      __VA_ARGS__;                         \
      break;                               \
    }                                      \
    case ::fastvfx::DType::f16: {          \
      using T = ::fastvfx::f16;            \
      __VA_ARGS__;                         \
      break;                               \
    }                                      \
    case ::fastvfx::DType::bf16: {         \
      using T = ::fastvfx::bf16;           \
      __VA_ARGS__;                         \
      break;                               \
    }                                      \
  }
