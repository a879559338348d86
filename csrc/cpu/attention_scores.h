// From products to scores: scale, softcap, biases, and -inf where a query may not attend. Scores are (keys, lanes).
#pragma once

#include "attention_softmax.h"

FVX_BEGIN_ISA

namespace {

template <class A>
constexpr A kNan = A(__builtin_nan(""));

// What the scores of one batch and group of heads are made with, for all tiles of it.
template <class A>
struct ScoreMaker {
  ScoreMaker(const Attention& a, const Tiling& tiling, int64_t batch, int64_t first_head) : softcap(A(a.softcap)) {
    for (int x = 0; x < kAxes; ++x) dilation[x] = tiling.axes[x].dilation;
    n_q = int64_t(a.q_grid[0]) * a.q_grid[1] * a.q_grid[2];
    n_k = int64_t(a.k_grid[0]) * a.k_grid[1] * a.k_grid[2];
    const int64_t table = int64_t(a.relative[0]) * a.relative[1] * a.relative[2];
    relative = a.relative_bias ? static_cast<const A*>(a.relative_bias) + first_head * table : nullptr;
    first_bias = ((a.bias_batch > 1 ? batch * a.heads : 0) + first_head) * n_q * n_k;
    bias = a.bias ? static_cast<const A*>(a.bias) + first_bias : nullptr;
    for (int x = 0; x < kAxes; ++x) has_sink |= tiling.axes[x].sink > 0;
    is_plain = !relative && !bias && !(a.softcap > 0) && a.scale > 0;
  }

  // Of a query's row in the bias, from that of the first head and query.
  int64_t bias_row(const Rows& rows, int lane) const { return (rows.head[lane] * n_q + rows.token[lane]) * n_k; }

  // Index of a key in the table of relative biases, before what rows.relative takes off.
  int32_t relative_of(const Rows& rows, const KeyBlock& block, int i) const {
    int32_t index = 0;
    for (int x = 0; x < kAxes; ++x) index += floor_of(block.at[x][i], dilation[x]) * rows.relative_step[x];
    return index;
  }

  // Whether products are scores but for the scale, which is positive, and for what mask() does.
  bool plain() const { return is_plain; }

  // s: products of queries and keys, becomes scores. scale: of each lane. bad: keys that are not finite, or null.
  // slopes: receives the derivative of the softcap, or null.
  void operator()(const Rows& rows, const KeyBlock& block, const A* scale, const bool* bad, A* s, A* slopes) const {
    const int lanes = rows.lanes;
    for (int i = 0; i < block.n; ++i) {
      A* row = s + int64_t(i) * lanes;
      if (softcap > A(0)) {
        cap(scale, row, slopes ? slopes + int64_t(i) * lanes : nullptr, lanes);
      } else {
        FVX_SIMD
        for (int l = 0; l < lanes; ++l) row[l] *= scale[l];
      }
    }
    if (!block.extra && bias) add_bias(rows, block, s);
    mask(rows, block, bad, s, !block.extra && relative);
  }

  // NaN for keys that are not finite, -inf for the pairs that are not allowed, and biases by distance for those that
  // are, if wanted.
  void mask(const Rows& rows, const KeyBlock& block, const bool* bad, A* s, bool with_relative = false) const {
    const bool masks = !block.extra && (block.partial[0] || block.partial[1] || block.partial[2]);
    if (!masks && !with_relative && !bad) return;
    for (int i = 0; i < block.n; ++i) {
      A* row = s + int64_t(i) * rows.lanes;
      if (bad && bad[i]) {
        for (int l = 0; l < rows.lanes; ++l) row[l] = kNan<A>;
      }
      if (masks) allow(rows, block, i);
      if (with_relative) add_relative(rows, block, i, masks, row);
      if (!masks) continue;
      FVX_SIMD
      for (int l = 0; l < rows.lanes; ++l) row[l] = rows.allowed[l] ? row[l] : kNone<A>;
    }
  }

  A softcap;
  const A *relative, *bias;
  int64_t n_q, n_k, first_bias;
  int32_t dilation[kAxes];
  bool has_sink = false, is_plain;

 private:
  void cap(const A* scale, A* row, A* slopes, int lanes) const {
    const A inverse = A(1) / softcap;
    FVX_SIMD
    for (int l = 0; l < lanes; ++l) {
      const A t = tanh_of(row[l] * scale[l] * inverse);
      row[l] = softcap * t;
      if (slopes) slopes[l] = A(1) - t * t;
    }
  }

  void narrow_to_axis(const Rows& rows, int x, int32_t key, const int32_t* before, int32_t* after) const {
    const int32_t *start = rows.start[x], *length = rows.length[x], *sink_end = rows.sink_end[x];
    if (has_sink) {
      FVX_SIMD
      for (int l = 0; l < rows.lanes; ++l) {
        const bool inside = (uint32_t(key - start[l]) < uint32_t(length[l])) | (key < sink_end[l]);
        after[l] = inside ? before[l] : 0;
      }
    } else {
      FVX_SIMD
      for (int l = 0; l < rows.lanes; ++l) {
        after[l] = uint32_t(key - start[l]) < uint32_t(length[l]) ? before[l] : 0;
      }
    }
  }

  // rows.allowed: which lanes may attend key i. Frame and row are asked only where they change.
  void allow(const Rows& rows, const KeyBlock& block, int i) const {
    if (i == 0 || block.at[0][i] != block.at[0][i - 1] || block.at[1][i] != block.at[1][i - 1]) {
      for (int l = 0; l < rows.lanes; ++l) rows.near[l] = -1;
      for (int x = 0; x < 2; ++x) {
        if (block.partial[x]) narrow_to_axis(rows, x, block.at[x][i], rows.near, rows.near);
      }
      if (!block.partial[2]) __builtin_memcpy(rows.allowed, rows.near, size_t(rows.lanes) * sizeof(int32_t));
    }
    if (block.partial[2]) narrow_to_axis(rows, 2, block.at[2][i], rows.near, rows.allowed);
  }

  void add_relative(const Rows& rows, const KeyBlock& block, int i, bool masks, A* row) const {
    const int32_t key = relative_of(rows, block, i);
    for (int l = 0; l < rows.lanes; ++l) {
      const int32_t index = key - rows.relative[l];
      row[l] += relative[masks && !rows.allowed[l] ? 0 : index];
    }
  }

  void add_bias(const Rows& rows, const KeyBlock& block, A* s) const {
    for (int l = 0; l < rows.n; ++l) {
      const A* from = bias + bias_row(rows, l);
      for (int i = 0; i < block.n; ++i) s[int64_t(i) * rows.lanes + l] += from[block.token[i]];
    }
  }
};

}  // namespace

FVX_END_ISA
