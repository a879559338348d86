// Compositing on the CPU: blocks of one ray's samples pass through L1-resident arrays. What is independent per sample,
// the exponential above all, is a vector loop; the recurrences along the ray are vector scans. Rays are short, so the
// tail of a loop that does not fill a vector would cost as much as the rest: these loops run on into the samples of the
// next ray, and what they make of them is masked or not stored. (Opacities of many rays at once would save the starts
// of loops, and be faster from the cache; but from memory, where the samples come from, it is slower by a quarter.)
#include "fastvfx/composite.h"

#include "composite_lanes.h"
#include "parallel.h"

FVX_BEGIN_ISA

namespace {

constexpr int kLanes = 16;         // samples that every vector width divides
constexpr int kBlock = 256;        // samples a block
constexpr int64_t kRayGrain = 64;  // rays a chunk, at least

// Samples [0, n) belong to the ray; [n, m) to the next ones: they can be read and count for nothing. [m, padded) lies
// behind the last sample of all. `padded` is a multiple of kLanes.
struct Extent {
  int n, m, padded;
};

FVX_HD Extent extent_of(int64_t first, int64_t end, int64_t n_samples) {
  const int n = int(min_of<int64_t>(kBlock, end - first));
  const int padded = (n + kLanes - 1) / kLanes * kLanes;
  return {n, int(min_of<int64_t>(padded, n_samples - first)), padded};
}

template <class A>
struct Block {
  A alpha[kBlock], keep[kBlock + kLanes], T[kBlock + kLanes], w[kBlock], t[kBlock];
};

template <class T>
void load_opacities(const CompositeRays& a, int64_t first, Extent block, Block<acc_t<T>>& b) {
  using A = acc_t<T>;
  const T* values = static_cast<const T*>(a.values) + first;
  const A* t0 = static_cast<const A*>(a.t_starts) + first;
  const A* t1 = static_cast<const A*>(a.t_ends) + first;
  for (int i = block.m; i < block.padded; ++i) {
    b.alpha[i] = b.t[i] = A(0);
    b.keep[i] = A(1);
  }
  if (a.alphas) {
    FVX_SIMD
    for (int i = 0; i < block.m; ++i) {
      b.alpha[i] = to_acc(values[i]);
      b.keep[i] = A(1) - b.alpha[i];
      b.t[i] = A(0.5) * (t0[i] + t1[i]);
    }
    return;
  }
  FVX_SIMD
  for (int i = 0; i < block.m; ++i) {
    const Opacity<A> o = opacity_of(to_acc(values[i]), t1[i] - t0[i], false);
    b.alpha[i] = o.alpha;
    b.keep[i] = o.keep;
    b.t[i] = A(0.5) * (t0[i] + t1[i]);
  }
}

// Fills T[0..n] from the transmittance `T` in front of the block, and the weights, which are 0 behind the ray's end and
// the early stop; returns how many samples lie before that stop.
template <class A>
int attenuate(Block<A>& b, Extent block, A T, A eps) {
#if defined(FVX_VECTORS)
  using V = Vec<A>;
  V carry = V::all(T);
  for (int i = 0; i <= block.n; i += V::kSize) {
    const V product = products(V::load(b.keep + i));
    (carry * up<1>(product, A(1))).store(b.T + i);
    carry = carry * spread<V::kSize - 1>(product);
  }
#else
  for (int i = 0; i < block.n; ++i) {
    b.T[i] = T;
    T *= b.keep[i];
  }
  b.T[block.n] = T;
#endif
  int live = block.n;
  if (eps > A(0)) {
    live = 0;
    while (live < block.n && !(b.T[live] < eps)) ++live;
  }
  FVX_SIMD
  for (int i = 0; i < block.padded; ++i) b.w[i] = only_if(i < live, b.T[i] * b.alpha[i]);
  return live;
}

#if defined(FVX_VECTORS)

// One or three channels.
template <class T, int kC>
void accumulate_samples(const Block<acc_t<T>>& b, const T* rgbs, int live, Extent block, Sums<acc_t<T>>& sums) {
  using A = acc_t<T>;
  using V = Vec<A>;
  constexpr int N = V::kSize;
  LaneSums<A, kC> lanes;
  int i = 0;
  for (; i + N <= live; i += N) lanes.add(V::load(b.w + i), V::load(b.t + i), rgbs + kC * i);
  if (i < live) {  // what follows is the next ray's, and may be NaN: its weight of 0 is not enough
    const int left = live - i;
    A t[N], colours[kC * N] = {};
    FVX_SIMD
    for (int l = 0; l < N; ++l) t[l] = only_if(l < left, b.t[i + l]);
    if (block.m == block.padded) {
      FVX_SIMD
      for (int l = 0; l < kC * N; ++l) colours[l] = only_if(l < kC * left, to_acc(rgbs[kC * i + l]));
    } else {  // nothing to read behind the last sample of all
      for (int l = 0; l < kC * left; ++l) colours[l] = to_acc(rgbs[kC * i + l]);
    }
    lanes.add(V::load(b.w + i), V::load(t), colours);
  }
  lanes.add_to(sums);
}

#else

template <class T, int kC>
void accumulate_samples(const Block<acc_t<T>>& b, const T* rgbs, int live, Extent, Sums<acc_t<T>>& sums) {
  for (int i = 0; i < live; ++i) {
    sums.w += b.w[i];
    sums.wt += b.w[i] * b.t[i];
    for (int c = 0; c < kC; ++c) sums.colour[c] += b.w[i] * to_acc(rgbs[kC * i + c]);
  }
}

#endif

// Any number of channels: a lane a channel, `kTile` neighbours at a time.
template <class T, int kTile>
void accumulate_channels(const T* rgbs, const acc_t<T>* w, int n, int64_t channels, acc_t<T>* out) {
  using A = acc_t<T>;
  A sum[kTile] = {};
  for (int i = 0; i < n; ++i) {
    const T* rgb = rgbs + i * channels;
    FVX_SIMD
    for (int c = 0; c < kTile; ++c) sum[c] += w[i] * to_acc(rgb[c]);
  }
  for (int c = 0; c < kTile; ++c) out[c] += sum[c];
}

template <class T, int kC>
void accumulate(const Block<acc_t<T>>& b, const T* rgbs, int live, Extent block, int64_t channels,
                Sums<acc_t<T>>& sums) {
  if constexpr (kC > 0) {
    accumulate_samples<T, kC>(b, rgbs, live, block, sums);
  } else {
    for (int i = 0; i < live; ++i) {
      sums.w += b.w[i];
      sums.wt += b.w[i] * b.t[i];
    }
    int64_t c = 0;
    for (; c + 16 <= channels; c += 16) accumulate_channels<T, 16>(rgbs + c, b.w, live, channels, sums.colour + c);
    for (; c + 4 <= channels; c += 4) accumulate_channels<T, 4>(rgbs + c, b.w, live, channels, sums.colour + c);
    for (; c < channels; ++c) accumulate_channels<T, 1>(rgbs + c, b.w, live, channels, sums.colour + c);
  }
}

template <class T, int kC>
void forward_ray(const CompositeFwd& a, int64_t ray, Block<acc_t<T>>& b) {
  using A = acc_t<T>;
  const int64_t C = kC ? kC : a.channels;
  const Span span = samples_of_ray(a, ray);
  const T* rgbs = static_cast<const T*>(a.rgbs);
  A* rgb = static_cast<A*>(a.rgb) + ray * C;
  A* weights = static_cast<A*>(a.weights);
  A* transmittance = static_cast<A*>(a.transmittance);
  for (int64_t c = 0; c < C; ++c) rgb[c] = 0;

  Sums<A> sums{A(0), A(0), rgb};
  A trans = 1, hit_t = 0;
  bool hit = false;
  int64_t done = span.begin;
#if defined(FVX_VECTORS)
  if constexpr (kC > 0) {
    if (in_one_loop<A>(a, span)) {
      trans = sums_of_ray<T, kC>(a, span, sums);
      done = span.end;
    }
  }
#endif
  while (done < span.end) {
    const Extent block = extent_of(done, span.end, a.n_samples);
    load_opacities<T>(a, done, block, b);
    const int live = attenuate(b, block, trans, A(a.early_stop_eps));
    accumulate<T, kC>(b, rgbs + done * C, live, block, C, sums);
    if (a.depth_mode == DepthMode::first_hit) {
      for (int i = 0; i < live && !hit; ++i) {
        hit = is_hit(b.T[i], b.T[i + 1], A(a.depth_threshold));
        if (hit) hit_t = b.t[i];
      }
    }
    if (weights) {
      for (int i = 0; i < live; ++i) weights[done + i] = b.w[i];
    }
    if (transmittance) {
      for (int i = 0; i < live; ++i) transmittance[done + i] = b.T[i];
    }
    trans = b.T[live];
    done += live;
    if (live < block.n) break;
  }
  for (int64_t i = done; i < span.end; ++i) {
    if (weights) weights[i] = 0;
    if (transmittance) transmittance[i] = 0;
  }
  if (a.background) {
    const A* background = static_cast<const A*>(a.background) + ray * a.background_stride;
    for (int64_t c = 0; c < C; ++c) rgb[c] += trans * background[c];
  }
  static_cast<A*>(a.opacity)[ray] = sums.w;
  static_cast<A*>(a.depth)[ray] = depth_of(a.depth_mode, sums.wt, sums.w, hit_t);
}

template <class T, int kTile>
FVX_HD acc_t<T> dot(const acc_t<T>* g, const T* x) {
  acc_t<T> sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int c = 0; c < kTile; ++c) sum += g[c] * to_acc(x[c]);
  return sum;
}

// dL/dw of the samples [0, m).
template <class T, int kC>
void weight_gradients(const CompositeBwd& a, const acc_t<T>* g_rgb, acc_t<T> g_opacity, DepthGrad<acc_t<T>> d,
                      int64_t first, int n, int m, const Block<acc_t<T>>& b, acc_t<T>* G) {
  using A = acc_t<T>;
  const int64_t C = kC ? kC : a.channels;
  const T* rgbs = static_cast<const T*>(a.rgbs) + first * C;
  if constexpr (kC == 3) {
    const A g0 = g_rgb[0], g1 = g_rgb[1], g2 = g_rgb[2];
    FVX_SIMD
    for (int i = 0; i < m; ++i) {
      G[i] = g_opacity + d.scale * (b.t[i] - d.shift) + g0 * to_acc(rgbs[3 * i]) + g1 * to_acc(rgbs[3 * i + 1]) +
             g2 * to_acc(rgbs[3 * i + 2]);
    }
  } else {
    for (int i = 0; i < n; ++i) {
      A sum = 0;
      const T* rgb = rgbs + i * C;
      int64_t c = 0;
      for (; c + 16 <= C; c += 16) sum += dot<T, 16>(g_rgb + c, rgb + c);
      for (; c < C; ++c) sum += g_rgb[c] * to_acc(rgb[c]);
      G[i] = g_opacity + d.scale * (b.t[i] - d.shift) + sum;
    }
  }
  if (a.g_weights) {
    const A* g_weights = static_cast<const A*>(a.g_weights) + first;
    FVX_SIMD
    for (int i = 0; i < n; ++i) G[i] += g_weights[i];
  }
}

// S[0..n) from S[n] and the block's opacities: S_i = emitted_i + keep_i S_{i+1}, from back to front. `emitted` and
// `keep` are 0 and 1 behind n, up to the next multiple of kLanes.
template <class A>
void suffixes(const A* emitted, const A* keep, int n, A* S) {
#if defined(FVX_VECTORS)
  using V = Vec<A>;
  V next = V::all(S[n]);
  for (int i = (n - 1) / V::kSize * V::kSize; i >= 0; i -= V::kSize) {
    const Affine<A> f = compositions(Affine<A>{V::load(emitted + i), V::load(keep + i)});
    const V here = f.add + f.times * next;
    here.store(S + i);
    next = spread<0>(here);
  }
#else
  for (int i = n - 1; i >= 0; --i) S[i] = emitted[i] + keep[i] * S[i + 1];
#endif
}

template <class T, int kC>
void write_colour_gradients(T* g_rgbs, const acc_t<T>* g_rgb, const acc_t<T>* w, int n, int m, int64_t channels) {
  using A = acc_t<T>;
  if constexpr (kC == 3) {
    const A g0 = g_rgb[0], g1 = g_rgb[1], g2 = g_rgb[2];
    T g[3 * kBlock];
    FVX_SIMD
    for (int i = 0; i < m; ++i) {
      g[3 * i] = from_acc<T>(w[i] * g0);
      g[3 * i + 1] = from_acc<T>(w[i] * g1);
      g[3 * i + 2] = from_acc<T>(w[i] * g2);
    }
    __builtin_memcpy(g_rgbs, g, sizeof(T) * 3 * n);
  } else {
    for (int i = 0; i < n; ++i) {
      FVX_SIMD
      for (int64_t c = 0; c < channels; ++c) g_rgbs[i * channels + c] = from_acc<T>(w[i] * g_rgb[c]);
    }
  }
}

template <class T>
void zero_sample_gradients(const CompositeBwd& a, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  T* g_rgbs = static_cast<T*>(a.g_rgbs);
  for (int64_t i = begin; i < end; ++i) static_cast<T*>(a.g_values)[i] = from_acc<T>(A(0));
  for (int64_t i = begin * a.channels; i < end * a.channels; ++i) g_rgbs[i] = from_acc<T>(A(0));
  if (!a.g_t_starts) return;
  for (int64_t i = begin; i < end; ++i) {
    static_cast<A*>(a.g_t_starts)[i] = 0;
    static_cast<A*>(a.g_t_ends)[i] = 0;
  }
}

// Transmittance at the start of each block of the ray, kept in `checkpoints`; returns the number of live samples.
template <class T>
int64_t forward_sweep(const CompositeBwd& a, Span span, Block<acc_t<T>>& b, acc_t<T>* checkpoints, acc_t<T>& trans) {
  using A = acc_t<T>;
  int64_t done = span.begin;
  for (int64_t chunk = 0; done < span.end; ++chunk) {
    const Extent block = extent_of(done, span.end, a.n_samples);
    checkpoints[chunk] = trans;
    load_opacities<T>(a, done, block, b);
    const int live = attenuate(b, block, trans, A(a.early_stop_eps));
    trans = b.T[live];
    done += live;
    if (live < block.n) break;
  }
  return done - span.begin;
}

template <class T, int kC>
void backward_ray(const CompositeBwd& a, int64_t ray, Block<acc_t<T>>& b) {
  using A = acc_t<T>;
  const int64_t C = kC ? kC : a.channels;
  const Span span = samples_of_ray(a, ray);
  const A* g_rgb = static_cast<const A*>(a.g_rgb) + ray * C;
  const A* g_transmittance = static_cast<const A*>(a.g_transmittance);
  A* g_t0 = static_cast<A*>(a.g_t_starts);
  A* g_t1 = static_cast<A*>(a.g_t_ends);
  const A threshold = A(a.depth_threshold);
  const DepthGrad<A> d = depth_gradient(a.depth_mode, static_cast<const A*>(a.depth)[ray],
                                        static_cast<const A*>(a.opacity)[ray], static_cast<const A*>(a.g_depth)[ray]);
  const A g_opacity = static_cast<const A*>(a.g_opacity)[ray];

  A* checkpoints = static_cast<A*>(a.scratch) + checkpoint_of_ray(span, ray, kBlock);
  A trans = 1;
  const int64_t live = forward_sweep<T>(a, span, b, checkpoints, trans);
  zero_sample_gradients<T>(a, span.begin + live, span.end);

  A suffix = 0;  // S_{i+1}
  if (a.background) {
    const A* background = static_cast<const A*>(a.background) + ray * a.background_stride;
    for (int64_t c = 0; c < C; ++c) suffix += g_rgb[c] * background[c];
  }
  if (a.g_background) {
    A* g_background = static_cast<A*>(a.g_background) + ray * C;
    for (int64_t c = 0; c < C; ++c) g_background[c] = trans * g_rgb[c];
  }

  A G[kBlock], emitted[kBlock], kept[kBlock], S[kBlock + kLanes];
  T g_value[kBlock];
  const bool one_block = span.end - span.begin <= kBlock;
  for (int64_t chunk = (live + kBlock - 1) / kBlock - 1; chunk >= 0; --chunk) {
    const int64_t first = span.begin + chunk * kBlock;
    const Extent block = extent_of(first, span.begin + live, a.n_samples);
    const int n = block.n, m = block.m;
    if (!one_block) {  // a short ray's block is still what the sweep left
      load_opacities<T>(a, first, block, b);
      attenuate(b, block, checkpoints[chunk], A(0));
    }
    weight_gradients<T, kC>(a, g_rgb, g_opacity, d, first, n, m, b, G);
    FVX_SIMD
    for (int i = 0; i < block.padded; ++i) {
      emitted[i] = only_if(i < n, b.alpha[i] * G[i]);
      kept[i] = only_if(i < n, b.keep[i]) + only_if(i >= n, A(1));
    }
    if (g_transmittance) {
      for (int i = 0; i < n; ++i) emitted[i] += g_transmittance[first + i];
    }
    S[n] = suffix;
    suffixes(emitted, kept, n, S);
    suffix = S[0];

    const T* values = static_cast<const T*>(a.values) + first;
    const A* t0 = static_cast<const A*>(a.t_starts) + first;
    const A* t1 = static_cast<const A*>(a.t_ends) + first;
    FVX_SIMD
    for (int i = 0; i < m; ++i) {
      const A g_alpha = b.T[i] * (G[i] - S[i + 1]);
      const SampleGrad<A> g = sample_gradient(g_alpha, to_acc(values[i]), t1[i] - t0[i], b.keep[i], a.alphas);
      g_value[i] = from_acc<T>(g.value);
      G[i] = g.dt;
    }
    __builtin_memcpy(static_cast<T*>(a.g_values) + first, g_value, sizeof(T) * n);
    write_colour_gradients<T, kC>(static_cast<T*>(a.g_rgbs) + first * C, g_rgb, b.w, n, m, C);
    if (!g_t0) continue;
    for (int i = 0; i < n; ++i) {
      const A at_hit = is_hit(b.T[i], b.T[i + 1], threshold) ? d.at_hit : A(0);
      const A g_mid = A(0.5) * (d.scale * b.w[i] + at_hit);
      g_t0[first + i] = g_mid - G[i];
      g_t1[first + i] = g_mid + G[i];
    }
  }
}

template <class T, class Args, class Ray>
void for_each_ray(const Args& a, const Ray& per_ray) {
  // A chunk starts where its thread did not leave off, which costs time: few of them, but enough to even out.
  const int64_t grain = max_of(kRayGrain, min_of<int64_t>(1024, a.n_rays / (16 * max_of(a.threads, 1))));
  parallel_for(a.threads, a.n_rays, grain, [&](int64_t begin, int64_t end) {
    Block<acc_t<T>> block;
    for (int64_t ray = begin; ray < end; ++ray) per_ray(ray, block);
  });
}

}  // namespace

void composite_fwd(const CompositeFwd& a) {
  FVX_DISPATCH_STORAGE(a.dtype, T, {
    using B = Block<acc_t<T>>;
    if (a.channels == 3) {
      for_each_ray<T>(a, [&](int64_t ray, B& b) { forward_ray<T, 3>(a, ray, b); });
    } else if (a.channels == 1) {
      for_each_ray<T>(a, [&](int64_t ray, B& b) { forward_ray<T, 1>(a, ray, b); });
    } else {
      for_each_ray<T>(a, [&](int64_t ray, B& b) { forward_ray<T, 0>(a, ray, b); });
    }
  });
}

void composite_bwd(const CompositeBwd& a) {
  FVX_DISPATCH_STORAGE(a.dtype, T, {
    using B = Block<acc_t<T>>;
    if (a.channels == 3) {
      for_each_ray<T>(a, [&](int64_t ray, B& b) { backward_ray<T, 3>(a, ray, b); });
    } else {
      for_each_ray<T>(a, [&](int64_t ray, B& b) { backward_ray<T, 0>(a, ray, b); });
    }
  });
}

FVX_END_ISA
