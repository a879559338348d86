#include "bindings.h"

namespace fastvfx {

void bind_square_sums(py::module_& m) {
  m.def("square_sums_cpu", [](int dtype, int64_t rows, int64_t columns, Pointer x, Pointer sums, int threads) {
    run(cpu::square_sums, SquareSums{DType(dtype), rows, columns, x, sums, threads});
  });
}

}  // namespace fastvfx
