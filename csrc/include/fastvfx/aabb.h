// Where rays are inside axis-aligned boxes: arguments and the maths of one ray and one box (the slab test).
#pragma once

#include <cmath>

#include "fastvfx/dtype.h"

namespace fastvfx {

struct AabbFwd {
  DType dtype;  // f32 or f64, of everything below but hits
  int64_t n_rays, n_boxes;
  const void* rays_o;  // (R, 3)
  const void* rays_d;  // (R, 3)
  const void* aabbs;   // (M, 6): lower corner, upper corner
  const void* nears;   // (R,) or null: `near` for all
  const void* fars;    // (R,) or null: `far` for all
  double near, far, miss_value;
  void* t_mins;   // (R, M)
  void* t_maxs;   // (R, M)
  uint8_t* hits;  // (R, M)
  int threads;
  void* stream;
};

}  // namespace fastvfx

FVX_BEGIN_ISA

template <class T>
struct Interval {
  T lo, hi;
};

// Where o + t d lies between the two planes. Parallel to them: everywhere if between or on them, else nowhere, rather
// than the NaN of 0 / 0.
template <class T>
FVX_HD Interval<T> slab(T o, T d, T lower, T upper) {
  const T a = (lower - o) / d, b = (upper - o) / d;
  const bool between = (lower <= o) & (o <= upper);
  const T inf = T(HUGE_VAL);
  const T parallel = between ? -inf : inf;
  return {d == T(0) ? parallel : (a < b ? a : b), d == T(0) ? -parallel : (a < b ? b : a)};
}

template <class T>
FVX_HD bool is_finite(T x) {
  return x - x == T(0);
}

// A ray with a NaN or infinity, or of no direction, is inside no box.
template <class T>
FVX_HD bool is_ray(const T* o, const T* d) {
  const bool finite =
      is_finite(o[0]) & is_finite(o[1]) & is_finite(o[2]) & is_finite(d[0]) & is_finite(d[1]) & is_finite(d[2]);
  return finite & ((d[0] != T(0)) | (d[1] != T(0)) | (d[2] != T(0)));
}

template <class T>
FVX_HD Interval<T> intersect_box(const T* o, const T* d, const T* box) {
  const Interval<T> x = slab(o[0], d[0], box[0], box[3]);
  const Interval<T> y = slab(o[1], d[1], box[1], box[4]);
  const Interval<T> z = slab(o[2], d[2], box[2], box[5]);
  Interval<T> r = x;
  r.lo = r.lo < y.lo ? y.lo : r.lo;
  r.hi = y.hi < r.hi ? y.hi : r.hi;
  r.lo = r.lo < z.lo ? z.lo : r.lo;
  r.hi = z.hi < r.hi ? z.hi : r.hi;
  return r;
}

template <class T>
FVX_HD void aabb_ray(const AabbFwd& a, int64_t ray, int64_t box) {
  const T* o = static_cast<const T*>(a.rays_o) + 3 * ray;
  const T* d = static_cast<const T*>(a.rays_d) + 3 * ray;
  const T near = a.nears ? static_cast<const T*>(a.nears)[ray] : T(a.near);
  const T far = a.fars ? static_cast<const T*>(a.fars)[ray] : T(a.far);
  const Interval<T> t = intersect_box(o, d, static_cast<const T*>(a.aabbs) + 6 * box);
  const bool hit = is_ray(o, d) && t.hi > t.lo && t.hi > T(0);
  const T lo = t.lo < near ? near : t.lo, hi = t.hi < near ? near : t.hi;
  const int64_t i = ray * a.n_boxes + box;
  static_cast<T*>(a.t_mins)[i] = hit ? (far < lo ? far : lo) : T(a.miss_value);
  static_cast<T*>(a.t_maxs)[i] = hit ? (far < hi ? far : hi) : T(a.miss_value);
  a.hits[i] = uint8_t(hit);
}

FVX_END_ISA
