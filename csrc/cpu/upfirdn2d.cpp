// Upsample, filter and downsample on the CPU, row by row, with no intermediate larger than a tile of a row. A separable
// filter sums the rows that an output row reads, and filters the one that results along x; any other one filters all of
// them along x and sums.
#include "fastvfx/upfirdn2d.h"

#include "fir_tile.h"
#include "parallel.h"

FVX_BEGIN_ISA

namespace {

// Outputs that one task computes: enough to hide what a task costs, few enough to share the work evenly.
constexpr int64_t kOutputsPerTask = 1 << 17;
// Larger results do not stay in the caches anyway.
constexpr int64_t kStreamedBytes = int64_t(8) << 20;

// The filter in the order of correlation, with the gain, as two 1-D filters where that is what it is.
template <class A>
struct Taps {
  bool separable;
  Scratch<A> y, x;
  Scratch<A> full;  // (taps_y, taps_x), where it is not

  explicit Taps(const Upfirdn2dFwd& a) : separable(a.separable), y(a.taps_y), x(a.taps_x), full(a.taps_y * a.taps_x) {
    const A* f = static_cast<const A*>(a.f);
    const A gain = A(a.gain);
    if (a.separable) {
      for (int t = 0; t < a.taps_y; ++t) y.data()[t] = gain * f[upfirdn2d::stored(t, a.taps_y, a.flip)];
      for (int t = 0; t < a.taps_x; ++t) x.data()[t] = f[upfirdn2d::stored(t, a.taps_x, a.flip)];
      return;
    }
    for (int v = 0; v < a.taps_y; ++v) {
      const A* row = f + int64_t(upfirdn2d::stored(v, a.taps_y, a.flip)) * a.taps_x;
      for (int u = 0; u < a.taps_x; ++u) {
        full.data()[v * a.taps_x + u] = gain * row[upfirdn2d::stored(u, a.taps_x, a.flip)];
      }
    }
    separable = factor(a.taps_y, a.taps_x);
  }

  // full = y x^T within rounding, if it is of rank one: the filters of setup_filter are.
  bool factor(int taps_y, int taps_x) {
    const A* f = full.data();
    const A rounding = sizeof(A) == 8 ? A(8.9e-16) : A(4.8e-7);
    int pivot_y = 0, pivot_x = 0;
    A largest = 0;
    for (int v = 0; v < taps_y; ++v) {
      for (int u = 0; u < taps_x; ++u) {
        const A size = magnitude(f[v * taps_x + u]);
        if (size > largest) largest = size, pivot_y = v, pivot_x = u;
      }
    }
    if (!(largest > 0)) return false;
    for (int v = 0; v < taps_y; ++v) y.data()[v] = f[v * taps_x + pivot_x];
    for (int u = 0; u < taps_x; ++u) x.data()[u] = f[pivot_y * taps_x + u] / f[pivot_y * taps_x + pivot_x];
    for (int v = 0; v < taps_y; ++v) {
      for (int u = 0; u < taps_x; ++u) {
        const A wanted = f[v * taps_x + u];
        if (!(magnitude(y.data()[v] * x.data()[u] - wanted) <= rounding * magnitude(wanted))) return false;
      }
    }
    return true;
  }

  static A magnitude(A x) { return x < 0 ? -x : x; }
};

// All output rows, cut into tasks: strips of one image, or several images where these are small.
struct Strips {
  int64_t images, rows, height, per_image, per_task, tasks;

  Strips(int64_t images_, int64_t rows_, int64_t row_size)
      : images(images_),
        rows(rows_),
        height(max_of<int64_t>(min_of(kOutputsPerTask / max_of<int64_t>(row_size, 1), rows), 1)),
        per_image((rows + height - 1) / height),
        per_task(max_of<int64_t>(kOutputsPerTask / max_of<int64_t>(height * row_size, 1), 1)),
        tasks((images * per_image + per_task - 1) / per_task) {}

  // body(task, image, first row, last row)
  template <class Body>
  void in_parallel(int threads, const Body& body) const {
    parallel_for(threads, images * per_image, per_task, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % per_image * height;
        body(begin / per_task, i / per_image, first, min_of(first + height, rows));
      }
      stream_fence();
    });
  }
};

template <class T>
void filter(const Upfirdn2dFwd& a) {
  using A = acc_t<T>;
  const Taps<A> taps(a);
  const fir::Polyphase<A> y(taps.y.data(), a.taps_y, a.up_y, a.down_y, a.pad_y);
  const fir::Polyphase<A> x(taps.x.data(), a.taps_x, a.up_x, a.down_x, a.pad_x);
  const fir::Layout layout(a);
  const int64_t inner = layout.inner, out_row = a.out_w * inner;
  const bool stream = layout.outer * a.out_h * out_row * int64_t(sizeof(T)) >= kStreamedBytes;

  Strips(layout.outer, a.out_h, out_row)
      .in_parallel(a.threads, [&](int64_t, int64_t image, int64_t row_begin, int64_t row_end) {
        const T* from = static_cast<const T*>(a.x) + image * a.in_h * a.in_w * inner;
        T* to = static_cast<T*>(a.out) + image * a.out_h * out_row;
        const int most = taps.separable ? max_of(x.most, y.most) : x.most * y.most;
        const Scratch<const A*> rows(max_of(most, 1));
        const Scratch<A> weights(max_of(most, 1));

        fir::for_each_tile(x, a.in_w, a.out_w, inner, [&](const fir::Tile& tile) {
          fir::Rows<T> image_rows(x, tile, inner, a.in_w, y.most);
          const int64_t n = tile.rounds * inner, pitch = n + fir::kSlack;
          const Scratch<A> merged(x.phases * pitch);
          for (int64_t i = row_begin; i < row_end; ++i) {
            const fir::Window window(y, i, a.in_h);
            const auto& phase_y = y.of(int(i % y.phases));
            const A* ready = nullptr;
            if (taps.separable) {
              for (int k = 0; k < window.count; ++k) rows.data()[k] = image_rows.widened(from, window.first + k);
              ready = image_rows.ready_sum(rows.data(), phase_y.weights + window.skipped, window.count);
            }
            for (int r = 0; r < x.phases; ++r) {
              const auto& phase = x.of(r);
              const A* sums_weights = phase.weights;
              int count = 0;
              if (taps.separable) {
                for (; count < phase.count; ++count) rows.data()[count] = ready + image_rows.offset(r, count);
              } else {
                sums_weights = weights.data();
                for (int v = 0; v < window.count; ++v) {
                  const A* row = image_rows.ready(from, window.first + v);
                  const A* row_taps = taps.full.data() + (phase_y.tap + (window.skipped + v) * a.up_y) * a.taps_x;
                  for (int u = 0; u < phase.count; ++u, ++count) {
                    rows.data()[count] = row + image_rows.offset(r, u);
                    weights.data()[count] = row_taps[phase.tap + u * a.up_x];
                  }
                }
              }
              fir::weighted_sum(rows.data(), sums_weights, count, fir::whole_packs<A>(n), merged.data() + r * pitch);
            }
            fir::merge_row(merged.data(), x.phases, inner, pitch, tile.end - tile.begin,
                           to + i * out_row + tile.begin * inner, stream);
          }
        });
      });
}

// Which sums over pairs of rows make up the gradient to the filter: row i of g_out meets row q of x under one tap of y.
template <class T>
void gradient_to_filter(const Upfirdn2dBwdF& a) {
  using A = acc_t<T>;
  constexpr int kAtOnce = 4;
  const int64_t taps = int64_t(a.taps_y) * a.taps_x;
  const Scratch<A> ones(max_of(a.taps_y, a.taps_x));
  for (int t = 0; t < max_of(a.taps_y, a.taps_x); ++t) ones.data()[t] = A(1);
  const fir::Polyphase<A> y(ones.data(), a.taps_y, a.up_y, a.down_y, a.pad_y);
  const fir::Polyphase<A> x(ones.data(), a.taps_x, a.up_x, a.down_x, a.pad_x);
  const fir::Layout layout(a);
  const int64_t inner = layout.inner, out_row = a.out_w * inner;

  const Strips strips(layout.outer, a.out_h, out_row);
  // A task's own sums, so that they come out alike on any number of threads.
  const Scratch<double> parts(max_of<int64_t>(strips.tasks, 1) * taps);
  for (int64_t k = 0; k < strips.tasks * taps; ++k) parts.data()[k] = 0;
  strips.in_parallel(a.threads, [&](int64_t task, int64_t image, int64_t row_begin, int64_t row_end) {
    double* part = parts.data() + task * taps;
    const T* from = static_cast<const T*>(a.x) + image * a.in_h * a.in_w * inner;
    const T* g_from = static_cast<const T*>(a.g_out) + image * a.out_h * out_row;
    fir::for_each_tile(x, a.in_w, a.out_w, inner, [&](const fir::Tile& tile) {
      fir::Rows<T> rows(x, tile, inner, a.in_w, y.most);
      const int64_t pitch = tile.rounds * inner + fir::kSlack;
      const Scratch<A> g_row(tile.rounds * x.phases * inner + fir::kSlack), g_split(x.phases * pitch);
      for (int64_t i = row_begin; i < row_end; ++i) {
        const fir::Window window(y, i, a.in_h);
        if (!window.count) continue;
        fir::load_row(g_from + i * out_row + tile.begin * inner, (tile.end - tile.begin) * inner, g_row.data());
        fir::split_row(g_row.data(), x.phases, inner, tile.rounds, pitch, g_split.data());
        const int first_tap = y.of(int(i % y.phases)).tap + window.skipped * a.up_y;
        for (int v = 0; v < window.count; ++v) {
          const A* row = rows.ready(from, window.first + v);
          double* to = part + (first_tap + v * a.up_y) * a.taps_x;
          for (int r = 0; r < x.phases; ++r) {
            const auto& phase = x.of(r);
            const int64_t n = (tile.end - tile.begin - r + x.phases - 1) / x.phases * inner;
            for (int u = 0; u < phase.count; u += kAtOnce) {
              const A* meets[kAtOnce];
              A sums[kAtOnce];
              const int live = min_of(kAtOnce, phase.count - u);
              for (int k = 0; k < kAtOnce; ++k) meets[k] = row + rows.offset(r, u + min_of(k, live - 1));
              fir::dot_products<kAtOnce>(g_split.data() + r * pitch, meets, n, sums);
              for (int k = 0; k < live; ++k) to[phase.tap + (u + k) * a.up_x] += double(sums[k]);
            }
          }
        }
      }
    });
  });

  A* g_f = static_cast<A*>(a.g_f);
  for (int v = 0; v < a.taps_y; ++v) {
    for (int u = 0; u < a.taps_x; ++u) {
      double sum = 0;
      for (int64_t task = 0; task < strips.tasks; ++task) sum += parts.data()[task * taps + v * a.taps_x + u];
      const int64_t at =
          upfirdn2d::stored(v, a.taps_y, a.flip) * int64_t(a.taps_x) + upfirdn2d::stored(u, a.taps_x, a.flip);
      g_f[at] = A(a.gain * sum);
    }
  }
}

}  // namespace

void upfirdn2d_fwd(const Upfirdn2dFwd& a) { FVX_DISPATCH_STORAGE(a.dtype, T, filter<T>(a)); }

void upfirdn2d_bwd_f(const Upfirdn2dBwdF& a) { FVX_DISPATCH_STORAGE(a.dtype, T, gradient_to_filter<T>(a)); }

FVX_END_ISA
