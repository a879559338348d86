#include "bindings.h"

namespace fastvfx {
namespace {

// `mlp` is the tuple that this takes, built once for both directions by fastvfx/_ops/mlp.py. `biases` is empty or has
// one entry a layer.
void fill(Mlp& m, int x_dtype, int w_dtype, int activation, int output_activation, int64_t n_points,
          const std::vector<int64_t>& widths, const std::vector<Pointer>& weights, const std::vector<Pointer>& biases,
          Pointer x, int threads, Pointer stream) {
  m.x_dtype = DType(x_dtype);
  m.w_dtype = DType(w_dtype);
  m.activation = Activation(activation);
  m.output_activation = Activation(output_activation);
  m.n_points = n_points;
  m.n_layers = int(weights.size());
  if (m.n_layers > mlp_max_layers || widths.size() != weights.size() + 1) {
    throw py::value_error("fastvfx: too many layers, or as many widths as layers");
  }
  for (size_t i = 0; i < widths.size(); ++i) m.widths[i] = widths[i];
  for (size_t l = 0; l < weights.size(); ++l) m.weights[l] = weights[l];
  for (size_t l = 0; l < biases.size(); ++l) m.biases[l] = biases[l];
  m.x = x;
  m.threads = threads;
  m.stream = stream;
}

}  // namespace

void bind_mlp(py::module_& m) {
  m.attr("mlp_max_layers") = mlp_max_layers;
  m.def("mlp_fwd_cpu", [](int x_dtype, int w_dtype, int activation, int output_activation, int64_t n_points,
                          const std::vector<int64_t>& widths, const std::vector<Pointer>& weights,
                          const std::vector<Pointer>& biases, Pointer x, int threads, Pointer stream, Pointer y) {
    MlpFwd a{};
    fill(a, x_dtype, w_dtype, activation, output_activation, n_points, widths, weights, biases, x, threads, stream);
    a.y = y;
    run(cpu::mlp_fwd, a);
  });
  m.def("mlp_bwd_cpu", [](int x_dtype, int w_dtype, int activation, int output_activation, int64_t n_points,
                          const std::vector<int64_t>& widths, const std::vector<Pointer>& weights,
                          const std::vector<Pointer>& biases, Pointer x, int threads, Pointer stream, Pointer y,
                          Pointer g_y, Pointer g_x, Pointer g_params) {
    MlpBwd a{};
    fill(a, x_dtype, w_dtype, activation, output_activation, n_points, widths, weights, biases, x, threads, stream);
    a.y = y;
    a.g_y = g_y;
    a.g_x = g_x;
    a.g_params = g_params;
    run(cpu::mlp_bwd, a);
  });
}

}  // namespace fastvfx
