// 1024 points in 3 dimensions through 8 levels of 2 features, dense ones and hashed ones of 2^14 entries.
#include <cmath>
#include <memory>

#include "driver.h"

namespace fastvfx {
namespace {

constexpr int64_t kPoints = 1024;
constexpr int kDims = 3, kLevels = 8, kFeatures = 2;
constexpr uint32_t kMost = 1u << 14;

struct Grid {
  std::vector<float> x = random_floats(kPoints * kDims, 1), table;
  std::vector<float> out = random_floats(kPoints * kLevels * kFeatures, 2, -1, 1), g_table, g_x;
  HashGrid levels{};

  Grid() {
    levels.dtype = DType::f32;
    levels.interpolation = Interpolation::linear;
    levels.dims = kDims;
    levels.features = kFeatures;
    levels.n_levels = kLevels;
    levels.shift = 0.5f;
    levels.n_points = kPoints;
    levels.x = x.data();
    levels.threads = 1;
    int64_t offset = 0;
    for (int l = 0; l < kLevels; ++l) {
      GridLevel& level = levels.levels[l];
      level.scale = std::exp2(0.6f * float(l)) * 16 - 1;
      const uint32_t side = uint32_t(std::ceil(level.scale)) + 1;
      const bool dense = uint64_t(side) * side * side <= kMost;
      level.offset = offset;
      level.entries = dense ? (side * side * side + 7) / 8 * 8 : kMost;
      level.kind = dense ? GridIndex::dense : GridIndex::hashed;
      const uint32_t strides[] = {1, side, side * side}, primes[] = {1, 2654435761u, 805459861u};
      for (int d = 0; d < kDims; ++d) level.multipliers[d] = dense ? strides[d] : primes[d];
      offset += level.entries;
    }
    table = random_floats(size_t(offset) * kFeatures, 3, -1, 1);
    g_table.resize(table.size());
    g_x.resize(x.size());
  }

  template <class Args>
  Args arguments() const {
    Args a{};
    static_cast<HashGrid&>(a) = levels;
    return a;
  }
};

std::function<void()> forward() {
  auto grid = std::make_shared<Grid>();
  auto a = grid->arguments<HashGridFwd>();
  a.table = grid->table.data();
  a.out = grid->out.data();
  return [grid, a] { cpu::hashgrid_fwd(a); };
}

std::function<void()> backward_table() {
  auto grid = std::make_shared<Grid>();
  auto a = grid->arguments<HashGridBwdTable>();
  a.g_out = grid->out.data();
  a.g_table = grid->g_table.data();
  return [grid, a] { cpu::hashgrid_bwd_table(a); };
}

std::function<void()> backward_x() {
  auto grid = std::make_shared<Grid>();
  auto a = grid->arguments<HashGridBwdX>();
  a.table = grid->table.data();
  a.g_out = grid->out.data();
  a.g_x = grid->g_x.data();
  return [grid, a] { cpu::hashgrid_bwd_x(a); };
}

const Register fwd("hashgrid_fwd", forward), bwd_table("hashgrid_bwd_table", backward_table);
const Register bwd_x("hashgrid_bwd_x", backward_x);

}  // namespace
}  // namespace fastvfx
