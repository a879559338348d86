#include "bindings.h"

namespace fastvfx {
namespace {

// Everything that the three directions share, made once per call in Python.
using Shared = std::tuple<int, int, double, double, double, bool, int64_t, int64_t, int64_t, Pointer, Pointer, Pointer,
                          bool, Pointer, int, Pointer>;

BiasAct shared_of(const Shared& s) {
  const auto& [dtype, act, alpha, gain, clamp, interleaved, images, channels, pixels, x, scale, noise, noise_per_image,
               b, threads, stream] = s;
  return {DType(dtype), BiasActivation(act), alpha, gain,    clamp, interleaved, images, channels, pixels, x, scale,
          noise,        noise_per_image,     b,     threads, stream};
}

}  // namespace

void bind_bias_act(py::module_& m) {
  const auto bind_fwd = [&m](const char* name, void (*kernel)(const BiasActFwd&)) {
    m.def(name, [kernel](const Shared& shared, Pointer y) {
      BiasActFwd a{};
      static_cast<BiasAct&>(a) = shared_of(shared);
      a.y = y;
      run(kernel, a);
    });
  };
  const auto bind_bwd = [&m](const char* name, void (*kernel)(const BiasActBwd&)) {
    m.def(name, [kernel](const Shared& shared, Pointer g_y, Pointer y, Pointer g_x, Pointer g_scale, Pointer g_noise,
                         Pointer g_b, Pointer sums) {
      BiasActBwd a{};
      static_cast<BiasAct&>(a) = shared_of(shared);
      a.g_y = g_y;
      a.y = y;
      a.g_x = g_x;
      a.g_scale = g_scale;
      a.g_noise = g_noise;
      a.g_b = g_b;
      a.sums = sums;
      run(kernel, a);
    });
  };
  const auto bind_bwd_bwd = [&m](const char* name, void (*kernel)(const BiasActBwdBwd&)) {
    m.def(name, [kernel](const Shared& shared, Pointer g_y, Pointer y, Pointer gg_x, Pointer gg_scale, Pointer gg_noise,
                         Pointer gg_b, Pointer gg_y, Pointer g_x, Pointer g_scale, Pointer g_r, Pointer sums) {
      BiasActBwdBwd a{};
      static_cast<BiasAct&>(a) = shared_of(shared);
      a.g_y = g_y;
      a.y = y;
      a.gg_x = gg_x;
      a.gg_scale = gg_scale;
      a.gg_noise = gg_noise;
      a.gg_b = gg_b;
      a.gg_y = gg_y;
      a.g_x = g_x;
      a.g_scale = g_scale;
      a.g_r = g_r;
      a.sums = sums;
      run(kernel, a);
    });
  };
  bind_fwd("bias_act_fwd_cpu", cpu::bias_act_fwd);
  bind_bwd("bias_act_bwd_cpu", cpu::bias_act_bwd);
  bind_bwd_bwd("bias_act_bwd_bwd_cpu", cpu::bias_act_bwd_bwd);
#if defined(FASTVFX_WITH_CUDA)
  bind_fwd("bias_act_fwd_cuda", cuda::bias_act_fwd);
  bind_bwd("bias_act_bwd_cuda", cuda::bias_act_bwd);
  bind_bwd_bwd("bias_act_bwd_bwd_cuda", cuda::bias_act_bwd_bwd);
  m.def("bias_act_sums", [](const Shared& shared, bool g_scale, bool g_noise, bool g_b) {
    return cuda::bias_act_sums(shared_of(shared), g_scale, g_noise, g_b);
  });
#endif
}

}  // namespace fastvfx
