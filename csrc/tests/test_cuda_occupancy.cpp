// Packing and unpacking of occupancy on the emulated GPU against the processor, for resolutions that fill their bricks
// and ones that do not.
#include <cmath>
#include <vector>

#include "emulated.h"

using namespace fastvfx;

namespace {

int64_t bricks(int64_t cells) { return (cells + 3) / 4; }

void check(int64_t levels, int64_t x, int64_t y, int64_t z, bool from_values) {
  const int64_t cells = levels * x * y * z, words = levels * bricks(x) * bricks(y) * bricks(z);
  Random random{9};
  Array values(DType::f32, cells);
  values.fill([&] { return random() < 0.05 ? std::nan("") : random(); });
  std::vector<uint8_t> bytes;
  for (int64_t i = 0; i < cells; ++i) bytes.push_back(random() < 0.5 ? 0 : 2);
  bytes.shrink_to_fit();
  const float threshold = 0.5f;

  std::vector<uint64_t> bits[2];
  std::vector<uint8_t> unpacked[2];
  for (int gpu : {0, 1}) {
    bits[gpu].assign(size_t(words), 0x5555555555555555u);
    unpacked[gpu].assign(size_t(cells), 7);
    OccupancyPack pack{};
    pack.from_values = from_values;
    pack.levels = levels;
    pack.res[0] = x;
    pack.res[1] = y;
    pack.res[2] = z;
    pack.cells = from_values ? values.data() : bytes.data();
    pack.threshold = from_values ? &threshold : nullptr;
    pack.bits = bits[gpu].data();
    pack.threads = 1;
    (gpu ? cuda::occupancy_pack : cpu::occupancy_pack)(pack);

    OccupancyUnpack unpack{};
    unpack.levels = levels;
    for (int i = 0; i < 3; ++i) unpack.res[i] = pack.res[i];
    unpack.bits = bits[gpu].data();
    unpack.cells = unpacked[gpu].data();
    unpack.threads = 1;
    (gpu ? cuda::occupancy_unpack : cpu::occupancy_unpack)(unpack);
  }
  near("bits differ", bits[0] != bits[1], 0, 0);
  near("cells differ", unpacked[0] != unpacked[1], 0, 0);
  for (int64_t i = 0; i < cells; ++i) {
    const bool occupied = from_values ? values[i] > threshold : bytes[size_t(i)] != 0;
    near("a cell there and back", unpacked[1][size_t(i)], occupied, 0);
  }
}

}  // namespace

int main() {
  return in_every_order([] {
    for (bool from_values : {true, false}) {
      check(1, 4, 4, 4, from_values);
      check(2, 5, 9, 3, from_values);
      check(3, 1, 1, 1, from_values);
      check(2, 16, 30, 17, from_values);
      check(0, 8, 8, 8, from_values);
    }
  });
}
