// Leaky ReLU of 16 channels of 64 x 64 behind a bias, planar; the same with scale and noise, interleaved.
#include <memory>

#include "driver.h"

namespace fastvfx {
namespace {

constexpr int64_t kChannels = 16, kPixels = 4096, kSize = kChannels * kPixels;

struct Data {
  std::vector<float> x = random_floats(kSize, 1, -1, 1), g_y = random_floats(kSize, 2, -1, 1);
  std::vector<float> gg_x = random_floats(kSize, 3, -1, 1);
  std::vector<float> scale = random_floats(kChannels, 4), b = random_floats(kChannels, 5, -1, 1);
  std::vector<float> noise = random_floats(kPixels, 6, -1, 1);
  std::vector<float> out = std::vector<float>(kSize), g_scale = std::vector<float>(kChannels);
  std::vector<float> g_noise = std::vector<float>(kPixels), g_b = std::vector<float>(kChannels);
};

template <class Args>
Args arguments(const Data& data, bool scaled) {
  Args a{};
  a.dtype = DType::f32;
  a.act = BiasActivation::lrelu;
  a.alpha = 0.2;
  a.gain = 1.4;
  a.clamp = 256;
  a.interleaved = scaled;
  a.images = 1;
  a.channels = kChannels;
  a.pixels = kPixels;
  a.x = data.x.data();
  a.b = data.b.data();
  a.scale = scaled ? data.scale.data() : nullptr;
  a.noise = scaled ? data.noise.data() : nullptr;
  a.threads = 1;
  return a;
}

template <bool scaled>
std::function<void()> forward() {
  auto data = std::make_shared<Data>();
  auto a = arguments<BiasActFwd>(*data, scaled);
  a.y = data->out.data();
  return [data, a] { cpu::bias_act_fwd(a); };
}

template <bool scaled>
std::function<void()> backward() {
  auto data = std::make_shared<Data>();
  auto a = arguments<BiasActBwd>(*data, scaled);
  a.g_y = data->g_y.data();
  a.y = data->x.data();
  a.g_x = data->out.data();
  a.g_b = data->g_b.data();
  a.g_scale = scaled ? data->g_scale.data() : nullptr;
  a.g_noise = scaled ? data->g_noise.data() : nullptr;
  return [data, a] { cpu::bias_act_bwd(a); };
}

std::function<void()> double_backward() {
  auto data = std::make_shared<Data>();
  auto a = arguments<BiasActBwdBwd>(*data, false);
  a.g_y = data->g_y.data();
  a.y = data->x.data();
  a.gg_x = data->gg_x.data();
  a.gg_b = data->b.data();
  a.gg_y = data->out.data();
  return [data, a] { cpu::bias_act_bwd_bwd(a); };
}

const Register fwd("bias_act_fwd", forward<false>), bwd("bias_act_bwd", backward<false>);
const Register scaled_fwd("bias_act_fwd_scaled", forward<true>), scaled_bwd("bias_act_bwd_scaled", backward<true>);
const Register bwd_bwd("bias_act_bwd_bwd", double_backward);

}  // namespace
}  // namespace fastvfx
