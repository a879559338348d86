#include "bindings.h"

namespace fastvfx {

void bind_transpose(py::module_& m) {
  m.def("transpose_cpu",
        [](std::array<int64_t, 3> sizes, std::array<int64_t, 2> pitches, Pointer from, Pointer to, int threads) {
          run(cpu::transpose, Transpose{sizes[0], sizes[1], sizes[2], pitches[0], pitches[1], from, to, threads});
        });
}

}  // namespace fastvfx
