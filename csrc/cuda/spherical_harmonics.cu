// Spherical harmonics on the GPU: one thread a direction, every column in registers. A row is up to 256 bytes, so a
// block's rows pass through shared memory to reach global memory coalesced. The long unrolled maths is compiled for
// float and double alone; 16-bit storage is a branch, the same for all threads, at the edges.
#include "fastvfx/kernels.h"
#include "fastvfx/spherical_harmonics.h"
#include "launch.h"

namespace fastvfx {
namespace cuda {
namespace {

using namespace ::fastvfx::device;

// The widest rows, 64 columns, stay below the 48 KiB of shared memory that every launch may use.
template <class A>
constexpr int kThreads = sizeof(A) == 8 ? 64 : 128;

// An odd stride keeps the threads of a warp in different banks.
template <int kColumns>
constexpr int kStride = kColumns | 1;

template <class A>
struct Values {
  A* row;
  FVX_HD void operator()(int column, A value) const { row[column] = value; }
};
template <class A>
struct Tangents {
  A* row;
  FVX_HD void operator()(int column, Dual<A> value) const { row[column] = value.d; }
};
template <class A>
struct Gradients {
  const A* row;
  FVX_HD A operator()(int column) const { return row[column]; }
};

__device__ float load(const void* p, int64_t i, DType dtype, float) {
  if (dtype == DType::f16) return to_acc(static_cast<const f16*>(p)[i]);
  if (dtype == DType::bf16) return to_acc(static_cast<const bf16*>(p)[i]);
  return static_cast<const float*>(p)[i];
}
__device__ double load(const void* p, int64_t i, DType, double) { return static_cast<const double*>(p)[i]; }

__device__ void store(void* p, int64_t i, DType dtype, float x) {
  if (dtype == DType::f16) {
    static_cast<f16*>(p)[i] = from_acc<f16>(x);
  } else if (dtype == DType::bf16) {
    static_cast<bf16*>(p)[i] = from_acc<bf16>(x);
  } else {
    static_cast<float*>(p)[i] = x;
  }
}
__device__ void store(void* p, int64_t i, DType, double x) { static_cast<double*>(p)[i] = x; }

template <class A>
struct Point {
  A x, y, z;
};

template <class A>
__device__ Point<A> load_point(const void* rows, int64_t i, DType dtype, sh::InputMap<A> map) {
  return {map.scale_xy * load(rows, 3 * i, dtype, A()) + map.shift_xy,
          map.scale_xy * load(rows, 3 * i + 1, dtype, A()) + map.shift_xy,
          map.scale_z * load(rows, 3 * i + 2, dtype, A()) + map.shift_z};
}

template <class A>
__device__ void store_gradient(void* rows, int64_t i, DType dtype, sh::InputMap<A> map, A gx, A gy, A gz) {
  store(rows, 3 * i, dtype, map.scale_xy * gx);
  store(rows, 3 * i + 1, dtype, map.scale_xy * gy);
  store(rows, 3 * i + 2, dtype, map.scale_z * gz);
}

// Rows first .. first + live of global memory from and to the block's tile.
template <int kColumns, class A>
__device__ void load_tile(const void* rows, int64_t first, int live, DType dtype, A* tile) {
  for (int i = threadIdx.x; i < live * kColumns; i += kThreads<A>) {
    tile[i / kColumns * kStride<kColumns> + i % kColumns] = load(rows, first * kColumns + i, dtype, A());
  }
}
template <int kColumns, class A>
__device__ void store_tile(const A* tile, int64_t first, int live, DType dtype, void* rows) {
  for (int i = threadIdx.x; i < live * kColumns; i += kThreads<A>) {
    store(rows, first * kColumns + i, dtype, tile[i / kColumns * kStride<kColumns> + i % kColumns]);
  }
}

template <class A>
__device__ int live_rows(int64_t first, int64_t n) {
  return int(min_of<int64_t>(kThreads<A>, n - first));
}

template <class A, int kDegree>
__global__ void __launch_bounds__(kThreads<A>) spherical_harmonics_fwd_kernel(const SphericalHarmonicsFwd a) {
  constexpr int kColumns = kDegree * kDegree;
  __shared__ A tile[kThreads<A> * kStride<kColumns>];
  const auto map = sh::input_map<A>(a);
  for (int64_t first = int64_t(blockIdx.x) * kThreads<A>; first < a.n; first += int64_t(gridDim.x) * kThreads<A>) {
    const int live = live_rows<A>(first, a.n);
    if (threadIdx.x < live) {
      const Point<A> p = load_point<A>(a.dirs, first + threadIdx.x, a.dtype, map);
      sh::evaluate<kDegree>(p.x, p.y, p.z, Values<A>{tile + threadIdx.x * kStride<kColumns>});
    }
    __syncthreads();
    store_tile<kColumns>(tile, first, live, a.dtype, a.out);
    __syncthreads();
  }
}

template <class A, int kDegree>
__global__ void __launch_bounds__(kThreads<A>) spherical_harmonics_bwd_kernel(const SphericalHarmonicsBwd a) {
  constexpr int kColumns = kDegree * kDegree;
  __shared__ A tile[kThreads<A> * kStride<kColumns>];
  const auto map = sh::input_map<A>(a);
  for (int64_t first = int64_t(blockIdx.x) * kThreads<A>; first < a.n; first += int64_t(gridDim.x) * kThreads<A>) {
    const int live = live_rows<A>(first, a.n);
    load_tile<kColumns>(a.g_out, first, live, a.dtype, tile);
    __syncthreads();
    if (threadIdx.x < live) {
      const Point<A> p = load_point<A>(a.dirs, first + threadIdx.x, a.dtype, map);
      A g[3];
      sh::evaluate_gradient<kDegree>(p.x, p.y, p.z, Gradients<A>{tile + threadIdx.x * kStride<kColumns>}, g);
      store_gradient(a.g_dirs, first + threadIdx.x, a.dtype, map, g[0], g[1], g[2]);
    }
    __syncthreads();
  }
}

template <class A, int kDegree>
__global__ void __launch_bounds__(kThreads<A>) spherical_harmonics_bwd_bwd_kernel(const SphericalHarmonicsBwdBwd a) {
  constexpr int kColumns = kDegree * kDegree;
  __shared__ A tile[kThreads<A> * kStride<kColumns>];
  const auto map = sh::input_map<A>(a);
  const sh::InputMap<A> without_shift{map.scale_xy, A(0), map.scale_z, A(0)};
  for (int64_t first = int64_t(blockIdx.x) * kThreads<A>; first < a.n; first += int64_t(gridDim.x) * kThreads<A>) {
    const int live = live_rows<A>(first, a.n);
    load_tile<kColumns>(a.g_out, first, live, a.dtype, tile);
    __syncthreads();
    if (threadIdx.x < live) {
      A* row = tile + threadIdx.x * kStride<kColumns>;
      const Point<A> p = load_point<A>(a.dirs, first + threadIdx.x, a.dtype, map);
      const Point<A> v = load_point<A>(a.gg_dirs, first + threadIdx.x, a.dtype, without_shift);
      const Dual<A> x{p.x, v.x}, y{p.y, v.y}, z{p.z, v.z};
      Dual<A> g[3];
      sh::evaluate_gradient<kDegree>(x, y, z, Gradients<A>{row}, g);
      store_gradient(a.g_dirs, first + threadIdx.x, a.dtype, map, g[0].d, g[1].d, g[2].d);
      sh::evaluate<kDegree>(x, y, z, Tangents<A>{row});  // this thread has read its row; now it may go
    }
    __syncthreads();
    store_tile<kColumns>(tile, first, live, a.dtype, a.gg_out);
    __syncthreads();
  }
}

}  // namespace

// Runs `body` with a double or a float, whose type is that of the maths.
template <class Body>
void with_accumulator(DType dtype, const Body& body) {
  if (dtype == DType::f64) {
    body(double());
  } else {
    body(float());
  }
}

#define FVX_LAUNCH_SH(kernel)                                                                               \
  if (a.n == 0) return;                                                                                     \
  with_accumulator(a.dtype, [&](auto zero) {                                                                \
    using A = decltype(zero);                                                                               \
    const unsigned blocks = grid_for(a.n, kThreads<A>);                                                     \
    const auto stream = static_cast<cudaStream_t>(a.stream);                                                \
    FVX_DISPATCH_SH_DEGREE(a.degree, kDegree, (kernel<A, kDegree><<<blocks, kThreads<A>, 0, stream>>>(a))); \
  });                                                                                                       \
  check_launch(#kernel)

void spherical_harmonics_fwd(const SphericalHarmonicsFwd& a) { FVX_LAUNCH_SH(spherical_harmonics_fwd_kernel); }

void spherical_harmonics_bwd(const SphericalHarmonicsBwd& a) { FVX_LAUNCH_SH(spherical_harmonics_bwd_kernel); }

void spherical_harmonics_bwd_bwd(const SphericalHarmonicsBwdBwd& a) {
  FVX_LAUNCH_SH(spherical_harmonics_bwd_bwd_kernel);
}

#undef FVX_LAUNCH_SH

}  // namespace cuda
}  // namespace fastvfx
