// 1024 rays through a grid of 64^3 cells, a tenth of them occupied in blobs; and what goes with marching.
#include <cmath>
#include <memory>

#include "driver.h"

namespace fastvfx {
namespace {

constexpr int64_t kRays = 1024, kSide = 64;

struct Scene {
  std::vector<float> origins, directions, box{-1, -1, -1, 1, 1, 1};
  std::vector<uint8_t> cells = std::vector<uint8_t>(kSide * kSide * kSide);
  std::vector<uint64_t> bits = std::vector<uint64_t>(kSide * kSide * kSide / 64);
  std::vector<int64_t> offsets = std::vector<int64_t>(kRays + 1);
  std::vector<float> t_starts, t_ends;
  std::vector<int32_t> ray_indices;
  std::vector<uint8_t> hits = std::vector<uint8_t>(kRays);
  void* log = nullptr;

  Scene() {
    Random random{5};
    for (int64_t r = 0; r < kRays; ++r) {  // from the plane z = -3 to points in the box
      const double from[3] = {2 * random() - 1, 2 * random() - 1, -3}, to[3] = {random() - 0.5, random() - 0.5, 0};
      double length = 0;
      for (int d = 0; d < 3; ++d) length += (to[d] - from[d]) * (to[d] - from[d]);
      for (int d = 0; d < 3; ++d) {
        origins.push_back(float(from[d]));
        directions.push_back(float((to[d] - from[d]) / std::sqrt(length)));
      }
    }
    for (int blob = 0; blob < 25; ++blob) {
      int64_t centre[3];
      for (int64_t& c : centre) c = 6 + int64_t(52 * random());
      for (int64_t x = -6; x <= 6; ++x) {
        for (int64_t y = -6; y <= 6; ++y) {
          for (int64_t z = -6; z <= 6; ++z) {
            if (x * x + y * y + z * z > 36) continue;
            cells[size_t(((centre[0] + x) * kSide + centre[1] + y) * kSide + centre[2] + z)] = 1;
          }
        }
      }
    }
    cpu::occupancy_pack(pack());
  }
  ~Scene() { release(); }

  void release() {
    if (log) cpu::march_release({log});
    log = nullptr;
  }

  OccupancyPack pack() {
    OccupancyPack a{};
    a.levels = 1;
    for (int64_t& n : a.res) n = kSide;
    a.cells = cells.data();
    a.bits = bits.data();
    a.threads = 1;
    return a;
  }

  void describe(MarchRays& a) const {
    a.dtype = DType::f32;
    a.n_rays = kRays;
    a.rays_o = origins.data();
    a.rays_d = directions.data();
    a.far = 1e10;
    a.levels = 1;
    for (int64_t& n : a.res) n = kSide;
    a.bits = bits.data();
    a.aabbs = box.data();
    a.step = 0.005;
    a.max_step = 0.005;
    a.max_samples = 1024;
    a.threads = 1;
  }

  void count() {
    release();
    MarchCount a{};
    describe(a);
    a.offsets = offsets.data();
    a.log = &log;
    cpu::march_count(a);
  }
};

std::function<void()> count() {
  auto scene = std::make_shared<Scene>();
  return [scene] { scene->count(); };
}

std::function<void()> write() {
  auto scene = std::make_shared<Scene>();
  scene->count();
  const size_t n = size_t(scene->offsets.back());
  scene->t_starts.resize(n);
  scene->t_ends.resize(n);
  scene->ray_indices.resize(n);
  MarchWrite a{};
  scene->describe(a);
  a.sums = scene->offsets.data();
  a.log = scene->log;
  a.capacity = int64_t(n);
  a.t_starts = scene->t_starts.data();
  a.t_ends = scene->t_ends.data();
  a.ray_indices = scene->ray_indices.data();
  return [scene, a] { cpu::march_write(a); };
}

std::function<void()> pack() {
  auto scene = std::make_shared<Scene>();
  return [scene, a = scene->pack()] { cpu::occupancy_pack(a); };
}

std::function<void()> unpack() {
  auto scene = std::make_shared<Scene>();
  OccupancyUnpack a{};
  a.levels = 1;
  for (int64_t& n : a.res) n = kSide;
  a.bits = scene->bits.data();
  a.cells = scene->cells.data();
  a.threads = 1;
  return [scene, a] { cpu::occupancy_unpack(a); };
}

std::function<void()> intersect() {
  auto scene = std::make_shared<Scene>();
  scene->t_starts.resize(kRays);
  scene->t_ends.resize(kRays);
  AabbFwd a{};
  a.dtype = DType::f32;
  a.n_rays = kRays;
  a.n_boxes = 1;
  a.rays_o = scene->origins.data();
  a.rays_d = scene->directions.data();
  a.aabbs = scene->box.data();
  a.far = 1e10;
  a.t_mins = scene->t_starts.data();
  a.t_maxs = scene->t_ends.data();
  a.hits = scene->hits.data();
  a.threads = 1;
  return [scene, a] { cpu::aabb_fwd(a); };
}

const Register march_count("march_count", count), march_write("march_write", write);
const Register occupancy_pack("occupancy_pack", pack), occupancy_unpack("occupancy_unpack", unpack);
const Register aabb("aabb_fwd", intersect);

}  // namespace
}  // namespace fastvfx
