// Emission-absorption compositing along rays: arguments and the maths of one sample.
//
// Front to back over the samples of a ray, with T_0 = 1:
//   alpha_i = 1 - exp(-sigma_i (t_end_i - t_start_i))        (or given)
//   w_i     = T_i alpha_i,   T_{i+1} = T_i (1 - alpha_i)
//   rgb     = sum w_i c_i + T_n background,   opacity = sum w_i
// The gradient runs back to front. With G_i = dL/dw_i and S_i = dL/dT_i (what the rest of the ray would be worth
// behind unit transmittance), S_n = g_rgb . background and
//   dL/dalpha_i = T_i (G_i - S_{i+1}),   S_i = g_T_i + alpha_i G_i + (1 - alpha_i) S_{i+1}.
// Nothing is divided by 1 - alpha_i, so the gradient is exact at alpha = 1 too.
#pragma once

#include "fastvfx/math.h"

namespace fastvfx {

enum class DepthMode : int { expected = 0, accumulated = 1, first_hit = 2 };

// `A` below is the accumulation type of `dtype`: t values, background and all per-ray results are stored in it.
struct CompositeRays {
  DType dtype;  // of values and rgbs
  bool alphas;  // values are opacities, else densities
  DepthMode depth_mode;
  double depth_threshold;  // first_hit: the opacity that counts as a surface
  double early_stop_eps;   // samples behind T < eps are left out
  int64_t n_rays, n_samples, n_per_ray, channels;
  const int64_t* offsets;  // (n_rays + 1), or null: every ray has n_per_ray samples
  const void* values;      // (n_samples) sigmas or alphas
  const void* rgbs;        // (n_samples, channels)
  const void* t_starts;    // (n_samples) A
  const void* t_ends;      // (n_samples) A
  const void* background;  // (channels) or (n_rays, channels) A, or null
  int64_t background_stride;
  int threads;
  void* stream;
};

struct CompositeFwd : CompositeRays {
  void* rgb;            // (n_rays, channels) A
  void* opacity;        // (n_rays) A
  void* depth;          // (n_rays) A
  void* weights;        // (n_samples) A or null
  void* transmittance;  // (n_samples) A or null
};

struct CompositeBwd : CompositeRays {
  const void* opacity;
  const void* depth;
  const void* g_rgb;            // (n_rays, channels) A
  const void* g_opacity;        // (n_rays) A
  const void* g_depth;          // (n_rays) A
  const void* g_weights;        // (n_samples) A or null
  const void* g_transmittance;  // (n_samples) A or null
  void* scratch;                // A, n_samples / composite_stride + n_rays: transmittance at the start of each block
  void* g_values;               // (n_samples) dtype
  void* g_rgbs;                 // (n_samples, channels) dtype
  void* g_t_starts;             // (n_samples) A or null
  void* g_t_ends;               // (n_samples) A or null
  void* g_background;           // (n_rays, channels) A or null
};

// Fewest samples between two entries of `scratch`, on any processor.
constexpr int64_t composite_stride = 8;

}  // namespace fastvfx

FVX_BEGIN_ISA

struct Span {
  int64_t begin, end;
};

FVX_HD Span samples_of_ray(const CompositeRays& a, int64_t ray) {
  if (!a.offsets) return {ray * a.n_per_ray, (ray + 1) * a.n_per_ray};
  return {a.offsets[ray], a.offsets[ray + 1]};
}

FVX_HD bool is_valid(const CompositeRays& a, Span s) {
  return s.begin >= 0 && s.begin <= s.end && s.end <= a.n_samples;
}

// Where the checkpoints of a ray start in `scratch`: disjoint for any ray lengths as long as blocks hold at least
// `stride` samples.
FVX_HD int64_t checkpoint_of_ray(Span s, int64_t ray, int64_t stride) { return s.begin / stride + ray; }

template <class A>
struct Opacity {
  A alpha, keep;  // keep = 1 - alpha, computed on its own so that neither loses precision
};

template <class A>
FVX_HD Opacity<A> opacity_of(A value, A dt, bool is_alpha) {
  const ExpPair<A> x = exp_pair(-value * dt);
  const A alpha = is_alpha ? value : -x.em1;
  const A keep = is_alpha ? A(1) - value : x.e;
  return {alpha, keep};
}

// Same constant as nerfacc's: the normalised depth of an empty ray is 0.
template <class A>
FVX_HD A smallest_opacity() {
  return sizeof(A) == 8 ? A(2.220446049250313e-16) : A(1.1920929e-07);
}

template <class A>
FVX_HD A depth_of(DepthMode mode, A sum_wt, A opacity, A hit_t) {
  if (mode == DepthMode::first_hit) return hit_t;
  if (mode == DepthMode::accumulated) return sum_wt;
  const A eps = smallest_opacity<A>();
  return sum_wt / (opacity < eps ? eps : opacity);
}

// Depth as seen by one ray's samples: dL/dw_i += scale (t_i - shift), dL/dt_i += scale w_i, and at the hit
// dL/dt_i += at_hit.
template <class A>
struct DepthGrad {
  A scale, shift, at_hit;
};

template <class A>
FVX_HD DepthGrad<A> depth_gradient(DepthMode mode, A depth, A opacity, A g_depth) {
  if (mode == DepthMode::first_hit) return {A(0), A(0), g_depth};
  if (mode == DepthMode::accumulated) return {g_depth, A(0), A(0)};
  const A eps = smallest_opacity<A>();
  if (opacity < eps) return {g_depth / eps, A(0), A(0)};
  return {g_depth / opacity, depth, A(0)};
}

// The ray's opacity reaches the threshold within this sample.
template <class A>
FVX_HD bool is_hit(A T, A T_next, A threshold) {
  return T > A(1) - threshold && T_next <= A(1) - threshold;
}

template <class A>
struct SampleGrad {
  A value, dt;
};

// alpha = 1 - exp(-sigma dt). A sample of infinite density has keep = 0 and no gradient, rather than 0 * inf.
template <class A>
FVX_HD SampleGrad<A> sample_gradient(A g_alpha, A value, A dt, A keep, bool is_alpha) {
  if (is_alpha) return {g_alpha, A(0)};
  const A g_tau = g_alpha * keep;
  const A opaque = g_alpha * A(0);
  return {keep == A(0) ? opaque : g_tau * dt, keep == A(0) ? opaque : g_tau * value};
}

FVX_END_ISA
