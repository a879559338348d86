// fastvfx._C: what was built, and the kernels.
#include "bindings.h"

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
  bind_composite(m);
  bind_mlp(m);
  bind_spherical_harmonics(m);
}
