#include "bindings.h"

namespace fastvfx {
namespace {

FrequencyRows rows_of(int dtype, int layout, bool include_input, int64_t n, int dims, int n_frequencies, Pointer x,
                      int threads, Pointer stream) {
  return {DType(dtype), FrequencyLayout(layout), include_input, n, dims, n_frequencies, x, threads, stream};
}

}  // namespace

void bind_frequency(py::module_& m) {
  const auto bind_fwd = [&m](const char* name, void (*kernel)(const FrequencyFwd&)) {
    m.def(name, [kernel](int dtype, int layout, bool include_input, int64_t n, int dims, int n_frequencies, Pointer x,
                         int threads, Pointer stream, Pointer out) {
      FrequencyFwd a{};
      static_cast<FrequencyRows&>(a) =
          rows_of(dtype, layout, include_input, n, dims, n_frequencies, x, threads, stream);
      a.out = out;
      run(kernel, a);
    });
  };
  const auto bind_bwd = [&m](const char* name, void (*kernel)(const FrequencyBwd&)) {
    m.def(name, [kernel](int dtype, int layout, bool include_input, int64_t n, int dims, int n_frequencies, Pointer x,
                         int threads, Pointer stream, Pointer g_out, Pointer g_x) {
      FrequencyBwd a{};
      static_cast<FrequencyRows&>(a) =
          rows_of(dtype, layout, include_input, n, dims, n_frequencies, x, threads, stream);
      a.g_out = g_out;
      a.g_x = g_x;
      run(kernel, a);
    });
  };
  const auto bind_bwd_bwd = [&m](const char* name, void (*kernel)(const FrequencyBwdBwd&)) {
    m.def(name, [kernel](int dtype, int layout, bool include_input, int64_t n, int dims, int n_frequencies, Pointer x,
                         int threads, Pointer stream, Pointer g_out, Pointer gg_x, Pointer g_x, Pointer gg_out) {
      FrequencyBwdBwd a{};
      static_cast<FrequencyRows&>(a) =
          rows_of(dtype, layout, include_input, n, dims, n_frequencies, x, threads, stream);
      a.g_out = g_out;
      a.gg_x = gg_x;
      a.g_x = g_x;
      a.gg_out = gg_out;
      run(kernel, a);
    });
  };
  bind_fwd("frequency_fwd_cpu", cpu::frequency_fwd);
  bind_bwd("frequency_bwd_cpu", cpu::frequency_bwd);
  bind_bwd_bwd("frequency_bwd_bwd_cpu", cpu::frequency_bwd_bwd);
#if defined(FASTVFX_WITH_CUDA)
  bind_fwd("frequency_fwd_cuda", cuda::frequency_fwd);
  bind_bwd("frequency_bwd_cuda", cuda::frequency_bwd);
  bind_bwd_bwd("frequency_bwd_bwd_cuda", cuda::frequency_bwd_bwd);
#endif
}

}  // namespace fastvfx
