#include "bindings.h"

namespace fastvfx {
namespace {

CompositeRays rays_of(int dtype, bool alphas, int depth_mode, double threshold, double eps, int64_t n_rays,
                      int64_t n_samples, int64_t n_per_ray, int64_t channels, Pointer offsets, Pointer values,
                      Pointer rgbs, Pointer t_starts, Pointer t_ends, Pointer background, int64_t background_stride,
                      int threads, Pointer stream) {
  return {DType(dtype),      alphas,    DepthMode(depth_mode),
          threshold,         eps,       n_rays,
          n_samples,         n_per_ray, channels,
          offsets,           values,    rgbs,
          t_starts,          t_ends,    background,
          background_stride, threads,   stream};
}

}  // namespace

void bind_composite(py::module_& m) {
  m.def("check_offsets", [](Pointer offsets, int64_t n_rays) {
    int64_t first_bad = -1;
    run(cpu::check_offsets, CheckOffsets{offsets, n_rays, &first_bad});
    return first_bad;
  });

  // `rays` is the tuple that rays_of() takes, built once for both directions by fastvfx/_ops/composite.py.
  const auto bind_fwd = [&m](const char* name, void (*kernel)(const CompositeFwd&)) {
    m.def(name, [kernel](int dtype, bool alphas, int depth_mode, double threshold, double eps, int64_t n_rays,
                         int64_t n_samples, int64_t n_per_ray, int64_t channels, Pointer offsets, Pointer values,
                         Pointer rgbs, Pointer t_starts, Pointer t_ends, Pointer background, int64_t background_stride,
                         int threads, Pointer stream, Pointer rgb, Pointer opacity, Pointer depth, Pointer weights,
                         Pointer transmittance) {
      CompositeFwd a{};
      static_cast<CompositeRays&>(a) =
          rays_of(dtype, alphas, depth_mode, threshold, eps, n_rays, n_samples, n_per_ray, channels, offsets, values,
                  rgbs, t_starts, t_ends, background, background_stride, threads, stream);
      a.rgb = rgb;
      a.opacity = opacity;
      a.depth = depth;
      a.weights = weights;
      a.transmittance = transmittance;
      run(kernel, a);
    });
  };
  const auto bind_bwd = [&m](const char* name, void (*kernel)(const CompositeBwd&)) {
    m.def(name, [kernel](int dtype, bool alphas, int depth_mode, double threshold, double eps, int64_t n_rays,
                         int64_t n_samples, int64_t n_per_ray, int64_t channels, Pointer offsets, Pointer values,
                         Pointer rgbs, Pointer t_starts, Pointer t_ends, Pointer background, int64_t background_stride,
                         int threads, Pointer stream, Pointer opacity, Pointer depth, Pointer g_rgb, Pointer g_opacity,
                         Pointer g_depth, Pointer g_weights, Pointer g_transmittance, Pointer scratch, Pointer g_values,
                         Pointer g_rgbs, Pointer g_t_starts, Pointer g_t_ends, Pointer g_background) {
      CompositeBwd a{};
      static_cast<CompositeRays&>(a) =
          rays_of(dtype, alphas, depth_mode, threshold, eps, n_rays, n_samples, n_per_ray, channels, offsets, values,
                  rgbs, t_starts, t_ends, background, background_stride, threads, stream);
      a.opacity = opacity;
      a.depth = depth;
      a.g_rgb = g_rgb;
      a.g_opacity = g_opacity;
      a.g_depth = g_depth;
      a.g_weights = g_weights;
      a.g_transmittance = g_transmittance;
      a.scratch = scratch;
      a.g_values = g_values;
      a.g_rgbs = g_rgbs;
      a.g_t_starts = g_t_starts;
      a.g_t_ends = g_t_ends;
      a.g_background = g_background;
      run(kernel, a);
    });
  };
  bind_fwd("composite_fwd_cpu", cpu::composite_fwd);
  bind_bwd("composite_bwd_cpu", cpu::composite_bwd);
#if defined(FASTVFX_WITH_CUDA)
  bind_fwd("composite_fwd_cuda", cuda::composite_fwd);
  bind_bwd("composite_bwd_cuda", cuda::composite_bwd);
#endif
}

}  // namespace fastvfx
