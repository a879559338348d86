// Filtered leaky ReLU on the CPU. A worker goes down a band of output rows a chunk at a time: input rows are upsampled
// along x, then blocks of columns along y, activated, and downsampled along y while they lie in the first cache, then
// the chunk's rows along x. What the next chunk needs again stays.
#include "fastvfx/filtered_lrelu.h"

#include "fastvfx/workspace.h"
#include "filtered_lrelu_lanes.h"
#include "filtered_lrelu_plan.h"
#include "lane_bits.h"
#include "parallel.h"

FVX_BEGIN_ISA

namespace {

using namespace filtered_lrelu;

// Activates sums of middle pixels, and writes or reads their slopes. A copy of it is in registers during a block.
template <SlopeMask mode, class A>
class Activate {
 public:
  Activate(const Plan<A>& plan, int64_t plane)
      : units_(plan.mask_units.data()),
        slope_(A(plan.a.slope)),
        clamp_(A(plan.a.clamp)),
        clamps_(plan.a.clamp <= 1.7976931348623157e308),
        by_maximum_(plan.a.slope > 0 && plan.a.slope <= 1),
        top_(plan.a.mask_top),
        height_(plan.a.mask_height),
        bytes_(plan.mask.row_bytes),
        plane_(plan.a.mask + plane * height_ * bytes_ * (clamps_ ? 2 : 1)) {}

  // Sums of row m and of kV vectors of columns from `column` on.
  template <int kV>
  FVX_HD void operator()(pack_t<A> (&u)[kV], int64_t m, int64_t column, A* to) const {
    if (mode == SlopeMask::none) {
      compute<kV>(u, column, nullptr, nullptr);
    } else {
      const int64_t row = m - top_;
      uint8_t* const negative = plane_ + row * bytes_ * (clamps_ ? 2 : 1);
      if (mode == SlopeMask::write) {
        compute<kV>(u, column, negative, negative + bytes_);
      } else if (row >= 0 && row < height_) {
        read<kV>(u, column, negative, negative + bytes_);
      } else {
        FVX_UNROLL_8
        for (int v = 0; v < kV; ++v) u[v] = pack_t<A>{};
      }
    }
    FVX_UNROLL_8
    for (int v = 0; v < kV; ++v) store_pack(to + v * pack_size<A>, u[v]);
  }

 private:
  template <int kV>
  FVX_HD void compute(pack_t<A> (&u)[kV], int64_t column, uint8_t* negative_row, uint8_t* dead_row) const {
    const pack_t<A> zero{}, slope = all_lanes(slope_), clamp = all_lanes(clamp_), least = all_lanes(-clamp_);
    FVX_UNROLL_8
    for (int first = 0; first < kV; first += kUnitVectors<A>) {
      uint32_t negative = 0, dead = 0;
      FVX_UNROLL_8
      for (int v = first; v < first + kUnitVectors<A>; ++v) {
        const int lane = (v - first) * pack_size<A>;
        const pack_t<A> below = u[v] * slope;
        if (mode == SlopeMask::write || !by_maximum_) {
          const uint32_t bits = not_above(u[v], zero);
          negative |= bits << lane;
          u[v] = choose(bits, below, u[v]);
        } else {
          u[v] = larger(below, u[v]);
        }
        if (!clamps_) continue;
        if (mode == SlopeMask::write) dead |= (not_above(clamp, u[v]) | not_above(u[v], least)) << lane;
        u[v] = larger(least, smaller(clamp, u[v]));
      }
      if (mode != SlopeMask::write) continue;
      put(negative_row, column + first * pack_size<A>, negative);
      if (clamps_) put(dead_row, column + first * pack_size<A>, dead);
    }
  }

  template <int kV>
  FVX_HD void read(pack_t<A> (&u)[kV], int64_t column, const uint8_t* negative_row, const uint8_t* dead_row) const {
    const pack_t<A> zero{}, slope = all_lanes(slope_);
    FVX_UNROLL_8
    for (int first = 0; first < kV; first += kUnitVectors<A>) {
      const MaskUnit unit = units_[(column + first * pack_size<A>) / kUnit];
      const uint32_t negative = get(negative_row, unit);
      const uint32_t dead = clamps_ ? get(dead_row, unit) | unit.outside : unit.outside;
      FVX_UNROLL_8
      for (int v = first; v < first + kUnitVectors<A>; ++v) {
        const int lane = (v - first) * pack_size<A>;
        u[v] = choose(dead >> lane, zero, choose(negative >> lane, u[v] * slope, u[v]));
      }
    }
  }

  static FVX_HD void put(uint8_t* row, int64_t column, uint32_t bits) {
    const uint8_t bytes[2] = {uint8_t(bits), uint8_t(bits >> 8)};
    __builtin_memcpy(row + column / 8, bytes, 2);
  }

  // The 16 bits of a unit; of what lies outside, nothing is read.
  static FVX_HD uint32_t get(const uint8_t* row, const MaskUnit& unit) {
    if (unit.outside == 0) {
      const uint8_t* at = row + (unit.bit >> 3);
      return (uint32_t(at[0]) | uint32_t(at[1]) << 8 | uint32_t(at[2]) << 16 | uint32_t(at[3]) << 24) >> (unit.bit & 7);
    }
    return get_inside(row, unit);
  }
  static uint32_t get_inside(const uint8_t* row, const MaskUnit& unit) {
    uint32_t bits = 0;
    for (int i = 0; i < kUnit; ++i) {
      if (unit.outside >> i & 1) continue;
      const int64_t bit = unit.bit + i;
      bits |= uint32_t(row[bit >> 3] >> (bit & 7) & 1) << i;
    }
    return bits;
  }

  const MaskUnit* units_;
  A slope_, clamp_;
  bool clamps_, by_maximum_;
  int64_t top_, height_, bytes_;
  uint8_t* plane_;
};

// `body(T())` with the storage type; those of 16 bits and float share all else.
template <class A, class Body>
void with_storage(DType dtype, const Body& body) {
  if constexpr (sizeof(A) == 8) {
    body(double());
  } else if (dtype == DType::f32) {
    body(float());
  } else if (dtype == DType::f16) {
    body(f16());
  } else {
    body(bf16());
  }
}

template <class A>
class Worker {
 public:
  explicit Worker(const Plan<A>& plan) : plan_(plan), a_(plan.a), memory_(size_t(total()) * sizeof(A)) {
    A* at = memory_.as<A>();
    if (!at) throw std::bad_alloc();
    // Zeros are what lies beside the image, and no sum of the padding of vectors meets a NaN of another call.
    for (int64_t i = 0; i < total(); ++i) at[i] = A(0);
    middle_ = take(at, plan_.middle_rows * plan_.middle_stride);
    high_ = take(at, plan_.high_rows * plan_.high_stride);
    low_ = take(at, plan_.chunk * plan_.middle_stride);
    line_ = take(at, row_stride<A>(in_size() + kUnit));
    split_ = take(at, row_stride<A>(in_size() + kUnit));
    result_ = take(at, row_stride<A>(out_size()));
    merged_ = take(at, row_stride<A>(out_size()));
  }

  // Output rows [begin, end) of a plane.
  void run(int64_t plane, int64_t begin, int64_t end) {
    switch (a_.mask_mode) {
      case SlopeMask::none:
        return run<SlopeMask::none>(plane, begin, end);
      case SlopeMask::write:
        return run<SlopeMask::write>(plane, begin, end);
      case SlopeMask::read:
        return run<SlopeMask::read>(plane, begin, end);
    }
  }

 private:
  template <SlopeMask mode>
  void run(int64_t plane, int64_t begin, int64_t end) {
    const Activate<mode, A> activate(plan_, plane);
    plane_ = plane;
    middle_begin_ = middle_end_ = begin * a_.down;
    high_begin_ = high_end_ = plan_.window(middle_begin_);
    for (int64_t row = begin; row < end; row += plan_.chunk) {
      const int64_t stop = min_of(end, row + plan_.chunk);
      prepare(row * a_.down, (stop - 1) * a_.down + a_.fd.height);
      const int64_t first_new = middle_end_;
      middle_end_ = (stop - 1) * a_.down + a_.fd.height;
      if (a_.fu.separable && a_.fd.separable) {
        for_blocks<A>(plan_.columns, [&](auto kV, int64_t column) {
          fetch(row, stop, column, column + kV.value * pack_size<A>);
          middle_block<kV.value>(column, first_new, activate);
          low_block<kV.value>(column, row, stop);
        });
      } else {
        if (a_.fu.separable) {
          for_blocks<A>(plan_.columns,
                        [&](auto kV, int64_t column) { middle_block<kV.value>(column, first_new, activate); });
        } else {
          for (int64_t m = first_new; m < middle_end_; ++m) middle_row(m, activate);
        }
        if (a_.fd.separable) {
          for_blocks<A>(plan_.columns, [&](auto kV, int64_t column) { low_block<kV.value>(column, row, stop); });
        }
      }
      for (int64_t j = row; j < stop; ++j) {
        a_.fd.separable ? result_row(low_ + (j - row) * plan_.middle_stride) : result_row_2d(j);
        write(j);
      }
    }
  }

  int64_t in_size() const { return plan_.in_phases * plan_.in_groups; }
  int64_t out_size() const { return plan_.out_phases * plan_.out_groups; }
  int64_t total() const {
    return (plan_.middle_rows + plan_.chunk) * plan_.middle_stride + plan_.high_rows * plan_.high_stride +
           2 * row_stride<A>(in_size() + kUnit) + 2 * row_stride<A>(out_size()) +
           2 * kUnit;  // the last vectors overlap
  }
  static A* take(A*& at, int64_t n) {
    A* const taken = at;
    at += n;
    return taken;
  }

  A* middle(int64_t m) const { return middle_ + (m - middle_begin_) * plan_.middle_stride; }
  A* high(int64_t i) const { return high_ + (i - high_begin_) * plan_.high_stride; }

  // Moves rows that are needed again to the front, and makes the rows that middle rows up to `end` will read.
  void prepare(int64_t begin, int64_t end) {
    keep(middle_, plan_.middle_stride, middle_begin_, middle_end_, begin);
    const int64_t first = plan_.window(middle_end_), last = plan_.window(end - 1) + plan_.most_y();
    keep(high_, plan_.high_stride, high_begin_, high_end_, first);
    for (; high_end_ < last; ++high_end_) input_row(high_end_);
  }

  static void keep(A* rows, int64_t stride, int64_t& begin, int64_t& end, int64_t first) {
    if (first > begin && first < end) {
      __builtin_memmove(rows, rows + (first - begin) * stride, size_t((end - first) * stride) * sizeof(A));
    }
    begin = first;
    end = max_of(end, first);
  }

  // While blocks of columns are worked on, the part of them that is done tells how much of the next chunk's input and
  // of this one's output to bring near: otherwise the processor waits for memory between chunks, and memory for it
  // within.
  void fetch(int64_t row, int64_t stop, int64_t column, int64_t next_column) const {
#if defined(__GNUC__)
    const int64_t size = a_.dtype == DType::f64 ? 8 : a_.dtype == DType::f32 ? 4 : 2;
    const int64_t in_rows = (stop - row) * a_.down / a_.up, in_end = a_.planes * a_.height * a_.width * size;
    const int64_t in = (plane_ * a_.height + max_of<int64_t>(high_end_, 0)) * a_.width * size;
    const int64_t in_bytes = in_rows * a_.width * size;
    const int64_t out = (plane_ * a_.out_height + row) * a_.out_width * size;
    const int64_t out_bytes = (stop - row) * a_.out_width * size;
    const int64_t stop_in = min_of(in + in_bytes * next_column / plan_.columns, in_end);
    for (int64_t at = in + in_bytes * column / plan_.columns; at < stop_in; at += 64) {
      __builtin_prefetch(static_cast<const char*>(a_.x) + at, 0, 2);
    }
    const int64_t stop_out = out + out_bytes * next_column / plan_.columns;
    for (int64_t at = out + out_bytes * column / plan_.columns; at < stop_out; at += 64) {
      __builtin_prefetch(static_cast<char*>(a_.out) + at, 1, 2);
    }
#endif
  }

  // Row i of the input, upsampled along x where the filter is separable.
  void input_row(int64_t i) {
    A* to = high(i);
    if (i < 0 || i >= a_.height) {
      for (int64_t e = 0; e < plan_.high_stride; ++e) to[e] = A(0);
      return;
    }
    const A* row = read_input(i);
    if (!a_.fu.separable) {
      __builtin_memcpy(to, row, size_t(in_size()) * sizeof(A));
      return;
    }
    for (int p = 0; p < plan_.phases; p += 2) {
      const int in_phase = p / a_.up, phase = p % a_.up;
      if (phase + 1 < a_.up) {
        pair_of_phases<true>(row, in_phase, phase, to + p * plan_.groups);
      } else {
        pair_of_phases<false>(row, in_phase, phase, to + p * plan_.groups);
        --p;
      }
    }
  }

  template <bool two>
  void pair_of_phases(const A* row, int in_phase, int phase, A* to) {
    const Taps<A> t0 = plan_.x_taps.data()[phase], t1 = plan_.x_taps.data()[two ? phase + 1 : phase];
    const RowWindow window = plan_.in_window();
    for_blocks<A>(plan_.groups, [&](auto kV, int64_t at) {
      pack_t<A> sums[2][kV.value];
      row_sums<two>(row + at, window, in_phase, t0, t1, 0, sums);
      store(to + at, sums[0]);
      if (two) store(to + plan_.groups + at, sums[1]);
    });
  }

  template <size_t kV>
  static FVX_HD void store(A* to, const pack_t<A> (&sums)[kV]) {
    FVX_UNROLL_8
    for (size_t v = 0; v < kV; ++v) store_pack(to + v * pack_size<A>, sums[v]);
  }

  // Row i from where the first window begins, with the bias, phase by phase. What lies beside the image stays zero.
  const A* read_input(int64_t i) {
    const int64_t base = plan_.x_axis.base;
    const int64_t begin = max_of<int64_t>(0, -base), end = min_of(in_size(), a_.width - base);
    const A bias = a_.bias ? static_cast<const A*>(a_.bias)[plane_ % a_.channels] : A(0);
    with_storage<A>(a_.dtype, [&](auto type) {
      using T = decltype(type);
      const T* x = static_cast<const T*>(a_.x) + (plane_ * a_.height + i) * a_.width + base;
      A* const line = line_;
      FVX_SIMD
      for (int64_t t = begin; t < end; ++t) line[t] = to_acc(x[t]) + bias;
    });
    if (plan_.in_phases == 1) return line_;
    for (int r = 0; r < plan_.in_phases; ++r) {
      for (int64_t g = 0; g < plan_.in_groups; ++g) split_[r * plan_.in_groups + g] = line_[plan_.in_phases * g + r];
    }
    return split_;
  }

  // New rows of a block of columns, in pairs: both phases of upsampling by 2 read one window, and rows of the next
  // group one that is a row further down.
  template <int kV, SlopeMask mode>
  FVX_HD void middle_block(int64_t column, int64_t first, const Activate<mode, A> activate) {
    const int64_t end = middle_end_, from_stride = plan_.high_stride, to_stride = plan_.middle_stride;
    const int up = a_.up;
    const Taps<A>* const taps = plan_.y_taps.data();
    const int32_t* const terms = plan_.high_terms.data();
    int phase = plan_.y_axis.phase(first);
    const A* from = high(plan_.window(first)) + column;
    A* to = middle(first) + column;
    for (int64_t m = first; m < end; m += 2) {
      pack_t<A> sums[2][kV];
      if (m + 1 < end) {
        const bool same = phase + 1 < up;
        tap_sums<true>(from, terms, taps[phase], taps[same ? phase + 1 : 0], !same, sums);
        activate(sums[0], m, column, to);
        activate(sums[1], m + 1, column, to + to_stride);
      } else {
        tap_sums<false>(from, terms, taps[phase], taps[phase], 0, sums);
        activate(sums[0], m, column, to);
      }
      to += 2 * to_stride;
      for (phase += 2; phase >= up; phase -= up) from += from_stride;
    }
  }

  // A whole row of middle pixels under a two-dimensional filter.
  template <SlopeMask mode>
  void middle_row(int64_t m, const Activate<mode, A> activate) {
    const int y_phase = plan_.y_axis.phase(m);
    const A* from = high(plan_.window(m));
    A* const to = middle(m);
    for (int p = 0; p < plan_.phases; ++p) {
      const int x_phase = p % a_.up;
      const bool two = x_phase + 1 < a_.up && plan_.x_axis.terms(x_phase) == plan_.x_axis.terms(x_phase + 1);
      const Taps<A> t0 = plan_.xy_taps(y_phase, x_phase), t1 = two ? plan_.xy_taps(y_phase, x_phase + 1) : t0;
      for_blocks<A>(plan_.groups, [&](auto kV, int64_t at) {
        pack_t<A> sums[2][kV.value];
        if (two) {
          tap_sums<true>(from + at, plan_.xy_terms(p), t0, t1, 0, sums);
          const int64_t column = (p + 1) * plan_.groups + at;
          activate(sums[1], m, column, to + column);
        } else {
          tap_sums<false>(from + at, plan_.xy_terms(p), t0, t1, 0, sums);
        }
        const int64_t column = p * plan_.groups + at;
        activate(sums[0], m, column, to + column);
      });
      p += two;
    }
  }

  // Output rows of a block of middle columns, not yet downsampled along x.
  template <int kV>
  FVX_HD void low_block(int64_t column, int64_t begin, int64_t end) {
    const Taps<A> taps{plan_.down_taps.data(), a_.fd.height};
    const int32_t* const terms = plan_.middle_terms.data();
    const int64_t stride = plan_.middle_stride;
    const int down = a_.down;
    const A* from = middle(begin * down) + column;
    A* to = low_ + column;
    for (int64_t j = begin; j < end; j += 2, from += 2 * down * stride, to += 2 * stride) {
      pack_t<A> sums[2][kV];
      if (j + 1 < end) {
        tap_sums<true>(from, terms, taps, taps, down, sums);
        store(to + stride, sums[1]);
      } else {
        tap_sums<false>(from, terms, taps, taps, 0, sums);
      }
      store(to, sums[0]);
    }
  }

  void result_row(const A* row) {
    const Taps<A> taps{plan_.down_taps.data(), a_.fd.width};
    const RowWindow window = plan_.low_window();
    for (int q = 0; q < plan_.out_phases; q += 2) {
      const bool two = q + 1 < plan_.out_phases;
      const int first = int(int64_t(q) * a_.down - plan_.x_axis.first);
      A* to = result_ + q * plan_.out_groups;
      for_blocks<A>(plan_.out_groups, [&](auto kV, int64_t at) {
        pack_t<A> sums[2][kV.value];
        if (two) {
          row_sums<true>(row + at, window, first, taps, taps, a_.down, sums);
          store(to + plan_.out_groups + at, sums[1]);
        } else {
          row_sums<false>(row + at, window, first, taps, taps, 0, sums);
        }
        store(to + at, sums[0]);
      });
    }
  }

  void result_row_2d(int64_t j) {
    const Taps<A> taps{plan_.down_taps.data(), a_.fd.width * a_.fd.height};
    const A* from = middle(j * a_.down);
    for (int q = 0; q < plan_.out_phases; ++q) {
      for_blocks<A>(plan_.out_groups, [&](auto kV, int64_t at) {
        pack_t<A> sums[2][kV.value];
        tap_sums<false>(from + at, plan_.middle_window(q), taps, taps, 0, sums);
        store(result_ + q * plan_.out_groups + at, sums[0]);
      });
    }
  }

  void write(int64_t j) {
    const A* row = result_;
    if (plan_.out_phases > 1) {
      for (int q = 0; q < plan_.out_phases; ++q) {
        for (int64_t g = 0; g < plan_.out_groups; ++g) {
          merged_[plan_.out_phases * g + q] = result_[q * plan_.out_groups + g];
        }
      }
      row = merged_;
    }
    with_storage<A>(a_.dtype, [&](auto type) {
      using T = decltype(type);
      T* out = static_cast<T*>(a_.out) + (plane_ * a_.out_height + j) * a_.out_width;
      FVX_SIMD
      for (int64_t i = 0; i < a_.out_width; ++i) out[i] = from_acc<T>(row[i]);
    });
    if (!a_.row_sums) return;
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < a_.out_width; ++i) sum += row[i];
    static_cast<A*>(a_.row_sums)[plane_ * a_.out_height + j] = sum;
  }

  const Plan<A>& plan_;
  const FilteredLrelu& a_;
  Workspace memory_;
  A *middle_, *high_, *low_;  // rows of a chunk: activated; upsampled along x; downsampled along y
  A *line_, *split_;          // a row of the input, and its phases
  A *result_, *merged_;       // a row of the output by phase, and in order
  int64_t plane_ = 0;
  int64_t middle_begin_ = 0, middle_end_ = 0, high_begin_ = 0, high_end_ = 0;  // which rows are there
};

// Bands of a plane: as many as keep all threads at work, but not so short that what they share is done twice too often.
int64_t bands_of(const FilteredLrelu& a) {
  const int64_t wanted = (4 * a.threads + a.planes - 1) / a.planes;
  return a.threads == 1 ? 1 : max_of<int64_t>(1, min_of(wanted, a.out_height / 32));
}

template <class A>
void run_all(const FilteredLrelu& a) {
  const Plan<A> plan(a);
  const int64_t bands = bands_of(a), rows = (a.out_height + bands - 1) / bands;
  const int64_t units = a.planes * bands;
  const int64_t grain = max_of<int64_t>(1, units / (8 * max_of(a.threads, 1)));
  parallel_for(a.threads, units, grain, [&](int64_t begin, int64_t end) {
    Worker<A> worker(plan);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % bands * rows;
      worker.run(unit / bands, first, min_of(a.out_height, first + rows));
    }
  });
}

}  // namespace

void filtered_lrelu_pass(const FilteredLrelu& a) {
  if (a.planes == 0) return;
#if defined(__AVX512F__) && defined(__GNUC__)
  if (filtered_lrelu::lanes::takes(a)) return filtered_lrelu::lanes::run(a);
#endif
  a.dtype == DType::f64 ? run_all<double>(a) : run_all<float>(a);
}

FVX_END_ISA
