// Forward: tile by tile, softmax in one pass over the keys (Milakov and Gimelshein 2018; Dao et al. 2022).
#include "attention_products.h"
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
  static constexpr int kKeys = is_pairs<E> ? 256 : 128;  // taken at once: scores of 64 lanes stay in L1

 public:
  Forward(const AttentionFwd& a, int lanes, Tiles* tiles)
      : a_(a),
        products_{tiles},
        width_(padded<E>(a.dim)),
        width_v_(padded<E>(a.dim_v)),
        rows_(lanes),
        block_(kKeys),
        bad_(2 * kKeys),
        operands_(lanes * width_ * 2 + kKeys * (width_ + width_v_) +
                  (is_pairs<E> ? kKeys * (lanes + 2 * width_v_) : 0)),
        sums_(int64_t(kKeys) * lanes + lanes * (width_v_ + round_up(a.dim_v, kLaneStep) + 4) + max_of(a.dim, a.dim_v)) {
    E* e = operands_.data();
    q_rows_ = e, e += lanes * width_;
    q_ = e, e += lanes * width_;
    k_ = e, e += kKeys * width_;
    v_ = e, e += kKeys * width_v_;
    weights_ = e, e += is_pairs<E> ? kKeys * lanes : 0;
    v_pairs_ = e, e += is_pairs<E> ? kKeys * width_v_ : 0;
    v_turned_ = e;
    A* s = sums_.data();
    scores_ = s, s += int64_t(kKeys) * lanes;
    out_ = s, s += lanes * width_v_;
    out_rows_ = s, s += lanes * round_up(a.dim_v, kLaneStep);
    scale_ = s, s += lanes;
    top_ = s, s += lanes;
    new_top_ = s, s += lanes;
    total_ = s, s += lanes;
    row_ = s;
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
      scale_[l] = A(a_.scale);
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
      if (!finite) scale_[l] = kNan<A>;
    }
    P::pack_right_transposed(q_rows_, width_, rows_.lanes, is_pairs<E> ? width_ : a_.dim, q_);
  }

  void attend(const ScoreMaker<A>& make_scores, int64_t batch, int64_t kv_head, bool first) {
    const int lanes = rows_.lanes, n = block_.n;
    const AttentionTensor &k = block_.extra ? a_.extra_k : a_.k, &v = block_.extra ? a_.extra_v : a_.v;
    const A* tables = block_.extra ? nullptr : static_cast<const A*>(a_.kv_rotary);
    bool *const bad_k = bad_.data(), *const bad_v = bad_k + kKeys;
    const int bad_keys =
        pack_keys<E, T>(block_, k, batch, kv_head, a_.dim, width_, tables, a_.rotary_halves, k_, row_, bad_k);
    const int bad_values =
        pack_keys<E, T>(block_, v, batch, kv_head, a_.dim_v, width_v_, nullptr, false, v_, row_, bad_v);
    products_.template multiply_into<false>(n, lanes, is_pairs<E> ? width_ : a_.dim, Left<E>{k_, width_, 1}, q_,
                                            P::right_row(lanes), scores_, lanes);
    for (int l = 0; l < lanes; ++l) new_top_[l] = top_[l];
    make_scores(rows_, block_, scale_, bad_keys ? bad_k : nullptr, scores_, nullptr, new_top_);
    rescale(first);
    weigh();
    if (a_.dropout > 0) drop(make_scores);
    // Rows of the last block of a bf16 product are filled up with zeros.
    const int64_t depth = is_pairs<E> ? round_up(n, 32) : n;
    const E* weights = P::right_of_sums(scores_, n, depth, lanes, weights_);
    const Left<E> values = P::left_transposed(v_, width_v_, n, depth, width_v_, v_pairs_, v_turned_);
    if (first) {
      products_.template multiply_into<false>(a_.dim_v, lanes, depth, values, weights, P::right_row(lanes), out_,
                                              lanes);
    } else {
      products_.template multiply_into<true>(a_.dim_v, lanes, depth, values, weights, P::right_row(lanes), out_, lanes);
    }
    for (int i = 0; i < n && bad_values; ++i) {
      if (bad_v[i]) add_not_finite(row_of<T>(v, batch, block_.token[i], kv_head), scores_ + int64_t(i) * lanes);
    }
  }

  // What there is so far, as multiples of exp of the new greatest score.
  void rescale(bool first) {
    const int lanes = rows_.lanes;
    A* factor = top_;
    bool same = true;
    for (int l = 0; l < lanes; ++l) {
      const A top = new_top_[l] == kNone<A> ? A(0) : new_top_[l];
      same &= top_[l] == new_top_[l];
      factor[l] = top_[l] == kNone<A> ? A(0) : exp_of_score(top_[l] - top);
    }
    if (!first && !same) {
      FVX_SIMD
      for (int l = 0; l < lanes; ++l) total_[l] *= factor[l];
      for (int64_t c = 0; c < a_.dim_v; ++c) {
        A* row = out_ + c * lanes;
        FVX_SIMD
        for (int l = 0; l < lanes; ++l) row[l] *= factor[l];
      }
    }
    for (int l = 0; l < lanes; ++l) top_[l] = new_top_[l];
  }

  void weigh() {
    const int lanes = rows_.lanes;
    A* shift = new_top_;
    for (int l = 0; l < lanes; ++l) shift[l] = top_[l] == kNone<A> ? A(0) : top_[l];
    for (int i = 0; i < block_.n; ++i) {
      A* row = scores_ + int64_t(i) * lanes;
      FVX_SIMD
      for (int l = 0; l < lanes; ++l) {
        const A w = exp_of_score(row[l] - shift[l]);
        row[l] = w;
        total_[l] += w;
      }
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
    for (int64_t c = 0; c < a_.dim_v; ++c) {
      const A x = to_acc(value[c]);
      if (!not_finite(x)) continue;
      for (int l = 0; l < rows_.lanes; ++l) {
        if (!(weights[l] == A(0))) out_[c * rows_.lanes + l] += weights[l] * x;
      }
    }
  }

  void store(int64_t batch, int64_t first_head, bool empty) {
    const int lanes = rows_.lanes;
    const int64_t n_q = n_queries(a_), row = round_up(a_.dim_v, kLaneStep);
    if (empty) __builtin_memset(out_, 0, size_t(a_.dim_v * lanes) * sizeof(A));
    A* factor = scale_;
    for (int l = 0; l < lanes; ++l) factor[l] = total_[l] == A(0) ? A(0) : A(1) / (total_[l] * A(1 - a_.dropout));
    for (int64_t c = 0; c < a_.dim_v; ++c) {
      A* sums = out_ + c * lanes;
      FVX_SIMD
      for (int l = 0; l < lanes; ++l) sums[l] *= factor[l];
    }
    transpose(out_, lanes, a_.dim_v, lanes, out_rows_, row);
    for (int l = 0; l < rows_.n; ++l) {
      const int64_t head = first_head + rows_.head[l], token = rows_.token[l];
      T* out = static_cast<T*>(a_.out) + ((batch * n_q + token) * a_.heads + head) * a_.dim_v;
      narrow<T>(out_rows_ + l * row, int(a_.dim_v), out);
      A* lse = static_cast<A*>(a_.lse) + (batch * a_.heads + head) * n_q + token;
      *lse = total_[l] == A(0) ? kNone<A> : top_[l] + A(std::log(total_[l]));
    }
  }

  const AttentionFwd& a_;
  const Products<E> products_;
  const int64_t width_, width_v_;
  Rows rows_;
  KeyBlock block_;
  Scratch<bool> bad_;
  Scratch<E> operands_;
  Scratch<A> sums_;
  E *q_rows_, *q_, *k_, *v_, *weights_, *v_pairs_, *v_turned_;
  A *scores_, *out_, *out_rows_, *scale_, *top_, *new_top_, *total_, *row_;
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
  const int64_t grain = max_of(total / (int64_t(a.threads) * 16), int64_t(1));
  parallel_for(a.threads, total, grain, [&](int64_t begin, int64_t end) {
    Tiles tiles(is_pairs<E> && active_amx());
    Forward<T, E> attend(a, tilings.max_lanes(), &tiles);
    tilings.each(begin, end, groups, [&](const Tiling& tiling, int64_t tile, int64_t batch, int64_t group) {
      attend(tiling, tile, heads, batch, group * heads);
    });
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
