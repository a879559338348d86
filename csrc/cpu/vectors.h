// Vectors as wide as the registers of the instruction-set level, for what compilers do not find on their own: scans,
// and sums whose lanes stay in registers. Spelt with the extension that GCC 12 and Clang share; without it FVX_VECTORS
// is not defined and kernels keep to plain loops.
#pragma once

#include <utility>

#include "fastvfx/dtype.h"

#if defined(__has_builtin) && !defined(FVX_NO_VECTORS)
#if __has_builtin(__builtin_shufflevector)
#define FVX_VECTORS
#endif
#endif

#if defined(FVX_VECTORS)

FVX_BEGIN_ISA

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class A>
struct Vec {
  static constexpr int kSize = kVectorBytes / int(sizeof(A));
  typedef A Value __attribute__((vector_size(kVectorBytes)));
  Value v;

  FVX_HD static Vec all(A x) { return {Value{} + x}; }

  FVX_HD static Vec load(const A* from) {
    Vec x;
    __builtin_memcpy(&x.v, from, sizeof(Value));
    return x;
  }
  // Of a storage type, widened.
  template <class T>
  FVX_HD static Vec load(const T* from) {
    A wide[kSize];
    FVX_SIMD
    for (int l = 0; l < kSize; ++l) wide[l] = to_acc(from[l]);
    return load(wide);
  }
  FVX_HD void store(A* to) const { __builtin_memcpy(to, &v, sizeof(Value)); }

  FVX_HD Vec operator+(Vec b) const { return {v + b.v}; }
  FVX_HD Vec operator*(Vec b) const { return {v * b.v}; }
};

template <class A>
using LaneNumbers = std::make_integer_sequence<int, Vec<A>::kSize>;

// The lane that Pick::of(l) names, for each lane l: of `a` from 0, of `b` from kSize.
template <class Pick, class A, int... l>
FVX_HD Vec<A> shuffle(Vec<A> a, Vec<A> b, std::integer_sequence<int, l...>) {
  return {__builtin_shufflevector(a.v, b.v, Pick::of(l)...)};
}
template <class Pick, class A>
FVX_HD Vec<A> shuffle(Vec<A> a, Vec<A> b) {
  return shuffle<Pick>(a, b, LaneNumbers<A>());
}

template <int kSize, int kBy>
struct Up {  // lanes move to higher numbers, those of `b` move in
  static constexpr int of(int l) { return l < kBy ? kSize + l : l - kBy; }
};
template <int kBy>
struct Down {
  static constexpr int of(int l) { return l + kBy; }
};
template <int kLane>
struct Only {
  static constexpr int of(int) { return kLane; }
};

template <int kBy, class A>
FVX_HD Vec<A> up(Vec<A> x, A fill) {
  return shuffle<Up<Vec<A>::kSize, kBy>>(x, Vec<A>::all(fill));
}
template <int kBy, class A>
FVX_HD Vec<A> down(Vec<A> x, A fill) {
  return shuffle<Down<kBy>>(x, Vec<A>::all(fill));
}
template <int kLane, class A>
FVX_HD Vec<A> spread(Vec<A> x) {
  return shuffle<Only<kLane>>(x, x);
}

// Lane l becomes the product of the lanes 0 to l.
template <int kBy = 1, class A>
FVX_HD Vec<A> products(Vec<A> x) {
  if constexpr (kBy < Vec<A>::kSize) {
    return products<2 * kBy>(x * up<kBy>(x, A(1)));
  } else {
    return x;
  }
}

// Maps S -> add + times S, one a lane; lane l becomes the maps of the lanes l to the last, applied from the last on.
template <class A>
struct Affine {
  Vec<A> add, times;
};
template <int kBy = 1, class A>
FVX_HD Affine<A> compositions(Affine<A> f) {
  if constexpr (kBy < Vec<A>::kSize) {
    return compositions<2 * kBy>(
        Affine<A>{f.add + f.times * down<kBy>(f.add, A(0)), f.times * down<kBy>(f.times, A(1))});
  } else {
    return f;
  }
}

template <int kBy, class A>
FVX_HD A sum_of(Vec<A> x) {
  if constexpr (kBy > 0) {
    return sum_of<kBy / 2>(x + down<kBy>(x, A(0)));
  } else {
    return x.v[0];
  }
}
template <class A>
FVX_HD A sum(Vec<A> x) {
  return sum_of<Vec<A>::kSize / 2>(x);
}

FVX_END_ISA

#endif
