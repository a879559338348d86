// Upsample, pad, filter, downsample: arguments, and which pixel meets which tap.
//
// Along an axis, with z the image with up - 1 zeros behind each pixel and `pad` zeros in front,
//   out[o] = sum_t taps[t] z[o down + t],   z[q up + pad] = x[q],
// where `taps` are in the order of correlation: the filter backwards unless it is flipped. Of every `up` taps only one
// meets a pixel that is no stuffed zero, so that an output sums over neighbouring pixels and every up-th tap.
//
// The operator is linear in x and in f. Its adjoint in x is itself with up and down exchanged, the filter flipped and
// pad' = taps - 1 - pad; that in f is Upfirdn2dBwdF.
#pragma once

#include "fastvfx/dtype.h"

namespace fastvfx {

struct Upfirdn2dShape {
  DType dtype;
  bool channels_last;  // of x and out: (n, h, w, c) in memory, else (n, c, h, w)
  int64_t n, channels, in_h, in_w, out_h, out_w;
  int taps_y, taps_x, up_y, up_x, down_y, down_x;
  int64_t pad_y, pad_x;  // above and to the left, of the upsampled image; negative ones crop
  bool flip;             // the filter is correlated, not convolved
  double gain;
  int threads;
  void* stream;
};

struct Upfirdn2dFwd : Upfirdn2dShape {
  bool separable;  // f is (taps_x): of columns and rows alike
  const void* x;
  const void* f;  // (taps_y, taps_x) or (taps_x), of the accumulation type
  void* out;
};

// On a GPU, blocks that sum for a filter's gradient, each of them into a row of its own; fastvfx/_ops/upfirdn2d.py too.
constexpr int kUpfirdn2dBlocks = 256;

// g_f[k, l] = gain sum over all outputs of g_out times the pixel that tap (k, l) meets.
struct Upfirdn2dBwdF : Upfirdn2dShape {
  const void* x;
  const void* g_out;
  void* g_f;   // (taps_y, taps_x), of the accumulation type
  void* work;  // GPU: (kUpfirdn2dBlocks, taps_y * taps_x) of the accumulation type
};

}  // namespace fastvfx

FVX_BEGIN_ISA

namespace upfirdn2d {

FVX_HD int64_t floor_div(int64_t a, int64_t b) {  // b > 0
  const int64_t q = a / b;
  return q - (a - q * b < 0);
}

// An output's first pixel and the tap that it meets; pixel first + k meets tap + k up.
struct Span {
  int64_t first;
  int tap;
};

FVX_HD Span span_of(int64_t output, int up, int down, int64_t pad) {
  const int64_t begin = output * down - pad;              // in the upsampled image
  const int64_t first = floor_div(begin + (up - 1), up);  // the pixel there or behind
  return {first, int(first * up - begin)};
}

// How many taps from `tap` on meet a pixel.
FVX_HD int count_of(int tap, int taps, int up) { return tap < taps ? (taps - tap + up - 1) / up : 0; }

// Where tap `t` of the order of correlation is in the filter as given.
FVX_HD int stored(int t, int taps, bool flip) { return flip ? t : taps - 1 - t; }

}  // namespace upfirdn2d

FVX_END_ISA
