// Filtered leaky ReLU on the GPU: a block makes one tile of one plane, and everything between input and output stays in
// shared memory. Neighbouring threads take neighbouring columns. A thread makes all phases of a window at once, and
// several rows of an output column from one walk down the middle pixels, so that what it loads is used more than once.
//
// Taps come from global memory with the other arguments and are staged per block: nothing is global, and calls on
// several streams do not disturb each other.
#include "fastvfx/filtered_lrelu.h"

#include "fastvfx/kernels.h"
#include "launch.h"

namespace fastvfx {
namespace cuda {
namespace {

using namespace ::fastvfx::device;
using filtered_lrelu::Slope;
using filtered_lrelu::UpAxis;

constexpr int kThreads = 256;
constexpr int kMaskColumns = 16;  // in a word of the mask, two bits each
constexpr int kRowsAThread = 4;
constexpr size_t kSharedBytes = 48 << 10;  // what every launch may use

// Sizes of a tile. Middle pixels begin at the start of a group of phases, so that a thread's phases are known when it
// is compiled; `groups` of them lie beside each other.
struct Tile {
  int out_height, out_width;
  int groups_y, groups_x, middle_height, middle_width;
  int in_height, in_width;
  int64_t tiles_y, tiles_x;
  int64_t first_y, first_x, base_y, base_x;  // of UpAxis
  // Elements in front of: activated rows; rows of one direction only; the taps.
  int second, taps_up, taps_down, elements;
  bool keeps_slopes;  // a byte a middle pixel, behind the elements

  __host__ size_t bytes(size_t element) const {
    return elements * element + (keeps_slopes ? size_t(middle_height) * middle_width : 0);
  }
};

int groups_for(int outputs, int down, int taps, int up) { return ((outputs - 1) * down + taps + up - 1 + up - 1) / up; }

Tile tile_of(const FilteredLrelu& a, int height, int width) {
  Tile t{};
  t.out_height = height;
  t.out_width = width;
  t.groups_y = groups_for(height, a.down, a.fd.height, a.up);
  t.groups_x = groups_for(width, a.down, a.fd.width, a.up);
  t.middle_height = t.groups_y * a.up;
  t.middle_width = t.groups_x * a.up;
  t.in_height = t.groups_y + (a.fu.height + a.up - 1) / a.up - 1;
  t.in_width = t.groups_x + (a.fu.width + a.up - 1) / a.up - 1;
  const UpAxis y_axis(a.up, a.fu.height, a.top), x_axis(a.up, a.fu.width, a.left);
  t.first_y = y_axis.first;
  t.first_x = x_axis.first;
  t.base_y = y_axis.base;
  t.base_x = x_axis.base;
  t.tiles_y = ceil_div(a.out_height, height);
  t.tiles_x = ceil_div(a.out_width, width);
  // Two areas take turns: input, or with a 2-D fu only its successor's place, then activated; high rows, then low ones.
  const int in = t.in_height * t.in_width, middle = t.middle_height * t.middle_width;
  const int high = t.in_height * t.middle_width, low = height * t.middle_width;
  const int first = a.fu.separable && in > middle ? in : middle;
  int second = a.fu.separable ? high : in;
  if (a.fd.separable && low > second) second = low;
  t.second = first;
  t.taps_up = first + second;
  t.taps_down = t.taps_up + (a.fu.separable ? a.fu.width : a.fu.width * a.fu.height);
  t.elements = t.taps_down + (a.fd.separable ? a.fd.width : a.fd.width * a.fd.height);
  t.keeps_slopes = a.mask_mode == SlopeMask::write;
  return t;
}

// body(row, column) over a rectangle, neighbouring threads in neighbouring columns.
template <class Body>
__device__ void for_each(int rows, int columns, const Body& body) {
  for (int i = threadIdx.x; i < rows * columns; i += kThreads) body(i / columns, i % columns);
}

template <class T, int kUp, int kDown>
struct Block {
  using A = acc_t<T>;
  // Phases that a thread makes at once; of factors that are not compiled for, one.
  static constexpr int kPhases = kUp > 0 ? kUp : 1;

  const FilteredLrelu& a;
  const Tile& t;
  A *first, *second, *up_taps, *down_taps;
  uint8_t* slopes;
  int up, down;
  int64_t plane, out_y, out_x;                   // of the tile
  int64_t group_y, group_x, middle_y, middle_x;  // of the group that the tile begins with
  int before_y, before_x;                        // middle pixels between that and the first that is read

  __device__ Block(const FilteredLrelu& a_, const Tile& t_, A* memory)
      : a(a_),
        t(t_),
        first(memory),
        second(memory + t_.second),
        up_taps(memory + t_.taps_up),
        down_taps(memory + t_.taps_down),
        slopes(reinterpret_cast<uint8_t*>(memory + t_.elements)),
        up(kUp > 0 ? kUp : a_.up),
        down(kDown > 0 ? kDown : a_.down) {}

  // Taps in the order in which they multiply a window.
  __device__ void load_taps() {
    const int n_up = t.taps_down - t.taps_up, n_down = t.elements - t.taps_down;
    for (int i = threadIdx.x; i < n_up; i += kThreads) {
      up_taps[i] = static_cast<const A*>(a.fu.taps)[filtered_lrelu::stored_tap(a.fu.flip, n_up, i)];
    }
    for (int i = threadIdx.x; i < n_down; i += kThreads) {
      down_taps[i] = static_cast<const A*>(a.fd.taps)[filtered_lrelu::stored_tap(a.fd.flip, n_down, i)];
    }
  }

  __device__ void go_to(int64_t tile) {
    out_x = tile % t.tiles_x * t.out_width;
    out_y = tile / t.tiles_x % t.tiles_y * t.out_height;
    plane = tile / t.tiles_x / t.tiles_y;
    group_y = unsigned(out_y * down - t.first_y) / unsigned(up);  // an axis has less than 2^32 middle pixels
    group_x = unsigned(out_x * down - t.first_x) / unsigned(up);
    middle_y = t.first_y + group_y * up;
    middle_x = t.first_x + group_x * up;
    before_y = int(out_y * down - middle_y);
    before_x = int(out_x * down - middle_x);
  }

  __device__ void load_input(A* to) {
    const int64_t y = t.base_y + group_y, x = t.base_x + group_x;
    const T* from = static_cast<const T*>(a.x) + plane * a.height * a.width;
    const A bias = a.bias ? static_cast<const A*>(a.bias)[plane % a.channels] : A(0);
    for_each(t.in_height, t.in_width, [&](int r, int c) {
      const bool inside = y + r >= 0 && y + r < a.height && x + c >= 0 && x + c < a.width;
      to[r * t.in_width + c] = inside ? to_acc(from[(y + r) * a.width + x + c]) + bias : A(0);
    });
  }

  // Sums of all phases of a window of `from`, whose pixels lie `step` apart; body(phase, sum).
  template <class Body>
  __device__ void phases_of(const A* from, int step, int taps, const Body& body) {
    for (int p0 = 0; p0 < up; p0 += kPhases) {
      A sums[kPhases] = {};
      for (int s = 0; up * s < taps; ++s) {
        const A x = from[s * step];
#pragma unroll
        for (int p = 0; p < kPhases; ++p) {
          const int tap = up - 1 - (p0 + p) + up * s;  // UpAxis::tap
          if (tap < taps) sums[p] += up_taps[tap] * x;
        }
      }
#pragma unroll
      for (int p = 0; p < kPhases; ++p) body(p0 + p, sums[p]);
    }
  }

  __device__ void upsample_rows() {
    for_each(t.in_height, t.groups_x, [&](int r, int g) {
      A* to = second + r * t.middle_width + g * up;
      phases_of(first + r * t.in_width + g, 1, a.fu.width, [&](int p, A sum) { to[p] = sum; });
    });
  }

  __device__ void upsample_columns() {
    for_each(t.groups_y, t.middle_width, [&](int g, int c) {
      phases_of(second + g * t.middle_width + c, t.middle_width, a.fu.height,
                [&](int p, A sum) { put(g * up + p, c, sum * A(a.scale)); });
    });
  }

  __device__ void upsample_2d() {
    for_each(t.middle_height, t.middle_width, [&](int r, int c) {
      const int py = r % up, px = c % up;
      const A* from = second + r / up * t.in_width + c / up;
      A sum = 0;
      for (int i = up - 1 - py; i < a.fu.height; i += up) {
        for (int j = up - 1 - px; j < a.fu.width; j += up) {
          sum += up_taps[i * a.fu.width + j] * from[i / up * t.in_width + j / up];
        }
      }
      put(r, c, sum * A(a.scale));
    });
  }

  // Middle pixel (r, c) of the tile, before it is activated.
  __device__ void put(int r, int c, A u) {
    A& to = first[r * t.middle_width + c];
    if (a.mask_mode == SlopeMask::read) {
      to =
          filtered_lrelu::times_slope(u, read_slope(middle_y + r - a.mask_top, middle_x + c - a.mask_left), A(a.slope));
      return;
    }
    if (a.mask_mode == SlopeMask::write) {
      const Slope s = filtered_lrelu::slope_of(u, A(a.slope), A(a.clamp));
      // Without a clamp nothing is dead, infinities and NaN neither.
      slopes[r * t.middle_width + c] = uint8_t(s.negative ? 1 : 0) | uint8_t(s.dead && clamps() ? 2 : 0);
    }
    to = filtered_lrelu::activate(u, A(a.slope), A(a.clamp));
  }

  __device__ bool clamps() const { return a.clamp <= 1.7976931348623157e308; }

  __device__ uint32_t* mask_row(int64_t row) const {
    const int64_t words = (a.mask_width + kMaskColumns - 1) / kMaskColumns;
    return reinterpret_cast<uint32_t*>(a.mask) + (plane * a.mask_height + row) * words;
  }

  __device__ Slope read_slope(int64_t y, int64_t x) const {
    if (y < 0 || y >= a.mask_height || x < 0 || x >= a.mask_width) return {false, true};
    const uint32_t bits = mask_row(y)[x / kMaskColumns] >> (x % kMaskColumns * 2);
    return {(bits & 1) != 0, (bits & 2) != 0};
  }

  // Writes the words of the mask that belong to the tile: from its first middle pixel to that of the next one, or to
  // the end. Tiles are as wide as keeps words whole.
  __device__ void write_mask() {
    const bool last_y = out_y + t.out_height >= a.out_height, last_x = out_x + t.out_width >= a.out_width;
    const int64_t y0 = out_y * down, y1 = last_y ? a.mask_height : y0 + t.out_height * down;
    const int64_t x0 = out_x * down, x1 = last_x ? a.mask_width : x0 + t.out_width * down;
    const int words = int((x1 - x0 + kMaskColumns - 1) / kMaskColumns);
    for_each(int(y1 - y0), words, [&](int r, int w) {
      const int columns = int(x1 - x0) - w * kMaskColumns;
      const uint8_t* from = slopes + (before_y + r) * t.middle_width + before_x + w * kMaskColumns;
      uint32_t bits = 0;
      for (int i = 0; i < kMaskColumns && i < columns; ++i) bits |= uint32_t(from[i]) << (2 * i);
      mask_row(y0 + r)[x0 / kMaskColumns + w] = bits;
    });
  }

  __device__ void downsample_columns() {
    const int blocks = (t.out_height + kRowsAThread - 1) / kRowsAThread;
    for_each(blocks, t.middle_width, [&](int b, int c) {
      const int rows = t.out_height - b * kRowsAThread;
      const A* from = first + (before_y + b * kRowsAThread * down) * t.middle_width + c;
      A sums[kRowsAThread] = {};
      const int last = (rows < kRowsAThread ? rows : kRowsAThread) - 1;
      for (int k = 0; k < last * down + a.fd.height; ++k) {
        const A x = from[k * t.middle_width];
#pragma unroll
        for (int r = 0; r < kRowsAThread; ++r) {
          const int tap = k - r * down;
          if (tap >= 0 && tap < a.fd.height) sums[r] += down_taps[tap] * x;
        }
      }
#pragma unroll
      for (int r = 0; r < kRowsAThread; ++r) {
        if (r < rows) second[(b * kRowsAThread + r) * t.middle_width + c] = sums[r];
      }
    });
  }

  __device__ void write_output() {
    T* to = static_cast<T*>(a.out) + plane * a.out_height * a.out_width;
    for_each(t.out_height, t.out_width, [&](int r, int c) {
      if (out_y + r >= a.out_height || out_x + c >= a.out_width) return;
      A sum = 0;
      if (a.fd.separable) {
        const A* from = second + r * t.middle_width + before_x + c * down;
        for (int k = 0; k < a.fd.width; ++k) sum += down_taps[k] * from[k];
      } else {
        const A* from = first + (before_y + r * down) * t.middle_width + before_x + c * down;
        for (int i = 0; i < a.fd.height; ++i) {
          for (int j = 0; j < a.fd.width; ++j) sum += down_taps[i * a.fd.width + j] * from[i * t.middle_width + j];
        }
      }
      to[(out_y + r) * a.out_width + out_x + c] = from_acc<T>(sum);
    });
  }
};

template <class T, int kUp, int kDown>
__global__ void __launch_bounds__(kThreads) filtered_lrelu_kernel(const FilteredLrelu a, const Tile t) {
  extern __shared__ __align__(16) double memory[];
  Block<T, kUp, kDown> block(a, t, reinterpret_cast<acc_t<T>*>(memory));
  block.load_taps();
  const int64_t tiles = t.tiles_x * t.tiles_y * a.planes;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    block.go_to(tile);
    block.load_input(a.fu.separable ? block.first : block.second);
    __syncthreads();
    if (a.fu.separable) {
      block.upsample_rows();
      __syncthreads();
      block.upsample_columns();
    } else {
      block.upsample_2d();
    }
    __syncthreads();
    if (a.mask_mode == SlopeMask::write) block.write_mask();
    if (a.fd.separable) {
      block.downsample_columns();
      __syncthreads();
    }
    block.write_output();
    __syncthreads();
  }
}

template <class T, int kUp, int kDown>
void launch(const FilteredLrelu& a, const Tile& t) {
  const int64_t tiles = t.tiles_x * t.tiles_y * a.planes;
  filtered_lrelu_kernel<T, kUp, kDown>
      <<<grid_for(tiles, 1), kThreads, t.bytes(sizeof(acc_t<T>)), static_cast<cudaStream_t>(a.stream)>>>(a, t);
}

template <class T, int kUp>
void launch_down(const FilteredLrelu& a, const Tile& t) {
  switch (a.down) {
    case 1:
      return launch<T, kUp, 1>(a, t);
    case 2:
      return launch<T, kUp, 2>(a, t);
    case 4:
      return launch<T, kUp, 4>(a, t);
    default:
      return launch<T, 0, 0>(a, t);
  }
}

template <class T>
void launch_up(const FilteredLrelu& a, const Tile& t) {
  switch (a.up) {
    case 1:
      return launch_down<T, 1>(a, t);
    case 2:
      return launch_down<T, 2>(a, t);
    case 4:
      return launch_down<T, 4>(a, t);
    default:
      return launch<T, 0, 0>(a, t);
  }
}

// The largest tile that fits: 32 x 32 outputs, then flatter ones.
Tile fitting_tile(const FilteredLrelu& a) {
  const size_t element = a.dtype == DType::f64 ? 8 : 4;
  for (const int width : {32, 16}) {
    for (int height = width; height >= 1; height /= 2) {
      const Tile t = tile_of(a, height, width);
      if (t.bytes(element) <= kSharedBytes) return t;
    }
  }
  throw std::runtime_error(
      "fastvfx: filtered_lrelu_pass: these filters and factors need more shared memory than a block has");
}

}  // namespace

void filtered_lrelu_pass(const FilteredLrelu& a) {
  if (a.planes == 0) return;
  const Tile t = fitting_tile(a);
  FVX_DISPATCH_STORAGE(a.dtype, T, launch_up<T>(a, t));
  check_launch("filtered_lrelu_pass");
}

}  // namespace cuda
}  // namespace fastvfx
