// Compositing on the emulated GPU against the processor: every storage type, group size and option.
#include <vector>

#include "emulated.h"

using namespace fastvfx;

namespace {

// Samples of each ray; the mean chooses 8, 16 or 32 lanes a ray.
const std::vector<int64_t> eight_lanes = {0, 1, 7, 8, 9, 0, 16, 23, 1, 1};
const std::vector<int64_t> sixteen_lanes = {15, 16, 17, 1, 0, 33, 48, 10};
const std::vector<int64_t> warps = {31, 32, 33, 0, 300, 1, 64};
const std::vector<int64_t> many_blocks(75, 3);  // more rays than one block of threads walks
const std::vector<int64_t> all_empty = {0, 0, 0};
const std::vector<int64_t> no_rays = {};

struct Case {
  DType dtype = DType::f32;
  const std::vector<int64_t>* counts = &eight_lanes;
  int64_t channels = 3;
  bool alphas = false;
  DepthMode mode = DepthMode::expected;
  double early_stop_eps = 0;
  int background = 1;     // none, one for all rays, one a ray
  bool every_out = true;  // weights and transmittance, their gradients, and those of t and the background
  bool packed = true;     // else every ray has the first one's number of samples
  int64_t padding = 0;    // samples behind the last ray

  std::string name() const {
    return std::string(name_of(dtype)) + " rays=" + std::to_string(counts->size()) +
           " channels=" + std::to_string(channels) + (alphas ? " alphas" : " sigmas") +
           " mode=" + std::to_string(int(mode)) + " eps=" + std::to_string(early_stop_eps) +
           " background=" + std::to_string(background) + (packed ? "" : " batched");
  }
};

using Kernel = void (*)(const CompositeFwd&);
using KernelBwd = void (*)(const CompositeBwd&);

struct Result {
  Array rgb, opacity, depth, weights, transmittance;
  Array g_values, g_rgbs, g_t_starts, g_t_ends, g_background;
};

class Scene {
 public:
  explicit Scene(const Case& c)
      : case_(c),
        acc_(accumulation_of(c.dtype)),
        n_rays_(int64_t(c.counts->size())),
        n_samples_(samples_of(c)),
        values_(c.dtype, n_samples_),
        rgbs_(c.dtype, n_samples_ * c.channels),
        t_starts_(acc_, n_samples_),
        t_ends_(acc_, n_samples_),
        background_(acc_, c.background == 2 ? n_rays_ * c.channels : c.channels),
        g_rgb_(acc_, n_rays_ * c.channels),
        g_opacity_(acc_, n_rays_),
        g_depth_(acc_, n_rays_),
        g_weights_(acc_, n_samples_),
        g_transmittance_(acc_, n_samples_) {
    Random random{11};
    offsets_.assign(1, 0);
    for (int64_t n : *c.counts) offsets_.push_back(offsets_.back() + n);
    offsets_.shrink_to_fit();
    const auto centred = [&] { return random() - 0.5; };
    values_.fill([&] { return c.alphas ? (random() < 0.05 ? 1.0 : 0.4 * random()) : 6 * random(); });
    rgbs_.fill(random);
    double t = 1;
    for (int64_t i = 0; i < n_samples_; ++i) {
      t_starts_.set(i, t);
      t += 0.1 * random();
      t_ends_.set(i, t);
    }
    background_.fill(random);
    for (Array* g : {&g_rgb_, &g_opacity_, &g_depth_, &g_weights_, &g_transmittance_}) g->fill(centred);
  }

  std::vector<int64_t>& offsets() { return offsets_; }

  CompositeRays rays() const {
    CompositeRays a{};
    a.dtype = case_.dtype;
    a.alphas = case_.alphas;
    a.depth_mode = case_.mode;
    a.depth_threshold = 0.5;
    a.early_stop_eps = case_.early_stop_eps;
    a.n_rays = n_rays_;
    a.n_samples = n_samples_;
    a.n_per_ray = case_.packed ? 0 : case_.counts->front();
    a.channels = case_.channels;
    a.offsets = case_.packed ? offsets_.data() : nullptr;
    a.values = values_.data();
    a.rgbs = rgbs_.data();
    a.t_starts = t_starts_.data();
    a.t_ends = t_ends_.data();
    a.background = case_.background ? background_.data() : nullptr;
    a.background_stride = case_.background == 2 ? case_.channels : 0;
    a.threads = 1;
    return a;
  }

  // The gradient starts from the processor's opacity and depth, so that both see the same.
  Result run(Kernel forward, KernelBwd backward, const Result* first = nullptr) const {
    const int64_t colours = n_rays_ * case_.channels, n = n_samples_;
    Result r{Array(acc_, colours),
             Array(acc_, n_rays_),
             Array(acc_, n_rays_),
             Array(acc_, n),
             Array(acc_, n),
             Array(case_.dtype, n),
             Array(case_.dtype, n * case_.channels),
             Array(acc_, n),
             Array(acc_, n),
             Array(acc_, colours)};
    CompositeFwd f{};
    static_cast<CompositeRays&>(f) = rays();
    f.rgb = r.rgb.data();
    f.opacity = r.opacity.data();
    f.depth = r.depth.data();
    f.weights = case_.every_out ? r.weights.data() : nullptr;
    f.transmittance = case_.every_out ? r.transmittance.data() : nullptr;
    forward(f);

    Array scratch(acc_, n / composite_stride + n_rays_);
    CompositeBwd b{};
    static_cast<CompositeRays&>(b) = rays();
    b.opacity = (first ? first : &r)->opacity.data();
    b.depth = (first ? first : &r)->depth.data();
    b.g_rgb = g_rgb_.data();
    b.g_opacity = g_opacity_.data();
    b.g_depth = g_depth_.data();
    b.g_weights = case_.every_out ? g_weights_.data() : nullptr;
    b.g_transmittance = case_.every_out ? g_transmittance_.data() : nullptr;
    b.scratch = scratch.data();
    b.g_values = r.g_values.data();
    b.g_rgbs = r.g_rgbs.data();
    b.g_t_starts = case_.every_out ? r.g_t_starts.data() : nullptr;
    b.g_t_ends = case_.every_out ? r.g_t_ends.data() : nullptr;
    b.g_background = case_.every_out && case_.background ? r.g_background.data() : nullptr;
    backward(b);
    return r;
  }

 private:
  static int64_t samples_of(const Case& c) {
    int64_t n = c.padding;
    for (int64_t count : *c.counts) n += count;
    return n;
  }

  Case case_;
  DType acc_;
  int64_t n_rays_, n_samples_;
  std::vector<int64_t> offsets_;
  Array values_, rgbs_, t_starts_, t_ends_, background_, g_rgb_, g_opacity_, g_depth_, g_weights_, g_transmittance_;
};

// Sums over a ray in another order: a few hundred roundings. A 16-bit gradient may round to its other neighbour.
void compare(const std::string& name, const Result& got, const Result& want) {
  const auto check = [&](const char* what, const Array& g, const Array& w) {
    const bool wide = w.dtype() == DType::f64 || w.dtype() == DType::f32;
    near(name + " " + what, g, w, wide ? 300 : 3, wide ? 1 : 1e-3);
  };
  check("rgb", got.rgb, want.rgb);
  check("opacity", got.opacity, want.opacity);
  check("depth", got.depth, want.depth);
  check("weights", got.weights, want.weights);
  check("transmittance", got.transmittance, want.transmittance);
  check("g_values", got.g_values, want.g_values);
  check("g_rgbs", got.g_rgbs, want.g_rgbs);
  check("g_t_starts", got.g_t_starts, want.g_t_starts);
  check("g_t_ends", got.g_t_ends, want.g_t_ends);
  check("g_background", got.g_background, want.g_background);
}

void check(const Case& c) {
  const Scene scene(c);
  const Result want = scene.run(cpu::composite_fwd, cpu::composite_bwd);
  compare(c.name(), scene.run(cuda::composite_fwd, cuda::composite_bwd, &want), want);
}

void test_shapes() {
  for (const auto* counts : {&eight_lanes, &sixteen_lanes, &warps, &many_blocks, &all_empty, &no_rays}) {
    for (int64_t channels : {1, 3, 4, 5, 16}) {
      Case c;
      c.counts = counts;
      c.channels = channels;
      check(c);
    }
  }
}

void test_options() {
  for (DType dtype : every_dtype) {
    for (const auto* counts : {&eight_lanes, &sixteen_lanes, &warps}) {
      for (DepthMode mode : {DepthMode::expected, DepthMode::accumulated, DepthMode::first_hit}) {
        Case c;
        c.dtype = dtype;
        c.counts = counts;
        c.mode = mode;
        c.alphas = mode == DepthMode::accumulated;
        c.background = int(mode);
        c.early_stop_eps = mode == DepthMode::expected ? 0 : 0.05;
        check(c);
        c.every_out = false;
        c.alphas = !c.alphas;
        c.background = 2 - int(mode);
        c.early_stop_eps = 0.05 - c.early_stop_eps;
        check(c);
      }
    }
  }
}

void test_batched() {
  const std::vector<int64_t> counts(9, 37);
  Case c;
  c.counts = &counts;
  c.packed = false;
  check(c);
}

// Samples behind the last ray are neither read nor written: they stay NaN on both.
void test_padding() {
  Case c;
  c.padding = 40;
  check(c);
}

// A ray whose offsets make no sense is NaN, the others are as they were; nothing outside is touched.
void test_invalid_offsets() {
  const Case c;
  Scene scene(c);
  const Result want = scene.run(cpu::composite_fwd, cpu::composite_bwd);
  const int64_t outside = int64_t(1) << 40, before_its_start = scene.offsets()[3] - 1;
  for (int64_t wrong : {int64_t(-5), outside, before_its_start}) {
    if (wrong == before_its_start && cuda_emulator::finds_races()) continue;  // rays that overlap do race
    scene.offsets()[4] = wrong;  // the end of ray 3 and the beginning of ray 4
    const Result got = scene.run(cuda::composite_fwd, cuda::composite_bwd, &want);
    for (int64_t ray = 0; ray < got.opacity.size(); ++ray) {
      if (ray == 4 && wrong == before_its_start) continue;  // a longer ray than before
      const bool is_nan = std::isnan(got.opacity[ray]) && std::isnan(got.rgb[3 * ray]) && std::isnan(got.depth[ray]);
      near("a ray is NaN if its offsets are wrong", is_nan, ray == 3 || ray == 4, 0);
      if (!is_nan) near("opacity of a valid ray", got.opacity[ray], want.opacity[ray], 1e-5);
    }
  }
}

}  // namespace

int main() {
  return in_every_order([] {
    test_shapes();
    test_options();
    test_batched();
    test_padding();
    test_invalid_offsets();
  });
}
