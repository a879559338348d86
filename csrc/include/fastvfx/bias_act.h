// Bias, activation, gain and clamp in one pass: arguments and the maths of one element.
//
//   z = x scale[n, c] + noise[n, p] + b[c],   y = clamp(gain act(z)),   with scale, noise and b each optional.
// The slope d(n, c, p) = dy/dz is gain act'(z) where y lies strictly within the clamp and 0 elsewhere. For every
// activation but swish, act' is a function of u = act(z), so that y alone has to be kept:
//   g_z = g_y d,   g_x = g_z scale,   g_scale = sum_p g_z x,   g_noise = sum_c g_z,   g_b = sum_np g_z.
// All of them are linear in g_y. With q = gg_x scale + gg_scale x + gg_noise + gg_b, what comes in for the four of
// them:
//   gg_y = d q,   g_x = g_z gg_scale,   g_scale = sum_p g_z gg_x,   g_r = g_y q dd/dr,
// where r is what d was a function of: y, or z for swish.
#pragma once

#include "fastvfx/math.h"

namespace fastvfx {

// fastvfx/_ops/bias_act.py holds the same table.
enum class BiasActivation : int { linear = 0, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish };

// Element (n, c, p) of a tensor, image, channel and pixel, lies at (n channels + c) pixels + p, or, interleaved
// (channels_last), at (n pixels + p) channels + c. Any dimension of a dense tensor can be the channels of such a view.
struct BiasAct {
  DType dtype;  // of x, y and their gradients; everything else is of the type that dtype is summed in
  BiasActivation act;
  double alpha, gain, clamp;  // clamp: NaN for none
  bool interleaved;
  int64_t images, channels, pixels;
  const void* x;         // (images, channels, pixels); in gradients null unless something below needs it
  const void* scale;     // (images, channels) or null
  const void* noise;     // (1 or images, pixels) or null
  bool noise_per_image;  // else all images share it
  const void* b;         // (channels) or null
  int threads;
  void* stream;
};

struct BiasActFwd : BiasAct {
  void* y;
};

// Without y, slopes come from z, and x, scale, noise and b must be there; a linear activation that does not clamp
// needs neither.
struct BiasActBwd : BiasAct {
  const void* g_y;
  const void* y;
  void* g_x;
  void* g_scale;  // (images, channels) or null; needs x
  void* g_noise;  // (images, pixels) or null, whether or not images share the noise
  void* g_b;      // (channels) or null
  void* sums;     // on a GPU: bias_act_sums() numbers to work with
};

struct BiasActBwdBwd : BiasAct {
  const void* g_y;
  const void* y;
  const void* gg_x;
  const void* gg_scale;  // (images, channels) or null; needs x
  const void* gg_noise;  // like noise, or null
  const void* gg_b;      // (channels) or null
  void* gg_y;
  void* g_x;      // or null; needs gg_scale
  void* g_scale;  // (images, channels) or null
  void* g_r;      // of y, or of z where there is no y; or null
  void* sums;
};

}  // namespace fastvfx

FVX_BEGIN_ISA

namespace bias_act {

using Kind = BiasActivation;

constexpr double kSelu = 1.0507009873554804934, kSeluAlpha = 1.6732632423543772848;

// Whether slopes are taken from z. alpha of lrelu: with a negative one the sign of z does not follow from u.
FVX_HD bool slope_needs_z(Kind kind, double alpha) { return kind == Kind::swish || (kind == Kind::lrelu && alpha < 0); }

// act(z). Comparisons are written so that NaN passes through.
template <Kind kind, class A>
FVX_HD A value(A z, A alpha) {
  if constexpr (kind == Kind::relu) return z < A(0) ? A(0) : z;
  if constexpr (kind == Kind::lrelu) return z > A(0) ? z : alpha * z;
  if constexpr (kind == Kind::tanh) return tanh_of(z);
  if constexpr (kind == Kind::sigmoid) return sigmoid_of(z);
  if constexpr (kind == Kind::elu) return z > A(0) ? z : exp_pair(z).em1;
  if constexpr (kind == Kind::selu) return A(kSelu) * (z > A(0) ? z : A(kSeluAlpha) * exp_pair(z).em1);
  if constexpr (kind == Kind::softplus) return softplus_of(z);
  if constexpr (kind == Kind::swish) return z * sigmoid_of(z);
  return z;
}

// act'(z) from r = act(z); from r = z for swish, and lrelu takes either.
template <Kind kind, class A>
FVX_HD A slope(A r, A alpha) {
  if constexpr (kind == Kind::relu) return r <= A(0) ? A(0) : A(1);
  if constexpr (kind == Kind::lrelu) return r > A(0) ? A(1) : alpha;
  if constexpr (kind == Kind::tanh) return A(1) - r * r;
  if constexpr (kind == Kind::sigmoid) return r * (A(1) - r);
  if constexpr (kind == Kind::elu) return r > A(0) ? A(1) : r + A(1);
  if constexpr (kind == Kind::selu) return r > A(0) ? A(kSelu) : r + A(kSelu * kSeluAlpha);
  if constexpr (kind == Kind::softplus) return -exp_pair(-r).em1;
  if constexpr (kind == Kind::swish) {
    const A s = sigmoid_of(r);
    return s * (A(1) + r * (A(1) - s));
  }
  return A(1);
}

// d slope / dr
template <Kind kind, class A>
FVX_HD A curve(A r) {
  if constexpr (kind == Kind::tanh) return A(-2) * r;
  if constexpr (kind == Kind::sigmoid) return A(1) - A(2) * r;
  if constexpr (kind == Kind::elu || kind == Kind::selu) return r > A(0) ? A(0) : A(1);
  if constexpr (kind == Kind::softplus) return exp_of(-r);
  if constexpr (kind == Kind::swish) {
    const A s = sigmoid_of(r);
    return s * (A(1) - s) * (A(2) + r * (A(1) - A(2) * s));
  }
  return A(0);
}

// The options in the type of the sums. A limit of NaN limits nothing, since no comparison with it holds. Slopes from
// stored results end where those reach the limit as it is stored.
template <class A>
struct Options {
  A alpha, gain, one_over_gain, limit, stored_limit;

  template <class T>
  static FVX_HD Options of(const BiasAct& a) {
    const A limit = A(a.clamp);
    return {A(a.alpha), A(a.gain), a.gain == 0 ? A(0) : A(1 / a.gain), limit, A(to_acc(from_acc<T>(limit)))};
  }

  template <Kind kind>
  FVX_HD A result(A z) const {
    A y = gain * value<kind>(z, alpha);
    y = y > limit ? limit : y;
    return y < -limit ? -limit : y;
  }

  // The argument of slope() and curve().
  template <Kind kind, bool from_z>
  FVX_HD A r_of(A y_or_z) const {
    return from_z ? y_or_z : y_or_z * one_over_gain;
  }
  template <Kind kind, bool from_z>
  FVX_HD bool clamps(A y_or_z) const {
    const A y = from_z ? gain * value<kind>(y_or_z, alpha) : y_or_z, end = from_z ? limit : stored_limit;
    return y >= end || y <= -end;
  }

  // dy/dz
  template <Kind kind, bool from_z>
  FVX_HD A slope_at(A y_or_z) const {
    const A d = gain * slope<kind>(r_of<kind, from_z>(y_or_z), alpha);
    return clamps<kind, from_z>(y_or_z) ? A(0) : d;
  }
  // d(dy/dz) / dy, or / dz from z.
  template <Kind kind, bool from_z>
  FVX_HD A curve_at(A y_or_z) const {
    const A c = curve<kind>(r_of<kind, from_z>(y_or_z));
    return clamps<kind, from_z>(y_or_z) ? A(0) : from_z ? gain * c : c;
  }
};

}  // namespace bias_act

FVX_END_ISA

// Runs the body with `kKind` bound to the activation.
#define FVX_KIND_CASE(name, ...)                                                 \
  case ::fastvfx::BiasActivation::name: {                                        \
    constexpr ::fastvfx::BiasActivation kKind = ::fastvfx::BiasActivation::name; \
    __VA_ARGS__;                                                                 \
    break;                                                                       \
  }
#define FVX_DISPATCH_KIND(kind, ...)     \
  switch (kind) {                        \
    FVX_KIND_CASE(linear, __VA_ARGS__)   \
    FVX_KIND_CASE(relu, __VA_ARGS__)     \
    FVX_KIND_CASE(lrelu, __VA_ARGS__)    \
    FVX_KIND_CASE(tanh, __VA_ARGS__)     \
    FVX_KIND_CASE(sigmoid, __VA_ARGS__)  \
    FVX_KIND_CASE(elu, __VA_ARGS__)      \
    FVX_KIND_CASE(selu, __VA_ARGS__)     \
    FVX_KIND_CASE(softplus, __VA_ARGS__) \
    FVX_KIND_CASE(swish, __VA_ARGS__)    \
  }
// Likewise, of those whose slope may have to be taken from z.
#define FVX_DISPATCH_KIND_OF_Z(kind, ...) \
  switch (kind) {                         \
    FVX_KIND_CASE(lrelu, __VA_ARGS__)     \
    FVX_KIND_CASE(swish, __VA_ARGS__)     \
    default:                              \
      break;                              \
  }
