// The queries of a tile, one a lane, and its keys, block by block.
#pragma once

#include "attention_plan.h"

FVX_BEGIN_ISA

namespace {

constexpr int kLaneStep = 16;  // lanes come in multiples of this

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Floor of a / b, b > 0.
inline int32_t floor_of(int32_t a, int32_t b) { return a / b - (a % b < 0 ? 1 : 0); }

// How the heads are taken: those that share keys and a pattern as one tile, as far as they fit.
struct HeadGroups {
  int together, per_kv_head;  // per_kv_head groups of `together` query heads

  HeadGroups(const Attention& a, int max_rows) {
    const int ratio = int(a.heads / a.kv_heads);
    together = 1;
    for (int n = 2; n <= ratio && 4 * n <= max_rows; ++n) {
      if (ratio % n == 0) together = n;
    }
    for (int64_t h = 0; h < a.heads; ++h) {
      if (a.of_head[h] != a.of_head[h / ratio * ratio] || a.blocks_heads > 1) together = 1;
    }
    per_kv_head = ratio / together;
  }
};

// Rows of a tile. Lanes behind the last query have token -1 and attend no key of which the queries are asked.
class Rows {
 public:
  explicit Rows(int max_lanes) : max_(max_lanes), room_(int64_t(max_lanes) * kArrays), hash_(max_lanes) {
    int32_t* at = room_.data();
    const auto next = [&] { return at += max_, at - max_; };
    token = next(), head = next(), relative = next(), near = next(), allowed = next();
    for (int x = 0; x < kAxes; ++x) start[x] = next(), length[x] = next(), sink_end[x] = next();
    hash = hash_.data();
  }

  void set(const Attention& a, const Tiling& tiling, const Chunk* const (&chunk)[kAxes], int heads) {
    const Axis(&axes)[kAxes] = tiling.axes;
    n = 0;
    int32_t size = 1;
    for (int x = kAxes - 1; x >= 0; size *= a.relative[x], --x) relative_step[x] = size;
    for (int g = 0; g < heads; ++g) {
      for (int32_t i = 0; i < chunk[0]->size; ++i) {
        for (int32_t j = 0; j < chunk[1]->size; ++j) {
          for (int32_t k = 0; k < chunk[2]->size; ++k, ++n) {
            const int32_t q[kAxes] = {tiling.order(0)[chunk[0]->begin + i], tiling.order(1)[chunk[1]->begin + j],
                                      tiling.order(2)[chunk[2]->begin + k]};
            token[n] = (q[0] * axes[1].n_q + q[1]) * axes[2].n_q + q[2];
            head[n] = g;
            // What the index of a key in the table of relative biases is to be lessened by.
            relative[n] = -g * size;
            for (int x = 0; x < kAxes; ++x) {
              const int32_t s = axes[x].start(q[x]), e = axes[x].end(q[x]);
              start[x][n] = s, length[x][n] = max_of(e - s, 0), sink_end[x][n] = min_of(axes[x].sink, e);
              const int32_t position = q[x] + axes[x].n_k - axes[x].n_q;
              relative[n] += (floor_of(position, axes[x].dilation) - a.relative[x] / 2) * relative_step[x];
            }
          }
        }
      }
    }
    lanes = int(round_up(n, kLaneStep));
    for (int l = n; l < lanes; ++l) {
      token[l] = -1, head[l] = 0, relative[l] = relative[0];
      for (int x = 0; x < kAxes; ++x) start[x][l] = length[x][l] = sink_end[x][l] = 0;
    }
  }

  // The rows of dropout's hash, for one batch and the first head of the group.
  void set_hash(const Attention& a, int64_t n_q, int64_t batch, int64_t first_head) {
    const uint64_t mixed = mix64(uint64_t(a.seed));
    for (int l = 0; l < lanes; ++l) {
      hash[l] = dropout_row(mixed, (batch * a.heads + first_head + head[l]) * n_q + max_of(token[l], 0));
    }
  }

  int n = 0, lanes = 0;
  int32_t *token, *head;
  int32_t *start[kAxes], *length[kAxes], *sink_end[kAxes];
  int32_t* relative;
  int32_t *near, *allowed;  // which lanes may attend a key, by its frame and row and altogether
  uint64_t* hash;
  int32_t relative_step[kAxes];

 private:
  static constexpr int kArrays = 5 + 3 * kAxes;
  int max_;
  Scratch<int32_t> room_;
  Scratch<uint64_t> hash_;
};

// Keys that are taken at once. `partial` says of which axes the queries must be asked.
struct KeyBlock {
  explicit KeyBlock(int most) : capacity(most), room_(4 * int64_t(most)) {
    token = room_.data();
    for (int x = 0; x < kAxes; ++x) at[x] = token + (x + 1) * most;
  }

  // Whether the keys lie side by side.
  bool run() const {
    bool all = true;
    for (int i = 0; i < n; ++i) all &= token[i] == token[0] + i;
    return all;
  }

  int capacity, n = 0;
  bool extra = false, partial[kAxes] = {false, false, false};
  int32_t* token;      // of extras: their number
  int32_t* at[kAxes];  // coordinates; not of extras

 private:
  Scratch<int32_t> room_;
};

// Goes through the keys of a tile: those of its lists, or of the key blocks that its query block names; those that a
// mask hides are left out, so that nobody reads them. Then the extra ones.
class KeyWalk {
 public:
  KeyWalk(const Attention& a, const Tiling& tiling, const Chunk* const (&chunk)[kAxes], int64_t batch, int64_t head)
      : a_(a), axes_(tiling.axes), chunk_(chunk) {
    const int64_t n_k = int64_t(a.k_grid[0]) * a.k_grid[1] * a.k_grid[2];
    mask_ = a.kv_mask ? a.kv_mask + batch * n_k : nullptr;
    extra_mask_ = a.extra_mask ? a.extra_mask + batch * a.n_extra : nullptr;
    if (a.blocks) {
      int64_t block = 0, n_blocks = 1;
      for (int x = 0; x < kAxes; ++x) {
        const int64_t count = (a.q_grid[x] + a.block[x] - 1) / a.block[x];
        block = block * count + tiling.order(x)[chunk[x]->begin] / a.block[x];
        n_blocks *= count;
      }
      const int64_t b = a.blocks_batch > 1 ? batch : 0, h = a.blocks_heads > 1 ? head : 0;
      listed_ = a.blocks + ((b * a.blocks_heads + h) * n_blocks + block) * a.n_blocks;
      n_listed_ = a.n_blocks;
    } else {
      n_listed_ = 1;
    }
    next_box();
  }

  bool next(KeyBlock& block) {
    block.n = 0;
    block.extra = false;
    for (int x = 0; x < kAxes; ++x) block.partial[x] = chunk_[x]->partial;
    while (in_box_ && block.n < block.capacity) {
      take_run(block);
      if (at_[2] < end_[2]) continue;
      at_[2] = begin_[2];
      if (++at_[1] < end_[1]) continue;
      at_[1] = begin_[1];
      if (++at_[0] >= end_[0]) next_box();
    }
    if (block.n) return true;
    block.extra = true;
    for (; extra_ < a_.n_extra && block.n < block.capacity; ++extra_) {
      if (!extra_mask_ || extra_mask_[extra_]) block.token[block.n++] = int32_t(extra_);
    }
    return block.n > 0;
  }

 private:
  void next_box() {
    in_box_ = false;
    while (!in_box_ && box_ < n_listed_) {
      for (int x = 0; x < kAxes; ++x) begin_[x] = 0, end_[x] = chunk_[x]->keys.size();
      if (listed_) {
        int32_t number = listed_[box_];
        if (number < 0) {
          ++box_;
          continue;
        }
        for (int x = kAxes - 1; x >= 0; --x) {
          const int32_t count = (a_.k_grid[x] + a_.block[x] - 1) / a_.block[x], at = number % count * a_.block[x];
          begin_[x] = chunk_[x]->keys.below(at), end_[x] = chunk_[x]->keys.below(at + a_.block[x]);
          number /= count;
        }
      }
      ++box_;
      in_box_ = begin_[0] < end_[0] && begin_[1] < end_[1] && begin_[2] < end_[2];
    }
    for (int x = 0; x < kAxes; ++x) at_[x] = begin_[x];
  }

  // Keys of one frame and row, as many as there is room for.
  void take_run(KeyBlock& block) {
    const KeyList& list = chunk_[2]->keys;
    const int32_t t = chunk_[0]->keys.at(at_[0]), h = chunk_[1]->keys.at(at_[1]);
    const int32_t row = (t * axes_[1].n_k + h) * axes_[2].n_k;
    const int32_t n = min_of(end_[2] - at_[2], block.capacity - block.n);
    if (mask_ || list.n_sink) {
      for (int32_t i = 0; i < n; ++i) {
        const int32_t w = list.at(at_[2] + i);
        if (mask_ && !mask_[row + w]) continue;
        put(block, block.n++, t, h, w, row + w);
      }
    } else {
      const int32_t first = list.first + at_[2] * list.step;
      for (int32_t i = 0; i < n; ++i) {
        const int32_t w = first + i * list.step;
        put(block, block.n + i, t, h, w, row + w);
      }
      block.n += n;
    }
    at_[2] += n;
  }

  static void put(KeyBlock& block, int i, int32_t t, int32_t h, int32_t w, int32_t token) {
    block.token[i] = token;
    block.at[0][i] = t, block.at[1][i] = h, block.at[2][i] = w;
  }

  const Attention& a_;
  const Axis (&axes_)[kAxes];
  const Chunk* const (&chunk_)[kAxes];
  const bool *mask_, *extra_mask_;
  const int32_t* listed_ = nullptr;
  int64_t n_listed_, box_ = 0, extra_ = 0;
  bool in_box_ = false;
  int32_t begin_[kAxes] = {0, 0, 0}, end_[kAxes] = {0, 0, 0}, at_[kAxes] = {0, 0, 0};
};

}  // namespace

FVX_END_ISA
