// How the queries of a grid are cut into tiles: boxes of neighbours, whose keys overlap, so that the box of keys that
// serves a whole tile is not much larger than what each query attends.
//
// Every axis is cut on its own, into chunks: queries and the list of keys that any of them attends. A tile is one chunk
// of each axis, its keys the product of the three lists. Queries of a dilated axis are taken by residue, so that the
// queries of a chunk attend the same residue of keys and its list has no holes.
#pragma once

#include "fastvfx/attention.h"
#include "scratch.h"

FVX_BEGIN_ISA

namespace {

constexpr int kAxes = 3;

inline int64_t n_queries(const Attention& a) { return int64_t(a.q_grid[0]) * a.q_grid[1] * a.q_grid[2]; }
inline int64_t n_keys(const Attention& a) { return int64_t(a.k_grid[0]) * a.k_grid[1] * a.k_grid[2]; }

// Key number i of a list: those of the sink, then first, first + step, ...
struct KeyList {
  int32_t n_sink, first, step, n_steps;

  int32_t size() const { return n_sink + n_steps; }
  int32_t at(int32_t i) const { return i < n_sink ? i : first + (i - n_sink) * step; }
  // How many keys of the list are below `key`.
  int32_t below(int32_t key) const {
    const int32_t of_sink = min_of(max_of(key, 0), n_sink);
    return of_sink + (key <= first ? 0 : min_of((key - first + step - 1) / step, n_steps));
  }
};

struct Chunk {
  int32_t begin, size;  // in the order of the axis
  KeyList keys;
  bool partial;  // some query does not attend all keys of the list
};

// One axis of one pattern.
struct Axis {
  int32_t n_q = 1, n_k = 1, dilation = 1, sink = 0, block = 0;
  const int32_t* spans = nullptr;  // null: every query attends every key

  int32_t start(int32_t q) const { return spans ? spans[2 * q] : 0; }
  int32_t end(int32_t q) const { return spans ? spans[2 * q + 1] : n_k; }
  bool whole() const {
    if (dilation > 1) return false;
    for (int32_t q = 0; spans && q < n_q; ++q) {
      if (start(q) > 0 || end(q) < n_k) return false;
    }
    return true;
  }
};

// The keys that queries order[begin, begin + size) attend.
inline Chunk chunk_of(const Axis& axis, const int32_t* order, int32_t begin, int32_t size) {
  int32_t lo = axis.n_k, hi = 0;
  for (int32_t i = begin; i < begin + size; ++i) {
    const int32_t start = axis.start(order[i]), end = axis.end(order[i]);
    if (start < end) lo = min_of(lo, start), hi = max_of(hi, end);
    if (axis.sink) hi = max_of(hi, min_of(end, axis.sink));
  }
  const int32_t n_sink = max_of(min_of(axis.sink, hi), 0), step = axis.dilation;
  int32_t first = lo;
  if (first < n_sink) first += (n_sink - first + step - 1) / step * step;
  const int32_t n_steps = first < hi ? (hi - first + step - 1) / step : 0;
  Chunk chunk{begin, size, {n_sink, first, step, n_steps}, false};
  const int32_t last = first + (n_steps - 1) * step;
  for (int32_t i = begin; i < begin + size; ++i) {
    const int32_t start = axis.start(order[i]), end = axis.end(order[i]);
    chunk.partial |= (n_steps && (start > first || end <= last)) || end < n_sink;
  }
  return chunk;
}

// The queries of one axis in the order of the chunks, and where that may be cut however large chunks are.
class AxisOrder {
 public:
  explicit AxisOrder(const Axis& axis) : axis_(axis), order_(axis.n_q + 1), cuts_(axis.n_q + 2) {
    const int32_t block = axis.block ? axis.block : max_of(axis.n_q, 1);
    int32_t n = 0;
    for (int32_t b = 0; b < axis.n_q; b += block) {
      const int32_t end = min_of(b + block, axis.n_q);
      for (int32_t residue = 0; residue < axis.dilation; ++residue) {
        cuts_.data()[n_cuts_] = n;
        for (int32_t q = b; q < end; ++q) {
          if (axis.dilation == 1 || axis.start(q) % axis.dilation == residue) order_.data()[n++] = q;
        }
        if (n > cuts_.data()[n_cuts_]) ++n_cuts_;
      }
    }
    cuts_.data()[n_cuts_] = n;
  }

  const int32_t* order() const { return order_.data(); }

  // done(chunk) for each chunk of at most `size` queries; between two cuts they are as even as they can be.
  template <class Done>
  void cut(int32_t size, const Done& done) const {
    for (int32_t c = 0; c < n_cuts_; ++c) {
      const int32_t begin = cuts_.data()[c], length = cuts_.data()[c + 1] - begin;
      const int32_t pieces = (length + size - 1) / size;
      for (int32_t p = 0; p < pieces; ++p) {
        const int32_t from = int32_t(int64_t(length) * p / pieces), to = int32_t(int64_t(length) * (p + 1) / pieces);
        done(chunk_of(axis_, order_.data(), begin + from, to - from));
      }
    }
  }

 private:
  Axis axis_;
  Scratch<int32_t> order_, cuts_;
  int32_t n_cuts_ = 0;
};

// What tiles are chosen by: a pair of query and key costs 1.
struct TileCost {
  int max_rows;
  double key, row, tile;  // a key of a tile, a query of a tile, a tile
};

// Tiles of one pattern.
class Tiling {
 public:
  // `heads`: how many query heads a tile takes together. `merge`: axes need not keep their coordinates.
  void plan(const Attention& a, int pattern, int heads, bool merge, const TileCost& cost) {
    for (int x = 0; x < kAxes; ++x) {
      axes[x] = Axis{a.q_grid[x],
                     a.k_grid[x],
                     a.dilation[x],
                     a.sink[x],
                     a.blocks ? a.block[x] : 0,
                     a.spans[x] + int64_t(pattern) * a.q_grid[x] * 2};
      if (axes[x].whole()) axes[x].spans = nullptr, axes[x].sink = 0;
    }
    if (merge) merge_axes();
    for (int x = 0; x < kAxes; ++x) orders_[x].reset(axes[x]);
    choose(heads, cost);
  }

  int64_t n_tiles() const { return int64_t(counts_[0]) * counts_[1] * counts_[2]; }
  int max_rows() const { return max_rows_; }  // tokens of the largest tile
  const int32_t* order(int x) const { return orders_[x]->order(); }
  // Whether the lists of keys of the chunks of every axis are a partition of its keys.
  bool each_key_once() const {
    for (int x = 0; x < kAxes; ++x) {
      Scratch<int32_t> owners(axes[x].n_k);
      for (int32_t k = 0; k < axes[x].n_k; ++k) owners.data()[k] = 0;
      for (int32_t c = 0; c < counts_[x]; ++c) {
        const KeyList& keys = chunks_[x].data()[c].keys;
        for (int32_t i = 0; i < keys.size(); ++i) ++owners.data()[keys.at(i)];
      }
      for (int32_t k = 0; k < axes[x].n_k; ++k) {
        if (owners.data()[k] != 1) return false;
      }
    }
    return true;
  }
  void tile(int64_t number, const Chunk* (&of)[kAxes]) const {
    of[2] = chunks_[2].data() + number % counts_[2];
    of[1] = chunks_[1].data() + number / counts_[2] % counts_[1];
    of[0] = chunks_[0].data() + number / counts_[2] / counts_[1];
  }

  Axis axes[kAxes];

 private:
  // Axes that every query attends as a whole are one, and what is left goes to the last: its keys are read as runs.
  void merge_axes() {
    Axis &t = axes[0], &h = axes[1], &w = axes[2];
    const auto both = [](const Axis& a, const Axis& b) {
      Axis one;
      one.n_q = a.n_q * b.n_q, one.n_k = a.n_k * b.n_k;
      return one;
    };
    if (!h.spans && !w.spans) w = both(h, w), h = Axis{};
    if (!t.spans && !h.spans && !w.spans) w = both(t, w), t = Axis{};
    for (int i = 0; i < 2 && w.n_q == 1 && w.n_k == 1 && !w.spans; ++i) w = h, h = t, t = Axis{};
    if (h.n_q == 1 && h.n_k == 1 && !h.spans) h = t, t = Axis{};
  }

  static int candidates(int32_t n, int32_t* sizes) {
    int count = 0;
    constexpr int32_t kSizes[] = {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64, 96, 128, 192, 256};
    for (const int32_t s : kSizes) {
      if (s < n) sizes[count++] = s;
    }
    sizes[count++] = max_of(n, 1);
    return count;
  }

  void choose(int heads, const TileCost& cost) {
    int32_t sizes[kAxes][32];
    double keys[kAxes][32], pieces[kAxes][32];
    int counts[kAxes], best[kAxes] = {0, 0, 0};
    for (int x = 0; x < kAxes; ++x) {
      counts[x] = candidates(axes[x].n_q, sizes[x]);
      for (int i = 0; i < counts[x]; ++i) {
        keys[x][i] = pieces[x][i] = 0;
        if (sizes[x][i] > cost.max_rows) continue;
        orders_[x]->cut(sizes[x][i], [&](const Chunk& c) { keys[x][i] += c.keys.size(), pieces[x][i] += 1; });
      }
    }
    double least = -1;
    for (int t = 0; t < counts[0]; ++t) {
      for (int h = 0; h < counts[1]; ++h) {
        for (int w = 0; w < counts[2]; ++w) {
          const int64_t rows = int64_t(sizes[0][t]) * sizes[1][h] * sizes[2][w] * heads;
          if (rows > cost.max_rows && rows > heads) continue;
          const double lanes = double((rows + 15) / 16 * 16);
          const double total = keys[0][t] * keys[1][h] * keys[2][w] * (lanes + cost.key) +
                               pieces[0][t] * pieces[1][h] * pieces[2][w] * (lanes * cost.row + cost.tile);
          if (least < 0 || total < least) least = total, best[0] = t, best[1] = h, best[2] = w;
        }
      }
    }
    max_rows_ = 1;
    for (int x = 0; x < kAxes; ++x) {
      const int32_t size = sizes[x][best[x]];
      counts_[x] = 0;
      orders_[x]->cut(size, [&](const Chunk&) { ++counts_[x]; });
      chunks_[x].resize(counts_[x]);
      int32_t i = 0;
      orders_[x]->cut(size, [&](const Chunk& c) { chunks_[x].data()[i++] = c; });
      max_rows_ *= min_of(size, max_of(axes[x].n_q, 1));
    }
  }

  // Filled after construction, and kept to the end.
  class Order {
   public:
    ~Order() { delete made_; }
    void reset(const Axis& axis) { delete made_, made_ = new AxisOrder(axis); }
    const AxisOrder* operator->() const { return made_; }

   private:
    AxisOrder* made_ = nullptr;
  };
  class Chunks {
   public:
    ~Chunks() { delete made_; }
    void resize(int64_t n) { delete made_, made_ = new Scratch<Chunk>(n); }
    Chunk* data() const { return made_->data(); }

   private:
    Scratch<Chunk>* made_ = nullptr;
  };
  Order orders_[kAxes];
  Chunks chunks_[kAxes];
  int32_t counts_[kAxes] = {0, 0, 0};
  int max_rows_ = 1;
};

}  // namespace

FVX_END_ISA
