// Dual numbers v + d eps, eps^2 = 0: a function written for any number type gives its directional derivative too.
// Second derivatives come from running a gradient on them.
#pragma once

#include "fastvfx/config.h"

FVX_BEGIN_ISA

template <class A>
struct Dual {
  A v, d;
};

template <class A>
FVX_HD Dual<A> operator+(Dual<A> a, Dual<A> b) {
  return {a.v + b.v, a.d + b.d};
}
template <class A>
FVX_HD Dual<A> operator-(Dual<A> a, Dual<A> b) {
  return {a.v - b.v, a.d - b.d};
}
template <class A>
FVX_HD Dual<A> operator*(Dual<A> a, Dual<A> b) {
  return {a.v * b.v, a.v * b.d + a.d * b.v};
}
template <class A>
FVX_HD Dual<A> operator*(A a, Dual<A> b) {
  return {a * b.v, a * b.d};
}

// What a number type V is made of: scalar_t, the type of its constants, and part_t, that of its v and d.
template <class V>
struct Number {
  using scalar = V;
  using part = V;
  static FVX_HD V constant(V c) { return c; }
};
template <class V>
struct Number<Dual<V>> {
  using scalar = typename Number<V>::scalar;
  using part = V;
  static FVX_HD Dual<V> constant(scalar c) { return {Number<V>::constant(c), Number<V>::constant(scalar(0))}; }
};
template <class V>
using scalar_t = typename Number<V>::scalar;
template <class V>
using part_t = typename Number<V>::part;

FVX_END_ISA
