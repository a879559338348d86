#pragma once

#include <cstdint>

namespace fastvfx {

// Uniform in [0, 1), the same on every platform.
struct Random {
  uint64_t state;
  double operator()() {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return double(state >> 11) / 9007199254740992.0;
  }
};

}  // namespace fastvfx
