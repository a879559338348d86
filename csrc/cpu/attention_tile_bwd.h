// Gradients of one tile of queries and the keys that they attend.
#pragma once

#include "attention_keys.h"
#include "attention_scores.h"

FVX_BEGIN_ISA

namespace {

// Where a tile's gradients of keys and values go: to sums of all keys and extras of a head, padded<E>() apart, null for
// those that are not asked for; or, final, straight to the gradients.
template <class A>
struct KeySums {
  bool final;
  A *g_k, *g_v;
};

// What one thread works in, for tiles of up to `lanes` queries.
template <class T, class E>
class TileBackward {
  using A = acc_t<E>;
  using P = Products<E>;
  static constexpr int kKeys = 128;
  static constexpr bool kByQuery = !is_pairs<E>;

 public:
  TileBackward(const AttentionBwd& a, const PackedKeys<T, E>& ahead, int lanes, Tiles* tiles)
      : a_(a),
        products_{tiles},
        width_(ahead.width),
        width_v_(ahead.width_v),
        rows_(lanes),
        block_(kKeys),
        keys_(a, ahead, kKeys),
        operands_(lanes * 2 * (width_ + width_v_) +
                  (is_pairs<E> ? 3 * kKeys * lanes + lanes * (width_ + width_v_) : 0)),
        sums_(int64_t(kKeys) * (3 * lanes + max_of(width_, width_v_)) + lanes * (2 * width_ + kLaneStep + 5) +
              max_of(a.dim, a.dim_v)) {
    E* e = operands_.data();
    const auto operands = [&](int64_t n) { return e += n, e - n; };
    q_rows_ = operands(lanes * width_), q_ = operands(lanes * width_);
    g_rows_ = operands(lanes * width_v_), g_ = operands(lanes * width_v_);
    if (is_pairs<E>) {
      weight_rows_ = operands(kKeys * lanes), g_score_rows_ = operands(kKeys * lanes);
      g_score_pairs_ = operands(kKeys * lanes);
      q_pairs_ = operands(lanes * width_), g_pairs_ = operands(lanes * width_v_);
    }
    A* s = sums_.data();
    const auto sums = [&](int64_t n) { return s += n, s - n; };
    weights_ = sums(int64_t(kKeys) * lanes), g_scores_ = sums(int64_t(kKeys) * lanes);
    slopes_ = sums(int64_t(kKeys) * lanes), block_sums_ = sums(kKeys * max_of(width_, width_v_));
    g_q_ = sums(lanes * width_), g_q_rows_ = sums(lanes * (width_ + kLaneStep));
    scale_ = sums(lanes), unit_ = sums(lanes), log2e_ = sums(lanes), lse_ = sums(lanes), delta_ = sums(lanes);
    row_ = s;
    for (int l = 0; l < lanes; ++l) log2e_[l] = kLog2e<A>;
  }

  // g_relative: the tables of the heads' relative biases, or null.
  void operator()(const Tiling& tiling, int64_t tile, int heads, int64_t batch, int64_t first_head,
                  const KeySums<A>& to, A* g_relative) {
    const Chunk* chunk[kAxes];
    tiling.tile(tile, chunk);
    if (tiling_ != &tiling || tile_ != tile) rows_.set(a_, tiling, chunk, heads), tiling_ = &tiling, tile_ = tile;
    if (a_.dropout > 0) rows_.set_hash(a_, n_queries(a_), batch, first_head);
    const int64_t kv_head = first_head / (a_.heads / a_.kv_heads);
    load(batch, first_head);
    const ScoreMaker<A> make_scores(a_, tiling, batch, first_head);
    bool first = true;
    for (KeyWalk keys(a_, tiling, chunk, batch, first_head); keys.next(block_); first = false) {
      gradients_of_scores(make_scores, batch, kv_head, g_relative);
      finish_keys(to, batch, kv_head);
      add_queries(first);
    }
    if (a_.g_q) store_queries(batch, first_head, first);
  }

  // Sums of one head's keys to their gradient: scaled, turned back, rounded.
  void store_keys(const A* sums, int64_t width, int64_t n_keys, int64_t n, int64_t batch, int64_t head, double scale,
                  const void* tables, void* to) {
    if (!to) return;
    for (int64_t j = 0; j < n_keys; ++j) {
      const A* table = tables ? static_cast<const A*>(tables) + j * n : nullptr;
      store_row(sums + j * width, n, A(scale), table,
                static_cast<T*>(to) + ((batch * n_keys + j) * a_.kv_heads + head) * n);
    }
  }

 private:
  void load(int64_t batch, int64_t first_head) {
    const A* tables = static_cast<const A*>(a_.rotary);
    const int64_t n_q = n_queries(a_);
    for (int l = 0; l < rows_.lanes; ++l) {
      scale_[l] = A(a_.scale), unit_[l] = A(a_.scale) * kLog2e<A>;
      E *q = q_rows_ + l * width_, *g = g_rows_ + l * width_v_;
      if (l >= rows_.n) {
        for (int64_t c = 0; c < width_; ++c) q[c] = from_acc<E>(A(0));
        for (int64_t c = 0; c < width_v_; ++c) g[c] = from_acc<E>(A(0));
        lse_[l] = delta_[l] = A(0);
        continue;
      }
      const int64_t token = rows_.token[l], head = first_head + rows_.head[l];
      const A* table = tables ? tables + token * a_.dim : nullptr;
      const T* g_out = row_of<T>(a_.g_out, batch, token, head);
      bool finite = pack_row(row_of<T>(a_.q, batch, token, head), a_.dim, width_, q, table, a_.rotary_halves, row_);
      finite &= pack_row(g_out, a_.dim_v, width_v_, g, static_cast<const A*>(nullptr), false, row_);
      const int64_t at = (batch * a_.heads + head) * n_q + token;
      const A lse = static_cast<const A*>(a_.lse)[at];
      // A query that is not finite spoils the gradients of all that it attends.
      lse_[l] = !finite ? kNan<A> : lse == kNone<A> ? A(0) : lse * kLog2e<A>;
      const T* out = row_of<T>(a_.out, batch, token, head);
      delta_[l] = dot(g_out, out, a_.dim_v) - (a_.g_lse ? static_cast<const A*>(a_.g_lse)[at] : A(0));
    }
    P::pack_right_transposed(q_rows_, width_, rows_.lanes, depth_of(a_.dim), q_);
    P::pack_right_transposed(g_rows_, width_v_, rows_.lanes, depth_of(a_.dim_v), g_);
    q_right_ = P::right_of_rows(q_rows_, width_, rows_.lanes, width_, q_pairs_);
    g_rows_right_ = P::right_of_rows(g_rows_, width_v_, rows_.lanes, width_v_, g_pairs_);
  }

  static int64_t depth_of(int64_t n) { return is_pairs<E> ? padded<E>(n) : n; }

  // Leaves weights and gradients of the products of queries and keys, both (keys, lanes), as operands.
  void gradients_of_scores(const ScoreMaker<A>& make_scores, int64_t batch, int64_t kv_head, A* g_relative) {
    const int lanes = rows_.lanes, n = block_.n;
    keys_.load(block_, batch, kv_head);
    products_.template multiply_into<false>(n, lanes, depth_of(a_.dim), Left<E>{keys_.k, width_, 1}, q_,
                                            P::right_row(lanes), weights_, lanes);
    products_.template multiply_into<false>(n, lanes, depth_of(a_.dim_v), Left<E>{keys_.v, width_v_, 1}, g_,
                                            P::right_row(lanes), g_scores_, lanes);
    A* const slopes = a_.softcap > 0 ? slopes_ : nullptr;
    const bool plain = make_scores.plain();
    if (plain) {
      make_scores.mask(rows_, block_, keys_.bad_k, weights_);
    } else {
      make_scores(rows_, block_, scale_, keys_.bad_k, weights_, slopes);
    }
    const int64_t depth = is_pairs<E> ? round_up(n, 32) : n;
#if defined(FVX_BF16_OPERANDS)
    if constexpr (is_pairs<E>) {
      if (!slopes && a_.dropout == 0 && !g_relative && !a_.g_bias && has_bf16()) {
        differentiate_in_pairs(weights_, g_scores_, n, int(depth), lanes, plain ? unit_ : log2e_, lse_, delta_,
                               weight_rows_, g_score_rows_, g_score_pairs_);
        weights_left_ = {weight_rows_, lanes, 1}, g_left_ = {g_score_rows_, lanes, 1}, g_right_ = g_score_pairs_;
        return;
      }
    }
#endif
    if (a_.dropout > 0) {
      differentiate_dropped(make_scores.n_k, plain ? unit_ : log2e_);
    } else {
      differentiate(weights_, g_scores_, n, lanes, plain ? unit_ : log2e_, lse_, delta_);
    }
    if (!block_.extra && g_relative) add_relative(make_scores, g_relative);
    if (!block_.extra && a_.g_bias) add_bias(make_scores);
    if (slopes) {
      FVX_SIMD
      for (int64_t i = 0; i < int64_t(n) * lanes; ++i) g_scores_[i] *= slopes[i];
    }
    weights_left_ = P::left_of_sums(weights_, n, lanes, weight_rows_);
    g_left_ = P::left_of_sums(g_scores_, n, lanes, g_score_rows_);
    g_right_ = P::right_of_sums(g_scores_, n, depth, lanes, g_score_pairs_);
  }

  void differentiate_dropped(int64_t n_k, const A* unit) {
    using S = Simd<A>;
    constexpr int L = S::kLanes;
    const uint32_t threshold = uint32_t(a_.dropout * 4294967296.0);
    const A scale = A(1 / (1 - a_.dropout));
    for (int i = 0; i < block_.n; ++i) {
      const int64_t key = block_.token[i] + (block_.extra ? n_k : 0);
      A *w = weights_ + int64_t(i) * rows_.lanes, *g = g_scores_ + int64_t(i) * rows_.lanes;
      for (int l = 0; l < rows_.lanes; l += L) {
        A kept[L];
        FVX_SIMD
        for (int m = 0; m < L; ++m) kept[m] = dropout_keeps(rows_.hash[l + m], key, threshold) ? scale : A(0);
        const Lanes<A> s = S::load(w + l), keep = S::load(kept), zero{};
        const Lanes<A> p = exp2_of_score(s * S::load(unit + l) - S::load(lse_ + l));
        const Lanes<A> d = p * (keep * S::load(g + l) - S::load(delta_ + l));
        S::store(w + l, s == S::splat(kNone<A>) ? zero : p * keep);
        S::store(g + l, s == S::splat(kNone<A>) ? zero : d);
      }
    }
  }

  void add_relative(const ScoreMaker<A>& make_scores, A* table) const {
    for (int i = 0; i < block_.n; ++i) {
      const int32_t key = make_scores.relative_of(rows_, block_, i);
      const A* g = g_scores_ + int64_t(i) * rows_.lanes;
      for (int l = 0; l < rows_.n; ++l) {
        if (g[l] != A(0)) table[key - rows_.relative[l]] += g[l];  // only allowed pairs have an entry
      }
    }
  }

  void add_bias(const ScoreMaker<A>& make_scores) const {
    A* const first = static_cast<A*>(a_.g_bias) + make_scores.first_bias;
    for (int l = 0; l < rows_.n; ++l) {
      A* to = first + make_scores.bias_row(rows_, l);
      for (int i = 0; i < block_.n; ++i) to[block_.token[i]] += g_scores_[int64_t(i) * rows_.lanes + l];
    }
  }

  void finish_keys(const KeySums<A>& to, int64_t batch, int64_t kv_head) {
    if (to.final) {
      const A* tables = static_cast<const A*>(a_.kv_rotary);
      if (a_.g_v) store_block(weights_left_, g_rows_right_, width_v_, a_.dim_v, A(1), nullptr, batch, kv_head, a_.g_v);
      if (a_.g_k) store_block(g_left_, q_right_, width_, a_.dim, A(a_.scale), tables, batch, kv_head, a_.g_k);
      return;
    }
    if (to.g_v) add_to_rows(weights_left_, g_rows_right_, width_v_, to.g_v);
    if (to.g_k) add_to_rows(g_left_, q_right_, width_, to.g_k);
  }

  void store_block(const Left<E>& left, const E* right, int64_t width, int64_t dim, A scale, const A* tables,
                   int64_t batch, int64_t head, void* to) {
    products_.template multiply_into<false>(block_.n, width, rows_.lanes, left, right, P::right_row(width), block_sums_,
                                            width);
    const int64_t n_k = n_keys(a_);
    for (int i = 0; i < block_.n; ++i) {
      const int64_t token = block_.token[i];
      store_row(block_sums_ + i * width, dim, scale, tables ? tables + token * dim : nullptr,
                static_cast<T*>(to) + ((batch * n_k + token) * a_.kv_heads + head) * dim);
    }
  }

  // A block's keys lie anywhere among the sums; neighbours are added to where they are.
  void add_to_rows(const Left<E>& left, const E* right, int64_t width, A* sums) {
    const int n = block_.n;
    const int64_t first = (block_.extra ? n_keys(a_) : 0);
    if (block_.run()) {
      return products_.template multiply_into<true>(n, width, rows_.lanes, left, right, P::right_row(width),
                                                    sums + (first + block_.token[0]) * width, width);
    }
    products_.template multiply_into<false>(n, width, rows_.lanes, left, right, P::right_row(width), block_sums_,
                                            width);
    for (int i = 0; i < n; ++i) {
      A* to = sums + (first + block_.token[i]) * width;
      const A* from = block_sums_ + i * width;
      FVX_SIMD
      for (int64_t c = 0; c < width; ++c) to[c] += from[c];
    }
  }

  // Sums are (queries, dim), but for bf16 (dim, queries), as those of the forward pass.
  void add_queries(bool first) {
    if (!a_.g_q) return;
    if (first) {
      add_queries_as<false>();
    } else {
      add_queries_as<true>();
    }
  }

  template <bool kAdd>
  void add_queries_as() {
    const int lanes = rows_.lanes, n = block_.n;
    if constexpr (kByQuery) {
      products_.template multiply_into<kAdd>(rows_.n, width_, n, Left<E>{g_right_, 1, lanes}, keys_.k, width_, g_q_,
                                             width_);
    } else {
      const int64_t depth = round_up(n, 32);
      products_.template multiply_into<kAdd>(a_.dim, lanes, depth, keys_.turned_keys(depth), g_right_,
                                             P::right_row(lanes), g_q_, lanes);
    }
  }

  void store_queries(int64_t batch, int64_t first_head, bool empty) {
    const int lanes = rows_.lanes;
    const int64_t n_q = n_queries(a_), row = kByQuery ? width_ : round_up(a_.dim, kLaneStep);
    if (empty) __builtin_memset(g_q_, 0, size_t(width_ * lanes) * sizeof(A));
    if (!kByQuery) transpose(g_q_, lanes, a_.dim, lanes, g_q_rows_, row);
    const A *const sums = kByQuery ? g_q_ : g_q_rows_, *const tables = static_cast<const A*>(a_.rotary);
    for (int l = 0; l < rows_.n; ++l) {
      const int64_t token = rows_.token[l];
      const int64_t at = (batch * n_q + token) * a_.heads + first_head + rows_.head[l];
      store_row(sums + l * row, a_.dim, A(a_.scale), tables ? tables + token * a_.dim : nullptr,
                static_cast<T*>(a_.g_q) + at * a_.dim);
    }
  }

  void store_row(const A* from, int64_t n, A scale, const A* table, T* to) {
    A* const row = std::is_same_v<T, A> ? reinterpret_cast<A*>(to) : row_;
    FVX_SIMD
    for (int64_t c = 0; c < n; ++c) row[c] = from[c] * scale;
    if (table) turn<true>(row, n, table, a_.rotary_halves);
    if constexpr (!std::is_same_v<T, A>) narrow<T>(row, int(n), to);
  }

  const AttentionBwd& a_;
  const Products<E> products_;
  const int64_t width_, width_v_;
  Rows rows_;
  KeyBlock block_;
  BlockKeys<T, E> keys_;
  Scratch<E> operands_;
  Scratch<A> sums_;
  E *q_rows_, *q_, *g_rows_, *g_;
  E *weight_rows_ = nullptr, *g_score_rows_ = nullptr, *g_score_pairs_ = nullptr;  // of bf16
  E *q_pairs_ = nullptr, *g_pairs_ = nullptr;
  const E *q_right_ = nullptr, *g_rows_right_ = nullptr, *g_right_ = nullptr;
  Left<E> weights_left_{}, g_left_{};
  A *weights_, *g_scores_, *slopes_, *block_sums_, *g_q_, *g_q_rows_, *scale_, *unit_, *log2e_, *lse_, *delta_, *row_;
  const Tiling* tiling_ = nullptr;
  int64_t tile_ = -1;
};

}  // namespace

FVX_END_ISA
