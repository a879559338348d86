// A ray's samples in vector registers: sums over them, and the whole forward in one loop where nothing per sample is
// asked for. That loop is the only one of a ray whose length the processor has to guess, and guessing wrong costs as
// much as compositing a dozen samples.
#pragma once

#include "fastvfx/composite.h"
#include "vectors.h"

FVX_BEGIN_ISA

// x, or 0 if it does not count, whatever x is. Without a branch: compilers make one of `counts ? x : 0` and then cannot
// vectorise the loop around it.
FVX_HD float only_if(bool counts, float x) { return bits_to_float(float_to_bits(x) & (0u - uint32_t(counts))); }
FVX_HD double only_if(bool counts, double x) {
  uint64_t u;
  __builtin_memcpy(&u, &x, 8);
  u &= 0u - uint64_t(counts);
  __builtin_memcpy(&x, &u, 8);
  return x;
}

// What the samples of a ray add up to.
template <class A>
struct Sums {
  A w, wt;
  A* colour;
};

#if defined(FVX_VECTORS)

// Of three vectors of interleaved channels, the lanes of one channel, in two shuffles.
template <int kSize, int kChannel>
struct FromFirstTwo {
  static constexpr int of(int l) { return 3 * l + kChannel < 2 * kSize ? 3 * l + kChannel : 0; }
};
template <int kSize, int kChannel>
struct FromLast {
  static constexpr int of(int l) { return 3 * l + kChannel < 2 * kSize ? l : 3 * l + kChannel - kSize; }
};
// Lane l of the j-th of those vectors belongs to this sample.
template <int kSize, int kChannels, int kJ>
struct SampleOf {
  static constexpr int of(int l) { return (kJ * kSize + l) / kChannels; }
};

// Sums over samples, a lane each, of one or three channels. Colours stay interleaved as they are in memory, and weights
// are spread to meet them.
template <class A, int kC>
struct LaneSums {
  using V = Vec<A>;
  static constexpr int N = V::kSize;
  V w = V::all(A(0)), wt = w, c0 = w, c1 = w, c2 = w;

  template <class T>
  FVX_HD void add(V weights, V t, const T* colours) {
    w = w + weights;
    wt = wt + weights * t;
    c0 = c0 + shuffle<SampleOf<N, kC, 0>>(weights, weights) * V::load(colours);
    if constexpr (kC == 3) {
      c1 = c1 + shuffle<SampleOf<N, kC, 1>>(weights, weights) * V::load(colours + N);
      c2 = c2 + shuffle<SampleOf<N, kC, 2>>(weights, weights) * V::load(colours + 2 * N);
    }
  }

  FVX_HD void add_to(Sums<A>& sums) const {
    sums.w += sum(w);
    sums.wt += sum(wt);
    if constexpr (kC == 3) {
      sums.colour[0] += sum(shuffle<FromLast<N, 0>>(shuffle<FromFirstTwo<N, 0>>(c0, c1), c2));
      sums.colour[1] += sum(shuffle<FromLast<N, 1>>(shuffle<FromFirstTwo<N, 1>>(c0, c1), c2));
      sums.colour[2] += sum(shuffle<FromLast<N, 2>>(shuffle<FromFirstTwo<N, 2>>(c0, c1), c2));
    } else {
      sums.colour[0] += sum(c0);
    }
  }
};

// Whether sums_of_ray may take the ray: it reads up to a vector of samples behind its end.
template <class A>
FVX_HD bool in_one_loop(const CompositeFwd& a, Span span) {
  return !a.alphas && !a.weights && !a.transmittance && a.early_stop_eps == 0.0 &&
         a.depth_mode != DepthMode::first_hit && span.end + Vec<A>::kSize <= a.n_samples;
}

constexpr int kAhead = 512;  // samples between those at work and those asked from memory

// Asks memory for n samples that will be needed soon. The processor does not run ahead of the ray's end by itself,
// since it cannot know where that is. A few with every vector: many at once wait for each other. (Behind the end of an
// array a prefetch is no fault.)
template <int n, class T>
FVX_HD void ask_ahead(const T* samples, int width) {
  const char* from = reinterpret_cast<const char*>(samples) + int64_t(kAhead) * width * int64_t(sizeof(T));
  for (int i = 0; i < n * width * int(sizeof(T)); i += 64) __builtin_prefetch(from + i);
}

// Adds the ray's samples to `sums` and returns the transmittance behind them.
template <class T, int kC>
acc_t<T> sums_of_ray(const CompositeRays& a, Span span, Sums<acc_t<T>>& sums) {
  using A = acc_t<T>;
  using V = Vec<A>;
  constexpr int N = V::kSize;
  LaneSums<A, kC> lanes;
  V carry = V::all(A(1));
  for (int64_t i = span.begin; i < span.end; i += N) {
    const T* values = static_cast<const T*>(a.values) + i;
    const T* rgbs = static_cast<const T*>(a.rgbs) + kC * i;
    const A* t0 = static_cast<const A*>(a.t_starts) + i;
    const A* t1 = static_cast<const A*>(a.t_ends) + i;
    ask_ahead<N>(values, 1);
    ask_ahead<N>(t0, 1);
    ask_ahead<N>(t1, 1);
    ask_ahead<N>(rgbs, kC);
    // What lies behind the ray is the next one's, and may be NaN: a weight of 0 is not enough.
    const int left = int(min_of<int64_t>(span.end - i, N));
    alignas(64) A alpha[N], keep[N], t[N], colours[kC * N];
    FVX_SIMD
    for (int l = 0; l < N; ++l) {
      const A value = only_if(l < left, to_acc(values[l])), dt = only_if(l < left, t1[l] - t0[l]);
      const Opacity<A> o = opacity_of(value, dt, false);
      alpha[l] = o.alpha;
      keep[l] = o.keep;
      t[l] = only_if(l < left, A(0.5) * (t0[l] + t1[l]));
    }
    FVX_SIMD
    for (int l = 0; l < kC * N; ++l) colours[l] = only_if(l < kC * left, to_acc(rgbs[l]));
    const V product = products(V::load(keep));
    const V weights = carry * up<1>(product, A(1)) * V::load(alpha);
    carry = carry * spread<N - 1>(product);
    lanes.add(weights, V::load(t), colours);
  }
  lanes.add_to(sums);
  return carry.v[0];
}

#endif

FVX_END_ISA
