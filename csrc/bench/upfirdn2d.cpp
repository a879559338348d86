// A 64 x 64 image of 16 channels: up and down by 2 with StyleGAN2's filter, in planes and with channels last; with
// StyleGAN3's 12 taps; a filter that is not of rank one; the gradient to a filter.
#include <memory>

#include "driver.h"

namespace fastvfx {
namespace {

constexpr int64_t kChannels = 16, kSize = 64;

struct Data {
  std::vector<float> x = random_floats(kChannels * kSize * kSize, 1, -1, 1);
  std::vector<float> out = random_floats(4 * kChannels * kSize * kSize, 2, -1, 1);
  std::vector<float> f;
};

template <class Args>
Args arguments(const Data& data, int taps, int up, int down) {
  Args a{};
  a.dtype = DType::f32;
  a.n = 1;
  a.channels = kChannels;
  a.in_h = a.in_w = kSize;
  a.out_h = a.out_w = kSize * up / down;
  a.taps_y = a.taps_x = taps;
  a.up_y = a.up_x = up;
  a.down_y = a.down_x = down;
  a.pad_y = a.pad_x = taps / 2;
  a.gain = 1;
  a.threads = 1;
  a.x = data.x.data();
  return a;
}

std::function<void()> filter(std::vector<float> f, int taps, int up, int down, bool channels_last = false) {
  auto data = std::make_shared<Data>();
  data->f = std::move(f);
  auto a = arguments<Upfirdn2dFwd>(*data, taps, up, down);
  a.channels_last = channels_last;
  a.separable = int(data->f.size()) == taps;
  a.f = data->f.data();
  a.out = data->out.data();
  return [data, a] { cpu::upfirdn2d_fwd(a); };
}

std::vector<float> smooth() {
  const float taps[] = {1, 3, 3, 1};
  std::vector<float> f;
  for (float v : taps) {
    for (float u : taps) f.push_back(v * u / 64);
  }
  return f;
}

const Register up2("upfirdn2d_fwd_up2", [] { return filter(smooth(), 4, 2, 1); });
const Register down2("upfirdn2d_fwd_down2", [] { return filter(smooth(), 4, 1, 2); });
const Register up2_last("upfirdn2d_fwd_up2_channels_last", [] { return filter(smooth(), 4, 2, 1, true); });
const Register down2_last("upfirdn2d_fwd_down2_channels_last", [] { return filter(smooth(), 4, 1, 2, true); });
const Register up2_12("upfirdn2d_fwd_up2_12_taps", [] { return filter(random_floats(12, 3), 12, 2, 1); });
const Register down2_12("upfirdn2d_fwd_down2_12_taps", [] { return filter(random_floats(12, 3), 12, 1, 2); });
const Register full("upfirdn2d_fwd_4x4", [] { return filter(random_floats(16, 3), 4, 1, 1); });

std::function<void()> gradient_to_filter() {
  auto data = std::make_shared<Data>();
  data->f.resize(16);
  auto a = arguments<Upfirdn2dBwdF>(*data, 4, 2, 1);
  a.g_out = data->out.data();
  a.g_f = data->f.data();
  return [data, a] { cpu::upfirdn2d_bwd_f(a); };
}

const Register bwd_f("upfirdn2d_bwd_f", gradient_to_filter);

}  // namespace
}  // namespace fastvfx
