// Filtered leaky ReLU: arguments, the geometry of the pixels between the two filters, and what becomes of one of them.
//
//   y = down_fd(act(scale * up_fu(pad(x + b))))
// One kernel serves both directions. With act's slopes read from a mask the map is linear, and its transpose is of the
// same form: fd and fu, up and down, and the sides of the padding change places. "Middle" pixels are those between the
// filters; middle pixel 0 is the first that output pixel 0 reads.
#pragma once

#include "fastvfx/math.h"

namespace fastvfx {

// What a pass does with the slopes of its middle pixels.
enum class SlopeMask : int { none = 0, write = 1, read = 2 };

// Separable filters are 1-D and serve both axes: height == width.
struct FirFilter {
  const void* taps;  // in the type that sums are taken in
  int height, width;
  bool separable, flip;  // flip: correlate
};

struct FilteredLrelu {
  DType dtype;
  int64_t planes, channels;  // planes: images times channels
  int64_t height, width, out_height, out_width;
  int up, down;
  int64_t left, top;  // zeros in front of the upsampled image; negative ones crop
  FirFilter fu, fd;
  double scale, slope, clamp;  // clamp: infinite for none
  SlopeMask mask_mode;
  uint8_t* mask;
  int64_t mask_height, mask_width;
  int64_t mask_left, mask_top;  // middle pixel (y, x) has the slope of mask pixel (y - mask_top, x - mask_left), else 0
  // The up, down and left that the mask was written with: they set the order of its bits on the CPU.
  int mask_up, mask_down;
  int64_t mask_padding;
  const void* x;     // (planes, height, width)
  const void* bias;  // (channels) in the type of sums, or null
  void* out;         // (planes, out_height, out_width)
  void* row_sums;    // (planes, out_height) in the type of sums, or null: of each row of `out`, not rounded
  int threads;
  void* stream;
};

}  // namespace fastvfx

FVX_BEGIN_ISA

namespace filtered_lrelu {

FVX_HD int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
FVX_HD int64_t floor_mod(int64_t a, int64_t b) { return a - floor_div(a, b) * b; }
FVX_HD int lcm(int a, int b) {
  int x = a, y = b;
  while (y) {
    const int r = x % y;
    x = y;
    y = r;
  }
  return a / x * b;
}

// One axis of upsampling. Middle pixel m = first + up * a + p of group a and phase p is
//   sum over s of tap(p, s) * x[base + a + s],
// so that all phases of a group read the same window of x.
struct UpAxis {
  int up, taps;
  int64_t first, base;

  FVX_HD UpAxis(int up_, int taps_, int64_t padding)
      : up(up_), taps(taps_), first(-floor_mod(-(padding + 1), up_)), base((first - padding + up_ - 1) / up_) {}
  FVX_HD int tap(int phase, int s) const { return up - 1 - phase + up * s; }
  FVX_HD int terms(int phase) const {
    const int left_over = taps - tap(phase, 0);
    return left_over > 0 ? (left_over + up - 1) / up : 0;
  }
  FVX_HD int most_terms() const { return terms(up - 1); }
  FVX_HD int64_t group(int64_t m) const { return floor_div(m - first, up); }
  FVX_HD int phase(int64_t m) const { return int(floor_mod(m - first, up)); }
};

// Which tap of the stored filter multiplies the k-th pixel of a window of n.
FVX_HD int stored_tap(bool flip, int n, int k) { return flip ? k : n - 1 - k; }

// Slope of a middle pixel u as two bits. At 0 the slope is that of the negative side, as in PyTorch; where |act(u)|
// reaches the clamp it is 0, and so it is for NaN.
struct Slope {
  bool negative, dead;
};
template <class A>
FVX_HD A leaky(A u, A slope) {
  return u > A(0) ? u : u * slope;
}
template <class A>
FVX_HD Slope slope_of(A u, A slope, A clamp) {
  const A v = leaky(u, slope);
  return {!(u > A(0)), !((v < A(0) ? -v : v) < clamp)};
}
template <class A>
FVX_HD A activate(A u, A slope, A clamp) {
  const A v = leaky(u, slope);
  return v > clamp ? clamp : v < -clamp ? -clamp : v;  // NaN stays
}
template <class A>
FVX_HD A times_slope(A u, Slope s, A slope) {
  return s.dead ? A(0) : s.negative ? u * slope : u;
}

}  // namespace filtered_lrelu

FVX_END_ISA
