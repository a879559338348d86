// Conversions of 16-bit storage: every half and bfloat16 there and back, and rounding against the compiler's own.
#include <cstring>

#include "check.h"
#include "fastvfx/dtype.h"

using namespace fastvfx;
using namespace fastvfx::generic;

namespace {

bool same(float a, float b) { return std::isnan(a) ? std::isnan(b) : std::memcmp(&a, &b, 4) == 0; }

void expect(bool holds, const char* what, unsigned bits) {
  if (holds) return;
  std::printf("%s: %08x\n", what, bits);
  ++failures;
}

void test_every_half() {
  for (unsigned u = 0; u < 65536; ++u) {
    const f16 h{uint16_t(u)};
    const float x = to_acc(h);
    const f16 back = from_acc<f16>(x);
    expect(std::isnan(x) ? (back.bits & 0x7fff) > 0x7c00 : back.bits == u, "f16 there and back", u);
    const bf16 b{uint16_t(u)};
    const bf16 b_back = from_acc<bf16>(to_acc(b));
    expect(std::isnan(to_acc(b)) ? (b_back.bits & 0x7fff) > 0x7f80 : b_back.bits == u, "bf16 there and back", u);
  }
}

void test_rounding() {
#if defined(__FLT16_MAX__)
  // One float in 1009, spread over all exponents, signs, ties and specials.
  for (uint64_t u = 0; u < (uint64_t(1) << 32); u += 1009) {
    const float x = bits_to_float(uint32_t(u));
    const _Float16 want = _Float16(x);
    expect(same(to_acc(from_acc<f16>(x)), float(want)), "rounding to f16", unsigned(u));
  }
  for (unsigned u = 0; u < 65536; ++u) {  // exact ties between neighbouring halves
    const float a = to_acc(f16{uint16_t(u)}), b = to_acc(f16{uint16_t(u + 1)});
    const float tie = 0.5f * a + 0.5f * b;
    expect(same(to_acc(from_acc<f16>(tie)), float(_Float16(tie))), "tie between halves", u);
  }
#endif
  for (unsigned u = 0; u < 65535; ++u) {  // bfloat16: the tie goes to the even one
    if ((u & 0x7f80) == 0x7f80) continue;
    const float tie = bits_to_float(u << 16 | 0x8000u);
    expect(from_acc<bf16>(tie).bits == (u & 1 ? u + 1 : u), "tie between bfloat16s", u);
  }
}

}  // namespace

int main() {
  test_every_half();
  test_rounding();
  std::printf("%d failed\n", failures);
  return failures ? 1 : 0;
}
