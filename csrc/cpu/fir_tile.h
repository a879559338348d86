// A tile of output columns and the rows that it reads, as the filter along x wants them: widened to the accumulation
// type, with zeros where the image ends, split by the step of the axis.
#pragma once

#include "fastvfx/math.h"
#include "fir.h"

FVX_BEGIN_ISA

namespace fir {

// The images of one call as `outer` arrays of rows: planes, or images whose pixels have `inner` channels.
struct Layout {
  int64_t outer, inner;
  explicit Layout(const Upfirdn2dShape& a)
      : outer(a.channels_last ? a.n : a.n * a.channels), inner(a.channels_last ? a.channels : 1) {}
};

// Outputs [begin, end) of a row; `begin` starts a round.
struct Tile {
  int64_t begin, end, rounds;
  int64_t first, width;  // pixels that the rounds read, a whole number of steps; `first` may lie outside of the image
  int64_t live_begin, live;  // the part of them that is in the image, from `first` on
  int64_t pitch;             // of the rows that a row is split into

  template <class A>
  Tile(const Polyphase<A>& x, int64_t begin_, int64_t end_, int64_t in_w, int64_t inner)
      : begin(begin_),
        end(end_),
        rounds((end - begin + x.phases - 1) / x.phases),
        first(x.of(0).first + begin / x.phases * x.step),
        width(((rounds - 1) * x.step + x.reach() + x.step - 1) / x.step * x.step),
        live_begin(min_of(max_of<int64_t>(-first, 0), width)),
        live(max_of<int64_t>(min_of(in_w - first, width) - live_begin, 0)),
        pitch(width / x.step * inner + kSlack) {}
};

// Large enough that the columns at a tile's edge, read twice, do not count; small enough for the nearest caches.
constexpr int64_t kTileNumbers = 1 << 13;

template <class A>
int64_t outputs_per_tile(const Polyphase<A>& x, int64_t inner) {
  const int64_t rounds = kTileNumbers / (inner * max_of(x.phases, x.step));
  return max_of<int64_t>(rounds, 1) * x.phases;
}

// body(tile) for the tiles of a row.
template <class A, class Body>
void for_each_tile(const Polyphase<A>& x, int64_t in_w, int64_t out_w, int64_t inner, const Body& body) {
  const int64_t size = outputs_per_tile(x, inner);
  for (int64_t begin = 0; begin < out_w; begin += size) {
    body(Tile(x, begin, min_of(begin + size, out_w), in_w, inner));
  }
}

// The rows of the image that an output row reads.
struct Window {
  int64_t first;       // in the image
  int skipped, count;  // taps of the phase before them, and how many rows

  template <class A>
  Window(const Polyphase<A>& y, int64_t output, int64_t in_h) {
    const auto& phase = y.of(int(output % y.phases));
    const int64_t begin = phase.first + output / y.phases * y.step;
    first = max_of<int64_t>(begin, 0);
    skipped = int(min_of<int64_t>(first - begin, phase.count));
    count = int(max_of<int64_t>(min_of(begin + phase.count, in_h) - first, 0));
  }
};

// Rows of one image under a tile.
template <class T>
class Rows {
  using A = acc_t<T>;

 public:
  // `kept` rows at once can be asked for.
  Rows(const Polyphase<A>& x, const Tile& tile, int64_t inner, int64_t in_w, int kept)
      : x_(x),
        tile_(tile),
        inner_(inner),
        row_stride_(in_w * inner),
        slot_(max_of(tile.width * inner + kSlack, x.step * tile.pitch)),
        kept_(kept),
        memory_((kept + 2) * slot_),
        in_slot_(kept) {
    __builtin_memset(memory_.data(), 0, size_t((kept + 2) * slot_) * sizeof(A));
    for (int i = 0; i < kept; ++i) in_slot_.data()[i] = -1;
  }

  // The live part of row q, widened.
  const A* widened(const T* image, int64_t q) {
    const T* from = image + q * row_stride_ + (tile_.first + tile_.live_begin) * inner_;
    if constexpr (sizeof(T) == sizeof(A)) {
      return from;
    } else {
      A* to = slot(q % kept_);
      if (is_new(q)) load_row(from, tile_.live * inner_, to);
      return to;
    }
  }

  // Row q, ready for the filter along x.
  const A* ready(const T* image, int64_t q) {
    A* to = slot(q % kept_);
    if (is_new(q)) {
      load_row(image + q * row_stride_ + (tile_.first + tile_.live_begin) * inner_, tile_.live * inner_, live_part());
      split(to);
    }
    return to;
  }

  // The sum of `count` rows, ready for the filter along x.
  const A* ready_sum(const A* const* rows, const A* weights, int count) {
    weighted_sum(rows, weights, count, tile_.live * inner_, live_part());
    if (x_.step == 1) return padded();
    split(slot(kept_ + 1));
    return slot(kept_ + 1);
  }

  // Where phase r finds pixel k of its sum in a row that is ready.
  int64_t offset(int r, int k) const {
    const int64_t pixel = x_.shift(r) + k;
    return pixel % x_.step * tile_.pitch + pixel / x_.step * inner_;
  }

 private:
  A* slot(int64_t i) { return memory_.data() + i * slot_; }
  A* padded() { return slot(kept_); }
  A* live_part() { return padded() + tile_.live_begin * inner_; }

  bool is_new(int64_t q) {
    int64_t& there = in_slot_.data()[q % kept_];
    if (there == q) return false;
    there = q;
    return true;
  }

  void split(A* to) {
    if (x_.step == 1) {
      __builtin_memcpy(to, padded(), size_t(tile_.width * inner_) * sizeof(A));
    } else {
      split_row(padded(), x_.step, inner_, tile_.width / x_.step, tile_.pitch, to);
    }
  }

  const Polyphase<A>& x_;
  const Tile tile_;
  const int64_t inner_, row_stride_, slot_;
  const int kept_;
  Scratch<A> memory_;         // rows kept, the padded row that is being made, and its parts
  Scratch<int64_t> in_slot_;  // which row is in a slot
};

}  // namespace fir

FVX_END_ISA
