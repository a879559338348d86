// Marching rays through an occupancy bitfield: arguments and the maths of one ray.
//
// The steps of a ray lie on a lattice t_0 < t_1 < ... known in closed form. Sample k is the interval [t_k, t_{k+1}];
// the ray has it if and only if the middle of the interval is in an occupied cell. Skipping empty space only chooses
// which k is looked at next: every skip is rounded towards staying in the cell, so the samples are those of looking at
// every k, to the bit, and k only grows, so every march ends. Nothing is summed up on the way: a ray that starts 40,000
// units away costs what any other costs and its steps are as even as the output type can say.
//
// Compile without contraction to fused multiply-adds: then every processor computes the same positions.
#pragma once

#include <cmath>

#include "fastvfx/aabb.h"
#include "fastvfx/hash.h"
#include "fastvfx/math.h"
#include "fastvfx/occupancy.h"

namespace fastvfx {

constexpr int march_max_levels = 8;

struct MarchRays {
  DType dtype;  // f32 or f64: rays, boxes, near, far, t
  int64_t n_rays;
  const void* rays_o;  // (R, 3)
  const void* rays_d;  // (R, 3)
  const void* nears;   // (R,) or null: `near` for all
  const void* fars;    // (R,) or null: `far` for all
  double near, far;
  int levels;
  int64_t res[3];
  const uint64_t* bits;  // (levels, words)
  const void* aabbs;     // (levels, 6): of the boxes around a point the first counts
  double step;           // <= 0: one sample per occupied cell
  double cone_angle, max_step;
  int64_t max_samples;  // per ray
  bool jitter;
  int64_t seed;
  const int64_t* seed_tensor;  // in place of `seed` if not null
  int threads;
  void* stream;
};

struct MarchCount : MarchRays {
  int64_t* offsets;  // (R + 1): exclusive sums of the rays' samples
  int64_t* scratch;  // CUDA: march_scratch_words(R)
  void** log;        // CPU: receives what march_write needs, to be given to march_release
};

// A ray that does not fit into `capacity` as a whole is left out, and so are all rays behind it.
struct MarchWrite : MarchRays {
  const int64_t* sums;  // (R + 1) from march_count
  void* log;
  int64_t capacity;
  void* t_starts;        // (capacity)
  void* t_ends;          // (capacity)
  int32_t* ray_indices;  // (capacity), -1 behind the last sample
  int64_t* offsets;      // (R + 1) or null: sums, up to the last ray that fits
  int64_t* overflow;     // (1) or null: how many rays were left out
};

struct MarchRelease {
  void* log;
};

constexpr int march_block = 128;  // rays per CUDA block
constexpr int64_t march_scratch_words(int64_t n_rays) { return 1 + (n_rays + march_block - 1) / march_block; }

}  // namespace fastvfx

FVX_BEGIN_ISA

// Of the non-decreasing `sums`, sums[0] = 0, how many rays fit into `capacity` as a whole.
FVX_HD int64_t rays_that_fit(const int64_t* sums, int64_t n_rays, int64_t capacity) {
  int64_t fit = 0, over = n_rays + 1;  // sums[fit] <= capacity < sums[over]
  while (over - fit > 1) {
    const int64_t middle = fit + (over - fit) / 2;
    if (sums[middle] <= capacity) {
      fit = middle;
    } else {
      over = middle;
    }
  }
  return fit;
}

constexpr double lattice_end = 1099511627776.0;  // 2^40: steps behind it are not looked at

// Uniform in [0, 1), a multiple of 2^-24: a function of seed and ray alone.
FVX_HD double jitter_of(uint64_t mixed_seed, int64_t ray) {
  return double(int64_t(mix64(mixed_seed + uint64_t(ray) * golden_step) >> 40)) * 5.9604644775390625e-08;
}

// t_k for k = 0, 1, ..., without a cone angle.
struct EvenLattice {
  double t0, step;

  FVX_HD double t(double k) const { return t0 + k * step; }
  FVX_HD double middle(double k) const { return t0 + (k + 0.5) * step; }
  // The real k with middle(k) = m, up to rounding.
  FVX_HD double index(double m) const { return (m - t0) / step - 0.5; }
};

// t_{k+1} - t_k = clamp(cone t_k, step, max_step): even up to k1, then geometric, even again from k2 on.
struct ConeLattice {
  double t0, step, cone, max_step, k1, t1, log_ratio, k2, t2;

  FVX_HD double t(double k) const {
    if (k <= k1) return t0 + k * step;
    if (k <= k2) return t1 * ::exp2((k - k1) * log_ratio);
    return t2 + (k - k2) * max_step;
  }
  FVX_HD double middle(double k) const { return 0.5 * (t(k) + t(k + 1.0)); }
  FVX_HD double index(double m) const {
    const double k = (m - t0) / step - 0.5;
    if (!(k >= k1)) return k;
    const double first = t1 * (1.0 + 0.5 * cone);
    const double g = m <= first ? k1 : k1 + ::log2(m / first) / log_ratio;
    if (!(g >= k2)) return g;
    return max_of(k2, k2 + (m - t2) / max_step - 0.5);
  }
};

FVX_HD ConeLattice make_cone_lattice(double t0, double step, double cone, double max_step) {
  ConeLattice s{t0, step, cone, max_step, 0.0, 0.0, ::log2(1.0 + cone), HUGE_VAL, 0.0};
  const double k1 = ::ceil((step / cone - t0) / step);
  s.k1 = k1 > 0.0 ? k1 : 0.0;
  s.t1 = t0 + s.k1 * step;
  if (is_finite(max_step)) {
    const double n = ::ceil(::log2(max_step / cone / s.t1) / s.log_ratio);
    s.k2 = s.k1 + (n > 0.0 ? n : 0.0);
    s.t2 = s.t1 * ::exp2((s.k2 - s.k1) * s.log_ratio);
  }
  return s;
}

// The smallest k >= 0 with middle(k) >= m. Without branches, for loops over rays.
template <class Lattice>
FVX_HD double first_at(const Lattice& lattice, double m) {
  const double k = max_of(0.0, ::ceil(lattice.index(m)));
  const double below = k > 0.0 && lattice.middle(k - 1.0) >= m ? k - 1.0 : k;
  const double right = lattice.middle(k) < m ? k + 1.0 : below;
  return k < lattice_end ? right : lattice_end;
}

struct MarchRay {
  double o[3], d[3], near, far, jitter;
  bool valid;
};

template <class P>
FVX_HD MarchRay load_ray(const MarchRays& a, int64_t ray) {
  const P* o = static_cast<const P*>(a.rays_o) + 3 * ray;
  const P* d = static_cast<const P*>(a.rays_d) + 3 * ray;
  MarchRay r{
      {double(o[0]), double(o[1]), double(o[2])}, {double(d[0]), double(d[1]), double(d[2])}, a.near, a.far, 0, 0};
  if (a.nears) r.near = double(static_cast<const P*>(a.nears)[ray]);
  if (a.fars) r.far = double(static_cast<const P*>(a.fars)[ray]);
  r.valid = is_ray(r.o, r.d) & is_finite(r.near) & (r.far > r.near);
  return r;
}

template <class P>
FVX_HD MarchRay load_jittered(const MarchRays& a, int64_t ray, uint64_t mixed_seed) {
  MarchRay r = load_ray<P>(a, ray);
  if (a.jitter) r.jitter = jitter_of(mixed_seed, ray);
  return r;
}

FVX_HD uint64_t mixed_seed_of(const MarchRays& a) {
  return a.jitter ? mix64(uint64_t(a.seed_tensor ? *a.seed_tensor : a.seed)) : 0;
}

enum class MarchMode { even, cone, cells };

FVX_HD MarchMode mode_of(const MarchRays& a) {
  return a.step > 0.0 ? (a.cone_angle > 0.0 ? MarchMode::cone : MarchMode::even) : MarchMode::cells;
}

// The jitter moves the whole lattice by a part of its first step. (There is none of cells.)
template <MarchMode kMode>
FVX_HD auto lattice_of(const MarchRays& a, const MarchRay& r) {
  if constexpr (kMode == MarchMode::cone) {
    const double first = min_of(max_of(a.cone_angle * r.near, a.step), a.max_step);
    return make_cone_lattice(r.near + r.jitter * first, a.step, a.cone_angle, a.max_step);
  } else {
    return EvenLattice{r.near + r.jitter * a.step, a.step};
  }
}

// Where the ray is in the box of a level; empty unless lo < hi.
template <class P>
FVX_HD Interval<double> inside(const MarchRays& a, const MarchRay& r, int level) {
  const P* box = static_cast<const P*>(a.aabbs) + 6 * level;
  const double wide[6] = {double(box[0]), double(box[1]), double(box[2]),
                          double(box[3]), double(box[4]), double(box[5])};
  const bool ok = r.valid & (wide[0] < wide[3]) & (wide[1] < wide[4]) & (wide[2] < wide[5]);
  const Interval<double> t = intersect_box(r.o, r.d, wide);
  return {ok ? max_of(t.lo, r.near) : 0.0, ok ? min_of(t.hi, r.far) : 0.0};
}

// One axis of a stretch of the ray in one level: the position in units of cells is a + b u, where u is the parameter of
// the walk. The plane p is reached no earlier than u = (p - shifted) inverse.
template <class T>
struct AxisLine {
  T a, b, inverse, shifted;
};

// `slack` is above the rounding of a + b u and of the plane's u together.
template <class T>
FVX_HD AxisLine<T> make_axis(T a, T b, T slack) {
  const T size = b < T(0) ? -b : b;
  const bool moves = size > T(1e-30);
  const T shifted = a + (b > T(0) ? slack : -slack);
  const T inverse = T(1) / b;
  return {a, moves ? b : T(0), moves ? inverse : T(1), moves ? shifted : T(-HUGE_VAL)};
}

// u counts steps from the one whose middle is m: as few digits as possible are spent on where the ray comes from.
template <class T>
FVX_HD AxisLine<T> even_axis(double o, double d, double lower, double upper, double res, double m, double step) {
  const double scale = res / (upper - lower);
  const T slack = T(res) * (sizeof(T) == 4 ? T(4.76837158203125e-07) : T(8.881784197001252e-16));
  return make_axis(T(((o - lower) + d * m) * scale), T((d * scale) * step), slack);
}

template <class T>
struct CellLine {
  AxisLine<T> axis[3];
};

template <class T, class P>
FVX_HD CellLine<T> even_line(const MarchRays& a, const MarchRay& r, const EvenLattice& lattice, int level, double k) {
  const P* box = static_cast<const P*>(a.aabbs) + 6 * level;
  const double m = lattice.middle(k);
  CellLine<T> s;
  for (int i = 0; i < 3; ++i) {
    s.axis[i] = even_axis<T>(r.o[i], r.d[i], double(box[i]), double(box[3 + i]), double(a.res[i]), m, lattice.step);
  }
  return s;
}

// u is t itself.
template <class P>
FVX_HD CellLine<double> line_of(const MarchRays& a, const MarchRay& r, int level) {
  const P* box = static_cast<const P*>(a.aabbs) + 6 * level;
  CellLine<double> s;
  for (int i = 0; i < 3; ++i) {
    const double scale = double(a.res[i]) / (double(box[3 + i]) - double(box[i]));
    const double start = (r.o[i] - double(box[i])) * scale;
    const double slack = (double(a.res[i]) + (start < 0 ? -start : start)) * 3.552713678800501e-15;
    s.axis[i] = make_axis(start, r.d[i] * scale, slack);
  }
  return s;
}

struct EvenSteps {  // u = k - the line's first k
  template <class T>
  FVX_HD T at(T j) const {
    return j;
  }
  template <class T>
  FVX_HD T not_before(T u) const {
    return T(::ceil(u));
  }
};

struct ConeSteps {  // u = t
  const ConeLattice& lattice;
  FVX_HD double at(double k) const { return lattice.middle(k); }
  FVX_HD double not_before(double t) const { return ::ceil(lattice.index(t) * (1.0 - 1e-12) - 1e-9); }
};

FVX_HD int clamp_cell(int cell, int res) { return max_of(0, min_of(cell, res - 1)); }

// The cells around one that are all like it: 3 for the whole brick, 1 for its 2 x 2 x 2 block, 0 for itself alone.
FVX_HD int uniform_mask(uint64_t word, int bit) {
  if (word == 0 || word == ~uint64_t(0)) return 3;
  const uint32_t block = uint32_t(word >> (bit & 42)) & 0x330033u;
  return block == 0 || block == 0x330033u ? 1 : 0;
}

template <class T>
FVX_HD T exit_plane(int cell, int mask, T direction) {
  return T(direction >= T(0) ? (cell | mask) + 1 : cell & ~mask);
}

// Calls keep(k, k') for stretches of kept steps of [k, end), in order, until it returns false.
template <class T, class Steps, class Keep>
FVX_HD bool walk(const CellLine<T>& s, const Steps& steps, const uint64_t* bits, const int64_t* res, T k, T end,
                 const Keep& keep) {
  const int ny = int(bricks_of(res[1])), nz = int(bricks_of(res[2]));
  while (k < end) {
    const T u = steps.at(k);
    const int x = clamp_cell(int(s.axis[0].a + s.axis[0].b * u), int(res[0]));
    const int y = clamp_cell(int(s.axis[1].a + s.axis[1].b * u), int(res[1]));
    const int z = clamp_cell(int(s.axis[2].a + s.axis[2].b * u), int(res[2]));
    const uint64_t word = bits[(int64_t(x >> 2) * ny + (y >> 2)) * nz + (z >> 2)];
    const int bit = brick_bit(x, y, z), mask = uniform_mask(word, bit);
    const T ux = (exit_plane(x, mask, s.axis[0].b) - s.axis[0].shifted) * s.axis[0].inverse;
    const T uy = (exit_plane(y, mask, s.axis[1].b) - s.axis[1].shifted) * s.axis[1].inverse;
    const T uz = (exit_plane(z, mask, s.axis[2].b) - s.axis[2].shifted) * s.axis[2].inverse;
    T next = steps.not_before(min_of(ux, min_of(uy, uz)));
    next = min_of(max_of(next, k + T(1)), end);
    if (((word >> bit) & 1) && !keep(k, next)) return false;
    k = next;
  }
  return true;
}

struct Steps {
  double begin, end;
};

// The parts of a ray that lie in one level each, in order: calls visit(level, first k in the level, part) until it
// returns false. Where boxes overlap the first level counts.
template <class P, class Lattice, class Visit>
FVX_HD void for_each_part(const MarchRays& a, const MarchRay& r, const Lattice& lattice, const Visit& visit) {
  Steps level_steps[march_max_levels];
  double k = HUGE_VAL;
  for (int l = 0; l < a.levels; ++l) {
    const Interval<double> t = inside<P>(a, r, l);
    level_steps[l] = {0.0, 0.0};
    if (!(t.lo < t.hi)) continue;
    level_steps[l] = {first_at(lattice, t.lo), first_at(lattice, t.hi)};
    if (level_steps[l].begin < level_steps[l].end) k = min_of(k, level_steps[l].begin);
  }
  while (k < HUGE_VAL) {
    int level = -1;
    double end = HUGE_VAL;
    for (int l = 0; l < a.levels && level < 0; ++l) {
      const Steps s = level_steps[l];
      if (s.begin >= s.end || k >= s.end) continue;
      if (s.begin <= k) {
        level = l;
        end = min_of(end, s.end);
      } else {
        end = min_of(end, s.begin);
      }
    }
    if (level >= 0 && !visit(level, level_steps[level].begin, Steps{k, end})) return;
    k = end;
  }
}

// Longest part that floats count exactly with room to spare; longer ones are walked in double precision.
constexpr double float_steps = 4194304.0;  // 2^22

template <class P, class Lattice, class Keep>
FVX_HD void march_steps(const MarchRays& a, const MarchRay& r, const Lattice& lattice, const Keep& keep) {
  const int64_t words = brick_words(a.res);
  for_each_part<P>(a, r, lattice, [&](int level, double first, Steps part) {
    const uint64_t* bits = a.bits + level * words;
    if constexpr (sizeof(Lattice) == sizeof(ConeLattice)) {
      return walk(line_of<P>(a, r, level), ConeSteps{lattice}, bits, a.res, part.begin, part.end, keep);
    } else {
      const double begin = part.begin - first, end = part.end - first;
      const auto keep_even = [&](double j, double j_end) { return keep(first + j, first + j_end); };
      if (sizeof(P) == 4 && end < float_steps) {
        return walk(even_line<float, P>(a, r, lattice, level, first), EvenSteps{}, bits, a.res, float(begin),
                    float(end), keep_even);
      }
      return walk(even_line<double, P>(a, r, lattice, level, first), EvenSteps{}, bits, a.res, begin, end, keep_even);
    }
  });
}

// One sample per occupied cell: calls keep(t_in, t_out) in order until it returns false. Cells are entered one by one;
// along each axis the planes are numbered, so their t is in closed form too.
template <class P, class Keep>
FVX_HD bool cells_in_level(const MarchRays& a, const MarchRay& r, int level, double t, double t_end, const Keep& keep) {
  const CellLine<double> s = line_of<P>(a, r, level);
  const uint64_t* bits = a.bits + level * brick_words(a.res);
  const int64_t ny = bricks_of(a.res[1]), nz = bricks_of(a.res[2]);
  int cell[3] = {0, 0, 0};
  double exit[3] = {0, 0, 0};
  const auto exit_at = [&](int i) {
    if (s.axis[i].b == 0.0) return double(HUGE_VAL);
    return (exit_plane(cell[i], 0, s.axis[i].b) - s.axis[i].a) * s.axis[i].inverse;
  };
  for (int i = 0; i < 3; ++i) {
    cell[i] = clamp_cell(int(s.axis[i].a + s.axis[i].b * t), int(a.res[i]));
    exit[i] = exit_at(i);
  }
  while (t < t_end) {
    const double t_exit = min_of(min_of(exit[0], exit[1]), min_of(exit[2], t_end));
    const uint64_t word = bits[((cell[0] >> 2) * ny + (cell[1] >> 2)) * nz + (cell[2] >> 2)];
    if (t_exit > t) {
      if (((word >> brick_bit(cell[0], cell[1], cell[2])) & 1) && !keep(t, t_exit)) return false;
      t = t_exit;
    }
    for (int i = 0; i < 3; ++i) {
      if (exit[i] > t_exit) continue;
      cell[i] += s.axis[i].b > 0.0 ? 1 : -1;
      if (cell[i] < 0 || cell[i] >= a.res[i]) return true;
      exit[i] = exit_at(i);
    }
  }
  return true;
}

template <class P, class Keep>
FVX_HD void march_cells(const MarchRays& a, const MarchRay& r, const Keep& keep) {
  Interval<double> levels[march_max_levels];
  double t = HUGE_VAL;
  for (int l = 0; l < a.levels; ++l) {
    levels[l] = inside<P>(a, r, l);
    if (!(levels[l].lo < levels[l].hi)) levels[l] = {0.0, 0.0};
    if (levels[l].lo < levels[l].hi) t = min_of(t, levels[l].lo);
  }
  while (t < HUGE_VAL) {
    int level = -1;
    double end = HUGE_VAL;
    for (int l = 0; l < a.levels && level < 0; ++l) {
      if (levels[l].lo >= levels[l].hi || t >= levels[l].hi) continue;
      if (levels[l].lo <= t) level = l;
      end = min_of(end, levels[l].lo <= t ? levels[l].hi : levels[l].lo);
    }
    if (level >= 0 && !cells_in_level<P>(a, r, level, t, end, keep)) return;
    t = end;
  }
}

// Calls keep(begin, end) in order until it returns false: for stretches of kept steps [k, k'), or, of `cells`, for
// every sample [t_in, t_out).
template <class P, MarchMode kMode, class Lattice, class Keep>
FVX_HD void march_ray(const MarchRays& a, const MarchRay& r, const Lattice& lattice, const Keep& keep) {
  if constexpr (kMode == MarchMode::cells) {
    march_cells<P>(a, r, keep);
  } else {
    march_steps<P>(a, r, lattice, keep);
  }
}

FVX_END_ISA

// Runs the body with `P` bound to the type of the rays and `kMode` to the mode.
#define FVX_DISPATCH_MARCH(args, P, kMode, ...)         \
  do {                                                  \
    const auto with_type = [&](auto zero) {             \
      using P = decltype(zero);                         \
      switch (mode_of(args)) {                          \
        case MarchMode::even: {                         \
          constexpr MarchMode kMode = MarchMode::even;  \
          __VA_ARGS__;                                  \
          break;                                        \
        }                                               \
        case MarchMode::cone: {                         \
          constexpr MarchMode kMode = MarchMode::cone;  \
          __VA_ARGS__;                                  \
          break;                                        \
        }                                               \
        case MarchMode::cells: {                        \
          constexpr MarchMode kMode = MarchMode::cells; \
          __VA_ARGS__;                                  \
          break;                                        \
        }                                               \
      }                                                 \
    };                                                  \
    if ((args).dtype == ::fastvfx::DType::f64) {        \
      with_type(0.0);                                   \
    } else {                                            \
      with_type(0.0f);                                  \
    }                                                   \
  } while (false)
