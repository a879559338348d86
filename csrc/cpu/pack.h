// As many numbers as one register of this instruction set holds, for maths too long or too branched over its constants
// for a loop to vectorise. Compilers without vector types get packs of one.
#pragma once

#include "fastvfx/dual.h"

#if defined(__AVX512F__)
#define FVX_PACK_BYTES 64
#elif defined(__AVX__)
#define FVX_PACK_BYTES 32
#else
#define FVX_PACK_BYTES 16
#endif

FVX_BEGIN_ISA

template <class A>
struct PackOf;

#if defined(__GNUC__)
template <>
struct PackOf<float> {
  typedef float type __attribute__((vector_size(FVX_PACK_BYTES)));
};
template <>
struct PackOf<double> {
  typedef double type __attribute__((vector_size(FVX_PACK_BYTES)));
};

template <>
struct Number<PackOf<float>::type> {
  using scalar = float;
  using part = PackOf<float>::type;
  static FVX_HD part constant(float c) { return part{} + c; }
};
template <>
struct Number<PackOf<double>::type> {
  using scalar = double;
  using part = PackOf<double>::type;
  static FVX_HD part constant(double c) { return part{} + c; }
};
#else
template <class A>
struct PackOf {
  using type = A;
};
#endif

template <class A>
using pack_t = typename PackOf<A>::type;

template <class A>
constexpr int pack_size = int(sizeof(pack_t<A>) / sizeof(A));

template <class A>
FVX_HD pack_t<A> load_pack(const A* from) {
  pack_t<A> v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

template <class A>
FVX_HD void store_pack(A* to, pack_t<A> v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

FVX_END_ISA
