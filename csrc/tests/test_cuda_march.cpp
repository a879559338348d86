// Marching on the emulated GPU against the processor, to the bit: every mode, several levels, rays for less than a
// block of threads and for more blocks than one look-back spans, and outputs that are too small.
#include <algorithm>
#include <cmath>
#include <vector>

#include "emulated.h"

using namespace fastvfx;

namespace {

struct Case {
  DType dtype = DType::f32;
  int64_t n_rays = 300;
  double step = 0.05, cone_angle = 0, max_step = HUGE_VAL;  // step 0: a sample a cell
  int levels = 2;
  int64_t max_samples = 1 << 20;
  bool own_bounds = false, jitter = false;
};

struct Samples {
  std::vector<int64_t> sums, offsets;
  Array t_starts, t_ends;
  std::vector<int32_t> ray_indices;
  int64_t overflow;
};

class Scene {
 public:
  explicit Scene(const Case& c)
      : case_(c),
        o_(c.dtype, 3 * c.n_rays),
        d_(c.dtype, 3 * c.n_rays),
        nears_(c.dtype, c.n_rays),
        fars_(c.dtype, c.n_rays),
        boxes_(c.dtype, 6 * c.levels) {
    Random random{21};
    o_.fill([&] { return 3 * random() - 1.5; });
    d_.fill([&] { return random() < 0.1 ? 0 : random() - 0.5; });
    for (int64_t ray = 7; ray < c.n_rays; ray += 50) d_.set(3 * ray + 1, std::nan(""));
    nears_.fill([&] { return 0.2 * random(); });
    fars_.fill([&] { return 3 * random(); });
    for (int64_t i = 0; i < 6 * c.levels; ++i) boxes_.set(i, (i % 6 < 3 ? -1.0 : 1.0) * double(1 + i / 6));
    for (int64_t i = 0; i < c.levels * words; ++i) bits_.push_back(word(random));
    bits_.shrink_to_fit();
  }

  MarchRays rays() const {
    MarchRays a{};
    a.dtype = case_.dtype;
    a.n_rays = case_.n_rays;
    a.rays_o = o_.data();
    a.rays_d = d_.data();
    a.nears = case_.own_bounds ? nears_.data() : nullptr;
    a.fars = case_.own_bounds ? fars_.data() : nullptr;
    a.near = 0.1;
    a.far = 1e10;
    a.levels = case_.levels;
    for (int i = 0; i < 3; ++i) a.res[i] = res[i];
    a.bits = bits_.data();
    a.aabbs = boxes_.data();
    a.step = case_.step;
    a.cone_angle = case_.cone_angle;
    a.max_step = case_.max_step;
    a.max_samples = case_.max_samples;
    a.jitter = case_.jitter;
    a.seed = 5;
    a.threads = 1;
    return a;
  }

  // With a capacity below 0, of exactly the samples that there are.
  Samples run(bool gpu, int64_t capacity) const {
    std::vector<int64_t> sums(size_t(case_.n_rays + 1), -7);
    std::vector<int64_t> scratch(size_t(march_scratch_words(case_.n_rays)), -7);
    void* log = nullptr;
    MarchCount count{};
    static_cast<MarchRays&>(count) = rays();
    count.offsets = sums.data();
    count.scratch = scratch.data();
    count.log = &log;
    (gpu ? cuda::march_count : cpu::march_count)(count);
    const bool exact = capacity < 0;
    if (exact) capacity = sums.back();

    Samples s{sums,
              std::vector<int64_t>(sums.size(), -7),
              Array(case_.dtype, capacity),
              Array(case_.dtype, capacity),
              std::vector<int32_t>(size_t(capacity), -7),
              -7};
    MarchWrite write{};
    static_cast<MarchRays&>(write) = rays();
    write.sums = sums.data();
    write.log = log;
    write.capacity = capacity;
    write.t_starts = s.t_starts.data();
    write.t_ends = s.t_ends.data();
    write.ray_indices = s.ray_indices.data();
    write.offsets = exact ? nullptr : s.offsets.data();
    write.overflow = exact ? nullptr : &s.overflow;
    (gpu ? cuda::march_write : cpu::march_write)(write);
    if (log) cpu::march_release({log});
    return s;
  }

 private:
  static constexpr int64_t res[3] = {9, 16, 6}, words = 3 * 4 * 2;

  // Empty and full bricks beside mixed ones: the march skips what is alike.
  static uint64_t word(Random& random) {
    const double kind = random();
    if (kind < 0.3) return 0;
    if (kind < 0.4) return ~uint64_t(0);
    uint64_t bits = 0;
    for (int i = 0; i < 64; ++i) bits |= uint64_t(random() < 0.4) << i;
    return bits;
  }

  Case case_;
  Array o_, d_, nears_, fars_, boxes_;
  std::vector<uint64_t> bits_;
};

void check(const Case& c) {
  const Scene scene(c);
  const int64_t total = scene.run(false, -1).sums.back();
  near("there are samples", total > 0, c.n_rays > 0, 0);
  for (int64_t capacity : {int64_t(-1), total + 70, total - total / 3, int64_t(0)}) {
    const Samples want = scene.run(false, capacity), got = scene.run(true, capacity);
    near("sums of samples differ", got.sums != want.sums, 0, 0);
    near("t_starts", got.t_starts, want.t_starts, 0, 0);
    near("t_ends", got.t_ends, want.t_ends, 0, 0);
    near("ray_indices differ", got.ray_indices != want.ray_indices, 0, 0);
    near("offsets differ", got.offsets != want.offsets, 0, 0);
    near("rays left out", double(got.overflow), double(want.overflow), 0);
  }
}

void test_sizes() {
  for (int64_t n_rays : {0, 1, 31, 127, 128, 129, 1000}) {
    Case c;
    c.n_rays = n_rays;
    check(c);
  }
}

void test_modes() {
  for (DType dtype : {DType::f32, DType::f64}) {
    Case c;
    c.dtype = dtype;
    c.jitter = c.own_bounds = true;
    check(c);
    c.max_samples = 9;
    check(c);
    c.cone_angle = 0.02;
    c.max_step = 0.2;
    check(c);
    c.step = 0;
    c.levels = 3;
    check(c);
  }
}

// All blocks at once and in any order: most look back over others that only know their own sum.
void test_look_back() {
  Case c;
  c.n_rays = march_block * 70 + 1;
  c.levels = 1;
  c.step = 0.3;
  cuda_emulator::set_execution({cuda_emulator::Order::shuffled, 5, 71});
  const Scene scene(c);
  near("sums over many blocks differ", scene.run(true, -1).sums != scene.run(false, -1).sums, 0, 0);
}

}  // namespace

int main() {
  return in_every_order([] {
    test_sizes();
    test_modes();
    if (!cuda_emulator::finds_races()) test_look_back();  // more threads than ThreadSanitizer takes
  });
}
