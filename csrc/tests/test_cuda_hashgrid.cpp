// Multiresolution grids on the emulated GPU against the processor: dense, hashed and tiled levels in every number of
// dimensions, every interpolation and derivative, points outside of the grid and ones that are no numbers.
#include <cmath>

#include "emulated.h"

using namespace fastvfx;

namespace {

struct Case {
  DType dtype = DType::f32;
  int dims = 3, features = 2;
  Interpolation interpolation = Interpolation::linear;
  bool along = false;  // the derivative along a direction a point
  bool zero_outside = false;
  int64_t n = 300;
  int64_t first = 0;  // tables and gradients begin that many numbers behind an aligned address

  std::string name() const {
    return std::string(name_of(dtype)) + " dims=" + std::to_string(dims) + " features=" + std::to_string(features) +
           " interpolation=" + std::to_string(int(interpolation)) + (along ? " along" : "") +
           (zero_outside ? " zero outside" : "") + " n=" + std::to_string(n) + " first=" + std::to_string(first);
  }
};

uint32_t power(uint32_t base, int exponent) { return exponent == 0 ? 1 : base * power(base, exponent - 1); }

class Scene {
 public:
  explicit Scene(const Case& c)
      : case_(c),
        acc_(accumulation_of(c.dtype)),
        grid_{},
        x_(acc_, c.n * c.dims),
        direction_(acc_, c.n * c.dims),
        table_(c.dtype, c.first + make_levels() * c.features),
        g_out_(c.dtype, c.first + c.n * grid_.n_levels * c.features) {
    Random random{17};
    const auto centred = [&] { return random() - 0.5; };
    x_.fill(random);
    for (int64_t i = 0; i < c.n; ++i) {
      const double out_of_range[] = {std::nan(""), HUGE_VAL, -0.3, 1.7, 1e9, 0, 1};
      if (i % 9 == 4) x_.set(i * c.dims, out_of_range[i / 9 % 7]);
    }
    direction_.fill(centred);
    table_.fill(centred);
    g_out_.fill(centred);
  }

  void check() const {
    const Case& c = case_;
    const int64_t columns = grid_.n_levels * c.features;
    Array out[2] = {{c.dtype, c.n * columns}, {c.dtype, c.n * columns}};
    Array g_x[2] = {{acc_, c.n * c.dims}, {acc_, c.n * c.dims}};
    Array g_table(c.dtype, entries_ * c.features), g_table_sums(acc_, entries_ * c.features);
    g_table_sums.fill([] { return 0.0; });
    for (int gpu : {0, 1}) {
      auto fwd = arguments<HashGridFwd>();
      fwd.table = behind(table_);
      fwd.out = out[gpu].data();
      (gpu ? cuda::hashgrid_fwd : cpu::hashgrid_fwd)(fwd);

      auto bwd_table = arguments<HashGridBwdTable>();
      bwd_table.g_out = behind(g_out_);
      bwd_table.g_table = gpu ? g_table_sums.data() : g_table.data();
      (gpu ? cuda::hashgrid_bwd_table : cpu::hashgrid_bwd_table)(bwd_table);

      if (c.interpolation == Interpolation::nearest) continue;  // constant almost everywhere: nobody asks
      auto bwd_x = arguments<HashGridBwdX>();
      bwd_x.table = behind(table_);
      bwd_x.g_out = behind(g_out_);
      bwd_x.g_x = g_x[gpu].data();
      (gpu ? cuda::hashgrid_bwd_x : cpu::hashgrid_bwd_x)(bwd_x);
    }
    // Positions in the finest level are around 31: so large are their roundings, and the derivatives.
    const bool wide = c.dtype == DType::f64 || c.dtype == DType::f32;
    const double scale = c.along ? 100 : 1;
    near(c.name() + " out", out[1], out[0], wide ? 100 : 2, wide ? scale : 0.01 * scale);
    near(c.name() + " g_table", g_table_sums, g_table, wide ? 300 : 2, wide ? scale : 0.01 * scale);
    near(c.name() + " g_x", g_x[1], g_x[0], 300, scale * 100);
  }

 private:
  // A dense, a hashed and a tiled level; returns the number of entries.
  int64_t make_levels() {
    const Case& c = case_;
    grid_.n_levels = 3;
    const float scales[] = {4, 16.5f, 31};
    const uint32_t primes[] = {1, 2654435761u, 805459861u, 3674653429u};
    for (int l = 0; l < 3; ++l) {
      GridLevel& level = grid_.levels[l];
      level.offset = entries_;
      level.scale = scales[l];
      level.kind = GridIndex(l);
      const uint32_t points = uint32_t(std::ceil(scales[l])) + 2;
      level.entries = l == 0 ? power(points, c.dims) : l == 1 ? 64 : 75;
      for (int d = 0; d < c.dims; ++d) level.multipliers[d] = l == 1 ? primes[d] : power(points, d);
      entries_ += level.entries;
    }
    return entries_;
  }

  const void* behind(const Array& a) const {
    return static_cast<const char*>(a.data()) + size_t(case_.first) * bytes_of(a.dtype());
  }

  template <class Args>
  Args arguments() const {
    Args a{};
    static_cast<HashGrid&>(a) = grid_;
    a.dtype = case_.dtype;
    a.interpolation = case_.interpolation;
    a.dims = case_.dims;
    a.features = case_.features;
    a.zero_outside = case_.zero_outside;
    a.shift = 0.5f;
    a.n_points = case_.n;
    a.x = x_.data();
    a.direction = case_.along ? direction_.data() : nullptr;
    a.threads = 1;
    return a;
  }

  Case case_;
  DType acc_;
  HashGrid grid_;
  int64_t entries_ = 0;
  Array x_, direction_, table_, g_out_;
};

void test_shapes() {
  for (int dims : {1, 2, 3, 4}) {
    for (int features : {1, 2, 4, 8}) {
      Case c;
      c.dims = dims;
      c.features = features;
      c.zero_outside = features == 2;
      for (DType dtype : every_dtype) {
        c.dtype = dtype;
        c.along = !c.along;
        c.interpolation = features == 8 ? Interpolation::smoothstep : Interpolation::linear;
        Scene(c).check();
      }
    }
  }
}

void test_interpolations() {
  for (int dims : {2, 3}) {
    for (bool along : {false, true}) {
      for (Interpolation i : {Interpolation::nearest, Interpolation::linear, Interpolation::smoothstep}) {
        if (along && i == Interpolation::nearest) continue;
        Case c;
        c.dims = dims;
        c.along = along;
        c.interpolation = i;
        Scene(c).check();
      }
    }
  }
}

void test_numbers_of_points() {
  for (int64_t n : {0, 1, 31, 255, 256, 257, 800}) {
    Case c;
    c.n = n;
    Scene(c).check();
  }
}

void test_views() {
  for (DType dtype : every_dtype) {
    for (int64_t first : {1, 2, 4}) {
      Case c;
      c.dtype = dtype;
      c.features = 4;
      c.first = first;
      Scene(c).check();
    }
  }
}

}  // namespace

int main() {
  return in_every_order([] {
    test_shapes();
    test_interpolations();
    test_numbers_of_points();
    test_views();
  });
}
