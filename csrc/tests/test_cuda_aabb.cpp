// Rays and boxes on the emulated GPU against the processor, to the bit.
#include <cmath>

#include "emulated.h"

using namespace fastvfx;

namespace {

void check(DType dtype, int64_t n_rays, int64_t n_boxes, bool own_bounds) {
  Random random{3};
  const auto centred = [&] { return 4 * random() - 2; };
  Array o(dtype, 3 * n_rays), d(dtype, 3 * n_rays), boxes(dtype, 6 * n_boxes), nears(dtype, n_rays),
      fars(dtype, n_rays);
  o.fill(centred);
  d.fill([&] { return random() < 0.2 ? 0 : random() < 0.05 ? std::nan("") : random() - 0.5; });
  nears.fill(random);
  fars.fill([&] { return 1 + random(); });
  for (int64_t i = 0; i < 6 * n_boxes; ++i) boxes.set(i, i % 6 < 3 ? -random() : random());

  AabbFwd a{};
  a.dtype = dtype;
  a.n_rays = n_rays;
  a.n_boxes = n_boxes;
  a.rays_o = o.data();
  a.rays_d = d.data();
  a.aabbs = boxes.data();
  a.nears = own_bounds ? nears.data() : nullptr;
  a.fars = own_bounds ? fars.data() : nullptr;
  a.far = 3;
  a.miss_value = 1e10;
  a.threads = 1;
  const int64_t n = n_rays * n_boxes;
  Array mins[2] = {{dtype, n}, {dtype, n}}, maxs[2] = {{dtype, n}, {dtype, n}};
  const std::unique_ptr<uint8_t[]> hits[2] = {std::unique_ptr<uint8_t[]>(new uint8_t[size_t(n)]),
                                              std::unique_ptr<uint8_t[]>(new uint8_t[size_t(n)])};
  for (int gpu : {0, 1}) {
    a.t_mins = mins[gpu].data();
    a.t_maxs = maxs[gpu].data();
    a.hits = hits[gpu].get();
    std::memset(a.hits, 7, size_t(n));
    (gpu ? cuda::aabb_fwd : cpu::aabb_fwd)(a);
  }
  near("t_mins", mins[1], mins[0], 0, 0);
  near("t_maxs", maxs[1], maxs[0], 0, 0);
  near("hits differ", std::memcmp(hits[0].get(), hits[1].get(), size_t(n)), 0, 0);
}

}  // namespace

int main() {
  return in_every_order([] {
    for (DType dtype : {DType::f32, DType::f64}) {
      for (int64_t n_rays : {0, 1, 85, 86, 300}) {
        check(dtype, n_rays, 3, true);
        check(dtype, n_rays, 1, false);
      }
      check(dtype, 5, 0, false);
    }
  });
}
