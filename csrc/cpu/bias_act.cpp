// Bias, activation, gain and clamp on the CPU. Each segment of a tile goes through a few loops that hand on to each
// other in L1: memory is read once and written once.
#include "fastvfx/bias_act.h"

#include "bias_act_tiles.h"
#include "parallel.h"
#include "stream.h"

FVX_BEGIN_ISA

namespace bias_act {
namespace {

// From this size on a result is streamed.
constexpr int64_t kStreamedBytes = int64_t(24) << 20;

// Options are passed by value: behind a reference they could be overwritten by what a loop stores.
template <Kind kKind, class A, class S, class O>
void results(const A* x, int n, S scale, O offset, Options<A> o, A* y) {
  FVX_SIMD
  for (int i = 0; i < n; ++i) y[i] = o.template result<kKind>(x[i] * scale[i] + offset[i]);
}

template <class A, class S, class O>
void affine(const A* x, int n, S scale, O offset, A* z) {
  FVX_SIMD
  for (int i = 0; i < n; ++i) z[i] = x[i] * scale[i] + offset[i];
}

// r: stored results, or z. g_z = g_y d, and g_x = g_z scale.
template <Kind kKind, bool from_z, class A, class S>
void through(const A* r, const A* g_y, int n, S scale, Options<A> o, A* g_z, A* g_x) {
  FVX_SIMD
  for (int i = 0; i < n; ++i) {
    const A g = g_y[i] * o.template slope_at<kKind, from_z>(r[i]);
    g_z[i] = g;
    g_x[i] = g * scale[i];
  }
}

template <Kind kKind, bool from_z, class A>
void slopes(const A* r, int n, Options<A> o, A* d) {
  FVX_SIMD
  for (int i = 0; i < n; ++i) d[i] = o.template slope_at<kKind, from_z>(r[i]);
}
template <Kind kKind, bool from_z, class A>
void curves(const A* r, int n, Options<A> o, A* d) {
  FVX_SIMD
  for (int i = 0; i < n; ++i) d[i] = o.template curve_at<kKind, from_z>(r[i]);
}

template <class T>
bool streams(const BiasAct& a) {
  return a.images * a.channels * a.pixels * int64_t(sizeof(T)) >= kStreamedBytes;
}

template <class T>
using In = Input<T, kBlock>;
template <class T>
using Out = Output<T, kBlock>;

template <class T>
void forward(const BiasActFwd& a) {
  using A = acc_t<T>;
  const Tiles tiles(a, false);
  const auto options = Options<A>::template of<T>(a);
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  parallel_for(a.threads, tiles.count(), 1, [&](int64_t index, int64_t) {
    const Tile tile = tiles[index];
    const Coefficients<A> of_z(a, tiles, tile, a.scale, a.noise, a.b);
    In<T> in;
    Out<T> out(streams<T>(a));
    for_segments(a, tiles, tile, [&](const Segment& s) {
      const A* from = in(x + s.at, s.n);
      A* to = out.begin(y + s.at);
      of_z.scale_and_offset(s, [&](auto scale, auto offset) {
        FVX_DISPATCH_KIND(a.act, results<kKind>(from, s.n, scale, offset, options, to));
      });
      out.end(y + s.at, s.n);
    });
    stream_fence();
  });
}

// What slopes and curves of a segment are functions of: stored results, or z.
template <class T>
class Arguments {
  using A = acc_t<T>;

 public:
  // `any` stands in for the results that a linear activation does not look at.
  Arguments(const BiasAct& a, const void* y, const void* any, const Coefficients<A>& of_z)
      : of_z_(of_z),
        from_z_(!y && slope_needs_z(a.act, a.alpha)),
        from_(static_cast<const T*>(from_z_ ? a.x
                                    : y     ? y
                                            : any)) {}

  bool from_z() const { return from_z_; }

  const A* operator()(const Segment& s) {
    const A* from = in_(from_ + s.at, s.n);
    if (!from_z_) return from;
    of_z_.scale_and_offset(s, [&](auto scale, auto offset) { affine(from, s.n, scale, offset, z_); });
    return z_;
  }

 private:
  const Coefficients<A>& of_z_;
  const bool from_z_;
  const T* const from_;
  In<T> in_;
  A z_[kBlock];
};

// Runs the body with `kKind` and `kFromZ` bound.
#define FVX_DISPATCH_SLOPE(kind, from_z, ...) \
  if (from_z) {                               \
    constexpr bool kFromZ = true;             \
    FVX_DISPATCH_KIND_OF_Z(kind, __VA_ARGS__) \
  } else {                                    \
    constexpr bool kFromZ = false;            \
    FVX_DISPATCH_KIND(kind, __VA_ARGS__)      \
  }

template <class T>
void backward(const BiasActBwd& a) {
  using A = acc_t<T>;
  const Tiles tiles(a, a.g_noise != nullptr);
  const auto options = Options<A>::template of<T>(a);
  const T* x = static_cast<const T*>(a.x);
  const T* g_y = static_cast<const T*>(a.g_y);
  T* g_x = static_cast<T*>(a.g_x);
  const Sums<A> sums(a, tiles, a.g_scale, a.g_noise, a.g_b);
  parallel_for(a.threads, tiles.count(), 1, [&](int64_t index, int64_t) {
    const Tile tile = tiles[index];
    const Coefficients<A> of_z(a, tiles, tile, a.scale, a.noise, a.b);
    Arguments<T> arguments(a, a.y, a.g_y, of_z);
    typename Sums<A>::OfTile sum(sums, tile);
    In<T> in, in_x;
    Out<T> out(streams<T>(a));
    for_segments(a, tiles, tile, [&](const Segment& s) {
      const A* r = arguments(s);
      const A* g = in(g_y + s.at, s.n);
      A g_z[kBlock];
      A* to = out.begin(g_x + s.at);
      of_z.scale(s, [&](auto scale) {
        FVX_DISPATCH_SLOPE(a.act, arguments.from_z(), through<kKind, kFromZ>(r, g, s.n, scale, options, g_z, to));
      });
      out.end(g_x + s.at, s.n);
      sum.add(s, g_z, a.g_scale ? in_x(x + s.at, s.n) : nullptr);
    });
    stream_fence();
  });
  sums.finish();
}

template <class T>
void backward_backward(const BiasActBwdBwd& a) {
  using A = acc_t<T>;
  const Tiles tiles(a, false);
  const auto options = Options<A>::template of<T>(a);
  const T* x = static_cast<const T*>(a.x);
  const T* g_y = static_cast<const T*>(a.g_y);
  const T* gg_x = static_cast<const T*>(a.gg_x);
  T* gg_y = static_cast<T*>(a.gg_y);
  T* g_x = static_cast<T*>(a.g_x);
  T* g_r = static_cast<T*>(a.g_r);
  const bool needs_g_y = g_x || g_r || a.g_scale;
  const Sums<A> sums(a, tiles, a.g_scale, nullptr, nullptr);
  parallel_for(a.threads, tiles.count(), 1, [&](int64_t index, int64_t) {
    const Tile tile = tiles[index];
    const Coefficients<A> of_z(a, tiles, tile, a.scale, a.noise, a.b);
    const Coefficients<A> of_q(a, tiles, tile, a.scale, a.gg_noise, a.gg_b);
    const Coefficients<A> of_x(a, tiles, tile, a.gg_scale, nullptr, nullptr);
    Arguments<T> arguments(a, a.y, a.g_y, of_z);
    typename Sums<A>::OfTile sum(sums, tile);
    In<T> in_x, in_g, in_gg;
    Out<T> out(streams<T>(a));
    for_segments(a, tiles, tile, [&](const Segment& s) {
      const int n = s.n;
      const A* r = arguments(s);
      const A* gg = in_gg(gg_x + s.at, n);
      const A* g = needs_g_y ? in_g(g_y + s.at, n) : nullptr;
      A q[kBlock], d[kBlock];
      of_q.scale_and_offset(s, [&](auto scale, auto offset) { affine(gg, n, scale, offset, q); });
      if (a.gg_scale) {
        const A* from = in_x(x + s.at, n);
        of_x.scale(s, [&](auto gg_scale) {
          FVX_SIMD
          for (int i = 0; i < n; ++i) q[i] += from[i] * gg_scale[i];
        });
      }
      if (g_r) {
        FVX_DISPATCH_SLOPE(a.act, arguments.from_z(), curves<kKind, kFromZ>(r, n, options, d));
        A* to = out.begin(g_r + s.at);
        FVX_SIMD
        for (int i = 0; i < n; ++i) to[i] = g[i] * q[i] * d[i];
        out.end(g_r + s.at, n);
      }
      FVX_DISPATCH_SLOPE(a.act, arguments.from_z(), slopes<kKind, kFromZ>(r, n, options, d));
      A* to = out.begin(gg_y + s.at);
      FVX_SIMD
      for (int i = 0; i < n; ++i) to[i] = d[i] * q[i];
      out.end(gg_y + s.at, n);
      if (!g_x && !a.g_scale) return;
      FVX_SIMD
      for (int i = 0; i < n; ++i) d[i] *= g[i];
      sum.add(s, d, gg);
      if (!g_x) return;
      to = out.begin(g_x + s.at);
      of_x.scale(s, [&](auto gg_scale) {
        FVX_SIMD
        for (int i = 0; i < n; ++i) to[i] = d[i] * gg_scale[i];
      });
      out.end(g_x + s.at, n);
    });
    stream_fence();
  });
  sums.finish();
}

}  // namespace
}  // namespace bias_act

void bias_act_fwd(const BiasActFwd& a) { FVX_DISPATCH_STORAGE(a.dtype, T, bias_act::forward<T>(a)); }

void bias_act_bwd(const BiasActBwd& a) { FVX_DISPATCH_STORAGE(a.dtype, T, bias_act::backward<T>(a)); }

void bias_act_bwd_bwd(const BiasActBwdBwd& a) { FVX_DISPATCH_STORAGE(a.dtype, T, bias_act::backward_backward<T>(a)); }

FVX_END_ISA
