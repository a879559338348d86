// The few lines of test framework that the core needs: count what failed, name it, exit with it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>

#include "fastvfx/kernels.h"
#include "random.h"

namespace fastvfx {

inline int failures = 0;

inline void near(const char* what, double got, double want, double tolerance) {
  if (std::fabs(got - want) <= tolerance) return;
  std::printf("%s: %s: got %.9g, want %.9g\n", isa_name(active_isa()), what, got, want);
  ++failures;
}

// Runs the test at each level that this processor has.
inline int at_every_isa(const std::function<void()>& test) {
  for (Isa isa : {Isa::generic, Isa::x86_64_v2, Isa::x86_64_v3, Isa::x86_64_v4}) {
    if ((isa == Isa::generic) != (detected_isa() == Isa::generic) || int(isa) > int(detected_isa())) continue;
    set_isa(isa);
    test();
  }
  std::printf("%d failed\n", failures);
  return failures ? 1 : 0;
}

}  // namespace fastvfx
