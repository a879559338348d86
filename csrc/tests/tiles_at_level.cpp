// Matrix products in tile registers against plain loops, compiled as the kernels of x86-64-v4 are.
#include <vector>

#include "../cpu/amx.h"
#include "check.h"

using namespace fastvfx;

namespace {

#if defined(FVX_AMX)

using namespace fastvfx::FVX_ISA;

std::vector<bf16> random_matrix(Random& random, int64_t rows, int64_t row, int64_t columns) {
  std::vector<bf16> m(size_t(rows * row), bf16{0x7fc0});  // NaN where nobody should read
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < columns; ++i) m[size_t(r * row + i)] = from_acc<bf16>(float(random() - 0.5));
  }
  return m;
}

struct Case {
  int64_t m, n, k;
};

void test_product(const Case& c, bool transposed, bool accumulate) {
  Random random{uint64_t(c.m * 31 + c.n * 7 + c.k)};
  const int64_t a_row = c.k + 6, in_row = (transposed ? c.k : c.n) + 2, b_row = 2 * c.n + 32, c_row = c.n + 16;
  const int64_t depth = (c.k + 1) / 2 * 2;
  std::vector<bf16> a = random_matrix(random, c.m, a_row, c.k);
  for (int64_t r = 0; r < c.m && depth > c.k; ++r) a[size_t(r * a_row + c.k)] = bf16{0};
  const std::vector<bf16> in = random_matrix(random, transposed ? c.n : c.k, in_row, transposed ? c.k : c.n);
  std::vector<bf16> b(size_t(depth / 2 * b_row), bf16{0x7fc0});
  if (transposed) {
    pack_transposed(in.data(), in_row, c.n, c.k, b.data(), b_row);
  } else {
    pack_rows(in.data(), in_row, c.k, c.n, b.data(), b_row);
  }
  std::vector<float> sums(size_t(c.m * c_row), 0.25f);
  int64_t blocks = 0;
  {
    Tiles tiles(true);
    const TileProduct p{c.m, c.n, depth, a.data(), a_row, b.data(), b_row, sums.data(), c_row, accumulate};
    multiply_tiles(tiles, p);
    if (!accumulate) {  // block by block the same, in a room of its own
      alignas(64) float room[kBlockSide * kBlockSide];
      TileProduct q = p;
      q.c = nullptr, q.c_row = kBlockSide;
      multiply_tiles(
          tiles, q, [&](int64_t, int64_t) { return room; },
          [&](int64_t row, int64_t column, int64_t rows, int64_t columns) {
            for (int64_t i = 0; i < rows * columns; ++i) {
              const int64_t r = i / columns, j = i % columns;
              near("block", room[r * kBlockSide + j], sums[size_t((row + r) * c_row + column + j)], 0);
            }
            blocks += rows * columns;
          });
      near("elements in blocks", double(blocks), double(c.m * c.n), 0);
    }
  }
  for (int64_t r = 0; r < c.m; ++r) {
    for (int64_t j = 0; j < c_row; ++j) {
      double want = accumulate || j >= c.n ? 0.25 : 0;
      for (int64_t k = 0; k < c.k && j < c.n; ++k) {
        want +=
            double(to_acc(a[size_t(r * a_row + k)])) * to_acc(in[size_t(transposed ? j * in_row + k : k * in_row + j)]);
      }
      near("product", sums[size_t(r * c_row + j)], want, 1e-6 * double(c.k + 1));
    }
  }
}

void test_products() {
  for (const Case& c : {Case{16, 16, 32},
                        {32, 32, 32},
                        {64, 64, 64},
                        {48, 48, 128},
                        {1, 16, 2},
                        {17, 32, 48},
                        {33, 16, 80},
                        {101, 80, 96},
                        {64, 128, 24}}) {
    for (const bool accumulate : {false, true}) {
      test_product(c, true, accumulate);
      test_product(c, false, accumulate);
    }
  }
  test_product({20, 32, 31}, false, false);  // an odd depth, its last row alone
}

// What a thread had in its tiles' configuration is there again afterwards.
void test_restores() {
  struct alignas(64) {
    unsigned char bytes[64];
  } outer{}, seen{};
  outer.bytes[0] = 1, outer.bytes[16] = 64, outer.bytes[48] = 7;
  __asm__ volatile("ldtilecfg %0" ::"m"(outer));
  test_product({17, 32, 48}, true, false);
  __asm__ volatile("sttilecfg %0" : "=m"(seen));
  for (int i = 0; i < 64; ++i) near("configuration", seen.bytes[i], outer.bytes[i], 0);
  __asm__ volatile("tilerelease");
}

void test_shapes() {
  near("64 in one step", tile_pairs(32), 16, 0);
  near("96 in three", tile_pairs(96), 16, 0);
  near("48 in two", tile_pairs(48), 12, 0);
  near("3 pairs", tile_pairs(6), 3, 0);
  near("17 pairs do not divide", tile_pairs(34), 0, 0);
}

#endif

}  // namespace

int main() {
#if defined(FVX_AMX)
  if (!detected_amx()) return std::printf("no AMX here\n"), 0;
  test_shapes();
  test_products();
  test_restores();
#endif
  std::printf("%d failed\n", failures);
  return failures ? 1 : 0;
}
