// Frequency encoding on the CPU: 16 points at a time, one a vector lane, a column of the tile for each output; the
// tile is transposed into rows on its way to memory.
#include "fastvfx/frequency.h"

#include "parallel.h"
#include "rows.h"
#include "scratch.h"

FVX_BEGIN_ISA

namespace {

constexpr int64_t kOutputsPerChunk = 1 << 17;

template <class T>
void load_coordinate(const T* x, int64_t dims, int live, acc_t<T>* lanes) {
  for (int i = 0; i < live; ++i) lanes[i] = to_acc(x[i * dims]);
  for (int i = live; i < kLanes; ++i) lanes[i] = 0;
}

template <class T>
void store_coordinate(const acc_t<T>* lanes, int64_t dims, int live, T* x) {
  for (int i = 0; i < live; ++i) x[i * dims] = from_acc<T>(lanes[i]);
}

// body(first point, live lanes, first column of the tile, of a second one, scratch)
template <class T, class Body>
void for_each_tile(const FrequencyRows& a, int columns, const Body& body) {
  using A = acc_t<T>;
  const int64_t grain = max_of<int64_t>(1, kOutputsPerChunk / (columns * kLanes)) * kLanes;
  parallel_for(a.threads, a.n, grain, [&](int64_t begin, int64_t end) {
    const int64_t size = int64_t(columns) * kLanes;
    const Scratch<A> memory(3 * size);
    A* tile = memory.data();
    for (int64_t first = begin; first < end; first += kLanes) {
      body(first, int(min_of<int64_t>(kLanes, end - first)), tile, tile + size, tile + 2 * size);
    }
  });
}

// 16 coordinates in half turns.
template <class A>
struct Turns {
  A hi[kLanes], lo[kLanes];

  Turns(const A* x, FrequencyLayout layout) {
    FVX_SIMD  // else gcc 12.2 unrolls the loop, and its vectoriser of straight code loses `lo`
    for (int i = 0; i < kLanes; ++i) {
      const frequency::HalfTurns<A> t = frequency::half_turns(x[i], layout);
      hi[i] = t.hi;
      lo[i] = t.lo;
    }
  }

  void waves(A power, A* sin, A* cos) const {
    FVX_SIMD
    for (int i = 0; i < kLanes; ++i) {
      const SinCos<A> w = frequency::wave(frequency::HalfTurns<A>{hi[i], lo[i]}, power);
      sin[i] = w.sin;
      cos[i] = w.cos;
    }
  }
};

template <class T>
void forward(const FrequencyFwd& a) {
  using A = acc_t<T>;
  const frequency::Columns c = frequency::columns_of(a);
  for_each_tile<T>(a, c.count, [&](int64_t first, int live, A* tile, A*, A* scratch) {
    for (int d = 0; d < a.dims; ++d) {
      A x[kLanes];
      load_coordinate(static_cast<const T*>(a.x) + first * a.dims + d, a.dims, live, x);
      const Turns<A> turns(x, a.layout);
      for (int f = 0; f < a.n_frequencies; ++f) {
        A* sin = tile + (c.first + d * c.per_dim + f * c.per_frequency) * kLanes;
        turns.waves(frequency::power_of_two<A>(f), sin, sin + c.to_cos * kLanes);
      }
      if (!a.include_input) continue;
      for (int i = 0; i < kLanes; ++i) tile[(c.input + d) * kLanes + i] = x[i];
    }
    store_rows<T>(tile, c.count, live, static_cast<T*>(a.out) + first * c.count, scratch);
  });
}

template <class T>
void backward(const FrequencyBwd& a) {
  using A = acc_t<T>;
  const frequency::Columns c = frequency::columns_of(a);
  for_each_tile<T>(a, c.count, [&](int64_t first, int live, A* tile, A*, A* scratch) {
    load_rows<T>(static_cast<const T*>(a.g_out) + first * c.count, c.count, live, tile, scratch);
    for (int d = 0; d < a.dims; ++d) {
      A x[kLanes], sin[kLanes], cos[kLanes], g_x[kLanes];
      load_coordinate(static_cast<const T*>(a.x) + first * a.dims + d, a.dims, live, x);
      const Turns<A> turns(x, a.layout);
      for (int i = 0; i < kLanes; ++i) g_x[i] = a.include_input ? tile[(c.input + d) * kLanes + i] : A(0);
      for (int f = 0; f < a.n_frequencies; ++f) {
        const A power = frequency::power_of_two<A>(f), rate = frequency::factor_of<A>(a.layout) * power;
        const A* g_sin = tile + (c.first + d * c.per_dim + f * c.per_frequency) * kLanes;
        const A* g_cos = g_sin + c.to_cos * kLanes;
        turns.waves(power, sin, cos);
        FVX_SIMD
        for (int i = 0; i < kLanes; ++i) g_x[i] += rate * (g_sin[i] * cos[i] - g_cos[i] * sin[i]);
      }
      store_coordinate(g_x, a.dims, live, static_cast<T*>(a.g_x) + first * a.dims + d);
    }
  });
}

template <class T>
void backward_backward(const FrequencyBwdBwd& a) {
  using A = acc_t<T>;
  const frequency::Columns c = frequency::columns_of(a);
  for_each_tile<T>(a, c.count, [&](int64_t first, int live, A* tile, A* gg_tile, A* scratch) {
    load_rows<T>(static_cast<const T*>(a.g_out) + first * c.count, c.count, live, tile, scratch);
    for (int d = 0; d < a.dims; ++d) {
      A x[kLanes], sin[kLanes], cos[kLanes], gg_x[kLanes], g_x[kLanes] = {};
      load_coordinate(static_cast<const T*>(a.x) + first * a.dims + d, a.dims, live, x);
      load_coordinate(static_cast<const T*>(a.gg_x) + first * a.dims + d, a.dims, live, gg_x);
      const Turns<A> turns(x, a.layout);
      for (int f = 0; f < a.n_frequencies; ++f) {
        const A power = frequency::power_of_two<A>(f), rate = frequency::factor_of<A>(a.layout) * power;
        const int column = c.first + d * c.per_dim + f * c.per_frequency;
        const A* g_sin = tile + column * kLanes;
        const A* g_cos = g_sin + c.to_cos * kLanes;
        A* gg_sin = gg_tile + column * kLanes;
        A* gg_cos = gg_sin + c.to_cos * kLanes;
        turns.waves(power, sin, cos);
        FVX_SIMD
        for (int i = 0; i < kLanes; ++i) {
          const A change = gg_x[i] * rate;  // of the argument
          gg_sin[i] = change * cos[i];
          gg_cos[i] = -change * sin[i];
          g_x[i] -= change * rate * (g_sin[i] * sin[i] + g_cos[i] * cos[i]);
        }
      }
      store_coordinate(g_x, a.dims, live, static_cast<T*>(a.g_x) + first * a.dims + d);
      if (!a.include_input) continue;
      for (int i = 0; i < kLanes; ++i) gg_tile[(c.input + d) * kLanes + i] = gg_x[i];
    }
    store_rows<T>(gg_tile, c.count, live, static_cast<T*>(a.gg_out) + first * c.count, scratch);
  });
}

}  // namespace

void frequency_fwd(const FrequencyFwd& a) { FVX_DISPATCH_STORAGE(a.dtype, T, forward<T>(a)); }

void frequency_bwd(const FrequencyBwd& a) { FVX_DISPATCH_STORAGE(a.dtype, T, backward<T>(a)); }

void frequency_bwd_bwd(const FrequencyBwdBwd& a) { FVX_DISPATCH_STORAGE(a.dtype, T, backward_backward<T>(a)); }

FVX_END_ISA
