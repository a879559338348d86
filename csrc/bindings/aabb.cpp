#include "bindings.h"

namespace fastvfx {

void bind_aabb(py::module_& m) {
  const auto bind = [&m](const char* name, void (*kernel)(const AabbFwd&)) {
    m.def(name, [kernel](int dtype, int64_t n_rays, int64_t n_boxes, Pointer rays_o, Pointer rays_d, Pointer aabbs,
                         Pointer nears, Pointer fars, double near, double far, double miss_value, Pointer t_mins,
                         Pointer t_maxs, Pointer hits, int threads, Pointer stream) {
      run(kernel, AabbFwd{DType(dtype), n_rays, n_boxes, rays_o, rays_d, aabbs, nears, fars, near, far, miss_value,
                          t_mins, t_maxs, hits, threads, stream});
    });
  };
  bind("aabb_fwd_cpu", cpu::aabb_fwd);
#if defined(FASTVFX_WITH_CUDA)
  bind("aabb_fwd_cuda", cuda::aabb_fwd);
#endif
}

}  // namespace fastvfx
