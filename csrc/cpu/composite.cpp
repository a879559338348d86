// Compositing on the CPU: blocks of one ray's samples pass through L1-resident arrays. What is independent per
// sample (the exponential, the sums) is a vector loop; the transmittance itself is a chain of one multiplication per
// sample, shorter than the exponential that feeds it.
#include "fastvfx/composite.h"

#include "parallel.h"

FVX_BEGIN_ISA

namespace {

constexpr int kBlock = 256;        // samples a block: 7 arrays of floats, 7 KiB
constexpr int64_t kRayGrain = 64;  // rays a chunk

template <class A>
struct Block {
  A alpha[kBlock], keep[kBlock], T[kBlock + 1], w[kBlock], t[kBlock];
};

template <class T>
void load_opacities(const CompositeRays& a, int64_t first, int n, Block<acc_t<T>>& b) {
  using A = acc_t<T>;
  const T* values = static_cast<const T*>(a.values) + first;
  const A* t0 = static_cast<const A*>(a.t_starts) + first;
  const A* t1 = static_cast<const A*>(a.t_ends) + first;
  if (a.alphas) {
    FVX_SIMD
    for (int i = 0; i < n; ++i) {
      b.alpha[i] = to_acc(values[i]);
      b.keep[i] = A(1) - b.alpha[i];
      b.t[i] = A(0.5) * (t0[i] + t1[i]);
    }
    return;
  }
  FVX_SIMD
  for (int i = 0; i < n; ++i) {
    const Opacity<A> o = opacity_of(to_acc(values[i]), t1[i] - t0[i], false);
    b.alpha[i] = o.alpha;
    b.keep[i] = o.keep;
    b.t[i] = A(0.5) * (t0[i] + t1[i]);
  }
}

// Fills T and w from the transmittance `T` in front of the block; returns how many samples lie before the early stop.
template <class A>
int attenuate(Block<A>& b, int n, A T, A eps) {
  int i = 0;
  for (; i < n && !(T < eps); ++i) {
    b.T[i] = T;
    b.w[i] = T * b.alpha[i];
    T *= b.keep[i];
  }
  b.T[i] = T;
  return i;
}

template <class T, int kC>
void accumulate_colour(const T* rgbs, const acc_t<T>* w, int n, int64_t channels, acc_t<T>* out) {
  using A = acc_t<T>;
  if constexpr (kC == 1) {
    A s0 = 0;
#pragma omp simd reduction(+ : s0)
    for (int i = 0; i < n; ++i) s0 += w[i] * to_acc(rgbs[i]);
    out[0] += s0;
  } else if constexpr (kC == 3) {
    A s0 = 0, s1 = 0, s2 = 0;
#pragma omp simd reduction(+ : s0, s1, s2)
    for (int i = 0; i < n; ++i) {
      s0 += w[i] * to_acc(rgbs[3 * i]);
      s1 += w[i] * to_acc(rgbs[3 * i + 1]);
      s2 += w[i] * to_acc(rgbs[3 * i + 2]);
    }
    out[0] += s0;
    out[1] += s1;
    out[2] += s2;
  } else {
    for (int i = 0; i < n; ++i) {
      const A wi = w[i];
      const T* rgb = rgbs + i * channels;
      FVX_SIMD
      for (int64_t c = 0; c < channels; ++c) out[c] += wi * to_acc(rgb[c]);
    }
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

  A trans = 1, sum_w = 0, sum_wt = 0, hit_t = 0;
  bool hit = false;
  int64_t done = span.begin;
  while (done < span.end) {
    const int n = int(min_of<int64_t>(kBlock, span.end - done));
    load_opacities<T>(a, done, n, b);
    const int live = attenuate(b, n, trans, A(a.early_stop_eps));
    A block_w = 0, block_wt = 0;
#pragma omp simd reduction(+ : block_w, block_wt)
    for (int i = 0; i < live; ++i) {
      block_w += b.w[i];
      block_wt += b.w[i] * b.t[i];
    }
    sum_w += block_w;
    sum_wt += block_wt;
    accumulate_colour<T, kC>(rgbs + done * C, b.w, live, C, rgb);
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
    if (live < n) break;
  }
  for (int64_t i = done; i < span.end; ++i) {
    if (weights) weights[i] = 0;
    if (transmittance) transmittance[i] = 0;
  }
  if (a.background) {
    const A* background = static_cast<const A*>(a.background) + ray * a.background_stride;
    for (int64_t c = 0; c < C; ++c) rgb[c] += trans * background[c];
  }
  static_cast<A*>(a.opacity)[ray] = sum_w;
  static_cast<A*>(a.depth)[ray] = depth_of(a.depth_mode, sum_wt, sum_w, hit_t);
}

// dL/dw of each live sample.
template <class T, int kC>
void weight_gradients(const CompositeBwd& a, const acc_t<T>* g_rgb, acc_t<T> g_opacity, DepthGrad<acc_t<T>> d,
                      int64_t first, int n, const Block<acc_t<T>>& b, acc_t<T>* G) {
  using A = acc_t<T>;
  const int64_t C = kC ? kC : a.channels;
  const T* rgbs = static_cast<const T*>(a.rgbs) + first * C;
  if constexpr (kC == 3) {
    const A g0 = g_rgb[0], g1 = g_rgb[1], g2 = g_rgb[2];
    FVX_SIMD
    for (int i = 0; i < n; ++i) {
      G[i] = g_opacity + d.scale * (b.t[i] - d.shift) + g0 * to_acc(rgbs[3 * i]) + g1 * to_acc(rgbs[3 * i + 1]) +
             g2 * to_acc(rgbs[3 * i + 2]);
    }
  } else {
    for (int i = 0; i < n; ++i) {
      A sum = 0;
      const T* rgb = rgbs + i * C;
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < C; ++c) sum += g_rgb[c] * to_acc(rgb[c]);
      G[i] = g_opacity + d.scale * (b.t[i] - d.shift) + sum;
    }
  }
  if (a.g_weights) {
    const A* g_weights = static_cast<const A*>(a.g_weights) + first;
    FVX_SIMD
    for (int i = 0; i < n; ++i) G[i] += g_weights[i];
  }
}

template <class T, int kC>
void write_colour_gradients(T* g_rgbs, const acc_t<T>* g_rgb, const acc_t<T>* w, int n, int64_t channels) {
  using A = acc_t<T>;
  if constexpr (kC == 3) {
    const A g0 = g_rgb[0], g1 = g_rgb[1], g2 = g_rgb[2];
    FVX_SIMD
    for (int i = 0; i < n; ++i) {
      g_rgbs[3 * i] = from_acc<T>(w[i] * g0);
      g_rgbs[3 * i + 1] = from_acc<T>(w[i] * g1);
      g_rgbs[3 * i + 2] = from_acc<T>(w[i] * g2);
    }
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
  for (int64_t block = 0; done < span.end; ++block) {
    const int n = int(min_of<int64_t>(kBlock, span.end - done));
    checkpoints[block] = trans;
    load_opacities<T>(a, done, n, b);
    const int live = attenuate(b, n, trans, A(a.early_stop_eps));
    trans = b.T[live];
    done += live;
    if (live < n) break;
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
  const A* t0 = static_cast<const A*>(a.t_starts);
  const A* t1 = static_cast<const A*>(a.t_ends);
  const T* values = static_cast<const T*>(a.values);
  T* g_values = static_cast<T*>(a.g_values);
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

  A G[kBlock], g_alpha[kBlock];
  const bool one_block = live <= kBlock && span.end - span.begin <= kBlock;
  for (int64_t block = (live + kBlock - 1) / kBlock - 1; block >= 0; --block) {
    const int64_t first = span.begin + block * kBlock;
    const int n = int(min_of<int64_t>(kBlock, span.begin + live - first));
    if (!one_block) {  // a short ray's block is still what the sweep left
      load_opacities<T>(a, first, n, b);
      attenuate(b, n, checkpoints[block], A(a.early_stop_eps));
    }
    weight_gradients<T, kC>(a, g_rgb, g_opacity, d, first, n, b, G);
    for (int i = n - 1; i >= 0; --i) {
      g_alpha[i] = b.T[i] * (G[i] - suffix);
      const A emitted = b.alpha[i] * G[i] + (g_transmittance ? g_transmittance[first + i] : A(0));
      suffix = emitted + b.keep[i] * suffix;
    }
    write_colour_gradients<T, kC>(static_cast<T*>(a.g_rgbs) + first * C, g_rgb, b.w, n, C);
    FVX_SIMD
    for (int i = 0; i < n; ++i) {
      const int64_t s = first + i;
      const A dt = t1[s] - t0[s];
      const SampleGrad<A> g = sample_gradient(g_alpha[i], to_acc(values[s]), dt, b.keep[i], a.alphas);
      g_values[s] = from_acc<T>(g.value);
      G[i] = g.dt;
    }
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
  parallel_for(a.threads, a.n_rays, kRayGrain, [&](int64_t begin, int64_t end) {
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
