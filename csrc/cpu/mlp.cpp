// Small networks on the CPU: a tile of points passes through all layers inside L1, so that nothing between input and
// output reaches memory. The backward pass recomputes the hidden layers of its tile: that costs a third more
// arithmetic than reading stored ones, and as much time as writing and faulting them in, without their memory.
#include "fastvfx/mlp.h"

#include <cstdlib>
#include <new>

#include "gemm.h"
#include "parallel.h"

FVX_BEGIN_ISA

namespace {

constexpr int64_t kTile = 48;            // points
constexpr int64_t kForwardGrain = 16;    // tiles a chunk
constexpr int64_t kPointsPerSum = 1008;  // backward: points a chunk, at least (21 tiles)
constexpr int64_t kMaxSums = 64;         // backward: chunks, each with its own sum of the weights' gradients ...
constexpr int64_t kSumBytes = 16 << 20;  // ... in about this much memory

// malloc'ed and 64-byte aligned.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t n) : raw_(std::malloc(size_t(n) * sizeof(A) + 64)) {
    if (!raw_) throw std::bad_alloc();
  }
  ~Scratch() { std::free(raw_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* data() const { return reinterpret_cast<A*>((reinterpret_cast<uintptr_t>(raw_) + 63) / 64 * 64); }

 private:
  void* raw_;
};

template <class A>
struct Matrix {
  A* data;
  int64_t row;  // elements from one row to the next
};

template <class A>
void load_rows(DType dtype, const void* data, int64_t first, int64_t rows, int64_t width, Matrix<A> out) {
  FVX_DISPATCH_STORAGE(dtype, T, {
    const T* in = static_cast<const T*>(data) + first * width;
    for (int64_t r = 0; r < rows; ++r) {
      A* to = out.data + r * out.row;
      FVX_SIMD
      for (int64_t i = 0; i < width; ++i) to[i] = A(to_acc(in[r * width + i]));
      for (int64_t i = width; i < out.row; ++i) to[i] = 0;
    }
  });
}

template <class A>
void store_rows(DType dtype, Matrix<const A> in, int64_t first, int64_t rows, int64_t width, void* data) {
  FVX_DISPATCH_STORAGE(dtype, T, {
    T* out = static_cast<T*>(data) + first * width;
    for (int64_t r = 0; r < rows; ++r) {
      const A* from = in.data + r * in.row;
      FVX_SIMD
      for (int64_t i = 0; i < width; ++i) out[r * width + i] = from_acc<T>(acc_t<T>(from[i]));
    }
  });
}

template <Activation kind, class A>
void activate_rows_of(Matrix<A> h, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
    A* row = h.data + r * h.row;
    FVX_SIMD
    for (int64_t i = 0; i < width; ++i) row[i] = activate(kind, row[i]);
  }
}

template <Activation kind, class A>
void through_rows_of(Matrix<A> g, Matrix<const A> h, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
    A* g_row = g.data + r * g.row;
    const A* h_row = h.data + r * h.row;
    FVX_SIMD
    for (int64_t i = 0; i < width; ++i) g_row[i] = through_activation(kind, g_row[i], h_row[i]);
  }
}

#define FVX_DISPATCH_ACTIVATION(kind, call) \
  switch (kind) {                           \
    case Activation::none:                  \
      break;                                \
    case Activation::relu:                  \
      call(Activation::relu);               \
      break;                                \
    case Activation::leaky_relu:            \
      call(Activation::leaky_relu);         \
      break;                                \
    case Activation::sigmoid:               \
      call(Activation::sigmoid);            \
      break;                                \
    case Activation::tanh:                  \
      call(Activation::tanh);               \
      break;                                \
    case Activation::softplus:              \
      call(Activation::softplus);           \
      break;                                \
    case Activation::exp:                   \
      call(Activation::exp);                \
      break;                                \
    case Activation::sine:                  \
      call(Activation::sine);               \
      break;                                \
  }

template <class A>
void activate_rows(Activation kind, Matrix<A> h, int64_t rows, int64_t width) {
#define FVX_CALL(k) activate_rows_of<k>(h, rows, width)
  FVX_DISPATCH_ACTIVATION(kind, FVX_CALL)
#undef FVX_CALL
}

template <class A>
void through_rows(Activation kind, Matrix<A> g, Matrix<const A> h, int64_t rows, int64_t width) {
#define FVX_CALL(k) through_rows_of<k>(g, h, rows, width)
  FVX_DISPATCH_ACTIVATION(kind, FVX_CALL)
#undef FVX_CALL
}

// cos(z), in a buffer of its own, then h = sin(z) in place of z.
template <class A>
void sine_rows(Matrix<A> z, Matrix<A> cosine, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
    A* s = z.data + r * z.row;
    A* c = cosine.data + r * cosine.row;
    FVX_SIMD
    for (int64_t i = 0; i < width; ++i) {
      const SinCos<A> both = sin_cos(s[i]);
      s[i] = both.sin;
      c[i] = both.cos;
    }
  }
}

// Weights as the products want them, made once per call.
template <class A>
struct Packed {
  Packed(const Mlp& m, bool backward) : storage(size_of(m, backward)) {
    A* next = storage.data();
    for (int l = 0; l < m.n_layers; ++l) {
      const int64_t in = m.widths[l], out = m.widths[l + 1];
      const Scratch<A> copy(in * out);
      const A* w = copy.data();
      load_rows<A>(m.w_dtype, m.weights[l], 0, out, in, {copy.data(), in});
      forward[l] = next;
      next = pack_panels(in, out, next, [&](int64_t k, int64_t j) { return w[j * in + k]; });
      transposed[l] = next;
      if (backward) next = pack_panels(out, in, next, [&](int64_t k, int64_t j) { return w[k * in + j]; });
      bias[l] = m.biases[l] ? next : nullptr;
      if (m.biases[l]) {
        load_rows<A>(m.w_dtype, m.biases[l], 0, 1, out, {next, round_to_lanes<A>(out)});
        next += round_to_lanes<A>(out);
      }
    }
  }

  static int64_t size_of(const Mlp& m, bool backward) {
    int64_t n = 0;
    for (int l = 0; l < m.n_layers; ++l) {
      const int64_t in = m.widths[l], out = m.widths[l + 1];
      n += (in + 1) * round_to_lanes<A>(out) + (backward ? out * round_to_lanes<A>(in) : 0);
    }
    return n;
  }

  Scratch<A> storage;
  const A* forward[mlp_max_layers];
  const A* transposed[mlp_max_layers];
  const A* bias[mlp_max_layers];
};

// Rows of a caller's array can be used where they lie if they hold the compute type and whole vectors.
template <class A>
bool usable_in_place(DType dtype, int64_t width) {
  return dtype == (sizeof(A) == 8 ? DType::f64 : DType::f32) && width == round_to_lanes<A>(width);
}

template <class A>
int64_t widest(const Mlp& m) {
  int64_t width = 0;
  for (int l = 0; l <= m.n_layers; ++l) width = max_of(width, round_to_lanes<A>(m.widths[l]));
  return width;
}

template <class A>
Matrix<const A> input_rows(const Mlp& m, int64_t first, int64_t rows, A* buffer) {
  const int64_t width = m.widths[0];
  if (usable_in_place<A>(m.x_dtype, width)) return {static_cast<const A*>(m.x) + first * width, width};
  const Matrix<A> copy{buffer, round_to_lanes<A>(width)};
  load_rows(m.x_dtype, m.x, first, rows, width, copy);
  return {copy.data, copy.row};
}

// z, or relu(z) when that is the activation.
template <class A>
void linear(const Mlp& m, const Packed<A>& packed, int l, Activation kind, Matrix<const A> h, int64_t rows,
            Matrix<A> out) {
  Product<A> p{};
  p.rows = rows, p.columns = round_to_lanes<A>(m.widths[l + 1]), p.depth = m.widths[l];
  p.a = h.data, p.a_row = h.row, p.a_k = 1;
  p.b = packed.forward[l], p.init = packed.bias[l];
  p.c = out.data, p.c_row = out.row;
  if (kind == Activation::relu) return multiply<A, Finish::relu>(p);
  multiply<A, Finish::store>(p);
}

template <class A>
void forward_tile(const MlpFwd& m, const Packed<A>& packed, int64_t first, int64_t rows, A* const buffers[2]) {
  const int64_t n_out = m.widths[m.n_layers];
  const bool in_place = usable_in_place<A>(m.x_dtype, n_out);
  Matrix<const A> h = input_rows<A>(m, first, rows, buffers[1]);
  for (int l = 0; l < m.n_layers; ++l) {
    const bool last = l + 1 == m.n_layers;
    const Activation kind = last ? m.output_activation : m.activation;
    const int64_t width = m.widths[l + 1];
    Matrix<A> out{buffers[l % 2], round_to_lanes<A>(width)};
    if (last && in_place) out = {static_cast<A*>(m.y) + first * n_out, n_out};
    linear<A>(m, packed, l, kind, h, rows, out);
    if (kind != Activation::relu) activate_rows(kind, out, rows, width);
    h = {out.data, out.row};
  }
  if (!in_place) store_rows<A>(m.x_dtype, h, first, rows, n_out, m.y);
}

template <class A>
void forward(const MlpFwd& m) {
  const Packed<A> packed(m, false);
  const int64_t size = kTile * widest<A>(m);
  parallel_for(m.threads, m.n_points, kTile * kForwardGrain, [&](int64_t begin, int64_t end) {
    const Scratch<A> scratch(2 * size);
    A* const buffers[2] = {scratch.data(), scratch.data() + size};
    for (int64_t first = begin; first < end; first += kTile) {
      forward_tile<A>(m, packed, first, min_of(kTile, end - first), buffers);
    }
  });
}

// One thread's buffers for a tile of the backward pass.
template <class A>
struct Tape {
  explicit Tape(const Mlp& m) : storage(size_of(m)) {
    A* next = storage.data();
    for (A*& buffer : g) buffer = next, next += kTile * widest<A>(m);
    for (int l = 0; l <= m.n_layers; ++l) {
      const int64_t size = kTile * round_to_lanes<A>(m.widths[l]);
      h[l] = next, next += size;
      cosine[l] = next, next += size;
    }
  }

  static int64_t size_of(const Mlp& m) {
    int64_t width = 2 * widest<A>(m);
    for (int l = 0; l <= m.n_layers; ++l) width += 2 * round_to_lanes<A>(m.widths[l]);
    return kTile * width;
  }

  Scratch<A> storage;
  A* g[2];
  A* h[mlp_max_layers + 1];
  A* cosine[mlp_max_layers + 1];
};

template <class A>
void add_weight_gradient(Matrix<const A> g, Matrix<const A> h, int64_t rows, int64_t out, int64_t in, A* sum) {
  Product<A> p{};
  p.rows = out, p.columns = round_to_lanes<A>(in), p.depth = rows;
  p.a = g.data, p.a_row = 1, p.a_k = g.row;
  p.b = h.data, p.b_row = h.row;
  p.c = sum, p.c_row = p.columns;
  multiply<A, Finish::add>(p);
}

// `sums` holds g_W_l with rows padded to whole vectors, then g_b_l, layer after layer.
template <class A>
void backward_tile(const MlpBwd& m, const Packed<A>& packed, int64_t first, int64_t rows, const Tape<A>& tape, A* sums,
                   const int64_t* sum_of) {
  const int n = m.n_layers;
  Matrix<const A> h[mlp_max_layers + 1];
  h[0] = input_rows<A>(m, first, rows, tape.h[0]);
  const bool sine_out = m.output_activation == Activation::sine;
  for (int l = 1; l < n + int(sine_out); ++l) {
    const int64_t width = m.widths[l], row = round_to_lanes<A>(width);
    const Activation kind = l == n ? m.output_activation : m.activation;
    const Matrix<A> out{tape.h[l], row};
    linear<A>(m, packed, l - 1, kind, h[l - 1], rows, out);
    if (kind == Activation::sine) {
      sine_rows(out, Matrix<A>{tape.cosine[l], row}, rows, width);
    } else if (kind != Activation::relu) {
      activate_rows(kind, out, rows, width);
    }
    h[l] = {out.data, out.row};
  }

  // g of the output: through its activation, from y as it was stored.
  const int64_t n_out = m.widths[n];
  Matrix<const A> g{static_cast<const A*>(m.g_y) + first * n_out, n_out};
  if (m.output_activation != Activation::none || !usable_in_place<A>(m.x_dtype, n_out)) {
    const Matrix<A> copy{tape.g[n % 2], round_to_lanes<A>(n_out)};
    const Matrix<A> y{sine_out ? tape.cosine[n] : tape.h[n], copy.row};
    load_rows(m.x_dtype, m.g_y, first, rows, n_out, copy);
    if (m.output_activation != Activation::none && !sine_out) load_rows(m.x_dtype, m.y, first, rows, n_out, y);
    through_rows(m.output_activation, copy, Matrix<const A>{y.data, y.row}, rows, n_out);
    g = {copy.data, copy.row};
  }

  for (int l = n; l-- > 0;) {
    const int64_t in = m.widths[l], out = m.widths[l + 1], in_row = round_to_lanes<A>(in);
    if (sums) {
      add_weight_gradient<A>(g, h[l], rows, out, in, sums + sum_of[l]);
      if (m.biases[l]) {
        A* bias = sums + sum_of[l] + out * in_row;
        FVX_SIMD
        for (int64_t j = 0; j < out; ++j) {
          A sum = 0;
          for (int64_t r = 0; r < rows; ++r) sum += g.data[r * g.row + j];
          bias[j] += sum;
        }
      }
    }
    if (l == 0 && !m.g_x) break;
    const bool in_place = l == 0 && usable_in_place<A>(m.x_dtype, in);
    Matrix<A> down{tape.g[l % 2], in_row};
    if (in_place) down = {static_cast<A*>(m.g_x) + first * in, in};
    Product<A> p{};
    p.rows = rows, p.columns = in_row, p.depth = out;
    p.a = g.data, p.a_row = g.row, p.a_k = 1;
    p.b = packed.transposed[l];
    p.c = down.data, p.c_row = down.row;
    p.mask = h[l].data, p.mask_row = h[l].row;
    if (l > 0 && m.activation == Activation::relu) {
      multiply<A, Finish::relu_mask>(p);
    } else {
      multiply<A, Finish::store>(p);
      const bool sine = m.activation == Activation::sine;
      if (l > 0) through_rows(m.activation, down, sine ? Matrix<const A>{tape.cosine[l], in_row} : h[l], rows, in);
    }
    g = {down.data, down.row};
    if (l == 0 && !in_place) store_rows<A>(m.x_dtype, g, first, rows, in, m.g_x);
  }
}

// Adds up the chunks' sums in their order and drops the padding.
template <class A>
void reduce_sums(const MlpBwd& m, const A* sums, int64_t n_sums, int64_t stride, const int64_t* sum_of) {
  FVX_DISPATCH_STORAGE(m.w_dtype, T, {
    T* to = static_cast<T*>(m.g_params);
    for (int l = 0; l < m.n_layers; ++l) {
      const int64_t in = m.widths[l], out = m.widths[l + 1], in_row = round_to_lanes<A>(in);
      const int64_t rows = out + (m.biases[l] ? 1 : 0);
      parallel_for(m.threads, rows, 16, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const A* from = sums + sum_of[l] + r * in_row;
          const int64_t width = r < out ? in : out;
          for (int64_t i = 0; i < width; ++i) {
            A sum = 0;
            for (int64_t s = 0; s < n_sums; ++s) sum += from[s * stride + i];
            to[r * in + i] = from_acc<T>(acc_t<T>(sum));
          }
        }
      });
      to += out * in + (m.biases[l] ? out : 0);
    }
  });
}

// The points are cut into chunks that depend on nothing but the sizes, so the gradients are the same for any number
// of threads.
template <class A>
void backward(const MlpBwd& m) {
  const Packed<A> packed(m, true);
  int64_t sum_of[mlp_max_layers];
  int64_t stride = 0;
  for (int l = 0; l < m.n_layers; ++l) {
    sum_of[l] = stride;
    stride += m.widths[l + 1] * round_to_lanes<A>(m.widths[l]) + (m.biases[l] ? round_to_lanes<A>(m.widths[l + 1]) : 0);
  }
  const int64_t affordable = max_of<int64_t>(8, kSumBytes / (stride * int64_t(sizeof(A)) + 1));
  const int64_t most = min_of(kMaxSums, affordable);
  const int64_t tiles = (m.n_points + kTile - 1) / kTile;
  const int64_t grain = kTile * max_of((tiles + most - 1) / most, kPointsPerSum / kTile);
  const int64_t n_sums = (m.n_points + grain - 1) / grain;

  const Scratch<A> sums(m.g_params ? n_sums * stride : 0);
  parallel_for(m.threads, m.n_points, grain, [&](int64_t begin, int64_t end) {
    const Tape<A> tape(m);
    A* mine = m.g_params ? sums.data() + begin / grain * stride : nullptr;
    if (mine) {
      for (int64_t i = 0; i < stride; ++i) mine[i] = 0;
    }
    for (int64_t first = begin; first < end; first += kTile) {
      backward_tile<A>(m, packed, first, min_of(kTile, end - first), tape, mine, sum_of);
    }
  });
  if (m.g_params) reduce_sums<A>(m, sums.data(), n_sums, stride, sum_of);
}

}  // namespace

void mlp_fwd(const MlpFwd& m) {
  if (m.x_dtype == DType::f64) {
    forward<double>(m);
  } else {
    forward<float>(m);
  }
}

void mlp_bwd(const MlpBwd& m) {
  if (m.x_dtype == DType::f64) {
    backward<double>(m);
  } else {
    backward<float>(m);
  }
}

FVX_END_ISA
