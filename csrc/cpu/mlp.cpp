// Small networks on the CPU: a tile of points passes through all layers inside L1, so that nothing between input and
// output reaches memory. The backward pass recomputes the hidden layers of its tile: that costs a third more
// arithmetic than reading stored ones, and as much time as writing and faulting them in, without their memory.
#include "fastvfx/mlp.h"

#include "gemm.h"
#include "parallel.h"
#include "scratch.h"

FVX_BEGIN_ISA

namespace {

// Points: whole blocks of rows in registers, and in bf16 whole tiles.
template <class E>
constexpr int64_t kTile = sizeof(E) == 2 ? 128 : 48;
template <class E>
constexpr int64_t kFewestTiles = sizeof(E) == 2 ? 4 : 8;  // a chunk, some 50 us of work
constexpr int64_t kMaxSums = 64;           // backward: chunks, each with its own sum of the weights' gradients ...
constexpr int64_t kSumBytes = 16 << 20;    // ... in about this much memory
constexpr int64_t kReduceGrain = 1 << 16;  // additions a chunk

template <class E>
struct Matrix {
  E* data;
  int64_t row;  // elements from one row to the next
};

// Tiles, and what is multiplied, are of type E below: double, float, or bf16 where the processor multiplies that.
template <class E>
void load_rows(DType dtype, const void* data, int64_t first, int64_t rows, int64_t width, Matrix<E> out) {
  FVX_DISPATCH_STORAGE(dtype, T, {
    const T* in = static_cast<const T*>(data) + first * width;
    for (int64_t r = 0; r < rows; ++r) {
      E* to = out.data + r * out.row;
      FVX_SIMD
      for (int64_t i = 0; i < width; ++i) to[i] = from_acc<E>(acc_t<E>(to_acc(in[r * width + i])));
      for (int64_t i = width; i < out.row; ++i) to[i] = E{};
    }
  });
}

template <class E>
void store_rows(DType dtype, Matrix<const E> in, int64_t first, int64_t rows, int64_t width, void* data) {
  FVX_DISPATCH_STORAGE(dtype, T, {
    T* out = static_cast<T*>(data) + first * width;
    for (int64_t r = 0; r < rows; ++r) {
      const E* from = in.data + r * in.row;
      FVX_SIMD
      for (int64_t i = 0; i < width; ++i) out[r * width + i] = from_acc<T>(acc_t<T>(to_acc(from[i])));
    }
  });
}

template <Activation kind, class E>
void activate_rows_of(Matrix<E> h, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
    E* row = h.data + r * h.row;
    FVX_SIMD
    for (int64_t i = 0; i < width; ++i) row[i] = from_acc<E>(activate(kind, to_acc(row[i])));
  }
}

template <Activation kind, class E>
void through_rows_of(Matrix<E> g, Matrix<const E> h, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
    E* g_row = g.data + r * g.row;
    const E* h_row = h.data + r * h.row;
    FVX_SIMD
    for (int64_t i = 0; i < width; ++i)
      g_row[i] = from_acc<E>(through_activation(kind, to_acc(g_row[i]), to_acc(h_row[i])));
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

template <class E>
void activate_rows(Activation kind, Matrix<E> h, int64_t rows, int64_t width) {
#define FVX_CALL(k) activate_rows_of<k>(h, rows, width)
  FVX_DISPATCH_ACTIVATION(kind, FVX_CALL)
#undef FVX_CALL
}

template <class E>
void through_rows(Activation kind, Matrix<E> g, Matrix<const E> h, int64_t rows, int64_t width) {
#define FVX_CALL(k) through_rows_of<k>(g, h, rows, width)
  FVX_DISPATCH_ACTIVATION(kind, FVX_CALL)
#undef FVX_CALL
}

// cos(z), in a buffer of its own, then h = sin(z) in place of z.
template <class E>
void sine_rows(Matrix<E> z, Matrix<E> cosine, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
    E* s = z.data + r * z.row;
    E* c = cosine.data + r * cosine.row;
    FVX_SIMD
    for (int64_t i = 0; i < width; ++i) {
      const SinCos<acc_t<E>> both = sin_cos(to_acc(s[i]));
      s[i] = from_acc<E>(both.sin);
      c[i] = from_acc<E>(both.cos);
    }
  }
}

// Weights as the products want them, made once per call.
template <class E>
struct Packed {
  using A = acc_t<E>;

  Packed(const Mlp& m, bool backward) : storage(weights_size(m, backward)), bias_storage(bias_size(m)) {
    E* next = storage.data();
    A* next_bias = bias_storage.data();
    for (int l = 0; l < m.n_layers; ++l) {
      const int64_t in = m.widths[l], out = m.widths[l + 1];
      const Scratch<A> copy(in * out);
      const A* w = copy.data();
      load_rows<A>(m.w_dtype, m.weights[l], 0, out, in, {copy.data(), in});
      forward[l] = next;
      next = pack_panels(in, out, next, [&](int64_t k, int64_t j) { return w[j * in + k]; });
      transposed[l] = next;
      if (backward) next = pack_panels(out, in, next, [&](int64_t k, int64_t j) { return w[k * in + j]; });
      bias[l] = m.biases[l] ? next_bias : nullptr;
      if (m.biases[l]) {
        const int64_t padded = round_to_lanes<E>(out);
        load_rows<A>(m.w_dtype, m.biases[l], 0, 1, out, {next_bias, padded});
        next_bias += padded;
      }
    }
  }

  static int64_t weights_size(const Mlp& m, bool backward) {
    int64_t n = 0;
    for (int l = 0; l < m.n_layers; ++l) {
      const int64_t in = m.widths[l], out = m.widths[l + 1];
      n += packed_size<E>(in, out) + (backward ? packed_size<E>(out, in) : 0);
    }
    return n;
  }

  static int64_t bias_size(const Mlp& m) {
    int64_t n = 0;
    for (int l = 0; l < m.n_layers; ++l) n += m.biases[l] ? round_to_lanes<E>(m.widths[l + 1]) : 0;
    return n;
  }

  Scratch<E> storage;
  Scratch<A> bias_storage;
  const E* forward[mlp_max_layers];
  const E* transposed[mlp_max_layers];
  const A* bias[mlp_max_layers];
};

// Rows of a caller's array can be used where they lie if they hold the compute type and whole vectors.
template <class E>
bool usable_in_place(DType dtype, int64_t width) {
  const DType own = sizeof(E) == 8 ? DType::f64 : sizeof(E) == 4 ? DType::f32 : DType::bf16;
  return dtype == own && width == round_to_lanes<E>(width);
}

template <class E>
int64_t widest(const Mlp& m) {
  int64_t width = 0;
  for (int l = 0; l <= m.n_layers; ++l) width = max_of(width, round_to_lanes<E>(m.widths[l]));
  return width;
}

template <class E>
Matrix<const E> input_rows(const Mlp& m, int64_t first, int64_t rows, E* buffer) {
  const int64_t width = m.widths[0];
  if (usable_in_place<E>(m.x_dtype, width)) return {static_cast<const E*>(m.x) + first * width, width};
  const Matrix<E> copy{buffer, round_to_lanes<E>(width)};
  load_rows(m.x_dtype, m.x, first, rows, width, copy);
  return {copy.data, copy.row};
}

// z, or relu(z) when that is the activation.
template <class E>
void linear(const Mlp& m, const Packed<E>& packed, int l, Activation kind, Matrix<const E> h, int64_t rows,
            Matrix<E> out, Tiles* tiles) {
  Product<E> p{};
  p.tiles = tiles;
  p.rows = rows, p.columns = round_to_lanes<E>(m.widths[l + 1]), p.depth = m.widths[l];
  p.a = h.data, p.a_row = h.row, p.a_k = 1;
  p.b = packed.forward[l], p.init = packed.bias[l];
  p.c = out.data, p.c_row = out.row;
  if (kind == Activation::relu) return multiply<Finish::relu>(p);
  multiply<Finish::store>(p);
}

template <class E>
void forward_tile(const MlpFwd& m, const Packed<E>& packed, int64_t first, int64_t rows, E* const buffers[2],
                  Tiles* tiles) {
  const int64_t n_out = m.widths[m.n_layers];
  const bool in_place = usable_in_place<E>(m.x_dtype, n_out);
  Matrix<const E> h = input_rows<E>(m, first, rows, buffers[1]);
  for (int l = 0; l < m.n_layers; ++l) {
    const bool last = l + 1 == m.n_layers;
    const Activation kind = last ? m.output_activation : m.activation;
    const int64_t width = m.widths[l + 1];
    Matrix<E> out{buffers[l % 2], round_to_lanes<E>(width)};
    if (last && in_place) out = {static_cast<E*>(m.y) + first * n_out, n_out};
    linear<E>(m, packed, l, kind, h, rows, out, tiles);
    if (kind != Activation::relu) activate_rows(kind, out, rows, width);
    h = {out.data, out.row};
  }
  if (!in_place) store_rows<E>(m.x_dtype, h, first, rows, n_out, m.y);
}

template <class E>
void forward(const MlpFwd& m) {
  const Packed<E> packed(m, false);
  const int64_t size = kTile<E> * widest<E>(m);
  // Four chunks a thread, but none so small that waking a thread costs as much as it saves.
  const int64_t share = m.n_points / (4 * kTile<E> * max_of(m.threads, 1));
  const int64_t grain = kTile<E> * max_of(kFewestTiles<E>, min_of(share, 2 * kFewestTiles<E>));
  parallel_for(m.threads, m.n_points, grain, [&](int64_t begin, int64_t end) {
    const Scratch<E> scratch(2 * size);
    E* const buffers[2] = {scratch.data(), scratch.data() + size};
    Tiles tiles(sizeof(E) == 2 && active_amx());
    for (int64_t first = begin; first < end; first += kTile<E>) {
      forward_tile<E>(m, packed, first, min_of(kTile<E>, end - first), buffers, tiles.used() ? &tiles : nullptr);
    }
  });
}

// One thread's buffers for a tile of the backward pass.
template <class E>
struct Tape {
  Tape(const Mlp& m, Tiles* tiles) : tiles(tiles), storage(size_of(m)) {
    E* next = storage.data();
    for (E*& buffer : g) buffer = next, next += kTile<E> * widest<E>(m);
    for (int l = 0; l <= m.n_layers; ++l) {
      const int64_t size = kTile<E> * round_to_lanes<E>(m.widths[l]);
      h[l] = next, next += size;
      cosine[l] = next, next += size;
    }
    g_pairs = next, next += pairs_size(m);
    h_pairs = next, next += pairs_size(m);
    g_columns = next;
  }

  static int64_t pairs_size(const Mlp& m) { return kTuple<E> == 1 ? 0 : kTile<E> * widest<E>(m); }

  static int64_t size_of(const Mlp& m) {
    int64_t width = 2 * widest<E>(m);
    for (int l = 0; l <= m.n_layers; ++l) width += 2 * round_to_lanes<E>(m.widths[l]);
    return kTile<E> * width + 3 * pairs_size(m);
  }

  Tiles* tiles;
  Scratch<E> storage;
  E* g[2];
  E* h[mlp_max_layers + 1];
  E* cosine[mlp_max_layers + 1];
  E *g_pairs, *h_pairs, *g_columns;
};

template <class E>
void add_weight_gradient(Matrix<const E> g, Matrix<const E> h, int64_t rows, int64_t out, int64_t in,
                         const Tape<E>& tape, acc_t<E>* sum) {
  Product<E, acc_t<E>> p{};
  p.rows = out, p.columns = round_to_lanes<E>(in), p.depth = rows;
  p.c = sum, p.c_row = p.columns;
  if constexpr (kTuple<E> == 1) {
    p.a = g.data, p.a_row = 1, p.a_k = g.row;
    p.b = h.data, p.b_row = h.row;
  } else {
    const int64_t width = round_to_lanes<E>(out);
    pack_rows(g.data, g.row, rows, width, tape.g_pairs, 2 * width);
    pack_rows(h.data, h.row, rows, p.columns, tape.h_pairs, 2 * p.columns);
    p.a = tape.g_pairs, p.a_row = 2, p.a_k = width;
#if defined(FVX_AMX)
    if (tape.tiles) {
      p.tiles = tape.tiles;
      transpose_pairs(tape.g_pairs, width, (rows + 1) / 2, width, tape.g_columns, kTile<E> / 2);
      p.a = tape.g_columns, p.a_row = kTile<E>, p.a_k = 1;
    }
#endif
    p.b = tape.h_pairs, p.b_row = p.columns;
  }
  multiply<Finish::add>(p);
}

// `sums` holds g_W_l with rows padded to whole vectors, then g_b_l, layer after layer.
template <class E>
void backward_tile(const MlpBwd& m, const Packed<E>& packed, int64_t first, int64_t rows, const Tape<E>& tape,
                   acc_t<E>* sums, const int64_t* sum_of) {
  const int n = m.n_layers;
  Matrix<const E> h[mlp_max_layers + 1];
  h[0] = input_rows<E>(m, first, rows, tape.h[0]);
  const bool sine_out = m.output_activation == Activation::sine;
  for (int l = 1; l < n + int(sine_out); ++l) {
    const int64_t width = m.widths[l], row = round_to_lanes<E>(width);
    const Activation kind = l == n ? m.output_activation : m.activation;
    const Matrix<E> out{tape.h[l], row};
    linear<E>(m, packed, l - 1, kind, h[l - 1], rows, out, tape.tiles);
    if (kind == Activation::sine) {
      sine_rows(out, Matrix<E>{tape.cosine[l], row}, rows, width);
    } else if (kind != Activation::relu) {
      activate_rows(kind, out, rows, width);
    }
    h[l] = {out.data, out.row};
  }

  // g of the output: through its activation, from y as it was stored.
  const int64_t n_out = m.widths[n];
  Matrix<const E> g{static_cast<const E*>(m.g_y) + first * n_out, n_out};
  if (m.output_activation != Activation::none || !usable_in_place<E>(m.x_dtype, n_out)) {
    const Matrix<E> copy{tape.g[n % 2], round_to_lanes<E>(n_out)};
    const Matrix<E> y{sine_out ? tape.cosine[n] : tape.h[n], copy.row};
    load_rows(m.x_dtype, m.g_y, first, rows, n_out, copy);
    if (m.output_activation != Activation::none && !sine_out) load_rows(m.x_dtype, m.y, first, rows, n_out, y);
    through_rows(m.output_activation, copy, Matrix<const E>{y.data, y.row}, rows, n_out);
    g = {copy.data, copy.row};
  }

  for (int l = n; l-- > 0;) {
    const int64_t in = m.widths[l], out = m.widths[l + 1], in_row = round_to_lanes<E>(in);
    if (sums) {
      add_weight_gradient<E>(g, h[l], rows, out, in, tape, sums + sum_of[l]);
      if (m.biases[l]) {
        acc_t<E>* bias = sums + sum_of[l] + out * in_row;
        FVX_SIMD
        for (int64_t j = 0; j < out; ++j) {
          acc_t<E> sum = 0;
          for (int64_t r = 0; r < rows; ++r) sum += to_acc(g.data[r * g.row + j]);
          bias[j] += sum;
        }
      }
    }
    if (l == 0 && !m.g_x) break;
    const bool in_place = l == 0 && usable_in_place<E>(m.x_dtype, in);
    Matrix<E> down{tape.g[l % 2], in_row};
    if (in_place) down = {static_cast<E*>(m.g_x) + first * in, in};
    Product<E> p{};
    p.tiles = tape.tiles;
    p.rows = rows, p.columns = in_row, p.depth = out;
    p.a = g.data, p.a_row = g.row, p.a_k = 1;
    p.b = packed.transposed[l];
    p.c = down.data, p.c_row = down.row;
    p.mask = h[l].data, p.mask_row = h[l].row;
    if (l > 0 && m.activation == Activation::relu) {
      multiply<Finish::relu_mask>(p);
    } else {
      multiply<Finish::store>(p);
      const bool sine = m.activation == Activation::sine;
      if (l > 0) through_rows(m.activation, down, sine ? Matrix<const E>{tape.cosine[l], in_row} : h[l], rows, in);
    }
    g = {down.data, down.row};
    if (l == 0 && !in_place) store_rows<E>(m.x_dtype, g, first, rows, in, m.g_x);
  }
}

// Adds up the chunks' sums in their order and drops the padding.
template <class E>
void reduce_sums(const MlpBwd& m, const acc_t<E>* sums, int64_t n_sums, int64_t stride, const int64_t* sum_of) {
  using A = acc_t<E>;
  FVX_DISPATCH_STORAGE(m.w_dtype, T, {
    T* to = static_cast<T*>(m.g_params);
    for (int l = 0; l < m.n_layers; ++l) {
      const int64_t in = m.widths[l], out = m.widths[l + 1], in_row = round_to_lanes<E>(in);
      const int64_t rows = out + (m.biases[l] ? 1 : 0);
      const int64_t grain = max_of<int64_t>(1, kReduceGrain / (n_sums * in_row + 1));
      parallel_for(m.threads, rows, grain, [&](int64_t begin, int64_t end) {
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
template <class E>
void backward(const MlpBwd& m) {
  using A = acc_t<E>;
  const Packed<E> packed(m, true);
  int64_t sum_of[mlp_max_layers];
  int64_t stride = 0;
  for (int l = 0; l < m.n_layers; ++l) {
    sum_of[l] = stride;
    stride += m.widths[l + 1] * round_to_lanes<E>(m.widths[l]) + (m.biases[l] ? round_to_lanes<E>(m.widths[l + 1]) : 0);
  }
  const int64_t affordable = max_of<int64_t>(8, kSumBytes / (stride * int64_t(sizeof(A)) + 1));
  const int64_t most = min_of(kMaxSums, affordable);
  const int64_t n_tiles = (m.n_points + kTile<E> - 1) / kTile<E>;
  const int64_t grain = kTile<E> * max_of((n_tiles + most - 1) / most, kFewestTiles<E>);
  const int64_t n_sums = (m.n_points + grain - 1) / grain;

  const Scratch<A> sums(m.g_params ? n_sums * stride : 0);
  parallel_for(m.threads, m.n_points, grain, [&](int64_t begin, int64_t end) {
    Tiles tiles(sizeof(E) == 2 && active_amx());
    const Tape<E> tape(m, tiles.used() ? &tiles : nullptr);
    A* mine = m.g_params ? sums.data() + begin / grain * stride : nullptr;
    if (mine) {
      for (int64_t i = 0; i < stride; ++i) mine[i] = 0;
    }
    for (int64_t first = begin; first < end; first += kTile<E>) {
      backward_tile<E>(m, packed, first, min_of(kTile<E>, end - first), tape, mine, sum_of);
    }
  });
  if (m.g_params) reduce_sums<E>(m, sums.data(), n_sums, stride, sum_of);
}

#if defined(FVX_BF16)
// With bf16 weights x, hidden layers and their gradients are rounded to bf16 too, as under autocast, where the
// processor multiplies that twice as fast.
bool multiplies_bf16(const Mlp& m) { return m.w_dtype == DType::bf16 && has_bf16(); }
#endif

}  // namespace

void mlp_fwd(const MlpFwd& m) {
  if (m.x_dtype == DType::f64) return forward<double>(m);
#if defined(FVX_BF16)
  if (multiplies_bf16(m)) return forward<bf16>(m);
#endif
  forward<float>(m);
}

void mlp_bwd(const MlpBwd& m) {
  if (m.x_dtype == DType::f64) return backward<double>(m);
#if defined(FVX_BF16)
  if (multiplies_bf16(m)) return backward<bf16>(m);
#endif
  backward<float>(m);
}

FVX_END_ISA
