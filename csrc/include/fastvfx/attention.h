// Spatiotemporal attention: arguments and the maths of one score.
//
//   s_ij = cap(scale q_i . k_j) + b_ij,   p_ij = exp(s_ij - lse_i),   lse_i = log sum_j exp(s_ij),   o_i = sum_j p_ij
//   v_j
// over the keys j that query i may attend; cap(s) = softcap tanh(s / softcap). Tokens lie on a grid (T, H, W). On each
// axis a query attends an interval of keys with a step, so that a pattern is three small tables and never a mask.
// Backwards, with D_i = g_o_i . o_i - g_lse_i:
//   g_v_j = sum_i p_ij g_o_i,   g_s_ij = p_ij (g_o_i . v_j - D_i),   g_b = g_s,
//   g_q_i = scale sum_j cap' g_s_ij k_j,   g_k_j = scale sum_i cap' g_s_ij q_i.
// Scores are recomputed from lse, so that nothing is kept of the number of pairs.
#pragma once

#include "fastvfx/hash.h"
#include "fastvfx/math.h"

namespace fastvfx {

// Strides in elements; the channels of a head lie side by side.
struct AttentionTensor {
  const void* data;
  int64_t batch, token, head;
};

struct Attention {
  DType dtype;  // of q, k, v, their gradients and the output; tables, biases and lse are acc_t of it
  int64_t batch, heads, kv_heads, dim, dim_v, n_extra;
  int q_grid[3], k_grid[3];  // T, H, W
  int dilation[3], sink[3];  // key j: start <= j < end and (j - start) % dilation == 0, or j < min(sink, end)
  int block[3];              // of `blocks`, in tokens
  bool rotary_halves;        // pairs are channels i and i + dim / 2 instead of 2i and 2i + 1
  double scale, softcap, dropout;
  int64_t seed;
  AttentionTensor q, k, v, extra_k, extra_v;  // (B, N, heads, dim); extras are keys that every query may attend
  const bool* extra_mask;                     // (B, E) or null
  const bool* kv_mask;                        // (B, N_k) or null
  const void* relative_bias;                  // (heads, relative[0], [1], [2]) or null: at (key - query) / dilation
  int relative[3];
  const void* bias;  // (bias_batch, heads, N_q, N_k) or null
  int64_t bias_batch;
  const void* rotary;     // (N_q, dim / 2, 2) or null: cosine and sine
  const void* kv_rotary;  // (N_k, dim / 2, 2) or null
  const int32_t* blocks;  // (blocks_batch, blocks_heads, query blocks, n_blocks) or null: key blocks, -1 for none
  int64_t blocks_batch, blocks_heads, n_blocks;
  const int32_t* spans[3];  // (P, T_q, 2), (P, H_q, 2), (P, W_q, 2): start and end
  const int32_t* of_head;   // (heads): which of the P
  int n_patterns;
  int threads;
  void* stream;
};

struct AttentionFwd : Attention {
  void* out;  // (B, N_q, heads, dim_v)
  void* lse;  // (B, heads, N_q)
};

// Gradients are written whole, but g_bias, which is added to; those that are null are not asked for.
struct AttentionBwd : Attention {
  AttentionTensor out, g_out;      // (B, N_q, heads, dim_v)
  const void* lse;                 // (B, heads, N_q)
  const void* g_lse;               // (B, heads, N_q) or null
  void* g_q;                       // (B, N_q, heads, dim)
  void *g_k, *g_v;                 // (B, N_k, kv_heads, dim), dim_v
  void *g_extra_k, *g_extra_v;     // (B, E, kv_heads, dim), dim_v
  void *g_relative_bias, *g_bias;  // like the biases, in acc_t
};

}  // namespace fastvfx

FVX_BEGIN_ISA

// Dropout: whether the weight of a key is kept, a function of seed, batch, head, query and key alone.
FVX_HD uint64_t dropout_row(uint64_t mixed_seed, int64_t row) {
  return mix64(mixed_seed + uint64_t(row) * golden_step);
}
FVX_HD bool dropout_keeps(uint64_t row, int64_t key, uint32_t threshold) {
  return uint32_t(mix64(row + uint64_t(key) * golden_step) >> 32) >= threshold;
}

FVX_END_ISA
