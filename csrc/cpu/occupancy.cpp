// Packing and unpacking occupancy bitfields on the CPU.
#include "fastvfx/occupancy.h"

#include "parallel.h"

FVX_BEGIN_ISA

namespace {

constexpr int64_t kBrickGrain = 1024;

template <class Cell>
void pack(const OccupancyPack& a, float threshold) {
  const int64_t words = brick_words(a.res), cells = a.res[0] * a.res[1] * a.res[2];
  parallel_for(a.threads, a.levels * words, kBrickGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Cell* level = static_cast<const Cell*>(a.cells) + i / words * cells;
      a.bits[i] = pack_brick(level, a.res, i % words, threshold);
    }
  });
}

}  // namespace

void occupancy_pack(const OccupancyPack& a) {
  if (a.from_values) {
    pack<float>(a, *a.threshold);
  } else {
    pack<uint8_t>(a, 0);
  }
}

void occupancy_unpack(const OccupancyUnpack& a) {
  const int64_t words = brick_words(a.res), ny = bricks_of(a.res[1]), nz = bricks_of(a.res[2]);
  parallel_for(a.threads, a.levels * a.res[0] * a.res[1], kBrickGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = row % a.res[1], x = row / a.res[1] % a.res[0], level = row / (a.res[1] * a.res[0]);
      const uint64_t* bricks = a.bits + level * words + ((x >> 2) * ny + (y >> 2)) * nz;
      uint8_t* cells = a.cells + row * a.res[2];
      for (int64_t z = 0; z < a.res[2]; ++z) cells[z] = (bricks[z >> 2] >> brick_bit(int(x), int(y), int(z))) & 1;
    }
  });
}

FVX_END_ISA
