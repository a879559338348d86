// Forward: tile by tile, softmax in one pass over the keys (Milakov and Gimelshein 2018; Dao et al. 2022).
#include "attention_keys.h"
#include "attention_scores.h"
#include "attention_tilings.h"
#include "fastvfx/kernels.h"
#include "parallel.h"

FVX_BEGIN_ISA

namespace {

// What one thread works in, for tiles of up to `lanes` queries.
template <class T, class E>
class Forward {
  using A = acc_t<E>;
  using P = Products<E>;
  static constexpr int kKeys = is_pairs<E> ? 256 : 128;  // taken at once
  // Sums are (queries, dim_v), but for bf16, whose left operands must lie row by row: (dim_v, queries).
  static constexpr bool kByQuery = !is_pairs<E>;

 public:
  Forward(const AttentionFwd& a, const PackedKeys<T, E>& ahead, int lanes, Tiles* tiles)
      : a_(a),
        products_{tiles},
        width_(ahead.width),
        width_v_(ahead.width_v),
        rows_(lanes),
        block_(kKeys),
        keys_(a, ahead, kKeys),
        operands_(lanes * width_ * 2 + (is_pairs<E> ? kKeys * lanes : 0)),
        sums_(int64_t(kKeys) * lanes + lanes * (width_v_ + round_up(a.dim_v, kLaneStep) + 7) + a.dim) {
    E* e = operands_.data();
    q_rows_ = e, e += lanes * width_;
    q_ = e, e += lanes * width_;
    weights_ = e;
    A* s = sums_.data();
    const auto sums = [&](int64_t n) { return s += n, s - n; };
    scores_ = sums(int64_t(kKeys) * lanes), out_ = sums(lanes * width_v_);
    out_rows_ = sums(lanes * round_up(a.dim_v, kLaneStep));
    scale_ = sums(lanes), unit_ = sums(lanes), log2e_ = sums(lanes);
    top_ = sums(lanes), new_top_ = sums(lanes), total_ = sums(lanes), shift_ = sums(lanes);
    row_ = s;
    for (int l = 0; l < lanes; ++l) log2e_[l] = kLog2e<A>;
  }

  // Heads first_head to first_head + heads - 1, which share a head of keys, of one batch.
  void operator()(const Tiling& tiling, int64_t tile, int heads, int64_t batch, int64_t first_head) {
    const Chunk* chunk[kAxes];
    tiling.tile(tile, chunk);
    if (tiling_ != &tiling || tile_ != tile) rows_.set(a_, tiling, chunk, heads), tiling_ = &tiling, tile_ = tile;
    if (a_.dropout > 0) rows_.set_hash(a_, n_queries(a_), batch, first_head);
    const int64_t kv_head = first_head / (a_.heads / a_.kv_heads);
    load_queries(batch, first_head);
    const ScoreMaker<A> make_scores(a_, tiling, batch, first_head);
    bool first = true;
    for (KeyWalk keys(a_, tiling, chunk, batch, first_head); keys.next(block_); first = false) {
      attend(make_scores, batch, kv_head, first);
    }
    store(batch, first_head, first);
  }

 private:
  void load_queries(int64_t batch, int64_t first_head) {
    const A* tables = static_cast<const A*>(a_.rotary);
    for (int l = 0; l < rows_.lanes; ++l) {
      scale_[l] = A(a_.scale), unit_[l] = A(a_.scale) * kLog2e<A>;
      top_[l] = kNone<A>, total_[l] = A(0);
      E* to = q_rows_ + l * width_;
      if (l >= rows_.n) {
        for (int64_t c = 0; c < width_; ++c) to[c] = from_acc<E>(A(0));
        continue;
      }
      const int64_t token = rows_.token[l];
      const T* from = row_of<T>(a_.q, batch, token, first_head + rows_.head[l]);
      const bool finite =
          pack_row(from, a_.dim, width_, to, tables ? tables + token * a_.dim : nullptr, a_.rotary_halves, row_);
      if (!finite) scale_[l] = unit_[l] = kNan<A>;
    }
    P::pack_right_transposed(q_rows_, width_, rows_.lanes, is_pairs<E> ? width_ : a_.dim, q_);
  }

  void attend(const ScoreMaker<A>& make_scores, int64_t batch, int64_t kv_head, bool first) {
    const int lanes = rows_.lanes, n = block_.n;
    keys_.load(block_, batch, kv_head);
    products_.template multiply_into<false>(n, lanes, is_pairs<E> ? width_ : a_.dim, Left<E>{keys_.k, width_, 1}, q_,
                                            P::right_row(lanes), scores_, lanes);
    const A* unit = log2e_;  // what makes exponents of 2 of scores
    if (make_scores.plain()) {
      unit = unit_;
      make_scores.mask(rows_, block_, keys_.bad_k, scores_);
    } else {
      make_scores(rows_, block_, scale_, keys_.bad_k, scores_, nullptr);
    }
    __builtin_memcpy(new_top_, top_, size_t(lanes) * sizeof(A));
    raise_top(scores_, n, lanes, unit, new_top_);
    rescale(first);
    // Rows of the last block of a bf16 product are filled up with zeros.
    const int64_t depth = is_pairs<E> ? round_up(n, 32) : n;
    const E* weights = weigh_block(make_scores, unit, depth);
    if (first) {
      add_values<false>(weights, depth);
    } else {
      add_values<true>(weights, depth);
    }
    for (int i = 0; i < n && keys_.bad_v; ++i) {
      const AttentionTensor& v = block_.extra ? a_.extra_v : a_.v;
      if (!keys_.bad_v[i]) continue;
      add_not_finite(row_of<T>(v, batch, block_.token[i], kv_head), scores_ + int64_t(i) * lanes);
    }
  }

  // What there is so far, as multiples of 2 to the new greatest exponent.
  void rescale(bool first) {
    const int lanes = rows_.lanes;
    bool same = true;
    for (int l = 0; l < lanes; ++l) {
      same &= top_[l] == new_top_[l];
      shift_[l] = new_top_[l] == kNone<A> ? A(0) : new_top_[l];
    }
    A* const factor = top_;
    if (!first && !same) {
      for (int l = 0; l < lanes; l += Simd<A>::kLanes) {
        Simd<A>::store(factor + l, exp2_of_score(Simd<A>::load(top_ + l) - Simd<A>::load(shift_ + l)));
      }
      FVX_SIMD
      for (int l = 0; l < lanes; ++l) total_[l] *= factor[l];
      const int64_t n = kByQuery ? rows_.n : a_.dim_v, row = kByQuery ? width_v_ : lanes;
      for (int64_t r = 0; r < n; ++r) {
        A* const sums = out_ + r * row;
        FVX_SIMD
        for (int64_t c = 0; c < row; ++c) sums[c] *= kByQuery ? factor[r] : factor[c];
      }
    }
    __builtin_memcpy(top_, new_top_, size_t(lanes) * sizeof(A));
  }

  // Scores become weights; returned is the operand of them.
  const E* weigh_block(const ScoreMaker<A>& make_scores, const A* unit, [[maybe_unused]] int64_t depth) {
    const int lanes = rows_.lanes, n = block_.n;
#if defined(FVX_BF16_OPERANDS)
    if constexpr (is_pairs<E>) {
      if (a_.dropout == 0 && has_bf16()) {
        weigh_in_pairs(scores_, n, int(depth), lanes, unit, shift_, total_, weights_);
        if (keys_.bad_v) weigh(scores_, n, lanes, unit, shift_, new_top_);  // for add_not_finite(); sums are not used
        return weights_;
      }
    }
#endif
    weigh(scores_, n, lanes, unit, shift_, total_);
    if (a_.dropout > 0) drop(make_scores);
    return P::right_of_sums(scores_, n, depth, lanes, weights_);
  }

  template <bool kAdd>
  void add_values(const E* weights, int64_t depth) {
    const int lanes = rows_.lanes;
    if constexpr (kByQuery) {
      products_.template multiply_into<kAdd>(rows_.n, width_v_, depth, Left<E>{weights, 1, lanes}, keys_.v, width_v_,
                                             out_, width_v_);
    } else {
      products_.template multiply_into<kAdd>(a_.dim_v, lanes, depth, keys_.turned_values(depth), weights,
                                             P::right_row(lanes), out_, lanes);
    }
  }

  void drop(const ScoreMaker<A>& make_scores) {
    const uint32_t threshold = uint32_t(a_.dropout * 4294967296.0);
    for (int i = 0; i < block_.n; ++i) {
      const int64_t key = block_.token[i] + (block_.extra ? make_scores.n_k : 0);
      A* row = scores_ + int64_t(i) * rows_.lanes;
      FVX_SIMD
      for (int l = 0; l < rows_.lanes; ++l) row[l] = dropout_keeps(rows_.hash[l], key, threshold) ? row[l] : A(0);
    }
  }

  // A value of which some channels are not finite, for the queries that attend it; the others are summed already.
  void add_not_finite(const T* value, const A* weights) {
    const int64_t of_lane = kByQuery ? width_v_ : 1, of_channel = kByQuery ? 1 : rows_.lanes;
    for (int64_t c = 0; c < a_.dim_v; ++c) {
      const A x = to_acc(value[c]);
      if (!not_finite(x)) continue;
      for (int l = 0; l < rows_.n; ++l) {
        if (!(weights[l] == A(0))) out_[l * of_lane + c * of_channel] += weights[l] * x;
      }
    }
  }

  void store(int64_t batch, int64_t first_head, bool empty) {
    const int lanes = rows_.lanes;
    const int64_t n_q = n_queries(a_), row = kByQuery ? width_v_ : round_up(a_.dim_v, kLaneStep);
    if (empty) __builtin_memset(out_, 0, size_t(width_v_ * lanes) * sizeof(A));
    if (!kByQuery) transpose(out_, lanes, a_.dim_v, lanes, out_rows_, row);
    A* const sums = kByQuery ? out_ : out_rows_;
    for (int l = 0; l < rows_.n; ++l) {
      const int64_t head = first_head + rows_.head[l], token = rows_.token[l];
      T* const out = static_cast<T*>(a_.out) + ((batch * n_q + token) * a_.heads + head) * a_.dim_v;
      const A factor = total_[l] == A(0) ? A(0) : A(1) / (total_[l] * A(1 - a_.dropout));
      A* const from = sums + l * row;
      if constexpr (std::is_same_v<T, A>) {
        FVX_SIMD
        for (int64_t c = 0; c < a_.dim_v; ++c) out[c] = from[c] * factor;
      } else {
        FVX_SIMD
        for (int64_t c = 0; c < a_.dim_v; ++c) from[c] *= factor;
        narrow<T>(from, int(a_.dim_v), out);
      }
      A* lse = static_cast<A*>(a_.lse) + (batch * a_.heads + head) * n_q + token;
      *lse = total_[l] == A(0) ? kNone<A> : (top_[l] + A(std::log2(total_[l]))) * kLn2<A>;
    }
  }

  const AttentionFwd& a_;
  const Products<E> products_;
  const int64_t width_, width_v_;
  Rows rows_;
  KeyBlock block_;
  BlockKeys<T, E> keys_;
  Scratch<E> operands_;
  Scratch<A> sums_;
  E *q_rows_, *q_, *weights_;
  A *scores_, *out_, *out_rows_, *scale_, *unit_, *log2e_, *top_, *new_top_, *total_, *shift_, *row_;
  const Tiling* tiling_ = nullptr;
  int64_t tile_ = -1;
};

template <class T, class E>
void forward(const AttentionFwd& a) {
  const Tilings tilings(a, forward_cost<E>());
  const int heads = tilings.groups().together;
  const int64_t groups = a.heads / heads;
  // Tiles of one batch and group of heads are neighbours: they read the same keys.
  const int64_t total = tilings.total_tiles() * a.batch;
  const PackedKeys<T, E> ahead(a, !tilings.each_key_once(), false, true);
  const int64_t grain = max_of(total / (int64_t(a.threads) * 16), int64_t(1));
  parallel_for(a.threads, total, grain, [&](int64_t begin, int64_t end) {
    Tiles tiles(is_pairs<E> && active_amx());
    Forward<T, E> attend(a, ahead, tilings.max_lanes(), &tiles);
    const auto one = [&](const Tiling& tiling, int64_t tile, int64_t batch, int64_t group) {
      attend(tiling, tile, heads, batch, group * heads);
    };
    if (tilings.each_key_once()) {
      tilings.each_by_tile(begin, end, groups, one);
    } else {
      tilings.each(begin, end, groups, one);
    }
  });
}

}  // namespace

void attention_fwd(const AttentionFwd& a) {
  if (bf16_operands(a)) {
#if defined(FVX_BF16_OPERANDS)
    return forward<bf16, bf16>(a);
#endif
  }
  FVX_DISPATCH_STORAGE(a.dtype, T, return forward<T, acc_t<T>>(a));
}

FVX_END_ISA
