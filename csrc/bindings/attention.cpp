#include <vector>

#include "bindings.h"

namespace fastvfx {
namespace {

using Sizes = std::vector<int64_t>;

// `sizes`, `shape`, `strides` and `inputs` are made by fastvfx/_ops/attention.py, in this order.
void set_inputs(Attention& a, int dtype, const Sizes& sizes, const Sizes& shape, const Sizes& strides,
                const std::vector<Pointer>& inputs, double scale, double softcap, double dropout, int64_t seed,
                int threads, Pointer stream) {
  a.dtype = DType(dtype);
  a.batch = sizes[0], a.heads = sizes[1], a.kv_heads = sizes[2], a.dim = sizes[3], a.dim_v = sizes[4];
  a.n_extra = sizes[5], a.bias_batch = sizes[6];
  a.blocks_batch = sizes[7], a.blocks_heads = sizes[8], a.n_blocks = sizes[9], a.n_patterns = int(sizes[10]);
  for (int x = 0; x < 3; ++x) {
    a.relative[x] = int(sizes[size_t(11 + x)]);
    a.q_grid[x] = int(shape[size_t(x)]), a.k_grid[x] = int(shape[size_t(3 + x)]);
    a.dilation[x] = int(shape[size_t(6 + x)]), a.sink[x] = int(shape[size_t(9 + x)]);
    a.block[x] = int(shape[size_t(12 + x)]);
  }
  a.rotary_halves = shape[15] != 0;
  AttentionTensor* const tensors[] = {&a.q, &a.k, &a.v, &a.extra_k, &a.extra_v};
  for (size_t i = 0; i < 5; ++i) {
    *tensors[i] = {inputs[i], strides[3 * i], strides[3 * i + 1], strides[3 * i + 2]};
  }
  a.extra_mask = inputs[5], a.kv_mask = inputs[6];
  a.relative_bias = inputs[7], a.bias = inputs[8];
  a.rotary = inputs[9], a.kv_rotary = inputs[10];
  a.blocks = inputs[11];
  for (size_t x = 0; x < 3; ++x) a.spans[x] = inputs[12 + x];
  a.of_head = inputs[15];
  a.scale = scale, a.softcap = softcap, a.dropout = dropout, a.seed = seed;
  a.threads = threads, a.stream = stream;
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def("attention_fwd_cpu", [](int dtype, const Sizes& sizes, const Sizes& shape, const Sizes& strides,
                                const std::vector<Pointer>& inputs, double scale, double softcap, double dropout,
                                int64_t seed, int threads, Pointer stream, Pointer out, Pointer lse) {
    AttentionFwd a{};
    set_inputs(a, dtype, sizes, shape, strides, inputs, scale, softcap, dropout, seed, threads, stream);
    a.out = out, a.lse = lse;
    run(cpu::attention_fwd, a);
  });
  // `results`: out, its gradient, lse, its gradient or 0. `gradients`: of q, k, v, extra_k, extra_v, relative_bias,
  // bias.
  m.def("attention_bwd_cpu",
        [](int dtype, const Sizes& sizes, const Sizes& shape, const Sizes& strides, const std::vector<Pointer>& inputs,
           double scale, double softcap, double dropout, int64_t seed, int threads, Pointer stream,
           const std::vector<Pointer>& results, const Sizes& result_strides, const std::vector<Pointer>& gradients) {
          AttentionBwd a{};
          set_inputs(a, dtype, sizes, shape, strides, inputs, scale, softcap, dropout, seed, threads, stream);
          a.out = {results[0], result_strides[0], result_strides[1], result_strides[2]};
          a.g_out = {results[1], result_strides[3], result_strides[4], result_strides[5]};
          a.lse = results[2], a.g_lse = results[3];
          a.g_q = gradients[0], a.g_k = gradients[1], a.g_v = gradients[2];
          a.g_extra_k = gradients[3], a.g_extra_v = gradients[4];
          a.g_relative_bias = gradients[5], a.g_bias = gradients[6];
          run(cpu::attention_bwd, a);
        });
}

}  // namespace fastvfx
