#include <vector>

#include "check.h"

using namespace fastvfx;

// A network with odd widths against plain loops in double precision; gradients against finite differences of those.
namespace {

constexpr int64_t kPoints = 101;
constexpr int kLayers = 3;
const int64_t widths[kLayers + 1] = {5, 33, 18, 3};

struct Network {
  std::vector<double> weights[kLayers], x;
};

Network make_network() {
  Network net;
  Random random{11};
  for (int l = 0; l < kLayers; ++l) {
    net.weights[l].resize(size_t(widths[l] * widths[l + 1]));
    for (double& w : net.weights[l]) w = float(0.6 * (random() - 0.5));
  }
  net.x.resize(kPoints * 5);
  for (double& v : net.x) v = float(2 * random() - 1);
  return net;
}

std::vector<double> outputs(const Network& net, int64_t point) {
  std::vector<double> h(net.x.begin() + point * 5, net.x.begin() + (point + 1) * 5);
  for (int l = 0; l < kLayers; ++l) {
    std::vector<double> z(size_t(widths[l + 1]), 0.0);
    for (size_t o = 0; o < z.size(); ++o) {
      for (size_t i = 0; i < h.size(); ++i) z[o] += net.weights[l][o * h.size() + i] * h[i];
      z[o] = l + 1 < kLayers ? (z[o] > 0 ? z[o] : 0) : 1 / (1 + std::exp(-z[o]));
    }
    h = z;
  }
  return h;
}

double sum_of_outputs(const Network& net) {
  double sum = 0;
  for (int64_t point = 0; point < kPoints; ++point) {
    for (double y : outputs(net, point)) sum += y;
  }
  return sum;
}

std::vector<float> floats(const std::vector<double>& v) { return {v.begin(), v.end()}; }

void test_mlp() {
  const Network net = make_network();
  std::vector<float> weights[kLayers], x = floats(net.x), y(kPoints * 3);
  size_t n_params = 0;
  MlpFwd fwd{};
  fwd.x_dtype = fwd.w_dtype = DType::f32;
  fwd.activation = Activation::relu;
  fwd.output_activation = Activation::sigmoid;
  fwd.n_points = kPoints;
  fwd.n_layers = kLayers;
  for (int l = 0; l < kLayers; ++l) {
    weights[l] = floats(net.weights[l]);
    n_params += weights[l].size();
    fwd.weights[l] = weights[l].data();
  }
  for (int l = 0; l <= kLayers; ++l) fwd.widths[l] = widths[l];
  fwd.x = x.data();
  fwd.y = y.data();
  fwd.threads = 2;
  cpu::mlp_fwd(fwd);
  for (int64_t point = 0; point < kPoints; ++point) {
    const std::vector<double> exact = outputs(net, point);
    for (size_t j = 0; j < exact.size(); ++j) near("y", y[size_t(point) * 3 + j], exact[j], 1e-6);
  }

  const std::vector<float> ones(kPoints * 3, 1.0f);
  std::vector<float> g_x(x.size()), g_params(n_params);
  MlpBwd bwd{};
  static_cast<Mlp&>(bwd) = fwd;
  bwd.y = y.data();
  bwd.g_y = ones.data();
  bwd.g_x = g_x.data();
  bwd.g_params = g_params.data();
  cpu::mlp_bwd(bwd);
  const auto difference = [&](auto&& entry) {
    Network more = net, less = net;
    entry(more) += 1e-6;
    entry(less) -= 1e-6;
    return (sum_of_outputs(more) - sum_of_outputs(less)) / 2e-6;
  };
  for (size_t i = 0; i < g_x.size(); i += 37) {
    near("g_x", g_x[i], difference([i](Network& m) -> double& { return m.x[i]; }), 3e-6);
  }
  size_t offset = 0;
  for (int l = 0; l < kLayers; ++l) {
    for (size_t i = 0; i < weights[l].size(); i += 41) {
      near("g_params", g_params[offset + i], difference([l, i](Network& m) -> double& { return m.weights[l][i]; }),
           3e-5);
    }
    offset += weights[l].size();
  }
}

}  // namespace

int main() { return at_every_isa(test_mlp); }
