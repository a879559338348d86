// fastvfx_driver                       the compiler, and names of the workloads
// fastvfx_driver NAME                  runs it once, at the best level of the processor (under valgrind: x86-64-v3)
// fastvfx_driver NAME ISA REPEATS      runs it REPEATS times and prints the fastest call, e.g. composite_fwd v4 100
#include "driver.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fastvfx {

std::vector<Work>& works() {
  static std::vector<Work> all;
  return all;
}

}  // namespace fastvfx

// valgrind counts what happens in here and nothing else: benchmarks/gate.py names this function to it.
extern "C" __attribute__((noinline)) void fastvfx_counted(const std::function<void()>& call) { call(); }

int main(int argc, char** argv) {
  using namespace fastvfx;
  auto& all = works();
  std::sort(all.begin(), all.end(), [](const Work& a, const Work& b) { return a.name < b.name; });
  if (argc < 2) {
    std::printf("%s\n", FASTVFX_COMPILER);
    for (const Work& work : all) std::printf("%s\n", work.name.c_str());
    return 0;
  }
  const auto work = std::find_if(all.begin(), all.end(), [&](const Work& w) { return w.name == argv[1]; });
  if (work == all.end()) {
    std::fprintf(stderr, "no workload %s\n", argv[1]);
    return 2;
  }
  if (argc > 2) {
    const std::string level = std::string("x86-64-") + argv[2];
    for (Isa isa : {Isa::generic, Isa::x86_64_v2, Isa::x86_64_v3, Isa::x86_64_v4}) {
      if (level == isa_name(isa) || !std::strcmp(argv[2], isa_name(isa))) set_isa(isa);
    }
  }
  const auto call = work->prepare();
  const int repeats = argc > 3 ? std::atoi(argv[3]) : 0;
  if (repeats == 0) {
    fastvfx_counted(call);
    return 0;
  }
  double fastest = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    fastvfx_counted(call);
    const std::chrono::duration<double, std::micro> elapsed = std::chrono::steady_clock::now() - start;
    fastest = std::min(fastest, elapsed.count());
  }
  std::printf("%s %s %.3f us\n", work->name.c_str(), isa_name(active_isa()), fastest);
}
