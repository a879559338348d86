// bias_act on the emulated GPU against the processor: every activation, storage type and layout, with and without each
// coefficient, in sizes that fill threads of 16 bytes and sizes that do not.
#include "emulated.h"

using namespace fastvfx;

namespace {

struct Case {
  DType dtype;
  BiasActivation act;
  bool interleaved;
  int64_t images, channels, pixels;
  bool scale, noise, noise_per_image, b;
  double alpha = 0.2;

  std::string name() const {
    return std::string(name_of(dtype)) + " act=" + std::to_string(int(act)) +
           (interleaved ? " interleaved " : " planar ") + std::to_string(images) + "x" + std::to_string(channels) +
           "x" + std::to_string(pixels) + (scale ? " scale" : "") + (noise ? " noise" : "") + (b ? " b" : "");
  }
};

void check(const Case& c) {
  const DType wide = accumulation_of(c.dtype);
  const int64_t N = c.images, C = c.channels, P = c.pixels, size = N * C * P, noises = c.noise_per_image ? N * P : P;
  Random random{11};
  const auto drawn = [&](DType dtype, int64_t n) { return std::move(Array(dtype, n).fill(random)); };
  const Array x = drawn(c.dtype, size), g_y = drawn(c.dtype, size), gg_x = drawn(c.dtype, size);
  const Array scale = drawn(wide, N * C), noise = drawn(wide, noises), b = drawn(wide, C);
  const Array gg_scale = drawn(wide, N * C), gg_noise = drawn(wide, noises), gg_b = drawn(wide, C);

  BiasAct shared{};
  shared.dtype = c.dtype;
  shared.act = c.act;
  shared.alpha = c.alpha;
  shared.gain = 1.4;
  shared.clamp = 1.2;
  shared.interleaved = c.interleaved;
  shared.images = N;
  shared.channels = C;
  shared.pixels = P;
  shared.x = x.data();
  shared.scale = c.scale ? scale.data() : nullptr;
  shared.noise = c.noise ? noise.data() : nullptr;
  shared.noise_per_image = c.noise_per_image;
  shared.b = c.b ? b.data() : nullptr;
  shared.threads = 1;

  const auto compare = [&](const char* what, const Array& got, const Array& want, double scale_of) {
    near(c.name() + ": " + what, got, want, 40, scale_of);
  };
  const bool from_z = FVX_ISA::bias_act::slope_needs_z(c.act, c.alpha);

  Array y(c.dtype, size), y_cpu(c.dtype, size);
  BiasActFwd fwd{};
  static_cast<BiasAct&>(fwd) = shared;
  fwd.y = y.data();
  cuda::bias_act_fwd(fwd);
  fwd.y = y_cpu.data();
  cpu::bias_act_fwd(fwd);
  compare("y", y, y_cpu, 1);

  Array g_x(c.dtype, size), g_scale(wide, N * C), g_noise(wide, N * P), g_b(wide, C);
  Array g_x_cpu(c.dtype, size), g_scale_cpu(wide, N * C), g_noise_cpu(wide, N * P), g_b_cpu(wide, C);
  BiasActBwd bwd{};
  static_cast<BiasAct&>(bwd) = shared;
  bwd.g_y = g_y.data();
  bwd.y = from_z ? nullptr : y_cpu.data();
  bwd.g_x = g_x.data();
  bwd.g_scale = c.scale ? g_scale.data() : nullptr;
  bwd.g_noise = c.noise ? g_noise.data() : nullptr;
  bwd.g_b = c.b ? g_b.data() : nullptr;
  const Array sums(wide, cuda::bias_act_sums(bwd, c.scale, c.noise, c.b));
  bwd.sums = sums.data();
  cuda::bias_act_bwd(bwd);
  bwd.g_x = g_x_cpu.data();
  if (c.scale) bwd.g_scale = g_scale_cpu.data();
  if (c.noise) bwd.g_noise = g_noise_cpu.data();
  if (c.b) bwd.g_b = g_b_cpu.data();
  cpu::bias_act_bwd(bwd);
  compare("g_x", g_x, g_x_cpu, 1);
  if (c.scale) compare("g_scale", g_scale, g_scale_cpu, std::sqrt(double(P)));
  if (c.noise) compare("g_noise", g_noise, g_noise_cpu, std::sqrt(double(C)));
  if (c.b) compare("g_b", g_b, g_b_cpu, std::sqrt(double(N * P)));

  Array gg_y(c.dtype, size), g_r(c.dtype, size), gg_y_cpu(c.dtype, size), g_r_cpu(c.dtype, size);
  BiasActBwdBwd second{};
  static_cast<BiasAct&>(second) = shared;
  second.g_y = g_y.data();
  second.y = bwd.y;
  second.gg_x = gg_x.data();
  second.gg_scale = c.scale ? gg_scale.data() : nullptr;
  second.gg_noise = c.noise ? gg_noise.data() : nullptr;
  second.gg_b = c.b ? gg_b.data() : nullptr;
  const auto outputs = [&](Array& of_y, Array& of_x, Array& of_scale, Array& of_r) {
    second.gg_y = of_y.data();
    second.g_x = c.scale ? of_x.data() : nullptr;
    second.g_scale = c.scale ? of_scale.data() : nullptr;
    second.g_r = of_r.data();
  };
  const Array second_sums(wide, cuda::bias_act_sums(second, c.scale, false, false));
  second.sums = second_sums.data();
  outputs(gg_y, g_x, g_scale, g_r);
  cuda::bias_act_bwd_bwd(second);
  outputs(gg_y_cpu, g_x_cpu, g_scale_cpu, g_r_cpu);
  cpu::bias_act_bwd_bwd(second);
  compare("gg_y", gg_y, gg_y_cpu, 2);
  compare("g_r", g_r, g_r_cpu, 4);
  if (c.scale) {
    compare("g_x, second", g_x, g_x_cpu, 2);
    compare("g_scale, second", g_scale, g_scale_cpu, std::sqrt(double(P)));
  }
}

}  // namespace

int main() {
  return in_every_order([] {
    using A = BiasActivation;
    for (DType dtype : every_dtype) {
      for (A act : {A::linear, A::relu, A::lrelu, A::tanh, A::sigmoid, A::elu, A::selu, A::softplus, A::swish}) {
        check({dtype, act, false, 1, 2, 40, false, false, false, true});
      }
      for (bool interleaved : {false, true}) {
        check({dtype, A::lrelu, interleaved, 2, 16, 24, true, true, true, true});
        check({dtype, A::swish, interleaved, 2, 5, 7, true, true, false, true});
        check({dtype, A::lrelu, interleaved, 2, 3, 5, true, true, true, false, -0.5});
      }
    }
    for (bool interleaved : {false, true}) {
      check({DType::f32, A::lrelu, interleaved, 2, 70, 3, true, true, true, true});    // more steps than a block has
      check({DType::f32, A::lrelu, interleaved, 1, 3, 700, true, true, true, true});   // several blocks
      check({DType::f32, A::tanh, interleaved, 1, 1100, 2, true, true, false, true});  // of either
      check({DType::f32, A::linear, interleaved, 1, 1, 300, false, false, false, false});
    }
  });
}
