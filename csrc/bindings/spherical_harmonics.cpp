#include "bindings.h"

namespace fastvfx {
namespace {

SphericalHarmonicsRows rows_of(int dtype, int64_t n, int degree, bool condon_shortley, bool unit_range, Pointer dirs,
                               int threads, Pointer stream) {
  return {DType(dtype), n, degree, condon_shortley, unit_range, dirs, threads, stream};
}

}  // namespace

void bind_spherical_harmonics(py::module_& m) {
  const auto bind_fwd = [&m](const char* name, void (*kernel)(const SphericalHarmonicsFwd&)) {
    m.def(name, [kernel](int dtype, int64_t n, int degree, bool condon_shortley, bool unit_range, Pointer dirs,
                         int threads, Pointer stream, Pointer out) {
      SphericalHarmonicsFwd a{};
      static_cast<SphericalHarmonicsRows&>(a) =
          rows_of(dtype, n, degree, condon_shortley, unit_range, dirs, threads, stream);
      a.out = out;
      run(kernel, a);
    });
  };
  const auto bind_bwd = [&m](const char* name, void (*kernel)(const SphericalHarmonicsBwd&)) {
    m.def(name, [kernel](int dtype, int64_t n, int degree, bool condon_shortley, bool unit_range, Pointer dirs,
                         int threads, Pointer stream, Pointer g_out, Pointer g_dirs) {
      SphericalHarmonicsBwd a{};
      static_cast<SphericalHarmonicsRows&>(a) =
          rows_of(dtype, n, degree, condon_shortley, unit_range, dirs, threads, stream);
      a.g_out = g_out;
      a.g_dirs = g_dirs;
      run(kernel, a);
    });
  };
  const auto bind_bwd_bwd = [&m](const char* name, void (*kernel)(const SphericalHarmonicsBwdBwd&)) {
    m.def(name, [kernel](int dtype, int64_t n, int degree, bool condon_shortley, bool unit_range, Pointer dirs,
                         int threads, Pointer stream, Pointer g_out, Pointer gg_dirs, Pointer g_dirs, Pointer gg_out) {
      SphericalHarmonicsBwdBwd a{};
      static_cast<SphericalHarmonicsRows&>(a) =
          rows_of(dtype, n, degree, condon_shortley, unit_range, dirs, threads, stream);
      a.g_out = g_out;
      a.gg_dirs = gg_dirs;
      a.g_dirs = g_dirs;
      a.gg_out = gg_out;
      run(kernel, a);
    });
  };
  bind_fwd("spherical_harmonics_fwd_cpu", cpu::spherical_harmonics_fwd);
  bind_bwd("spherical_harmonics_bwd_cpu", cpu::spherical_harmonics_bwd);
  bind_bwd_bwd("spherical_harmonics_bwd_bwd_cpu", cpu::spherical_harmonics_bwd_bwd);
#if defined(FASTVFX_WITH_CUDA)
  bind_fwd("spherical_harmonics_fwd_cuda", cuda::spherical_harmonics_fwd);
  bind_bwd("spherical_harmonics_bwd_cuda", cuda::spherical_harmonics_bwd);
  bind_bwd_bwd("spherical_harmonics_bwd_bwd_cuda", cuda::spherical_harmonics_bwd_bwd);
#endif
}

}  // namespace fastvfx
