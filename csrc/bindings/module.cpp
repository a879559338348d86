// fastvfx._C: what was built, and the kernels.
#include "bindings.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

// A wish: where the system has no huge pages, or none left, nothing changes.
void use_huge_pages(std::uintptr_t address, std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const std::uintptr_t page = std::uintptr_t(sysconf(_SC_PAGESIZE));
  const std::uintptr_t begin = (address + page - 1) / page * page, end = (address + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)address, (void)bytes;
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using namespace fastvfx;
  m.attr("cuda_archs") = FASTVFX_CUDA_ARCHS;  // "" without CUDA
  m.attr("cuda_compiler") = FASTVFX_CUDA_COMPILER;
  m.attr("compiler") = FASTVFX_COMPILER;
#if defined(_OPENMP)
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  m.def("detected_isa", [] { return isa_name(detected_isa()); });
  m.def("active_isa", [] { return isa_name(active_isa()); });
  m.def("set_isa", [](const std::string& name) {
    for (Isa isa : {Isa::generic, Isa::x86_64_v2, Isa::x86_64_v3, Isa::x86_64_v4}) {
      if (name == isa_name(isa)) return set_isa(isa);
    }
    throw py::value_error("fastvfx: expected generic, x86-64-v2, x86-64-v3 or x86-64-v4, got " + name);
  });
  m.def("detected_amx", &detected_amx);
  m.def("active_amx", &active_amx);
  m.def("set_amx", &set_amx);
  m.def("use_huge_pages", &use_huge_pages);
  bind_aabb(m);
  bind_attention(m);
  bind_bias_act(m);
  bind_composite(m);
  bind_hashgrid(m);
  bind_march(m);
  bind_mlp(m);
  bind_filtered_lrelu(m);
  bind_frequency(m);
  bind_occupancy(m);
  bind_spherical_harmonics(m);
  bind_square_sums(m);
  bind_transpose(m);
  bind_upfirdn2d(m);
  bind_winograd(m);
}
