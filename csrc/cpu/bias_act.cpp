// Bias, activation, gain and clamp on the CPU. A segment of a tile goes through small loops, stages, that hand on to
// each other in L1: memory is read once and written once.
#include "fastvfx/bias_act.h"

#include "bias_act_tiles.h"
#include "parallel.h"

FVX_BEGIN_ISA

namespace bias_act {
namespace {

template <class T, class S, class O>
void affine(const T* x, int n, S scale, O offset, acc_t<T>* z) {
  FVX_SIMD
  for (int i = 0; i < n; ++i) z[i] = to_acc(x[i]) * scale[i] + offset[i];
}

template <class T>
void affine(const Segment& s, const T* x, const Coefficients<acc_t<T>>& with, acc_t<T>* z) {
  with.scale_and_offset(s, [&](auto scale, auto offset) { affine(x + s.at, s.n, scale, offset, z); });
}

template <Kind kKind, class T>
void results(const acc_t<T>* z, int n, const Options<T>& o, T* y) {
  FVX_SIMD
  for (int i = 0; i < n; ++i) y[i] = from_acc<T>(o.template result<kKind>(z[i]));
}

// Slopes or curves from stored results, or from z.
template <Kind kKind, bool from_z, class T, class R>
void slopes(const R* r, int n, const Options<T>& o, acc_t<T>* d) {
  FVX_SIMD
  for (int i = 0; i < n; ++i) d[i] = o.template slope_at<kKind, from_z>(to_acc(r[i]));
}
template <Kind kKind, bool from_z, class T, class R>
void curves(const R* r, int n, const Options<T>& o, acc_t<T>* d) {
  FVX_SIMD
  for (int i = 0; i < n; ++i) d[i] = o.template curve_at<kKind, from_z>(to_acc(r[i]));
}

// g_z = g_y d in place of d, and g_x = g_z scale.
template <class T, class S>
void through(const T* g_y, int n, S scale, acc_t<T>* d, T* g_x) {
  FVX_SIMD
  for (int i = 0; i < n; ++i) {
    d[i] *= to_acc(g_y[i]);
    g_x[i] = from_acc<T>(d[i] * scale[i]);
  }
}

template <class T>
void forward(const BiasActFwd& a) {
  using A = acc_t<T>;
  const Tiles tiles(a, false);
  const Options<T> options(a);
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  parallel_for(a.threads, tiles.count(), 1, [&](int64_t index, int64_t) {
    const Tile tile = tiles[index];
    const Coefficients<A> of_z(a, tiles, tile, a.scale, a.noise, a.b);
    for_segments(a, tiles, tile, [&](const Segment& s) {
      A z[kBlock];
      affine(s, x, of_z, z);
      FVX_DISPATCH_KIND(a.act, results<kKind>(z, s.n, options, y + s.at));
    });
  });
}

// Slopes and curves of segments, from what a gradient was given.
template <class T>
class Derivatives {
  using A = acc_t<T>;

 public:
  // `any` stands in for the results that a linear activation does not look at.
  Derivatives(const BiasAct& a, const void* y, const void* any)
      : act_(a.act),
        from_z_(!y && slope_needs_z(a.act, a.alpha)),
        x_(static_cast<const T*>(a.x)),
        y_(static_cast<const T*>(y ? y : any)),
        options_(a) {}

  void slopes_of(const Segment& s, const Coefficients<A>& of_z, A* d) const {
    if (from_z_) {
      affine(s, x_, of_z, d);
      FVX_DISPATCH_KIND_OF_Z(act_, (slopes<kKind, true, T>(d, s.n, options_, d)));
    } else {
      FVX_DISPATCH_KIND(act_, (slopes<kKind, false, T>(y_ + s.at, s.n, options_, d)));
    }
  }
  void curves_of(const Segment& s, const Coefficients<A>& of_z, A* d) const {
    if (from_z_) {
      affine(s, x_, of_z, d);
      FVX_DISPATCH_KIND_OF_Z(act_, (curves<kKind, true, T>(d, s.n, options_, d)));
    } else {
      FVX_DISPATCH_KIND(act_, (curves<kKind, false, T>(y_ + s.at, s.n, options_, d)));
    }
  }

 private:
  const Kind act_;
  const bool from_z_;
  const T* const x_;
  const T* const y_;
  const Options<T> options_;
};

template <class T>
void backward(const BiasActBwd& a) {
  using A = acc_t<T>;
  const Tiles tiles(a, a.g_noise != nullptr);
  const Derivatives<T> derivatives(a, a.y, a.g_y);
  const T* x = static_cast<const T*>(a.x);
  const T* g_y = static_cast<const T*>(a.g_y);
  T* g_x = static_cast<T*>(a.g_x);
  const Sums<T> sums(a, tiles, a.g_scale, a.g_noise, a.g_b);
  parallel_for(a.threads, tiles.count(), 1, [&](int64_t index, int64_t) {
    const Tile tile = tiles[index];
    const Coefficients<A> of_z(a, tiles, tile, a.scale, a.noise, a.b);
    typename Sums<T>::OfTile sum(sums, tile);
    for_segments(a, tiles, tile, [&](const Segment& s) {
      A g_z[kBlock];
      derivatives.slopes_of(s, of_z, g_z);
      of_z.scale(s, [&](auto scale) { through(g_y + s.at, s.n, scale, g_z, g_x + s.at); });
      sum.add(s, g_z, x + s.at);
    });
  });
  sums.finish();
}

template <class T>
void backward_backward(const BiasActBwdBwd& a) {
  using A = acc_t<T>;
  const Tiles tiles(a, false);
  const Derivatives<T> derivatives(a, a.y, a.g_y);
  const T* x = static_cast<const T*>(a.x);
  const T* g_y = static_cast<const T*>(a.g_y);
  const T* gg_x = static_cast<const T*>(a.gg_x);
  T* gg_y = static_cast<T*>(a.gg_y);
  T* g_x = static_cast<T*>(a.g_x);
  T* g_r = static_cast<T*>(a.g_r);
  const Sums<T> sums(a, tiles, a.g_scale, nullptr, nullptr);
  parallel_for(a.threads, tiles.count(), 1, [&](int64_t index, int64_t) {
    const Tile tile = tiles[index];
    const Coefficients<A> of_z(a, tiles, tile, a.scale, a.noise, a.b);
    const Coefficients<A> of_q(a, tiles, tile, a.scale, a.gg_noise, a.gg_b);
    const Coefficients<A> of_x(a, tiles, tile, a.gg_scale, nullptr, nullptr);
    typename Sums<T>::OfTile sum(sums, tile);
    for_segments(a, tiles, tile, [&](const Segment& s) {
      A q[kBlock], d[kBlock];
      affine(s, gg_x, of_q, q);
      if (a.gg_scale) {
        of_x.scale(s, [&](auto gg_scale) {
          FVX_SIMD
          for (int i = 0; i < s.n; ++i) q[i] += to_acc(x[s.at + i]) * gg_scale[i];
        });
      }
      if (g_r) {
        derivatives.curves_of(s, of_z, d);
        FVX_SIMD
        for (int i = 0; i < s.n; ++i) g_r[s.at + i] = from_acc<T>(to_acc(g_y[s.at + i]) * q[i] * d[i]);
      }
      derivatives.slopes_of(s, of_z, d);
      FVX_SIMD
      for (int i = 0; i < s.n; ++i) gg_y[s.at + i] = from_acc<T>(d[i] * q[i]);
      if (!g_x && !a.g_scale) return;
      FVX_SIMD
      for (int i = 0; i < s.n; ++i) d[i] *= to_acc(g_y[s.at + i]);
      sum.add(s, d, gg_x + s.at);
      if (!g_x) return;
      of_x.scale(s, [&](auto gg_scale) {
        FVX_SIMD
        for (int i = 0; i < s.n; ++i) g_x[s.at + i] = from_acc<T>(d[i] * gg_scale[i]);
      });
    });
  });
  sums.finish();
}

}  // namespace
}  // namespace bias_act

void bias_act_fwd(const BiasActFwd& a) { FVX_DISPATCH_STORAGE(a.dtype, T, bias_act::forward<T>(a)); }

void bias_act_bwd(const BiasActBwd& a) { FVX_DISPATCH_STORAGE(a.dtype, T, bias_act::backward<T>(a)); }

void bias_act_bwd_bwd(const BiasActBwdBwd& a) { FVX_DISPATCH_STORAGE(a.dtype, T, bias_act::backward_backward<T>(a)); }

FVX_END_ISA
