// Spherical harmonics on the CPU: 16 directions at a time, one a vector lane, every column in registers; the tile is
// transposed into rows on its way to memory. Storage types differ only at its edges, so that the long unrolled maths
// is compiled for float and double alone.
#include "fastvfx/spherical_harmonics.h"

#include "pack.h"
#include "parallel.h"
#include "rows.h"

FVX_BEGIN_ISA

namespace {

constexpr int64_t kGrain = 2048;  // directions a chunk, a multiple of kLanes
constexpr int kMaxColumns = 64;

// What sh::evaluate writes to and sh::evaluate_gradient reads from: some lanes of a tile.
template <class A>
struct Values {
  A* tile;
  FVX_HD void operator()(int column, pack_t<A> value) const { store_pack(tile + column * kLanes, value); }
};
template <class A>
struct Tangents {
  A* tile;
  FVX_HD void operator()(int column, Dual<pack_t<A>> value) const { store_pack(tile + column * kLanes, value.d); }
};
template <class A>
struct Gradients {
  const A* tile;
  FVX_HD pack_t<A> operator()(int column) const { return load_pack(tile + column * kLanes); }
};

// What passes between memory and registers for 16 directions: points p, directions of change v.
template <class A>
struct Tiles {
  alignas(64) A p[3][kLanes], v[3][kLanes];
  alignas(64) A columns[kMaxColumns * kLanes], tangents[kMaxColumns * kLanes], scratch[kMaxColumns * kLanes];
};

template <class A, int kDegree>
void evaluate_tile(Tiles<A>& t) {
  for (int i = 0; i < kLanes; i += pack_size<A>) {
    sh::evaluate<kDegree>(load_pack(t.p[0] + i), load_pack(t.p[1] + i), load_pack(t.p[2] + i),
                          Values<A>{t.columns + i});
  }
}

// Reads t.columns, leaves the gradient in t.p.
template <class A, int kDegree>
void gradient_tile(Tiles<A>& t) {
  for (int i = 0; i < kLanes; i += pack_size<A>) {
    pack_t<A> g[3];
    sh::evaluate_gradient<kDegree>(load_pack(t.p[0] + i), load_pack(t.p[1] + i), load_pack(t.p[2] + i),
                                   Gradients<A>{t.columns + i}, g);
    for (int k = 0; k < 3; ++k) store_pack(t.p[k] + i, g[k]);
  }
}

// Reads t.columns and t.v, leaves the change of the gradient in t.p and that of the columns in t.tangents.
template <class A, int kDegree>
void tangent_tile(Tiles<A>& t) {
  using D = Dual<pack_t<A>>;
  for (int i = 0; i < kLanes; i += pack_size<A>) {
    const D x{load_pack(t.p[0] + i), load_pack(t.v[0] + i)};
    const D y{load_pack(t.p[1] + i), load_pack(t.v[1] + i)};
    const D z{load_pack(t.p[2] + i), load_pack(t.v[2] + i)};
    sh::evaluate<kDegree>(x, y, z, Tangents<A>{t.tangents + i});
    D g[3];
    sh::evaluate_gradient<kDegree>(x, y, z, Gradients<A>{t.columns + i}, g);
    for (int k = 0; k < 3; ++k) store_pack(t.p[k] + i, g[k].d);
  }
}

// (n, 3) rows to three lanes of 16, scaled and shifted.
template <class T, class A = acc_t<T>>
void load_points(const T* rows, int live, sh::InputMap<A> map, A (&p)[3][kLanes]) {
  for (int i = 0; i < live; ++i) {
    p[0][i] = map.scale_xy * to_acc(rows[3 * i]) + map.shift_xy;
    p[1][i] = map.scale_xy * to_acc(rows[3 * i + 1]) + map.shift_xy;
    p[2][i] = map.scale_z * to_acc(rows[3 * i + 2]) + map.shift_z;
  }
  for (int i = live; i < kLanes; ++i) p[0][i] = p[1][i] = p[2][i] = A(0);
}

// Three lanes of 16 to (n, 3) rows, by the derivative of the input map.
template <class T, class A = acc_t<T>>
void store_gradient(const A (&g)[3][kLanes], int live, sh::InputMap<A> map, T* rows) {
  for (int i = 0; i < live; ++i) {
    rows[3 * i] = from_acc<T>(map.scale_xy * g[0][i]);
    rows[3 * i + 1] = from_acc<T>(map.scale_xy * g[1][i]);
    rows[3 * i + 2] = from_acc<T>(map.scale_z * g[2][i]);
  }
}

template <class T, class Args, class Body>
void for_each_tile(const Args& a, const Body& body) {
  parallel_for(a.threads, a.n, kGrain, [&](int64_t begin, int64_t end) {
    Tiles<acc_t<T>> t;
    for (int64_t first = begin; first < end; first += kLanes) {
      const int live = int(end - first < kLanes ? end - first : int64_t(kLanes));
      load_points(static_cast<const T*>(a.dirs) + 3 * first, live, sh::input_map<acc_t<T>>(a), t.p);
      body(first, live, t);
    }
  });
}

template <class T>
void forward(const SphericalHarmonicsFwd& a) {
  using A = acc_t<T>;
  const int columns = a.degree * a.degree;
  for_each_tile<T>(a, [&](int64_t first, int live, Tiles<A>& t) {
    FVX_DISPATCH_SH_DEGREE(a.degree, kDegree, evaluate_tile<A, kDegree>(t));
    store_rows<T>(t.columns, columns, live, static_cast<T*>(a.out) + first * columns, t.scratch);
  });
}

template <class T>
void backward(const SphericalHarmonicsBwd& a) {
  using A = acc_t<T>;
  const int columns = a.degree * a.degree;
  for_each_tile<T>(a, [&](int64_t first, int live, Tiles<A>& t) {
    load_rows<T>(static_cast<const T*>(a.g_out) + first * columns, columns, live, t.columns, t.scratch);
    FVX_DISPATCH_SH_DEGREE(a.degree, kDegree, gradient_tile<A, kDegree>(t));
    store_gradient(t.p, live, sh::input_map<A>(a), static_cast<T*>(a.g_dirs) + 3 * first);
  });
}

template <class T>
void backward_backward(const SphericalHarmonicsBwdBwd& a) {
  using A = acc_t<T>;
  const int columns = a.degree * a.degree;
  const auto map = sh::input_map<A>(a);
  for_each_tile<T>(a, [&](int64_t first, int live, Tiles<A>& t) {
    const sh::InputMap<A> without_shift{map.scale_xy, A(0), map.scale_z, A(0)};
    load_points(static_cast<const T*>(a.gg_dirs) + 3 * first, live, without_shift, t.v);
    load_rows<T>(static_cast<const T*>(a.g_out) + first * columns, columns, live, t.columns, t.scratch);
    FVX_DISPATCH_SH_DEGREE(a.degree, kDegree, tangent_tile<A, kDegree>(t));
    store_gradient(t.p, live, map, static_cast<T*>(a.g_dirs) + 3 * first);
    store_rows<T>(t.tangents, columns, live, static_cast<T*>(a.gg_out) + first * columns, t.scratch);
  });
}

}  // namespace

void spherical_harmonics_fwd(const SphericalHarmonicsFwd& a) { FVX_DISPATCH_STORAGE(a.dtype, T, forward<T>(a)); }

void spherical_harmonics_bwd(const SphericalHarmonicsBwd& a) { FVX_DISPATCH_STORAGE(a.dtype, T, backward<T>(a)); }

void spherical_harmonics_bwd_bwd(const SphericalHarmonicsBwdBwd& a) {
  FVX_DISPATCH_STORAGE(a.dtype, T, backward_backward<T>(a));
}

FVX_END_ISA
