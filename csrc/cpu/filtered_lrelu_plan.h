// What every plane of a filtered leaky ReLU has in common: sizes, taps by phase, and offsets of the terms of each sum.
//
// Rows are kept phase by phase, so that a vector of any of them is contiguous: with L the least common multiple of up
// and down, middle column first + L * a + p is element p * groups + a. A row of the input has L / up phases, one of the
// output L / down.
#pragma once

#include "fastvfx/filtered_lrelu.h"
#include "scratch.h"
#include "tap_sums.h"

FVX_BEGIN_ISA

namespace filtered_lrelu {

constexpr int64_t kChunkBytes = 512 << 10;  // of the rows that a chunk keeps: they should stay in the second cache

FVX_HD int64_t up_to_units(int64_t n) { return (n + kUnit - 1) / kUnit * kUnit; }

// An odd number of cache lines, so that the rows of a block of columns do not fall into the same few sets.
template <class A>
FVX_HD int64_t row_stride(int64_t elements) {
  const int64_t lines = (elements * int64_t(sizeof(A)) + 63) / 64;
  return (lines | 1) * (64 / int64_t(sizeof(A)));
}

// The columns of the mask, which was written with other factors than it is read with, or the same.
struct MaskColumns {
  int phases;
  int64_t first, groups, row_bytes;  // row_bytes: of one of its bits

  MaskColumns(const FilteredLrelu& a)
      : phases(lcm(a.mask_up, a.mask_down)),
        first(UpAxis(a.mask_up, 1, a.mask_padding).first),
        groups(up_to_units((a.mask_width - first + phases - 1) / phases)),
        row_bytes(phases * groups / 8) {}
};

// Where the bits of 16 columns are in a row of the mask; those of `outside` have slope 0 whatever it says.
struct MaskUnit {
  int64_t bit;
  uint32_t outside;
};

template <class A>
struct Plan {
  const FilteredLrelu& a;
  UpAxis x_axis, y_axis;
  int phases, in_phases, out_phases;  // L, L / up, L / down
  int64_t groups, columns;            // of a middle row: columns = phases * groups
  int64_t in_groups, out_groups;
  int64_t middle_stride, high_stride;  // high: rows that are upsampled along x, or the input's own if fu is 2-D
  int64_t chunk, middle_rows, high_rows;
  MaskColumns mask;

  // 1-D: taps of x by phase, then of y; 2-D: by (phase of y, phase of x), a window row by row.
  Scratch<A> up_taps;
  Scratch<Taps<A>> x_taps, y_taps;  // 1-D: where those of a phase are
  Scratch<A> down_taps;             // as they multiply a window: reversed, unless flipped
  Scratch<int32_t> in_terms;        // 1-D: of a window of an input row; 2-D: of a window for each of the L phases
  Scratch<int32_t> high_terms;      // 1-D: of the rows of a window
  Scratch<int32_t> middle_terms;    // 1-D: of the rows of a window; 2-D: of a window for each phase of the output
  Scratch<int32_t> low_terms;       // 1-D: of a row that is downsampled along y
  Scratch<MaskUnit> mask_units;

  explicit Plan(const FilteredLrelu& args)
      : a(args),
        x_axis(a.up, a.fu.width, a.left),
        y_axis(a.up, a.fu.height, a.top),
        phases(lcm(a.up, a.down)),
        in_phases(phases / a.up),
        out_phases(phases / a.down),
        groups(up_to_units(((a.out_width - 1) * a.down + a.fd.width - x_axis.first + phases - 1) / phases)),
        columns(phases * groups),
        in_groups(up_to_units(groups + (in_phases - 1 + x_axis.most_terms()) / in_phases)),
        out_groups(up_to_units((a.out_width + out_phases - 1) / out_phases)),
        mask(a),
        up_taps(a.fu.separable ? int64_t(2) * a.up * most_x() : int64_t(a.up) * a.up * most_x() * most_y()),
        x_taps(a.up),
        y_taps(a.up),
        down_taps(a.fd.separable ? a.fd.width : int64_t(a.fd.width) * a.fd.height),
        in_terms(a.fu.separable ? in_phases + most_x() : int64_t(phases) * most_x() * most_y()),
        high_terms(most_y() + 1),
        middle_terms((a.fd.separable ? 1 : int64_t(out_phases) * a.fd.width) * (a.fd.height + a.down)),
        low_terms(last_low_term() + 1),
        mask_units(columns / kUnit) {
    // The last block of outputs reads beyond the groups that they need.
    const int64_t beyond = out_groups + last_low_term() / phases - groups;
    middle_stride = row_stride<A>(columns + (beyond > 0 ? beyond : 0));
    high_stride = a.fu.separable ? middle_stride : row_stride<A>(in_phases * in_groups);
    // Rows a chunk of outputs, in pairs.
    const int64_t bytes = (middle_stride * (a.down + 1) + high_stride * (a.down / a.up + 1)) * int64_t(sizeof(A));
    chunk = max_of<int64_t>(1, min_of<int64_t>(kChunkBytes / bytes, (a.out_height + 1) / 2 * 2) / 2) * 2;
    middle_rows = (chunk - 1) * a.down + a.fd.height;
    high_rows = middle_rows / a.up + 2 + most_y();
    set_up();
    set_down();
    if (a.mask_mode == SlopeMask::read) set_mask();
  }

  int most_x() const { return x_axis.most_terms(); }
  int most_y() const { return y_axis.most_terms(); }

  // Of the first input row of the window of middle row m.
  int64_t window(int64_t m) const { return y_axis.base + y_axis.group(m); }

  Taps<A> xy_taps(int y_phase, int x_phase) const {
    return {up_taps.data() + int64_t(y_phase * a.up + x_phase) * most_x() * most_y(),
            x_axis.terms(x_phase) * y_axis.terms(y_phase)};
  }
  // 2-D: the terms of phase `p` of the columns; all rows of the window follow each other.
  const int32_t* xy_terms(int p) const { return in_terms.data() + int64_t(p) * most_x() * most_y(); }
  RowWindow in_window() const { return {in_phases, in_groups, in_terms.data()}; }
  RowWindow low_window() const { return {phases, groups, low_terms.data()}; }
  const int32_t* middle_window(int out_phase) const {
    return middle_terms.data() + int64_t(out_phase) * a.fd.width * (a.fd.height + a.down);
  }

 private:
  int64_t last_low_term() const { return int64_t(a.down) * (out_phases - 1) + a.fd.width - 1 - x_axis.first; }
  int64_t in_offset(int64_t i) const { return i % in_phases * in_groups + i / in_phases; }
  int64_t middle_offset(int64_t i) const { return i % phases * groups + i / phases; }

  void set_up() {
    const A* f = static_cast<const A*>(a.fu.taps);
    A* to = up_taps.data();
    if (a.fu.separable) {
      for (int p = 0; p < a.up; ++p) {
        x_taps.data()[p] = {to + p * most_x(), x_axis.terms(p)};
        y_taps.data()[p] = {to + (a.up + p) * most_x(), y_axis.terms(p)};
        for (int s = 0; s < x_axis.terms(p); ++s) {
          const A tap = f[stored_tap(a.fu.flip, a.fu.width, x_axis.tap(p, s))];
          to[p * most_x() + s] = tap;
          to[(a.up + p) * most_x() + s] = A(a.scale) * tap;
        }
      }
      for (int i = 0; i < in_phases + most_x(); ++i) in_terms.data()[i] = int32_t(in_offset(i));
      for (int k = 0; k <= most_y(); ++k) high_terms.data()[k] = int32_t(k * high_stride);
      return;
    }
    for (int py = 0; py < a.up; ++py) {
      for (int px = 0; px < a.up; ++px) {
        A* taps = to + int64_t(py * a.up + px) * most_x() * most_y();
        for (int s = 0; s < y_axis.terms(py); ++s) {
          const int row = stored_tap(a.fu.flip, a.fu.height, y_axis.tap(py, s));
          for (int t = 0; t < x_axis.terms(px); ++t) {
            *taps++ = A(a.scale) * f[row * a.fu.width + stored_tap(a.fu.flip, a.fu.width, x_axis.tap(px, t))];
          }
        }
      }
    }
    for (int p = 0; p < phases; ++p) {
      int32_t* terms = in_terms.data() + int64_t(p) * most_x() * most_y();
      for (int s = 0; s < most_y(); ++s) {
        for (int t = 0; t < x_axis.terms(p % a.up); ++t) {
          *terms++ = int32_t(s * high_stride + in_offset(p / a.up + t));
        }
      }
    }
  }

  void set_down() {
    const A* f = static_cast<const A*>(a.fd.taps);
    A* to = down_taps.data();
    const int rows = a.fd.height + a.down;
    if (a.fd.separable) {
      for (int k = 0; k < a.fd.width; ++k) to[k] = f[stored_tap(a.fd.flip, a.fd.width, k)];
      for (int k = 0; k < rows; ++k) middle_terms.data()[k] = int32_t(k * middle_stride);
      for (int64_t i = 0; i <= last_low_term(); ++i) low_terms.data()[i] = int32_t(middle_offset(i));
      return;
    }
    const int n = a.fd.width * a.fd.height;
    for (int k = 0; k < n; ++k) to[k] = f[stored_tap(a.fd.flip, n, k)];  // reversing the list reverses both axes
    for (int q = 0; q < out_phases; ++q) {
      int32_t* terms = middle_terms.data() + int64_t(q) * a.fd.width * rows;
      for (int s = 0; s < rows; ++s) {
        for (int t = 0; t < a.fd.width; ++t) {
          *terms++ = int32_t(s * middle_stride + middle_offset(int64_t(q) * a.down + t - x_axis.first));
        }
      }
    }
  }

  void set_mask() {
    for (int64_t unit = 0; unit < columns / kUnit; ++unit) {
      const int64_t p = unit * kUnit / groups, group = unit * kUnit % groups;
      // Element i of the unit is mask column `column` + phases * i.
      const int64_t column = x_axis.first + phases * group + p - a.mask_left;
      uint32_t outside = 0;
      for (int i = 0; i < kUnit; ++i) {
        const int64_t at = column + phases * i;
        outside |= uint32_t(at < 0 || at >= a.mask_width) << i;
      }
      const int64_t from_first = column - mask.first;
      const int64_t bit = floor_mod(from_first, phases) * mask.groups + floor_div(from_first, phases);
      mask_units.data()[unit] = {bit, outside};
    }
  }
};

}  // namespace filtered_lrelu

FVX_END_ISA
