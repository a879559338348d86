#include <vector>

#include "check.h"

using namespace fastvfx;

// Rays of 0, 1, 300 and 7 samples against the defining sums; gradients against finite differences of those sums.
namespace {

constexpr int64_t kRays = 4, kSamples = 308, kChannels = 3;
const int64_t offsets[kRays + 1] = {0, 0, 1, 301, 308};

struct Scene {
  std::vector<float> sigmas, rgbs, t0, t1;
  float background[kChannels] = {0.2f, 0.5f, 0.9f};
};

Scene make_scene() {
  Scene s;
  Random random{7};
  for (int64_t r = 0; r < kRays; ++r) {
    float t = 1;
    for (int64_t i = offsets[r]; i < offsets[r + 1]; ++i) {
      s.sigmas.push_back(float(3 * random()));
      s.t0.push_back(t);
      t += float(0.02 * random());
      s.t1.push_back(t);
      for (int64_t c = 0; c < kChannels; ++c) s.rgbs.push_back(float(random()));
    }
  }
  return s;
}

// Sum over the channels of the colour of ray r.
double brightness(const Scene& s, const std::vector<double>& sigmas, int64_t r) {
  double T = 1, sum = 0;
  for (int64_t i = offsets[r]; i < offsets[r + 1]; ++i) {
    const double keep = std::exp(-sigmas[i] * (double(s.t1[i]) - double(s.t0[i])));
    for (int64_t c = 0; c < kChannels; ++c) sum += T * (1 - keep) * s.rgbs[i * kChannels + c];
    T *= keep;
  }
  for (float b : s.background) sum += T * b;
  return sum;
}

CompositeRays arguments(const Scene& s) {
  CompositeRays a{};
  a.dtype = DType::f32;
  a.depth_threshold = 0.5;
  a.n_rays = kRays;
  a.n_samples = kSamples;
  a.channels = kChannels;
  a.offsets = offsets;
  a.values = s.sigmas.data();
  a.rgbs = s.rgbs.data();
  a.t_starts = s.t0.data();
  a.t_ends = s.t1.data();
  a.background = s.background;
  a.threads = 2;
  return a;
}

void test_composite() {
  const Scene s = make_scene();
  const std::vector<double> sigmas(s.sigmas.begin(), s.sigmas.end());
  std::vector<float> rgb(kRays * kChannels), opacity(kRays), depth(kRays);
  CompositeFwd fwd{};
  static_cast<CompositeRays&>(fwd) = arguments(s);
  fwd.rgb = rgb.data();
  fwd.opacity = opacity.data();
  fwd.depth = depth.data();
  cpu::composite_fwd(fwd);
  for (int64_t r = 0; r < kRays; ++r) {
    near("rgb", rgb[r * 3] + rgb[r * 3 + 1] + rgb[r * 3 + 2], brightness(s, sigmas, r), 3e-6);
  }
  near("opacity of an empty ray", opacity[0], 0, 0);

  const std::vector<float> ones(kRays * kChannels, 1.0f), zeros(kRays, 0.0f);
  std::vector<float> scratch(kSamples / composite_stride + kRays), g_sigmas(kSamples), g_rgbs(kSamples * kChannels);
  CompositeBwd bwd{};
  static_cast<CompositeRays&>(bwd) = arguments(s);
  bwd.opacity = opacity.data();
  bwd.depth = depth.data();
  bwd.g_rgb = ones.data();
  bwd.g_opacity = zeros.data();
  bwd.g_depth = zeros.data();
  bwd.scratch = scratch.data();
  bwd.g_values = g_sigmas.data();
  bwd.g_rgbs = g_rgbs.data();
  cpu::composite_bwd(bwd);
  for (int64_t i = 0; i < kSamples; i += 13) {
    const int64_t r = i < 1 ? 1 : i < 301 ? 2 : 3;
    std::vector<double> more = sigmas, less = sigmas;
    more[i] += 1e-5;
    less[i] -= 1e-5;
    near("g_sigmas", g_sigmas[i], (brightness(s, more, r) - brightness(s, less, r)) / 2e-5, 3e-6);
  }
}

}  // namespace

int main() { return at_every_isa(test_composite); }
