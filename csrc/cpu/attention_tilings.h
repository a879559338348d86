// The tilings of every pattern among the heads, and the order in which threads go through their tiles.
#pragma once

#include "attention_products.h"

FVX_BEGIN_ISA

namespace {

// Whether bf16 is multiplied as it is, instead of widened.
inline bool bf16_operands(const Attention& a) {
#if defined(FVX_BF16_OPERANDS)
  return a.dtype == DType::bf16 && (active_amx() || has_bf16());
#else
  (void)a;
  return false;
#endif
}

class Tilings {
 public:
  Tilings(const Attention& a, const TileCost& cost)
      : groups_(a, cost.max_rows),
        count_(a.n_patterns),
        tilings_(new Tiling[size_t(a.n_patterns)]),
        pattern_of_(a.heads / groups_.together) {
    const bool merge = !a.blocks && !a.relative_bias;
    for (int p = 0; p < count_; ++p) {
      tilings_[p].plan(a, p, groups_.together, merge, cost);
      max_lanes_ = max_of(max_lanes_, int(round_up(int64_t(tilings_[p].max_rows()) * groups_.together, kLaneStep)));
    }
    for (int64_t g = 0; g < a.heads / groups_.together; ++g) {
      pattern_of_.data()[g] = a.of_head[g * groups_.together];
      total_tiles_ += of_group(g).n_tiles();
    }
    each_key_once_ = count_ == 1 && groups_.per_kv_head == 1 && !a.blocks && !a.n_extra && !a.kv_mask;
    each_key_once_ = each_key_once_ && tilings_[0].each_key_once();
  }
  ~Tilings() { delete[] tilings_; }
  Tilings(const Tilings&) = delete;
  Tilings& operator=(const Tilings&) = delete;

  const HeadGroups& groups() const { return groups_; }
  const Tiling& of_group(int64_t group) const { return tilings_[pattern_of_.data()[group]]; }
  int max_lanes() const { return max_lanes_; }
  // Whether every key of every head belongs to one tile, and no key to none.
  bool each_key_once() const { return each_key_once_; }
  int64_t total_tiles() const { return total_tiles_; }  // of all heads of one batch

  // done(tiling, tile, batch, group) for numbers begin to end of total_tiles() times batch.
  template <class Done>
  void each(int64_t begin, int64_t end, int64_t n_groups, const Done& done) const {
    int64_t batch = total_tiles_ ? begin / total_tiles_ : 0, left = begin - batch * total_tiles_, group = 0;
    while (begin < end && left >= of_group(group).n_tiles()) left -= of_group(group++).n_tiles();
    for (int64_t n = begin; n < end; ++n) {
      done(of_group(group), left, batch, group);
      for (++left; n + 1 < end && left >= of_group(group).n_tiles(); left = 0) {
        if (++group == n_groups) group = 0, ++batch;
      }
    }
  }

  // The same where each_key_once() holds: tile by tile, heads side by side, for they are neighbours in memory and share
  // all that is known of a tile.
  template <class Done>
  void each_by_tile(int64_t begin, int64_t end, int64_t n_groups, const Done& done) const {
    const Tiling& tiling = of_group(0);
    const int64_t n_tiles = tiling.n_tiles();
    for (int64_t n = begin; n < end; ++n) done(tiling, n / n_groups % n_tiles, n / n_groups / n_tiles, n % n_groups);
  }

 private:
  HeadGroups groups_;
  int count_;
  Tiling* tilings_;
  Scratch<int32_t> pattern_of_;
  int max_lanes_ = kLaneStep;
  int64_t total_tiles_ = 0;
  bool each_key_once_ = false;
};

// In units of one pair of query and key, by how fast that is multiplied.
template <class E>
TileCost forward_cost() {
  return is_pairs<E> ? TileCost{128, 32, 16, 512} : TileCost{128, 20, 4, 128};
}

template <class E>
TileCost backward_cost() {
  return is_pairs<E> ? TileCost{128, 48, 16, 512} : TileCost{128, 40, 10, 500};
}

}  // namespace

FVX_END_ISA
