// Backward: every pair of tile and key block is visited once. Gradients of keys and values are summed by the one task
// that has their head, in the order of the tiles: no atomics, and the same sums for any number of threads.
#include "attention_products.h"
#include "attention_scores.h"
#include "attention_tilings.h"
#include "fastvfx/kernels.h"
#include "fastvfx/workspace.h"
#include "parallel.h"

FVX_BEGIN_ISA

namespace {

// How the work is divided into tasks: heads of keys x ranges of batches x slices of the tiles.
struct Tasks {
  int64_t ranges, slices;

  Tasks(const AttentionBwd& a, int64_t table) {
    constexpr int64_t kEnough = 32, kMostNumbers = 1 << 24;
    ranges = max_of(min_of(a.batch, kEnough / a.kv_heads), int64_t(1));
    // Every range has sums of its own for the relative biases; a bias that batches share has one gradient.
    while (a.g_relative_bias && ranges > 1 && ranges * a.heads * table > kMostNumbers) ranges /= 2;
    if (a.g_bias && a.bias_batch == 1) ranges = 1;
    const int64_t tasks = ranges * a.kv_heads;
    // Every slice has sums of its own for all keys, so there are few.
    slices = tasks < 8 && a.batch == ranges ? 8 / tasks : 1;
  }
  int64_t first_batch(const AttentionBwd& a, int64_t range) const { return a.batch * range / ranges; }
};

template <class T, class E>
class Backward {
  using A = acc_t<E>;
  using P = Products<E>;
  static constexpr int kKeys = 128;

 public:
  Backward(const AttentionBwd& a, int lanes, Tiles* tiles)
      : a_(a),
        products_{tiles},
        width_(padded<E>(a.dim)),
        width_v_(padded<E>(a.dim_v)),
        rows_(lanes),
        block_(kKeys),
        bad_(2 * kKeys),
        operands_(lanes * 2 * (width_ + width_v_) + kKeys * (width_ + width_v_) +
                  (is_pairs<E> ? kKeys * 2 * (width_ + lanes) + lanes * (width_ + width_v_) : 0)),
        sums_(int64_t(kKeys) * (3 * lanes + max_of(width_, width_v_)) + lanes * (2 * width_ + kLaneStep + 3) +
              2 * max_of(a.dim, a.dim_v)) {
    E* e = operands_.data();
    const auto operands = [&](int64_t n) { return e += n, e - n; };
    q_rows_ = operands(lanes * width_), q_ = operands(lanes * width_);
    g_rows_ = operands(lanes * width_v_), g_ = operands(lanes * width_v_);
    k_ = operands(kKeys * width_), v_ = operands(kKeys * width_v_);
    if (is_pairs<E>) {
      room_ = operands(kKeys * lanes), room2_ = operands(kKeys * lanes);
      k_pairs_ = operands(kKeys * width_), k_turned_ = operands(kKeys * width_);
      q_pairs_ = operands(lanes * width_), g_pairs_ = operands(lanes * width_v_);
    }
    A* s = sums_.data();
    const auto sums = [&](int64_t n) { return s += n, s - n; };
    weights_ = sums(int64_t(kKeys) * lanes), g_scores_ = sums(int64_t(kKeys) * lanes);
    slopes_ = sums(int64_t(kKeys) * lanes), block_sums_ = sums(kKeys * max_of(width_, width_v_));
    g_q_ = sums(lanes * width_), g_q_rows_ = sums(lanes * (width_ + kLaneStep));
    scale_ = sums(lanes), lse_ = sums(lanes), delta_ = sums(lanes);
    row_ = sums(max_of(a.dim, a.dim_v)), row2_ = s;
  }

  int64_t width() const { return width_; }
  int64_t width_v() const { return width_v_; }

  // Adds to g_k and g_v (keys and extras, width() and width_v()) and to the tables of the heads' relative biases.
  void operator()(const Tiling& tiling, int64_t tile, int heads, int64_t batch, int64_t first_head, A* g_k, A* g_v,
                  A* g_relative) {
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
      add_keys(g_k, g_v);
      add_queries(first);
    }
    if (a_.g_q) store_queries(batch, first_head, first);
  }

  // Sums of one head's keys to their gradient: scaled, turned back, rounded.
  void store_keys(const A* sums, int64_t width, int64_t n_keys, int64_t n, int64_t batch, int64_t head, double scale,
                  const void* tables, void* to) {
    if (!to) return;
    for (int64_t j = 0; j < n_keys; ++j) {
      const A* from = sums + j * width;
      for (int64_t c = 0; c < n; ++c) row_[c] = from[c] * A(scale);
      if (tables) turn<true>(row_, n, static_cast<const A*>(tables) + j * n, a_.rotary_halves);
      narrow<T>(row_, int(n), static_cast<T*>(to) + ((batch * n_keys + j) * a_.kv_heads + head) * n);
    }
  }

 private:
  void load(int64_t batch, int64_t first_head) {
    const A* tables = static_cast<const A*>(a_.rotary);
    const int64_t n_q = n_queries(a_);
    for (int l = 0; l < rows_.lanes; ++l) {
      scale_[l] = A(a_.scale);
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
      lse_[l] = !finite ? kNan<A> : lse == kNone<A> ? A(0) : lse;
      widen(g_out, int(a_.dim_v), row_);
      widen(row_of<T>(a_.out, batch, token, head), int(a_.dim_v), row2_);
      A delta = A(0);
#pragma omp simd reduction(+ : delta)
      for (int64_t c = 0; c < a_.dim_v; ++c) delta += row_[c] * row2_[c];
      delta_[l] = delta - (a_.g_lse ? static_cast<const A*>(a_.g_lse)[at] : A(0));
    }
    P::pack_right_transposed(q_rows_, width_, rows_.lanes, depth_of(a_.dim), q_);
    P::pack_right_transposed(g_rows_, width_v_, rows_.lanes, depth_of(a_.dim_v), g_);
    q_right_ = P::right_of_rows(q_rows_, width_, rows_.lanes, width_, q_pairs_);
    g_right_ = P::right_of_rows(g_rows_, width_v_, rows_.lanes, width_v_, g_pairs_);
  }

  static int64_t depth_of(int64_t n) { return is_pairs<E> ? padded<E>(n) : n; }

  // weights_: what values are multiplied by; g_scores_: gradients of the products of queries and keys.
  void gradients_of_scores(const ScoreMaker<A>& make_scores, int64_t batch, int64_t kv_head, A* g_relative) {
    const int lanes = rows_.lanes, n = block_.n;
    const AttentionTensor &k = block_.extra ? a_.extra_k : a_.k, &v = block_.extra ? a_.extra_v : a_.v;
    const A* tables = block_.extra ? nullptr : static_cast<const A*>(a_.kv_rotary);
    bool *const bad_k = bad_.data(), *const bad_v = bad_k + kKeys;
    const int bad_keys =
        pack_keys<E, T>(block_, k, batch, kv_head, a_.dim, width_, tables, a_.rotary_halves, k_, row_, bad_k);
    pack_keys<E, T>(block_, v, batch, kv_head, a_.dim_v, width_v_, nullptr, false, v_, row_, bad_v);
    products_.template multiply_into<false>(n, lanes, depth_of(a_.dim), Left<E>{k_, width_, 1}, q_, P::right_row(lanes),
                                            weights_, lanes);
    products_.template multiply_into<false>(n, lanes, depth_of(a_.dim_v), Left<E>{v_, width_v_, 1}, g_,
                                            P::right_row(lanes), g_scores_, lanes);
    A* const slopes = a_.softcap > 0 ? slopes_ : nullptr;
    make_scores(rows_, block_, scale_, bad_keys ? bad_k : nullptr, weights_, slopes, nullptr);
    if (a_.dropout > 0) {
      differentiate_dropped(make_scores.n_k);
    } else {
      for (int i = 0; i < n; ++i) {
        A *w = weights_ + int64_t(i) * lanes, *g = g_scores_ + int64_t(i) * lanes;
        FVX_SIMD
        for (int l = 0; l < lanes; ++l) {
          const A p = exp_of_score(w[l] - lse_[l]);
          const bool none = w[l] == kNone<A>;  // decided here, for lse may be NaN
          g[l] = none ? A(0) : p * (g[l] - delta_[l]);
          w[l] = none ? A(0) : p;
        }
      }
    }
    if (!block_.extra && g_relative) add_relative(make_scores, g_relative);
    if (!block_.extra && a_.g_bias) add_bias(make_scores);
    if (!slopes) return;
    FVX_SIMD
    for (int64_t i = 0; i < int64_t(n) * lanes; ++i) g_scores_[i] *= slopes[i];
  }

  void differentiate_dropped(int64_t n_k) {
    const uint32_t threshold = uint32_t(a_.dropout * 4294967296.0);
    const A scale = A(1 / (1 - a_.dropout));
    for (int i = 0; i < block_.n; ++i) {
      const int64_t key = block_.token[i] + (block_.extra ? n_k : 0);
      A *w = weights_ + int64_t(i) * rows_.lanes, *g = g_scores_ + int64_t(i) * rows_.lanes;
      FVX_SIMD
      for (int l = 0; l < rows_.lanes; ++l) {
        const A kept = dropout_keeps(rows_.hash[l], key, threshold) ? scale : A(0);
        const A p = exp_of_score(w[l] - lse_[l]);
        const bool none = w[l] == kNone<A>;
        g[l] = none ? A(0) : p * (kept * g[l] - delta_[l]);
        w[l] = none ? A(0) : p * kept;
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

  void add_keys(A* g_k, A* g_v) {
    const int lanes = rows_.lanes, n = block_.n;
    if (g_v) {
      const Left<E> weights = P::left_of_sums(weights_, n, lanes, room_);
      add_to_rows(weights, g_right_, width_v_, g_v);
    }
    if (g_k) {
      const Left<E> g = P::left_of_sums(g_scores_, n, lanes, room_);
      add_to_rows(g, q_right_, width_, g_k);
    }
  }

  // A block's keys lie anywhere among the sums; neighbours are added to where they are.
  void add_to_rows(const Left<E>& left, const E* right, int64_t width, A* sums) {
    const int n = block_.n;
    const int64_t first = (block_.extra ? n_keys(a_) : 0);
    bool neighbours = true;
    for (int i = 1; i < n; ++i) neighbours &= block_.token[i] == block_.token[0] + i;
    if (neighbours) {
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

  void add_queries(bool first) {
    if (!a_.g_q) return;
    const int lanes = rows_.lanes, n = block_.n;
    const int64_t depth = is_pairs<E> ? round_up(n, 32) : n;
    const Left<E> keys = P::left_transposed(k_, width_, n, depth, width_, k_pairs_, k_turned_);
    const E* g = P::right_of_sums(g_scores_, n, depth, lanes, room2_);
    if (first) {
      products_.template multiply_into<false>(a_.dim, lanes, depth, keys, g, P::right_row(lanes), g_q_, lanes);
    } else {
      products_.template multiply_into<true>(a_.dim, lanes, depth, keys, g, P::right_row(lanes), g_q_, lanes);
    }
  }

  void store_queries(int64_t batch, int64_t first_head, bool empty) {
    const int lanes = rows_.lanes;
    const int64_t n_q = n_queries(a_), row = round_up(a_.dim, kLaneStep);
    if (empty) __builtin_memset(g_q_, 0, size_t(a_.dim * lanes) * sizeof(A));
    transpose(g_q_, lanes, a_.dim, lanes, g_q_rows_, row);
    const A* tables = static_cast<const A*>(a_.rotary);
    for (int l = 0; l < rows_.n; ++l) {
      A* g = g_q_rows_ + l * row;
      FVX_SIMD
      for (int64_t c = 0; c < a_.dim; ++c) g[c] *= A(a_.scale);
      const int64_t token = rows_.token[l];
      if (tables) turn<true>(g, a_.dim, tables + token * a_.dim, a_.rotary_halves);
      const int64_t at = (batch * n_q + token) * a_.heads + first_head + rows_.head[l];
      narrow<T>(g, int(a_.dim), static_cast<T*>(a_.g_q) + at * a_.dim);
    }
  }

  const AttentionBwd& a_;
  const Products<E> products_;
  const int64_t width_, width_v_;
  Rows rows_;
  KeyBlock block_;
  Scratch<bool> bad_;
  Scratch<E> operands_;
  Scratch<A> sums_;
  E *q_rows_, *q_, *g_rows_, *g_, *k_, *v_;
  E *room_ = nullptr, *room2_ = nullptr, *k_pairs_ = nullptr, *k_turned_ = nullptr;
  E *q_pairs_ = nullptr, *g_pairs_ = nullptr;
  const E *q_right_ = nullptr, *g_right_ = nullptr;
  A *weights_, *g_scores_, *slopes_, *block_sums_, *g_q_, *g_q_rows_, *scale_, *lse_, *delta_, *row_, *row2_;
  const Tiling* tiling_ = nullptr;
  int64_t tile_ = -1;
};

// Memory of a kernel that must not fail silently.
template <class A>
class Sums {
 public:
  explicit Sums(int64_t n) : block_(size_t(n) * sizeof(A)) {
    if (n && !block_.template as<A>()) throw std::bad_alloc();
  }
  A* at(int64_t i) const { return block_.template as<A>() + i; }

 private:
  Workspace block_;
};

template <class A>
void set_zero(A* to, int64_t n) {
  __builtin_memset(to, 0, size_t(n) * sizeof(A));
}

template <class T, class E>
void backward(const AttentionBwd& a) {
  using A = acc_t<E>;
  const Tilings tilings(a, backward_cost<E>());
  const int heads = tilings.groups().together;
  const int64_t per_head = tilings.groups().per_kv_head, ratio = a.heads / a.kv_heads;
  const int64_t table = a.relative_bias ? int64_t(a.relative[0]) * a.relative[1] * a.relative[2] : 0;
  const Tasks tasks(a, table);
  const int64_t n_k = n_keys(a), n_rows = n_k + a.n_extra, n_tasks = a.kv_heads * tasks.ranges * tasks.slices;
  const int64_t width = padded<E>(a.dim), width_v = padded<E>(a.dim_v);
  const bool key_sums = a.g_k || a.g_extra_k, value_sums = a.g_v || a.g_extra_v;
  const int64_t numbers = n_rows * ((key_sums ? width : 0) + (value_sums ? width_v : 0));
  const bool sliced = tasks.slices > 1;
  const Sums<A> of_slices(sliced ? n_tasks * numbers : 0);
  const Sums<A> tables(a.g_relative_bias ? n_tasks * ratio * table : 0);

  const auto store_head = [&](Backward<T, E>& work, const A* g_k, const A* g_v, int64_t batch, int64_t head) {
    if (key_sums) {
      work.store_keys(g_k, width, n_k, a.dim, batch, head, a.scale, a.kv_rotary, a.g_k);
      work.store_keys(g_k + n_k * width, width, a.n_extra, a.dim, batch, head, a.scale, nullptr, a.g_extra_k);
    }
    if (value_sums) {
      work.store_keys(g_v, width_v, n_k, a.dim_v, batch, head, 1, nullptr, a.g_v);
      work.store_keys(g_v + n_k * width_v, width_v, a.n_extra, a.dim_v, batch, head, 1, nullptr, a.g_extra_v);
    }
  };

  parallel_for(a.threads, n_tasks, 1, [&](int64_t begin, int64_t end) {
    Tiles tiles(is_pairs<E> && active_amx());
    Backward<T, E> work(a, tilings.max_lanes(), &tiles);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t slice = task % tasks.slices, range = task / tasks.slices % tasks.ranges;
      const int64_t head = task / tasks.slices / tasks.ranges;
      const Sums<A> own(sliced ? 0 : numbers);
      A* const sums = sliced ? of_slices.at(task * numbers) : own.at(0);
      A* const g_k = key_sums ? sums : nullptr;
      A* const g_v = value_sums ? sums + (key_sums ? n_rows * width : 0) : nullptr;
      A* const g_table = a.g_relative_bias ? tables.at(task * ratio * table) : nullptr;
      if (g_table) set_zero(g_table, ratio * table);
      int64_t n_tiles = 0;
      for (int64_t g = 0; g < per_head; ++g) n_tiles += tilings.of_group(head * per_head + g).n_tiles();
      const int64_t from = n_tiles * slice / tasks.slices, to = n_tiles * (slice + 1) / tasks.slices;
      for (int64_t batch = tasks.first_batch(a, range); batch < tasks.first_batch(a, range + 1); ++batch) {
        set_zero(sums, numbers);
        int64_t before = 0;
        for (int64_t g = 0; g < per_head; ++g) {
          const Tiling& tiling = tilings.of_group(head * per_head + g);
          const int64_t n = tiling.n_tiles();
          for (int64_t t = max_of(from - before, int64_t(0)); t < min_of(to - before, n); ++t) {
            work(tiling, t, heads, batch, (head * per_head + g) * heads, g_k, g_v,
                 g_table ? g_table + g * heads * table : nullptr);
          }
          before += n;
        }
        if (!sliced) store_head(work, g_k, g_v, batch, head);
      }
    }
  });

  if (sliced) {
    parallel_for(a.threads, a.kv_heads * a.batch, 1, [&](int64_t begin, int64_t end) {
      Tiles none(false);
      Backward<T, E> work(a, kLaneStep, &none);
      for (int64_t i = begin; i < end; ++i) {  // ranges are single batches
        A* const sums = of_slices.at(i * tasks.slices * numbers);
        for (int64_t s = 1; s < tasks.slices; ++s) {
          const A* more = sums + s * numbers;
          FVX_SIMD
          for (int64_t j = 0; j < numbers; ++j) sums[j] += more[j];
        }
        store_head(work, sums, sums + (key_sums ? n_rows * width : 0), i % a.batch, i / a.batch);
      }
    });
  }
  if (a.g_relative_bias) {
    const int64_t parts = tasks.ranges * tasks.slices, n = ratio * table;
    for (int64_t head = 0; head < a.kv_heads; ++head) {
      A* const to = static_cast<A*>(a.g_relative_bias) + head * n;
      set_zero(to, n);
      for (int64_t p = 0; p < parts; ++p) {
        const A* more = tables.at((head * parts + p) * n);
        FVX_SIMD
        for (int64_t j = 0; j < n; ++j) to[j] += more[j];
      }
    }
  }
}

}  // namespace

void attention_bwd(const AttentionBwd& a) {
  if (bf16_operands(a)) {
#if defined(FVX_BF16_OPERANDS)
    return backward<bf16, bf16>(a);
#endif
  }
  FVX_DISPATCH_STORAGE(a.dtype, T, return backward<T, acc_t<T>>(a));
}

FVX_END_ISA
