// Small multilayer perceptrons: arguments and activations.
//
//   h_0 = x,   z_l = W_l h_{l-1} + b_l,   h_l = act(z_l),   y = output_act(z_L)
// Backwards, with g_L = g_y * output_act'(z_L):
//   g_W_l = sum over points of g_l h_{l-1}^T,   g_b_l = sum g_l,   g_{l-1} = (W_l^T g_l) * act'(z_{l-1}).
// Every activation but the sine has a slope that follows from its value, so no z needs to be kept.
#pragma once

#include "fastvfx/math.h"

namespace fastvfx {

// fastvfx/_ops/mlp.py holds the same table.
enum class Activation : int { none = 0, relu, leaky_relu, sigmoid, tanh, softplus, exp, sine };

constexpr int mlp_max_layers = 16;

struct Mlp {
  DType x_dtype;  // of x, y and their gradients
  DType w_dtype;  // of weights, biases and their gradients
  Activation activation, output_activation;
  int64_t n_points;
  int n_layers;
  int64_t widths[mlp_max_layers + 1];   // n_in, hidden widths, n_out
  const void* weights[mlp_max_layers];  // (widths[l + 1], widths[l]), row-major
  const void* biases[mlp_max_layers];   // (widths[l + 1]) or null
  const void* x;                        // (n_points, n_in)
  int threads;
  void* stream;
};

struct MlpFwd : Mlp {
  void* y;  // (n_points, n_out)
};

struct MlpBwd : Mlp {
  const void* y;    // (n_points, n_out)
  const void* g_y;  // (n_points, n_out)
  void* g_x;        // (n_points, n_in) or null
  void* g_params;   // or null: g_W_0, g_b_0, g_W_1, ... one after the other, without the biases that are null
};

}  // namespace fastvfx

FVX_BEGIN_ISA

// Taylor polynomial on [-pi/2, pi/2]; the first dropped term is 7e-10.
FVX_HD float sin_near_zero(float r) {
  const float r2 = r * r;
  float p = 1.6059044e-10f;
  p = p * r2 - 2.5052108e-8f;
  p = p * r2 + 2.7557319e-6f;
  p = p * r2 - 1.9841270e-4f;
  p = p * r2 + 8.3333333e-3f;
  p = p * r2 - 1.6666667e-1f;
  return r + r * (r2 * p);
}

FVX_HD SinCos<double> sin_cos(double z) { return {::sin(z), ::cos(z)}; }

// The multiple of pi is taken off in double: exact enough for any argument that a network meets.
FVX_HD SinCos<float> sin_cos(float z) {
  const double magic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  const double n = (double(z) * 0.31830988618379067 + magic) - magic;
  const double r = double(z) - n * 3.141592653589793;
  const double odd = n - 2.0 * ((n * 0.5 + magic) - magic);  // -1, 0 or 1
  const float sign = float(1.0 - 2.0 * (odd * odd));
  const double from_peak = 1.5707963267948966 - (r < 0 ? -r : r);
  return {sign * sin_near_zero(float(r)), sign * sin_near_zero(float(from_peak))};
}

template <class A>
FVX_HD A activate(Activation kind, A z) {
  switch (kind) {
    case Activation::relu:
      return z < A(0) ? A(0) : z;  // keeps NaN
    case Activation::leaky_relu:
      return z < A(0) ? A(0.01) * z : z;
    case Activation::sigmoid:
      return sigmoid_of(z);
    case Activation::tanh:
      return tanh_of(z);
    case Activation::softplus:
      return softplus_of(z);
    case Activation::exp:
      return exp_of(z);
    case Activation::sine:
      return sin_cos(z).sin;
    default:
      return z;
  }
}

// g act'(z), with act'(z) from h = act(z); for the sine, h stands for cos(z) instead.
template <class A>
FVX_HD A through_activation(Activation kind, A g, A h) {
  switch (kind) {
    case Activation::relu:
      return h <= A(0) ? A(0) : g;
    case Activation::leaky_relu:
      return h > A(0) ? g : A(0.01) * g;
    case Activation::sigmoid:
      return g * (h * (A(1) - h));
    case Activation::tanh:
      return g * (A(1) - h * h);
    case Activation::softplus:
      return g * -exp_pair(-h).em1;
    case Activation::exp:
    case Activation::sine:
      return g * h;
    default:
      return g;
  }
}

FVX_END_ISA
