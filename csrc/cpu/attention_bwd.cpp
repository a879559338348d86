// Backward: every pair of tile and key block is visited once. Gradients of keys and values are summed by the one task
// that has their head, in the order of the tiles: no atomics, and the same sums for any number of threads. Where no two
// tiles share a key, as windows do, a tile's gradients are final and nothing is summed.
#include "attention_tile_bwd.h"
#include "attention_tilings.h"
#include "fastvfx/kernels.h"

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

template <class A>
void set_zero(A* to, int64_t n) {
  __builtin_memset(to, 0, size_t(n) * sizeof(A));
}

// The gradient of the tables of `heads` heads of keys from `parts` of each, `n` numbers a part.
template <class A>
void add_tables(const Sums<A>& tables, int64_t heads, int64_t parts, int64_t part_step, int64_t head_step, int64_t n,
                void* to) {
  for (int64_t head = 0; head < heads; ++head) {
    A* const sums = static_cast<A*>(to) + head * n;
    set_zero(sums, n);
    for (int64_t p = 0; p < parts; ++p) {
      const A* more = tables.at(p * part_step + head * head_step);
      FVX_SIMD
      for (int64_t j = 0; j < n; ++j) sums[j] += more[j];
    }
  }
}

int64_t table_size(const Attention& a) {
  return a.relative_bias ? int64_t(a.relative[0]) * a.relative[1] * a.relative[2] : 0;
}

// Where no two tiles share a key.
template <class T, class E>
void backward_by_tile(const AttentionBwd& a, const Tilings& tilings) {
  using A = acc_t<E>;
  const int heads = tilings.groups().together;
  const int64_t groups = a.heads / heads, table = table_size(a), total = tilings.total_tiles() * a.batch;
  // Chunks have tables of their own, so there are few, and as many for any number of threads.
  const int64_t most = a.g_relative_bias ? 16 : int64_t(a.threads) * 16;
  const int64_t grain = max_of((total + most - 1) / most, int64_t(1)), chunks = (total + grain - 1) / grain;
  const Sums<A> tables(a.g_relative_bias ? chunks * a.heads * table : 0);
  const PackedKeys<T, E> none(a, false, false, false);
  parallel_for(a.threads, total, grain, [&](int64_t begin, int64_t end) {
    Tiles tiles(is_pairs<E> && active_amx());
    TileBackward<T, E> work(a, none, tilings.max_lanes(), &tiles);
    A* const g_table = a.g_relative_bias ? tables.at(begin / grain * a.heads * table) : nullptr;
    if (g_table) set_zero(g_table, a.heads * table);
    tilings.each_by_tile(begin, end, groups, [&](const Tiling& tiling, int64_t tile, int64_t batch, int64_t group) {
      work(tiling, tile, heads, batch, group * heads, KeySums<A>{true, nullptr, nullptr},
           g_table ? g_table + group * heads * table : nullptr);
    });
  });
  if (a.g_relative_bias) add_tables(tables, a.heads, chunks, a.heads * table, table, table, a.g_relative_bias);
}

template <class T, class E>
void backward(const AttentionBwd& a) {
  using A = acc_t<E>;
  const Tilings tilings(a, backward_cost<E>());
  if (tilings.each_key_once() && !(a.g_bias && a.bias_batch < a.batch)) return backward_by_tile<T, E>(a, tilings);
  const int heads = tilings.groups().together;
  const int64_t per_head = tilings.groups().per_kv_head, ratio = a.heads / a.kv_heads;
  const int64_t table = table_size(a);
  const Tasks tasks(a, table);
  const int64_t n_k = n_keys(a), n_rows = n_k + a.n_extra, n_tasks = a.kv_heads * tasks.ranges * tasks.slices;
  const int64_t width = padded<E>(a.dim), width_v = padded<E>(a.dim_v);
  const bool key_sums = a.g_k || a.g_extra_k, value_sums = a.g_v || a.g_extra_v;
  const int64_t numbers = n_rows * ((key_sums ? width : 0) + (value_sums ? width_v : 0));
  const bool sliced = tasks.slices > 1;
  const PackedKeys<T, E> ahead(a, !tilings.each_key_once(), a.g_q != nullptr, false);
  const Sums<A> of_slices(sliced ? n_tasks * numbers : 0);
  const Sums<A> tables(a.g_relative_bias ? n_tasks * ratio * table : 0);

  const auto store_head = [&](TileBackward<T, E>& work, const A* g_k, const A* g_v, int64_t batch, int64_t head) {
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
    TileBackward<T, E> work(a, ahead, tilings.max_lanes(), &tiles);
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
            work(tiling, t, heads, batch, (head * per_head + g) * heads, KeySums<A>{false, g_k, g_v},
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
      TileBackward<T, E> work(a, ahead, kLaneStep, &none);
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
    add_tables(tables, a.kv_heads, parts, n, parts * n, n, a.g_relative_bias);
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
