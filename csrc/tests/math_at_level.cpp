// The elementary functions of math.h against libm in double, compiled as the kernels are: once per instruction set,
// in loops that vectorise. One float in `stride` is tried, 997 unless an argument says otherwise; 1 tries all.
#include <cstdlib>
#include <cstring>

#include "check.h"
#include "fastvfx/math.h"

using namespace fastvfx;

namespace {

#define FVX_TEXT_OF(x) #x
#define FVX_TEXT(x) FVX_TEXT_OF(x)

constexpr int kBlock = 1024;

double ulp_of(double exact) {
  const float next = std::nextafter(std::fabs(float(exact)), INFINITY);
  const double spacing = double(next) - double(std::fabs(float(exact)));
  return spacing > 1.4e-45 ? spacing : 1.4e-45;
}

// Keeps the largest error in units of the last place and where it was made.
struct Worst {
  const char* what;
  double allowed, error = 0, at = 0;
  void see(double x, double got, double exact) {
    const double e = std::fabs(got - exact) / ulp_of(exact);
    if (e <= error) return;
    error = e;
    at = x;
  }
  void report() const {
    std::printf("%s: %s: at most %.3f ulp, at %.9g\n", FVX_TEXT(FVX_ISA), what, error, at);
    if (!(error <= allowed)) ++failures;
  }
};

// body(x, n) for blocks of the floats from 2^-27 (below it every function here is its first Taylor term) to `last`,
// both signs.
template <class Body>
void for_floats(float last, unsigned stride, const Body& body) {
  float x[kBlock];
  int n = 0;
  for (uint32_t bits = 0x32000000u; bits <= FVX_ISA::float_to_bits(last); bits += stride) {
    const float magnitude = FVX_ISA::bits_to_float(bits);
    x[n++] = magnitude;
    x[n++] = -magnitude;
    if (n < kBlock) continue;
    body(x, n);
    n = 0;
  }
  body(x, n);
}

void test_exp(unsigned stride) {
  Worst worst_e{"exp", 2}, worst_em1{"expm1", 2};
  int finite = 0, subnormal = 0;
  for_floats(90.0f, stride, [&](const float* x, int n) {
    float e[kBlock], em1[kBlock];
    FVX_SIMD
    for (int i = 0; i < n; ++i) {
      const FVX_ISA::ExpPair<float> p = FVX_ISA::exp_pair(x[i]);
      e[i] = p.e;
      em1[i] = p.em1;
    }
    for (int i = 0; i < n; ++i) {
      if (x[i] > 88.72283f) {
        finite += !(e[i] == INFINITY && em1[i] == INFINITY);
        continue;
      }
      if (x[i] < -87.33654f) {
        subnormal += e[i] != 0.0f;
      } else {
        worst_e.see(x[i], e[i], std::exp(double(x[i])));
      }
      worst_em1.see(x[i], em1[i], std::expm1(double(x[i])));
    }
  });
  worst_e.report();
  worst_em1.report();
  near("results beyond the largest float that are not infinite", finite, 0, 0);
  near("results below the smallest normal float that are not 0", subnormal, 0, 0);
  const FVX_ISA::ExpPair<float> zero = FVX_ISA::exp_pair(0.0f), nan = FVX_ISA::exp_pair(NAN);
  near("exp(0)", zero.e, 1, 0);
  near("expm1(0)", zero.em1, 0, 0);
  near("exp(nan) is nan", std::isnan(nan.e) && std::isnan(nan.em1), 1, 0);
  near("exp(-inf)", FVX_ISA::exp_pair(-INFINITY).e, 0, 0);
  near("expm1(-inf)", FVX_ISA::exp_pair(-INFINITY).em1, -1, 0);
  near("exp(inf) is inf", FVX_ISA::exp_pair(INFINITY).e == INFINITY, 1, 0);
}

// Errors in ulp of 1: a sine has no relative precision near its zeros other than 0, nor do its consumers ask for it.
void test_sincospi(unsigned stride) {
  double worst = 0;
  for_floats(4096.0f, stride, [&](const float* x, int n) {
    float s[kBlock], c[kBlock];
    FVX_SIMD
    for (int i = 0; i < n; ++i) {
      const FVX_ISA::SinCos<float> w = FVX_ISA::sincospi(x[i], 0.0f);
      s[i] = w.sin;
      c[i] = w.cos;
    }
    for (int i = 0; i < n; ++i) {
      const double r = 3.14159265358979323846 * (double(x[i]) - 2 * std::rint(0.5 * double(x[i])));
      worst = std::fmax(worst, std::fmax(std::fabs(s[i] - std::sin(r)), std::fabs(c[i] - std::cos(r))));
    }
  });
  std::printf("%s: sincospi: at most %.3f ulp of 1\n", FVX_TEXT(FVX_ISA), worst * 8388608);
  near("sincospi", worst, 0, 1.2e-7);
  const FVX_ISA::SinCos<float> inf = FVX_ISA::sincospi(INFINITY, 0.0f), huge = FVX_ISA::sincospi(3e38f, 0.0f);
  near("sincospi(inf) is nan", std::isnan(inf.sin) && std::isnan(inf.cos), 1, 0);
  near("sin of many turns", huge.sin, 0, 0);
  near("cos of many turns", huge.cos, 1, 0);
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned stride = argc > 1 ? unsigned(std::atoi(argv[1])) : 997;
  for (Isa isa : {Isa::generic, Isa::x86_64_v2, Isa::x86_64_v3, Isa::x86_64_v4}) {
    char name[16];  // x86-64-v3 is the namespace x86_64_v3
    std::snprintf(name, sizeof name, "%s", isa_name(isa));
    for (char* c = name; *c; ++c) *c = *c == '-' ? '_' : *c;
    if (std::strcmp(name, FVX_TEXT(FVX_ISA)) || int(isa) <= int(detected_isa())) continue;
    std::printf("skipped: this processor runs up to %s\n", isa_name(detected_isa()));
    return 0;
  }
  test_exp(stride);
  test_sincospi(stride);
  std::printf("%d failed\n", failures);
  return failures ? 1 : 0;
}
