#include <pybind11/stl.h>

#include "bindings.h"
#include "fastvfx/workspace.h"

namespace fastvfx {
namespace {

HashGrid grid_of(int dtype, int interpolation, int dims, int features, bool zero_outside, double shift,
                 const std::vector<double>& scales, const std::vector<int64_t>& levels, int64_t n_points, Pointer x,
                 Pointer direction, int threads, Pointer stream) {
  HashGrid a{};
  a.dtype = DType(dtype);
  a.interpolation = Interpolation(interpolation);
  a.dims = dims;
  a.features = features;
  a.zero_outside = zero_outside;
  a.shift = float(shift);
  a.n_points = n_points;
  a.x = x;
  a.direction = direction;
  a.threads = threads;
  a.stream = stream;
  // Each level: offset, entries, kind, multipliers; see HashGridSpec.packed in fastvfx/grid.py.
  const size_t fields = size_t(3 + dims);
  if (dims < 1 || dims > kMaxGridDims || scales.size() > size_t(kMaxGridLevels) ||
      levels.size() != scales.size() * fields) {
    throw py::value_error("fastvfx.hashgrid: expected 3 + dims integers for each level");
  }
  a.n_levels = int(scales.size());
  for (int l = 0; l < a.n_levels; ++l) {
    const int64_t* packed = levels.data() + l * fields;
    GridLevel& level = a.levels[l];
    level.scale = float(scales[l]);
    level.offset = packed[0];
    level.entries = uint32_t(packed[1]);
    level.kind = GridIndex(packed[2]);
    for (int d = 0; d < dims; ++d) level.multipliers[d] = uint32_t(packed[3 + d]);
  }
  return a;
}

// Host memory of a large result; goes back to the workspace when the last tensor over it dies.
struct HostBlock {
  explicit HostBlock(size_t n) : bytes(n), address(workspace_acquire(n)) {
    if (!address) throw std::bad_alloc();
  }
  ~HostBlock() { workspace_release(address); }
  HostBlock(const HostBlock&) = delete;
  size_t bytes;
  void* address;
};

}  // namespace

void bind_hashgrid(py::module_& m) {
  py::class_<HostBlock>(m, "HostBlock", py::buffer_protocol()).def(py::init<size_t>()).def_buffer([](HostBlock& b) {
    return py::buffer_info(static_cast<uint8_t*>(b.address), py::ssize_t(b.bytes));
  });
  m.def("workspace_trim", [] { workspace_trim(); });
  m.def("workspace_kept_bytes", [] { return workspace_kept_bytes(); });

  // The arguments up to `stream` are those of grid_of(), gathered by fastvfx/_ops/hashgrid.py.
  const auto bind_fwd = [&m](const char* name, void (*kernel)(const HashGridFwd&)) {
    m.def(name, [kernel](int dtype, int interpolation, int dims, int features, bool zero_outside, double shift,
                         const std::vector<double>& scales, const std::vector<int64_t>& levels, int64_t n_points,
                         Pointer x, Pointer direction, int threads, Pointer stream, Pointer table, Pointer out) {
      HashGridFwd a{};
      static_cast<HashGrid&>(a) = grid_of(dtype, interpolation, dims, features, zero_outside, shift, scales, levels,
                                          n_points, x, direction, threads, stream);
      a.table = table;
      a.out = out;
      run(kernel, a);
    });
  };
  const auto bind_bwd_table = [&m](const char* name, void (*kernel)(const HashGridBwdTable&)) {
    m.def(name, [kernel](int dtype, int interpolation, int dims, int features, bool zero_outside, double shift,
                         const std::vector<double>& scales, const std::vector<int64_t>& levels, int64_t n_points,
                         Pointer x, Pointer direction, int threads, Pointer stream, Pointer g_out, Pointer g_table) {
      HashGridBwdTable a{};
      static_cast<HashGrid&>(a) = grid_of(dtype, interpolation, dims, features, zero_outside, shift, scales, levels,
                                          n_points, x, direction, threads, stream);
      a.g_out = g_out;
      a.g_table = g_table;
      run(kernel, a);
    });
  };
  const auto bind_bwd_x = [&m](const char* name, void (*kernel)(const HashGridBwdX&)) {
    m.def(name,
          [kernel](int dtype, int interpolation, int dims, int features, bool zero_outside, double shift,
                   const std::vector<double>& scales, const std::vector<int64_t>& levels, int64_t n_points, Pointer x,
                   Pointer direction, int threads, Pointer stream, Pointer table, Pointer g_out, Pointer g_x) {
            HashGridBwdX a{};
            static_cast<HashGrid&>(a) = grid_of(dtype, interpolation, dims, features, zero_outside, shift, scales,
                                                levels, n_points, x, direction, threads, stream);
            a.table = table;
            a.g_out = g_out;
            a.g_x = g_x;
            run(kernel, a);
          });
  };
  bind_fwd("hashgrid_fwd_cpu", cpu::hashgrid_fwd);
  bind_bwd_table("hashgrid_bwd_table_cpu", cpu::hashgrid_bwd_table);
  bind_bwd_x("hashgrid_bwd_x_cpu", cpu::hashgrid_bwd_x);
#if defined(FASTVFX_WITH_CUDA)
  bind_fwd("hashgrid_fwd_cuda", cuda::hashgrid_fwd);
  bind_bwd_table("hashgrid_bwd_table_cuda", cuda::hashgrid_bwd_table);
  bind_bwd_x("hashgrid_bwd_x_cuda", cuda::hashgrid_bwd_x);
#endif
}

}  // namespace fastvfx
