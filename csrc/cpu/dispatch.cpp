// Chooses an instruction-set level once and forwards every kernel to it.
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "fastvfx/kernels.h"

#if defined(FVX_X86_LEVELS) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastvfx {

#if defined(FVX_X86_LEVELS)
namespace x86_64_v2 {
#define FVX_KERNEL(name, Args) void name(const Args&);
#include "kernels.def"
}  // namespace x86_64_v2
namespace x86_64_v3 {
#include "kernels.def"
}  // namespace x86_64_v3
namespace x86_64_v4 {
#include "kernels.def"
}  // namespace x86_64_v4
#else
namespace generic {
#define FVX_KERNEL(name, Args) void name(const Args&);
#include "kernels.def"
}  // namespace generic
#endif
#undef FVX_KERNEL

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::x86_64_v2:
      return "x86-64-v2";
    case Isa::x86_64_v3:
      return "x86-64-v3";
    case Isa::x86_64_v4:
      return "x86-64-v4";
    default:
      return "generic";
  }
}

Isa detected_isa() {
#if defined(FVX_X86_LEVELS)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return v4 ? Isa::x86_64_v4 : v3 ? Isa::x86_64_v3 : Isa::x86_64_v2;
#else
  return Isa::generic;
#endif
}

namespace {

bool ask_for_amx() {
#if defined(FVX_X86_LEVELS) && defined(__linux__) && defined(SYS_arch_prctl)
  if (detected_isa() != Isa::x86_64_v4) return false;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5)) return false;                      // AVX512-BF16
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & 1u << 22) || !(d & 1u << 24)) return false;  // AMX-BF16, -TILE
  unsigned low, high;  // which registers the system saves; detected_isa() has seen that it can be asked
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  if ((low & kTileState) != kTileState) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, Linux 5.16
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

std::atomic<bool>& amx() {
  static std::atomic<bool> on{[] {
    const char* wanted = std::getenv("FASTVFX_CPU_AMX");
    return detected_amx() && !(wanted && std::string(wanted) == "off");
  }()};
  return on;
}

}  // namespace

bool detected_amx() {
  static const bool there = ask_for_amx();
  return there;
}

bool active_amx() { return amx().load(std::memory_order_relaxed); }

void set_amx(bool on) {
  if (on && !detected_amx()) throw std::invalid_argument("fastvfx: this processor or system has no AMX tiles");
  amx().store(on, std::memory_order_relaxed);
}

namespace {

Isa isa_from_environment() {
  const char* wanted = std::getenv("FASTVFX_CPU_ISA");
  if (!wanted || !*wanted) return detected_isa();
  const std::string name(wanted);
  for (Isa isa : {Isa::generic, Isa::x86_64_v2, Isa::x86_64_v3, Isa::x86_64_v4}) {
    const std::string full = isa_name(isa);
    const bool is_it = name == full || "x86-64-" + name == full;
    const bool built = detected_isa() == Isa::generic ? isa == Isa::generic : isa != Isa::generic;
    if (is_it && built && int(isa) <= int(detected_isa())) return isa;
  }
  return detected_isa();
}

std::atomic<int>& active() {
  static std::atomic<int> isa{int(isa_from_environment())};
  return isa;
}

}  // namespace

Isa active_isa() { return Isa(active().load(std::memory_order_relaxed)); }

void set_isa(Isa isa) {
  const bool built = detected_isa() == Isa::generic ? isa == Isa::generic : isa != Isa::generic;
  if (!built || int(isa) > int(detected_isa())) {
    throw std::invalid_argument(std::string("fastvfx: this processor and build run up to ") + isa_name(detected_isa()) +
                                ", not " + isa_name(isa));
  }
  active().store(int(isa), std::memory_order_relaxed);
}

namespace cpu {

#if defined(FVX_X86_LEVELS)
#define FVX_KERNEL(name, Args)        \
  void name(const Args& args) {       \
    switch (active_isa()) {           \
      case Isa::x86_64_v4:            \
        return x86_64_v4::name(args); \
      case Isa::x86_64_v3:            \
        return x86_64_v3::name(args); \
      default:                        \
        return x86_64_v2::name(args); \
    }                                 \
  }
#else
#define FVX_KERNEL(name, Args) \
  void name(const Args& args) { return generic::name(args); }
#endif
#include "kernels.def"
#undef FVX_KERNEL

}  // namespace cpu
}  // namespace fastvfx
