// Workloads of the instruction gate: small, fixed, on one thread.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "fastvfx/kernels.h"
#include "random.h"

namespace fastvfx {

// `prepare` makes the data and returns what is counted: one call of one kernel on it.
struct Work {
  std::string name;
  std::function<std::function<void()>()> prepare;
};

std::vector<Work>& works();

// An operator's file holds one of these at namespace scope: `const Register composite_fwd("composite_fwd", prepare);`
struct Register {
  Register(const char* name, std::function<std::function<void()>()> prepare) {
    works().push_back({name, std::move(prepare)});
  }
};

inline std::vector<float> random_floats(size_t n, uint64_t seed, float low = 0, float high = 1) {
  Random random{seed};
  std::vector<float> x(n);
  for (float& v : x) v = low + (high - low) * float(random());
  return x;
}

}  // namespace fastvfx
