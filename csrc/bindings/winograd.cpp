#include "bindings.h"

namespace fastvfx {

// Returns whether all sums were finite numbers. `after`: act, alpha, gain, clamp, scale, noise, noise_per_image, b.
void bind_winograd(py::module_& m) {
  using After = std::tuple<int, double, double, double, Pointer, Pointer, bool, Pointer>;
  m.def("winograd_fwd_cpu",
        [](int64_t images, const std::array<int64_t, 2>& channels, const std::array<int64_t, 2>& in_size,
           const std::array<int64_t, 2>& out_size, const std::array<int64_t, 2>& padding, int phases, Pointer x,
           Pointer s, Pointer w, int64_t w_out, int64_t w_in, Pointer transform, const After& after, Pointer y,
           int threads) {
          int finite = 0;
          WinogradFwd a{};
          a.in_channels = channels[0];
          a.out_channels = channels[1];
          a.height = in_size[0];
          a.width = in_size[1];
          a.out_height = out_size[0];
          a.out_width = out_size[1];
          a.pad_y = padding[0];
          a.pad_x = padding[1];
          a.phases = phases;
          a.x = x;
          a.s = s;
          a.w = w;
          a.w_out = w_out;
          a.w_in = w_in;
          a.transform = transform;
          a.after.dtype = DType::f32;
          a.after.act = BiasActivation(std::get<0>(after));
          std::tie(std::ignore, a.after.alpha, a.after.gain, a.after.clamp, std::ignore, std::ignore, std::ignore,
                   std::ignore) = after;
          a.after.scale = std::get<4>(after);
          a.after.noise = std::get<5>(after);
          a.after.noise_per_image = std::get<6>(after);
          a.after.b = std::get<7>(after);
          a.after.images = images;
          a.after.threads = threads;
          a.y = y;
          a.finite = &finite;
          run(cpu::winograd_fwd, a);
          return finite != 0;
        });
}

}  // namespace fastvfx
