#include <array>

#include "bindings.h"

namespace fastvfx {
namespace {

using Axes = std::array<int64_t, 2>;  // y, x

Upfirdn2dShape shape_of(int dtype, bool channels_last, int64_t n, int64_t channels, Axes in, Axes out, Axes taps,
                        Axes up, Axes down, Axes pad, bool flip, double gain, int threads, Pointer stream) {
  return {DType(dtype), channels_last, n,          channels,   in[0],        in[1],        out[0], out[1],
          int(taps[0]), int(taps[1]),  int(up[0]), int(up[1]), int(down[0]), int(down[1]), pad[0], pad[1],
          flip,         gain,          threads,    stream};
}

}  // namespace

void bind_upfirdn2d(py::module_& m) {
  const auto bind = [&m](const char* name, void (*kernel)(const Upfirdn2dFwd&)) {
    m.def(name, [kernel](int dtype, bool channels_last, int64_t n, int64_t channels, Axes in, Axes out, Axes taps,
                         Axes up, Axes down, Axes pad, bool flip, double gain, int threads, Pointer stream,
                         bool separable, Pointer x, Pointer f, Pointer to) {
      Upfirdn2dFwd a{};
      static_cast<Upfirdn2dShape&>(a) =
          shape_of(dtype, channels_last, n, channels, in, out, taps, up, down, pad, flip, gain, threads, stream);
      a.separable = separable;
      a.x = x;
      a.f = f;
      a.out = to;
      run(kernel, a);
    });
  };
  const auto bind_bwd_f = [&m](const char* name, void (*kernel)(const Upfirdn2dBwdF&)) {
    m.def(name, [kernel](int dtype, bool channels_last, int64_t n, int64_t channels, Axes in, Axes out, Axes taps,
                         Axes up, Axes down, Axes pad, bool flip, double gain, int threads, Pointer stream, Pointer x,
                         Pointer g_out, Pointer g_f, Pointer work) {
      Upfirdn2dBwdF a{};
      static_cast<Upfirdn2dShape&>(a) =
          shape_of(dtype, channels_last, n, channels, in, out, taps, up, down, pad, flip, gain, threads, stream);
      a.x = x;
      a.g_out = g_out;
      a.g_f = g_f;
      a.work = work;
      run(kernel, a);
    });
  };
  bind("upfirdn2d_fwd_cpu", cpu::upfirdn2d_fwd);
  bind_bwd_f("upfirdn2d_bwd_f_cpu", cpu::upfirdn2d_bwd_f);
#if defined(FASTVFX_WITH_CUDA)
  bind("upfirdn2d_fwd_cuda", cuda::upfirdn2d_fwd);
  bind_bwd_f("upfirdn2d_bwd_f_cuda", cuda::upfirdn2d_bwd_f);
#endif
}

}  // namespace fastvfx
