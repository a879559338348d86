// 512 points through 32-64-64-3 with ReLU, the radiance head of a NeRF.
#include <memory>

#include "driver.h"

namespace fastvfx {
namespace {

constexpr int64_t kPoints = 512;
constexpr int kLayers = 3;
const int64_t widths[kLayers + 1] = {32, 64, 64, 3};

struct Network {
  std::vector<float> weights[kLayers], x, y, g_y, g_x, g_params;

  Network() {
    size_t n_params = 0;
    for (int l = 0; l < kLayers; ++l) {
      weights[l] = random_floats(size_t(widths[l] * widths[l + 1]), uint64_t(l + 1), -0.3f, 0.3f);
      n_params += weights[l].size();
    }
    x = random_floats(size_t(kPoints * widths[0]), 7, -1, 1);
    g_y = random_floats(size_t(kPoints * widths[kLayers]), 8, -1, 1);
    y.resize(g_y.size());
    g_x.resize(x.size());
    g_params.resize(n_params);
  }

  void describe(Mlp& a) const {
    a.x_dtype = a.w_dtype = DType::f32;
    a.activation = Activation::relu;
    a.output_activation = Activation::none;
    a.n_points = kPoints;
    a.n_layers = kLayers;
    for (int l = 0; l < kLayers; ++l) a.weights[l] = weights[l].data();
    for (int l = 0; l <= kLayers; ++l) a.widths[l] = widths[l];
    a.x = x.data();
    a.threads = 1;
  }
};

std::function<void()> forward() {
  auto net = std::make_shared<Network>();
  MlpFwd a{};
  net->describe(a);
  a.y = net->y.data();
  return [net, a] { cpu::mlp_fwd(a); };
}

std::function<void()> backward() {
  auto net = std::make_shared<Network>();
  MlpBwd a{};
  net->describe(a);
  a.y = net->y.data();
  a.g_y = net->g_y.data();
  a.g_x = net->g_x.data();
  a.g_params = net->g_params.data();
  return [net, a] { cpu::mlp_bwd(a); };
}

const Register fwd("mlp_fwd", forward), bwd("mlp_bwd", backward);

}  // namespace
}  // namespace fastvfx
