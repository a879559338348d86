// Winograd's convolution with 3 x 3 taps, four by four pixels at a time: arguments and the transforms of one axis.
//
//   y = A^T [(G w G^T) * (B^T x B)] A,   summed over the channels of x where the product stands
// (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016): 36 products for 16 pixels where the
// definition takes 144. The polynomial behind it is evaluated at 0, +-sqrt(1/2), +-sqrt(2) and infinity; in float32
// the results are then about six times as far from exact as a convolution by definition is, half of what the usual
// 0, +-1, +-2 cost.
//
// Upsampling by 2 with a separable filter behind or in front of the convolution is the same thing once for each phase
// of the output: the taps that meet pixels of x are three along each axis again. So G is an argument.
#pragma once

#include "fastvfx/bias_act.h"

namespace fastvfx {

// Float only; images are channels_last, channels of both in multiples of 16.
struct WinogradFwd {
  int64_t in_channels, out_channels, height, width, out_height, out_width;  // out: of one phase
  int64_t pad_y, pad_x;
  int phases;              // of the output along each axis: 1 or 2
  const float* x;          // (images, height, width, in_channels)
  const float* s;          // (images, in_channels), factors of x, or null
  const float* w;          // 3 x 3 taps side by side, for each pair of channels
  int64_t w_out, w_in;     // from one channel's taps to the next one's
  const float* transform;  // (2, phases, 6, 3): G of y and of x
  BiasAct after;           // what follows; its images, threads and stream are those of the whole
  float* y;                // (images, phases out_height, phases out_width, out_channels)
  int* finite;             // set to whether all sums were: one NaN or infinity in x or w reaches a whole tile
};

}  // namespace fastvfx

FVX_BEGIN_ISA

namespace winograd {

constexpr int kTile = 4, kTaps = 3, kPoints = kTile + kTaps - 1;
constexpr float kRoot = 1.41421356237309505f;  // of 2

// B^T d
template <class V>
FVX_HD void spread(const V (&d)[kPoints], V (&to)[kPoints]) {
  const float half = 0.5f * kRoot;
  const V even_near = d[4] - 2.0f * d[2], odd_near = half * (d[3] - 2.0f * d[1]);
  const V even_far = d[4] - 0.5f * d[2], odd_far = kRoot * (d[3] - 0.5f * d[1]);
  to[0] = d[0] - 2.5f * d[2] + d[4];
  to[1] = even_near + odd_near;
  to[2] = even_near - odd_near;
  to[3] = even_far + odd_far;
  to[4] = even_far - odd_far;
  to[5] = d[1] - 2.5f * d[3] + d[5];
}

// A^T m
template <class V>
FVX_HD void gather(const V (&m)[kPoints], V (&to)[kTile]) {
  const float half = 0.5f * kRoot;
  const V near = m[1] + m[2], far = m[3] + m[4], near_odd = half * (m[1] - m[2]), far_odd = kRoot * (m[3] - m[4]);
  to[0] = m[0] + near + far;
  to[1] = near_odd + far_odd;
  to[2] = 0.5f * near + 2.0f * far;
  to[3] = 0.5f * near_odd + 2.0f * far_odd + m[5];
}

}  // namespace winograd

FVX_END_ISA
