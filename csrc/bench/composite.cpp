// 512 rays of 0 to 128 samples, and one of 2000, which does not fit in a block.
#include <cmath>
#include <memory>

#include "driver.h"

namespace fastvfx {
namespace {

struct Scene {
  std::vector<int64_t> offsets{0};
  std::vector<float> sigmas, rgbs, t0, t1;
  std::vector<float> rgb, opacity, depth, g_rgb, g_opacity, g_depth, scratch, g_sigmas, g_rgbs;
  CompositeRays rays{};

  explicit Scene(int64_t channels) {
    Random random{3};
    const int64_t n_rays = 512;
    for (int64_t r = 0; r < n_rays; ++r) {
      offsets.push_back(offsets.back() + (r == 0 ? 2000 : int64_t(129 * random())));
      for (int64_t i = offsets[r]; i < offsets[r + 1]; ++i) t0.push_back(1 + 0.02f * float(i - offsets[r]));
    }
    const size_t n = t0.size();
    for (float t : t0) t1.push_back(t + 0.02f);
    sigmas = random_floats(n, 4, 0, 4);
    rgbs = random_floats(n * channels, 5);
    rgb.resize(n_rays * channels);
    opacity.resize(n_rays);
    depth.resize(n_rays);
    g_rgb = random_floats(n_rays * channels, 6, -1, 1);
    g_opacity = random_floats(n_rays, 7, -1, 1);
    g_depth = random_floats(n_rays, 8, -1, 1);
    scratch.resize(n / composite_stride + n_rays);
    g_sigmas.resize(n);
    g_rgbs.resize(n * channels);
    rays.dtype = DType::f32;
    rays.n_rays = n_rays;
    rays.n_samples = int64_t(n);
    rays.channels = channels;
    rays.offsets = offsets.data();
    rays.values = sigmas.data();
    rays.rgbs = rgbs.data();
    rays.t_starts = t0.data();
    rays.t_ends = t1.data();
    rays.threads = 1;
  }

  CompositeFwd fwd() {
    CompositeFwd a{};
    static_cast<CompositeRays&>(a) = rays;
    a.rgb = rgb.data();
    a.opacity = opacity.data();
    a.depth = depth.data();
    return a;
  }

  CompositeBwd bwd() {
    CompositeBwd a{};
    static_cast<CompositeRays&>(a) = rays;
    a.opacity = opacity.data();
    a.depth = depth.data();
    a.g_rgb = g_rgb.data();
    a.g_opacity = g_opacity.data();
    a.g_depth = g_depth.data();
    a.scratch = scratch.data();
    a.g_values = g_sigmas.data();
    a.g_rgbs = g_rgbs.data();
    return a;
  }
};

std::function<void()> forward(int64_t channels) {
  auto scene = std::make_shared<Scene>(channels);
  return [scene, a = scene->fwd()] { cpu::composite_fwd(a); };
}

std::function<void()> backward(int64_t channels) {
  auto scene = std::make_shared<Scene>(channels);
  cpu::composite_fwd(scene->fwd());
  return [scene, a = scene->bwd()] { cpu::composite_bwd(a); };
}

std::function<void()> offsets_check() {
  auto scene = std::make_shared<Scene>(1);
  auto first_bad = std::make_shared<int64_t>();
  const CheckOffsets a{scene->offsets.data(), scene->rays.n_rays, first_bad.get()};
  return [scene, first_bad, a] { cpu::check_offsets(a); };
}

const Register check("check_offsets", offsets_check);
const Register fwd("composite_fwd", [] { return forward(3); });
const Register bwd("composite_bwd", [] { return backward(3); });
const Register fwd16("composite_fwd_16_channels", [] { return forward(16); });
const Register bwd16("composite_bwd_16_channels", [] { return backward(16); });

}  // namespace
}  // namespace fastvfx
