#include "bindings.h"

namespace fastvfx {
namespace {

MarchRays rays_of(int dtype, int64_t n_rays, Pointer rays_o, Pointer rays_d, Pointer nears, Pointer fars, double near,
                  double far, int levels, int64_t x, int64_t y, int64_t z, Pointer bits, Pointer aabbs, double step,
                  double cone_angle, double max_step, int64_t max_samples, bool jitter, int64_t seed,
                  Pointer seed_tensor, int threads, Pointer stream) {
  return {DType(dtype), n_rays, rays_o,     rays_d,   nears,       fars,   near, far,         levels,  {x, y, z}, bits,
          aabbs,        step,   cone_angle, max_step, max_samples, jitter, seed, seed_tensor, threads, stream};
}

// Owns what march_count left for march_write: if the outputs in between cannot be allocated, nothing leaks.
struct Log {
  void* data = nullptr;
  Log() = default;
  Log(const Log&) = delete;
  ~Log() { cpu::march_release(MarchRelease{data}); }
};

}  // namespace

void bind_march(py::module_& m) {
  py::class_<Log>(m, "MarchLog").def(py::init<>());

  // `rays` is the tuple that rays_of() takes, built once for both steps by fastvfx/_ops/march.py.
  const auto bind_count = [&m](const char* name, void (*kernel)(const MarchCount&)) {
    m.def(name,
          [kernel](int dtype, int64_t n_rays, Pointer rays_o, Pointer rays_d, Pointer nears, Pointer fars, double near,
                   double far, int levels, int64_t x, int64_t y, int64_t z, Pointer bits, Pointer aabbs, double step,
                   double cone_angle, double max_step, int64_t max_samples, bool jitter, int64_t seed,
                   Pointer seed_tensor, int threads, Pointer stream, Pointer offsets, Pointer scratch, Log* log) {
            MarchCount a{};
            static_cast<MarchRays&>(a) =
                rays_of(dtype, n_rays, rays_o, rays_d, nears, fars, near, far, levels, x, y, z, bits, aabbs, step,
                        cone_angle, max_step, max_samples, jitter, seed, seed_tensor, threads, stream);
            a.offsets = offsets;
            a.scratch = scratch;
            a.log = log ? &log->data : nullptr;
            run(kernel, a);
          });
  };
  const auto bind_write = [&m](const char* name, void (*kernel)(const MarchWrite&)) {
    m.def(name,
          [kernel](int dtype, int64_t n_rays, Pointer rays_o, Pointer rays_d, Pointer nears, Pointer fars, double near,
                   double far, int levels, int64_t x, int64_t y, int64_t z, Pointer bits, Pointer aabbs, double step,
                   double cone_angle, double max_step, int64_t max_samples, bool jitter, int64_t seed,
                   Pointer seed_tensor, int threads, Pointer stream, Pointer sums, Log* log, int64_t capacity,
                   Pointer t_starts, Pointer t_ends, Pointer ray_indices, Pointer offsets, Pointer overflow) {
            MarchWrite a{};
            static_cast<MarchRays&>(a) =
                rays_of(dtype, n_rays, rays_o, rays_d, nears, fars, near, far, levels, x, y, z, bits, aabbs, step,
                        cone_angle, max_step, max_samples, jitter, seed, seed_tensor, threads, stream);
            a.sums = sums;
            a.log = log ? log->data : nullptr;
            a.capacity = capacity;
            a.t_starts = t_starts;
            a.t_ends = t_ends;
            a.ray_indices = ray_indices;
            a.offsets = offsets;
            a.overflow = overflow;
            run(kernel, a);
          });
  };
  bind_count("march_count_cpu", cpu::march_count);
  bind_write("march_write_cpu", cpu::march_write);
#if defined(FASTVFX_WITH_CUDA)
  bind_count("march_count_cuda", cuda::march_count);
  bind_write("march_write_cuda", cuda::march_write);
#endif
}

}  // namespace fastvfx
