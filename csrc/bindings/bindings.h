// Bindings take integers only: pointers, sizes, codes. Shapes and dtypes were checked in Python.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "fastvfx/kernels.h"

namespace fastvfx {

namespace py = pybind11;

// A tensor's address; 0 stands for a tensor that is not there.
struct Pointer {
  std::uintptr_t address;
  template <class T>
  operator T*() const {
    return reinterpret_cast<T*>(address);
  }
};

// A kernel may run for long: other Python threads go on meanwhile.
template <class Kernel, class Args>
void run(Kernel kernel, const Args& args) {
  py::gil_scoped_release release;
  kernel(args);
}

void bind_aabb(py::module_& m);
void bind_attention(py::module_& m);
void bind_bias_act(py::module_& m);
void bind_composite(py::module_& m);
void bind_hashgrid(py::module_& m);
void bind_march(py::module_& m);
void bind_mlp(py::module_& m);
void bind_filtered_lrelu(py::module_& m);
void bind_frequency(py::module_& m);
void bind_occupancy(py::module_& m);
void bind_spherical_harmonics(py::module_& m);
void bind_square_sums(py::module_& m);
void bind_transpose(py::module_& m);
void bind_upfirdn2d(py::module_& m);
void bind_winograd(py::module_& m);

}  // namespace fastvfx

namespace pybind11 {
namespace detail {
template <>
struct type_caster<fastvfx::Pointer> {
  PYBIND11_TYPE_CASTER(fastvfx::Pointer, const_name("int"));
  bool load(handle source, bool) {
    value.address = PyLong_AsSize_t(source.ptr());
    if (!PyErr_Occurred()) return true;
    PyErr_Clear();
    return false;
  }
};
}  // namespace detail
}  // namespace pybind11
