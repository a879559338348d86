// Two planes as in StyleGAN3: 84 x 84 pixels, 12 taps for each factor of 2, slopes written; the gradient, which reads
// them; upsampling by 4; and a radial filter for downsampling.
#include <limits>
#include <memory>

#include "driver.h"

namespace fastvfx {
namespace {

constexpr int64_t kPlanes = 2, kSize = 84;

struct Data {
  int64_t in, out;
  std::vector<float> up_taps, down_taps, bias = random_floats(kPlanes, 3, -1, 1);
  std::vector<float> x, result;
  std::vector<uint8_t> mask;

  Data(int64_t in_, int64_t out_, size_t n_up, size_t n_down)
      : in(in_),
        out(out_),
        up_taps(random_floats(n_up, 1, -1, 1)),
        down_taps(random_floats(n_down, 2, -1, 1)),
        x(random_floats(size_t(kPlanes * in * in), 4, -1, 1)),
        result(size_t(kPlanes * out * out)),
        mask(size_t(kPlanes) * 512 * 256) {}
};

FilteredLrelu arguments(Data& data, int up, int down, bool radial) {
  FilteredLrelu a{};
  a.dtype = DType::f32;
  a.planes = a.channels = kPlanes;
  a.height = a.width = data.in;
  a.out_height = a.out_width = data.out;
  a.up = up;
  a.down = down;
  const int taps_up = 6 * up, taps_down = radial ? 12 : 6 * down;
  a.left = a.top = 13;
  a.fu = {data.up_taps.data(), taps_up, taps_up, true, false};
  a.fd = {data.down_taps.data(), taps_down, taps_down, !radial, false};
  a.scale = up * up;
  a.slope = 0.2;
  a.clamp = 4;
  a.mask = data.mask.data();
  a.mask_height = a.mask_width = (data.out - 1) * down + taps_down;
  a.mask_up = up;
  a.mask_down = down;
  a.mask_padding = 13;
  a.x = data.x.data();
  a.out = data.result.data();
  a.threads = 1;
  return a;
}

std::function<void()> forward(int up, int down, bool radial) {
  auto data = std::make_shared<Data>(kSize, kSize, size_t(6 * up), radial ? 144 : size_t(6 * down));
  auto a = arguments(*data, up, down, radial);
  a.mask_mode = SlopeMask::write;
  a.bias = data->bias.data();
  return [data, a] { cpu::filtered_lrelu_pass(a); };
}

// The transposed pass of one that upsampled by 2 and downsampled by 2; what the slopes are does not matter here.
std::function<void()> backward() {
  auto data = std::make_shared<Data>(kSize, kSize, 12, 12);
  auto a = arguments(*data, 2, 2, false);
  a.mask_mode = SlopeMask::read;
  a.mask_left = a.mask_top = -2;
  a.left = a.top = 9;
  return [data, a] { cpu::filtered_lrelu_pass(a); };
}

const Register fwd("filtered_lrelu_pass_fwd", [] { return forward(2, 2, false); });
const Register fwd_up4("filtered_lrelu_pass_fwd_up4", [] { return forward(4, 2, false); });
const Register fwd_radial("filtered_lrelu_pass_fwd_radial", [] { return forward(2, 2, true); });
const Register bwd("filtered_lrelu_pass_bwd", backward);

}  // namespace
}  // namespace fastvfx
