#include "bindings.h"

namespace fastvfx {

void bind_occupancy(py::module_& m) {
  const auto bind_pack = [&m](const char* name, void (*kernel)(const OccupancyPack&)) {
    m.def(name, [kernel](int64_t levels, int64_t x, int64_t y, int64_t z, Pointer cells, Pointer threshold,
                         Pointer bits, int threads, Pointer stream) {
      run(kernel, OccupancyPack{threshold.address != 0, levels, {x, y, z}, cells, threshold, bits, threads, stream});
    });
  };
  const auto bind_unpack = [&m](const char* name, void (*kernel)(const OccupancyUnpack&)) {
    m.def(name,
          [kernel](int64_t levels, int64_t x, int64_t y, int64_t z, Pointer bits, Pointer cells, int threads,
                   Pointer stream) { run(kernel, OccupancyUnpack{levels, {x, y, z}, bits, cells, threads, stream}); });
  };
  bind_pack("occupancy_pack_cpu", cpu::occupancy_pack);
  bind_unpack("occupancy_unpack_cpu", cpu::occupancy_unpack);
#if defined(FASTVFX_WITH_CUDA)
  bind_pack("occupancy_pack_cuda", cuda::occupancy_pack);
  bind_unpack("occupancy_unpack_cuda", cuda::occupancy_unpack);
#endif
}

}  // namespace fastvfx
