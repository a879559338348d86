// Filtered leaky ReLU with a plane in each lane, for the filters of StyleGAN3: six taps for each factor, up by 2 or 4
// and down by 2 or 4. Neighbours along both axes are then whole vectors: nothing is shifted within one.
//
// Two rows of middle pixels are made at once while a loop goes along x. Six input rows give columns of them that are
// upsampled along y only, a block of columns at a time; six columns give middle pixels, which are activated and added
// to the six outputs along x that see them, in registers. What leaves the loop is downsampled along x; eight output
// rows at a time are then summed along y and transposed back.
#pragma once

#include "fastvfx/filtered_lrelu.h"
#include "fastvfx/workspace.h"
#include "lane_bits.h"
#include "parallel.h"
#include "rows.h"
#include "scratch.h"
#include "tap_sums.h"

#if defined(__AVX512F__) && defined(__GNUC__)

FVX_BEGIN_ISA

namespace filtered_lrelu {
namespace lanes {

constexpr int kTerms = 6;   // pixels that an upsampled one sums over, and outputs that a middle pixel is part of
constexpr int kAtOnce = 8;  // output rows that are summed along y together
using V = pack_t<float>;

inline int64_t groups_of(int64_t planes) { return (planes + kLanes - 1) / kLanes; }

// Whether these kernels take a pass. It depends on nothing that changes between a pass that writes a mask and those
// that read it: the order of the mask's bits is these kernels' own.
inline bool takes(const FilteredLrelu& a) {
  const bool factors = (a.up == 2 && a.down == 2) || (a.up == 4 && a.down == 2) || (a.up == 2 && a.down == 4);
  const bool filters = a.fu.separable && a.fd.separable && a.fu.width == kTerms * a.up && a.fd.width == kTerms * a.down;
  const int64_t idle = groups_of(a.planes) * kLanes - a.planes;
  return factors && filters && a.dtype != DType::f64 && a.planes >= kLanes && 3 * idle <= a.planes && a.slope > 0 &&
         a.slope <= 1;
}

// Slopes of 16 planes' pixels.
struct SlopeBits {
  uint16_t negative, dead;
};
constexpr SlopeBits kOutside{0, 0xffff};

// One axis: middle pixel number r of a pass is m = r - shift, and output i is the sum of `down` kTerms of them from
// down i + shift on.
struct Axis {
  UpAxis up;
  int64_t shift, groups, middle;  // groups of `up` middle pixels; middle: how many of them outputs read, from m = 0 on

  Axis(int up_, int down, int64_t padding, int64_t outputs)
      : up(up_, kTerms * up_, padding), shift(-up.first), middle((outputs - 1) * down + kTerms * down) {
    const int64_t step = lcm(up_, down) / up_;
    groups = ((middle + shift + up_ - 1) / up_ + step - 1) / step * step;
  }
};

// Columns [begin, end) of 16 planes, one row: from memory to a vector a column, and back. Where memory holds 16-bit
// numbers, not all planes are there, or the last columns are not four, the way is through `block`.
template <class T>
class Planes {
 public:
  Planes(int64_t plane_size, int live) : stride_(plane_size), live_(live) {}

  void load(const T* from, int64_t n, V bias, float* to) const {
    int64_t c = 0;
    if constexpr (sizeof(T) == 4) {
      if (live_ == kLanes) {
        for (; c + 4 <= n; c += 4) {
          __m512 v[4];
          FVX_UNROLL_8
          for (int j = 0; j < 4; ++j) v[j] = four_planes(from + j * stride_ + c);
          transpose_lanes(v[0], v[1], v[2], v[3]);
          FVX_UNROLL_8
          for (int j = 0; j < 4; ++j) store_pack(to + (c + j) * kLanes, V(v[j]) + bias);
        }
      }
    }
    for (; c < n; c += kLanes) {
      alignas(64) float block[kLanes * kLanes], tile[kLanes * kLanes];
      const int64_t columns = min_of<int64_t>(kLanes, n - c);
      for (int l = 0; l < kLanes; ++l) {
        const T* row = from + l * stride_ + c;
        float* to_row = block + l * kLanes;
        if (l < live_ && columns == kLanes) {
          FVX_SIMD
          for (int i = 0; i < kLanes; ++i) to_row[i] = to_acc(row[i]);
        } else {
          for (int i = 0; i < kLanes; ++i) to_row[i] = l < live_ && i < columns ? to_acc(row[i]) : 0.0f;
        }
      }
      tile_from_rows(block, kLanes, tile);
      for (int64_t i = 0; i < columns; ++i) store_pack(to + (c + i) * kLanes, load_pack(tile + i * kLanes) + bias);
    }
  }

  // A tile of up to 16 columns.
  void store(const float* tile, int64_t columns, T* to) const {
    if constexpr (sizeof(T) == 4) {
      if (live_ == kLanes && columns == kLanes) {
        for (int c = 0; c < kLanes; c += 4) {
          __m512 v[4];
          FVX_UNROLL_8
          for (int j = 0; j < 4; ++j) v[j] = load_pack(tile + (c + j) * kLanes);
          transpose_lanes(v[0], v[1], v[2], v[3]);
          FVX_UNROLL_8
          for (int j = 0; j < 4; ++j) to_four_planes(to + j * stride_ + c, v[j]);
        }
        return;
      }
    }
    alignas(64) float block[kLanes * kLanes];
    rows_from_tile(tile, kLanes, block);
    for (int l = 0; l < live_; ++l) {
      T* row = to + l * stride_;
      if (columns == kLanes) {
        FVX_SIMD
        for (int i = 0; i < kLanes; ++i) row[i] = from_acc<T>(block[l * kLanes + i]);
      } else {
        for (int64_t i = 0; i < columns; ++i) row[i] = from_acc<T>(block[l * kLanes + i]);
      }
    }
  }

 private:
  // Four columns of planes 0, 4, 8 and 12 from `at` on.
  __m512 four_planes(const float* at) const {
    __m512 v = _mm512_zextps128_ps512(_mm_loadu_ps(at));
    v = _mm512_maskz_insertf32x4(0xffff, v, _mm_loadu_ps(at + 4 * stride_), 1);
    v = _mm512_maskz_insertf32x4(0xffff, v, _mm_loadu_ps(at + 8 * stride_), 2);
    return _mm512_maskz_insertf32x4(0xffff, v, _mm_loadu_ps(at + 12 * stride_), 3);
  }
  void to_four_planes(float* at, __m512 v) const {
    _mm_storeu_ps(at, _mm512_maskz_extractf32x4_ps(0xf, v, 0));
    _mm_storeu_ps(at + 4 * stride_, _mm512_maskz_extractf32x4_ps(0xf, v, 1));
    _mm_storeu_ps(at + 8 * stride_, _mm512_maskz_extractf32x4_ps(0xf, v, 2));
    _mm_storeu_ps(at + 12 * stride_, _mm512_maskz_extractf32x4_ps(0xf, v, 3));
  }

  int64_t stride_;
  int live_;
};

// A row of 16 planes that is needed soon. Memory answers while sums are made, if it is asked for a few lines at a time.
struct Ahead {
  const char* first;   // null for nothing
  int64_t plane, row;  // bytes from one plane to the next, and of the row

  // Part `begin` to `end` of `all` of it.
  template <int kWrite>
  void fetch(int64_t begin, int64_t end, int64_t all) const {
    if (!first) return;
    const int64_t lines = row / 64 + 1;
    for (int64_t i = kLanes * lines * begin / all; i < kLanes * lines * end / all; ++i) {
      __builtin_prefetch(first + i / lines * plane + i % lines * 64, kWrite, 2);
    }
  }
};

// Two rows of middle pixels on their way along x. kSkip: middle pixels in front of the first output, modulo kDown.
template <int kUp, int kDown, int kSkip, SlopeMask mode>
struct PairOfRows {
  const float* rows[kTerms];        // (columns, 16)
  const float *taps_y[2], *taps_x;  // (6) of each row; (kUp, 6)
  const float* taps_down;           // (6 kDown)
  float slope, clamp;               // clamp: infinite for none
  float* to[2];                     // (outputs, 16)
  SlopeBits* bits[2];               // of the middle pixels
  Ahead in, out;

  void run(int64_t steps) {
    constexpr int kGroups = kUp >= kDown ? 1 : kDown / kUp, kSteps = kUp * kGroups;
    // Columns of both rows, upsampled along y: what a block's groups of middle pixels sum over.
    alignas(64) float columns[2][(kBlock + kTerms - 1) * kLanes];
    make_columns(0, kTerms - 1, columns);
    V sums[2][kTerms];
    for (int k = 0; k < kTerms; ++k) sums[0][k] = sums[1][k] = V{};
    const V slopes = all_lanes(slope), most = all_lanes(clamp), least = all_lanes(-clamp);
    int64_t n = 0;  // pixels that have left
    for (int64_t first = 0; first < steps * kGroups; first += kBlock) {
      const int64_t groups = min_of<int64_t>(kBlock, steps * kGroups - first);
      in.fetch<0>(first, first + groups, steps * kGroups);
      out.fetch<1>(first, first + groups, steps * kGroups);
      make_columns(first + kTerms - 1, groups, columns);
      SlopeBits* of_block[2] = {bits[0] + first * kUp, bits[1] + first * kUp};
      for (int64_t group = 0; group < groups; group += kGroups) {
        FVX_UNROLL_8
        for (int number = 0; number < kSteps; ++number) {
          const int phase = number % kUp, tap = (number + kDown - kSkip) % kDown;
          V u[2] = {V{}, V{}};
          FVX_UNROLL_8
          for (int k = 0; k < kTerms; ++k) {
            const int64_t at = (group + number / kUp + k) * kLanes;
            const V weight = all_lanes(taps_x[phase * kTerms + k]);
            u[0] += weight * load_pack(columns[0] + at);
            u[1] += weight * load_pack(columns[1] + at);
          }
          FVX_UNROLL_8
          for (int row = 0; row < 2; ++row) {
            u[row] = activated(u[row], slopes, most, least, of_block[row][group * kUp + number]);
          }
          FVX_UNROLL_8
          for (int k = 0; k < kTerms; ++k) {
            const V weight = all_lanes(taps_down[tap + k * kDown]);
            sums[0][k] += weight * u[0];
            sums[1][k] += weight * u[1];
          }
          if (tap != kDown - 1) continue;
          FVX_UNROLL_8
          for (int row = 0; row < 2; ++row) {
            store_pack(to[row] + n * kLanes, sums[row][kTerms - 1]);
            FVX_UNROLL_8
            for (int k = kTerms - 1; k > 0; --k) sums[row][k] = sums[row][k - 1];
            sums[row][0] = V{};
          }
          ++n;
        }
      }
      // The last ones are the next block's first.
      for (int row = 0; row < 2; ++row) {
        __builtin_memmove(columns[row], columns[row] + groups * kLanes, (kTerms - 1) * kLanes * sizeof(float));
      }
    }
  }

 private:
  static constexpr int kBlock = 32;

  // Columns [first, first + n) behind the kTerms - 1 that are there, or the first of all.
  void make_columns(int64_t first, int64_t n, float (&columns)[2][(kBlock + kTerms - 1) * kLanes]) const {
    const int64_t place = first == 0 ? 0 : kTerms - 1;
    for (int64_t c = 0; c < n; ++c) {
      V u[2] = {V{}, V{}};
      FVX_UNROLL_8
      for (int k = 0; k < kTerms; ++k) {
        const V x = load_pack(rows[k] + (first + c) * kLanes);
        u[0] += all_lanes(taps_y[0][k]) * x;
        u[1] += all_lanes(taps_y[1][k]) * x;
      }
      store_pack(columns[0] + (place + c) * kLanes, u[0]);
      store_pack(columns[1] + (place + c) * kLanes, u[1]);
    }
  }

  static FVX_HD V activated(V u, V slope, V most, V least, SlopeBits& bits) {
    const V below = u * slope, zero{};
    if (mode == SlopeMask::read) return choose(bits.dead, zero, choose(bits.negative, below, u));
    if (mode == SlopeMask::none) return larger(least, smaller(most, larger(below, u)));
    const uint32_t negative = not_above(u, zero);
    u = choose(negative, below, u);
    bits = {uint16_t(negative), uint16_t(not_above(most, u) | not_above(u, least))};
    return larger(least, smaller(most, u));
  }
};

template <class T, int kUp, int kDown>
class Worker {
 public:
  explicit Worker(const FilteredLrelu& args)
      : a_(args),
        x_(kUp, kDown, a_.left, a_.out_width),
        y_(kUp, kDown, a_.top, a_.out_height),
        steps_(x_.groups * kUp / lcm(kUp, kDown)),
        in_stride_(((x_.groups + kTerms) | 1) * kLanes),
        low_stride_(((x_.groups * kUp / kDown + 2) | 1) * kLanes),
        clamps_(a_.clamp <= 1.7976931348623157e308),
        memory_(size_t((kTerms + 1) * in_stride_ + kLowRows * low_stride_ + 2 * x_.groups * kUp) * sizeof(float)) {
    float* at = memory_.as<float>();
    if (!at) throw std::bad_alloc();
    in_ = at, low_ = in_ + (kTerms + 1) * in_stride_;
    bits_ = reinterpret_cast<SlopeBits*>(low_ + kLowRows * low_stride_);
    for (int64_t i = 0; i < (kTerms + 1) * in_stride_; ++i) in_[i] = 0;  // what lies beside the image stays zero
    set_taps();
  }

  // Output rows [begin, end) of 16 planes.
  void run(int64_t group, int64_t begin, int64_t end) {
    first_ = group * kLanes, live_ = int(min_of<int64_t>(kLanes, a_.planes - first_));
    alignas(64) float bias[kLanes] = {};
    for (int l = 0; a_.bias && l < live_; ++l) bias[l] = static_cast<const float*>(a_.bias)[(first_ + l) % a_.channels];
    bias_ = load_pack(bias);
    int64_t next = y_.up.group(begin * kDown);  // group of middle rows
    for (int64_t i = next; i + 1 < next + kTerms; ++i) input_row(i);
    int64_t pair = next * kUp + y_.up.phase(begin * kDown) / 2 * 2;  // number of its first row
    for (int64_t row = begin; row < end; row += kAtOnce) {
      const int64_t stop = min_of(end, row + kAtOnce);
      out_row_ = row;
      for (const int64_t last = (stop - 1) * kDown + kTerms * kDown + y_.shift; pair < last; pair += 2) {
        if (pair / kUp == next) input_row(next++ + kTerms - 1);
        middle_rows(pair);
      }
      if (stop - row == kAtOnce) {
        output_rows<kAtOnce>(row);
      } else {
        for (int64_t j = row; j < stop; ++j) output_rows<1>(j);
      }
    }
  }

 private:
  static constexpr int kLowRows = (kAtOnce - 1) * kDown + kTerms * kDown + 2;

  void set_taps() {
    const float *fu = static_cast<const float*>(a_.fu.taps), *fd = static_cast<const float*>(a_.fd.taps);
    for (int p = 0; p < kUp; ++p) {
      for (int s = 0; s < kTerms; ++s) {
        const float tap = fu[stored_tap(a_.fu.flip, a_.fu.width, x_.up.tap(p, s))];
        taps_x_[p * kTerms + s] = tap;
        taps_y_[p * kTerms + s] = float(a_.scale) * tap;
      }
    }
    for (int k = 0; k < kTerms * kDown; ++k) taps_down_[k] = fd[stored_tap(a_.fd.flip, a_.fd.width, k)];
  }

  const T* input() const { return static_cast<const T*>(a_.x) + first_ * a_.height * a_.width; }
  float* zeros() const { return in_ + kTerms * in_stride_; }
  float* in_row(int64_t i) const {
    const int64_t row = y_.up.base + i;
    return row < 0 || row >= a_.height ? zeros() : in_ + floor_mod(i, kTerms) * in_stride_;
  }
  // Row m of the middle, downsampled along x, from output 0 on.
  float* low(int64_t number) const { return low_ + floor_mod(number, kLowRows) * low_stride_; }

  // Input row number i, of those that the pass reads.
  void input_row(int64_t i) {
    float* const to = in_row(i);
    if (to == zeros()) return;
    const int64_t begin = max_of<int64_t>(0, -x_.up.base);
    const int64_t n = min_of(x_.groups + kTerms - 1, a_.width - x_.up.base) - begin;
    const T* from = input() + (y_.up.base + i) * a_.width + x_.up.base + begin;
    if (n > 0) Planes<T>(a_.height * a_.width, live_).load(from, n, bias_, to + begin * kLanes);
  }

  void middle_rows(int64_t number) {
    switch (a_.mask_mode) {
      case SlopeMask::none:
        return middle_rows<SlopeMask::none>(number);
      case SlopeMask::write:
        return middle_rows<SlopeMask::write>(number);
      case SlopeMask::read:
        return middle_rows<SlopeMask::read>(number);
    }
  }
  template <SlopeMask mode>
  void middle_rows(int64_t number) {
    x_.shift % kDown ? middle_rows<1, mode>(number) : middle_rows<0, mode>(number);
  }
  template <int kSkip, SlopeMask mode>
  void middle_rows(int64_t number) {
    PairOfRows<kUp, kDown, kSkip, mode> pair;
    const int64_t group = number / kUp;
    for (int k = 0; k < kTerms; ++k) pair.rows[k] = in_row(group + k);
    for (int row = 0; row < 2; ++row) {
      pair.taps_y[row] = taps_y_ + (number % kUp + row) * kTerms;
      pair.to[row] = low(number + row);
      pair.bits[row] = bits_ + row * x_.groups * kUp;
      if (mode == SlopeMask::read) read_bits(number + row - y_.shift, pair.bits[row]);
    }
    pair.taps_x = taps_x_, pair.taps_down = taps_down_;
    pair.in = ahead(a_.x, y_.up.base + group + kTerms, a_.height, a_.width);
    pair.out = ahead(a_.out, out_row_++, a_.out_height, a_.out_width);
    pair.slope = float(a_.slope), pair.clamp = float(a_.clamp);
    pair.run(steps_);
    for (int row = 0; mode == SlopeMask::write && row < 2; ++row) write_bits(number + row - y_.shift, pair.bits[row]);
  }

  Ahead ahead(const void* images, int64_t row, int64_t height, int64_t width) const {
    if (row < 0 || row >= height || live_ < kLanes) return {};
    const int64_t plane = height * width * int64_t(sizeof(T)), bytes = width * int64_t(sizeof(T));
    return {static_cast<const char*>(images) + first_ * plane + row * bytes, plane, bytes};
  }

  // Row of the mask that has the slopes of middle row m, or null; and which of its columns are middle pixels of here.
  uint8_t* mask_row(int64_t m) const {
    const int64_t row = m - a_.mask_top;
    if (row < 0 || row >= a_.mask_height) return nullptr;
    return a_.mask + (first_ / kLanes * a_.mask_height + row) * a_.mask_width * bits_bytes();
  }
  int64_t bits_bytes() const { return clamps_ ? 4 : 2; }

  void write_bits(int64_t m, const SlopeBits* from) const {
    uint8_t* to = mask_row(m);
    if (!to) return;
    for (int64_t i = 0; i < a_.mask_width; ++i)
      __builtin_memcpy(to + i * bits_bytes(), from + x_.shift + i, bits_bytes());
  }

  void read_bits(int64_t m, SlopeBits* to) const {
    const uint8_t* from = mask_row(m);
    const int64_t first = from ? -x_.shift - a_.mask_left : 0;  // column of the mask of middle pixel number 0
    const int64_t n = x_.groups * kUp;
    const int64_t begin = from ? min_of(max_of<int64_t>(0, -first), n) : n;
    const int64_t end = from ? max_of(begin, min_of(n, a_.mask_width - first)) : n;
    for (int64_t i = 0; i < begin; ++i) to[i] = kOutside;
    for (int64_t i = begin; i < end; ++i) {
      to[i].dead = 0;
      __builtin_memcpy(to + i, from + (first + i) * bits_bytes(), bits_bytes());
    }
    for (int64_t i = end; i < n; ++i) to[i] = kOutside;
  }

  template <int kRows>
  void output_rows(int64_t row) {
    constexpr int kRead = (kRows - 1) * kDown + kTerms * kDown;
    const int64_t skipped = x_.shift / kDown + kTerms - (x_.shift % kDown == 0);  // pushed out before output 0
    const float* from[kRead];
    for (int k = 0; k < kRead; ++k) from[k] = low(row * kDown + y_.shift + k) + skipped * kLanes;
    T* const to = static_cast<T*>(a_.out) + (first_ * a_.out_height + row) * a_.out_width;
    const Planes<T> planes(a_.out_height * a_.out_width, live_);
    V totals[kRows] = {};
    for (int64_t begin = 0; begin < a_.out_width; begin += kLanes) {
      const int64_t columns = min_of<int64_t>(kLanes, a_.out_width - begin);
      alignas(64) float tiles[kRows][kLanes * kLanes];
      V of_block[kRows] = {};
      for (int64_t c = 0; c < columns; ++c) {
        V sums[kRows] = {};
        _Pragma("GCC unroll 52")  // all of them
            for (int k = 0; k < kRead; ++k) {
          const V x = load_pack(from[k] + (begin + c) * kLanes);
          FVX_UNROLL_ALL
          for (int j = 0; j < kRows; ++j) {
            const int tap = k - j * kDown;
            if (tap >= 0 && tap < kTerms * kDown) sums[j] += all_lanes(taps_down_[tap]) * x;
          }
        }
        FVX_UNROLL_8
        for (int j = 0; j < kRows; ++j) {
          store_pack(tiles[j] + c * kLanes, sums[j]);
          of_block[j] += sums[j];
        }
      }
      for (int j = 0; j < kRows; ++j) {
        totals[j] += of_block[j];
        planes.store(tiles[j], columns, to + j * a_.out_width + begin);
      }
    }
    for (int j = 0; a_.row_sums && j < kRows; ++j) {
      for (int l = 0; l < live_; ++l) {
        static_cast<float*>(a_.row_sums)[(first_ + l) * a_.out_height + row + j] = totals[j][l];
      }
    }
  }

  const FilteredLrelu& a_;
  const Axis x_, y_;
  const int64_t steps_, in_stride_, low_stride_;
  const bool clamps_;
  const Workspace memory_;
  float *in_, *low_;  // input rows and, last, zeros; middle rows downsampled along x
  SlopeBits* bits_;   // of two rows
  float taps_x_[kUp * kTerms], taps_y_[kUp * kTerms], taps_down_[kTerms * kDown];
  int64_t first_ = 0;    // plane
  int64_t out_row_ = 0;  // that is fetched next
  int live_ = 0;         // planes of the 16 that there are
  V bias_{};
};

template <int kUp, int kDown, class T>
void run(const FilteredLrelu& a) {
  const int64_t groups = groups_of(a.planes);
  const int64_t wanted = (4 * a.threads + groups - 1) / groups;
  const int64_t bands = a.threads == 1 ? 1 : max_of<int64_t>(1, min_of(wanted, a.out_height / 64));
  const int64_t rows = ((a.out_height + bands - 1) / bands + kAtOnce - 1) / kAtOnce * kAtOnce;
  parallel_for(a.threads, groups * bands, 1, [&](int64_t unit, int64_t) {
    const int64_t first = unit % bands * rows;
    if (first < a.out_height) Worker<T, kUp, kDown>(a).run(unit / bands, first, min_of(a.out_height, first + rows));
  });
}

template <int kUp, int kDown>
void run(const FilteredLrelu& a) {
  if (a.dtype == DType::f32) return run<kUp, kDown, float>(a);
  a.dtype == DType::f16 ? run<kUp, kDown, f16>(a) : run<kUp, kDown, bf16>(a);
}

inline void run(const FilteredLrelu& a) {
  if (a.up == 4) return run<4, 2>(a);
  a.down == 2 ? run<2, 2>(a) : run<2, 4>(a);
}

}  // namespace lanes
}  // namespace filtered_lrelu

FVX_END_ISA

#endif
