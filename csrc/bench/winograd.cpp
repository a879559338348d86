// An image of 32 x 32 with 64 channels: convolved to 64, and to 32 with the phases of an upsampling by 2. And the
// squares of such a weight, and the image transposed from planes to pixels.
#include <memory>

#include "driver.h"

namespace fastvfx {
namespace {

constexpr int64_t kIn = 64, kSize = 32;

struct Data {
  std::vector<float> x = random_floats(kIn * kSize * kSize, 1, -1, 1), w = random_floats(9 * kIn * 64, 2, -1, 1);
  std::vector<float> transform = random_floats(2 * 2 * 18, 3, -1, 1), y = std::vector<float>(64 * 4 * kSize * kSize);
  int finite = 0;
};

std::function<void()> convolution(int phases, int64_t out) {
  auto data = std::make_shared<Data>();
  WinogradFwd a{};
  a.in_channels = kIn;
  a.out_channels = out;
  a.height = a.width = a.out_height = a.out_width = kSize;
  a.pad_y = a.pad_x = 1;
  a.phases = phases;
  a.x = data->x.data();
  a.w = data->w.data();
  a.w_out = 9 * kIn;
  a.w_in = 9;
  a.transform = data->transform.data();
  a.after.dtype = DType::f32;
  a.after.act = BiasActivation::lrelu;
  a.after.alpha = 0.2;
  a.after.gain = 1.4;
  a.after.clamp = 256;
  a.after.images = 1;
  a.after.threads = 1;
  a.y = data->y.data();
  a.finite = &data->finite;
  return [data, a] { cpu::winograd_fwd(a); };
}

std::function<void()> squares() {
  auto data = std::make_shared<Data>();
  const SquareSums a{DType::f32, kIn * 64, 9, data->w.data(), data->y.data(), 1};
  return [data, a] { cpu::square_sums(a); };
}

std::function<void()> to_pixels() {
  auto data = std::make_shared<Data>();
  const int64_t pixels = kSize * kSize;
  const Transpose a{1, kIn, pixels, pixels, kIn, data->x.data(), data->y.data(), 1};
  return [data, a] { cpu::transpose(a); };
}

const Register plain("winograd_fwd", [] { return convolution(1, 64); });
const Register up("winograd_fwd_up2", [] { return convolution(2, 32); });
const Register sums("square_sums", squares);
const Register pixels("transpose", to_pixels);

}  // namespace
}  // namespace fastvfx
