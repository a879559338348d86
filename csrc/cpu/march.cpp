// Marching on the CPU. march_count walks the grid once and keeps the stretches of occupied steps (or cells);
// march_write turns them into samples when their number, and with it the place of each ray, is known.
#include "fastvfx/march.h"

#include <new>

#include "march_avx512.h"
#include "march_log.h"
#include "parallel.h"

FVX_BEGIN_ISA

namespace {

constexpr int64_t kTileRays = 512;

int64_t tiles_of(int64_t n_rays) { return (n_rays + kTileRays - 1) / kTileRays; }

// Ray by ray; fills counts (not yet summed) of the tile's rays.
template <class P, MarchMode kMode>
bool count_tile(const MarchRays& a, int64_t begin, int64_t end, uint64_t seed, int64_t* counts, MarchTile& tile) {
  Growing<MarchTile::Run> runs;
  Growing<int64_t> run_ends;
  bool ok = run_ends.reserve(end - begin);
  for (int64_t ray = begin; ok && ray < end; ++ray) {
    const MarchRay r = load_jittered<P>(a, ray, seed);
    const int64_t first_run = runs.size;
    int64_t count = 0;
    const auto lattice = lattice_of<kMode>(a, r);
    march_ray<P, kMode>(a, r, lattice, [&](double k, double k_end) {
      if constexpr (kMode == MarchMode::cells) {
        runs.push({k, k_end});
        ++count;
      } else {
        k_end = min_of(k_end, k + double(a.max_samples - count));
        count += int64_t(k_end - k);
        if (runs.size > first_run && runs.data[runs.size - 1].end == k) {
          runs.data[runs.size - 1].end = k_end;
        } else {
          runs.push({k, k_end});
        }
      }
      return count < a.max_samples && !runs.failed;
    });
    counts[ray - begin] = count;
    run_ends.push(runs.size);
    ok = !runs.failed;
  }
  tile.runs = runs.data;
  tile.run_ends = run_ends.data;
  return ok;
}

template <class P, MarchMode kMode>
void write_runs(const MarchWrite& a, int64_t begin, int64_t end, uint64_t seed, const MarchTile& tile) {
  P* t_starts = static_cast<P*>(a.t_starts);
  P* t_ends = static_cast<P*>(a.t_ends);
  const MarchTile::Run* run = tile.runs;
  for (int64_t ray = begin; ray < end; ++ray) {
    if (a.sums[ray + 1] > a.capacity) return;
    const MarchTile::Run* last = tile.runs + tile.run_ends[ray - begin];
    const auto lattice = lattice_of<kMode>(a, load_jittered<P>(a, ray, seed));
    int64_t i = a.sums[ray];
    for (; run < last; ++run) {
      if constexpr (kMode != MarchMode::cells) {
        P t = P(lattice.t(run->begin));
        for (double k = run->begin; k < run->end; ++k, ++i) {
          t_starts[i] = t;
          t_ends[i] = t = P(lattice.t(k + 1.0));
        }
      } else {
        t_starts[i] = P(run->begin);
        t_ends[i++] = P(run->end);
      }
    }
    for (int64_t s = a.sums[ray]; s < i; ++s) a.ray_indices[s] = int32_t(ray);
  }
}

#if defined(__AVX512F__)

FVX_HD void set_lane(Lanes& lanes, int i, int n, const AxisLine<float>& axis) {
  lanes.a[i][n] = axis.a;
  lanes.b[i][n] = axis.b;
  lanes.inverse[i][n] = axis.inverse;
  lanes.shifted[i][n] = axis.shifted;
}

// Of a single level each ray is one part: loops without branches over what for_each_part does. False if a part is too
// long for floats.
bool fill_lanes_of_one_level(const MarchRays& a, int64_t begin, int64_t end, uint64_t seed, Lanes& lanes,
                             MarchTile::Part* parts) {
  const int n = int(end - begin);
  const double step = a.step;
  double near[kTileRays], far[kTileRays], t0[kTileRays], lo[kTileRays], hi[kTileRays], first[kTileRays];
  double middle[kTileRays], unfit[kTileRays], length[kTileRays];
  for (int i = 0; i < n; ++i) near[i] = a.nears ? double(static_cast<const float*>(a.nears)[begin + i]) : a.near;
  for (int i = 0; i < n; ++i) far[i] = a.fars ? double(static_cast<const float*>(a.fars)[begin + i]) : a.far;
  for (int i = 0; i < n; ++i) t0[i] = near[i] + (a.jitter ? jitter_of(seed, begin + i) * step : 0.0);
  for (int i = 0; i < n; ++i) {
    lo[i] = near[i];
    hi[i] = far[i];
    unfit[i] = near[i] - near[i];  // NaN of a NaN or an infinity, else 0
    length[i] = 0.0;
  }
  const float* box = static_cast<const float*>(a.aabbs);
  for (int axis = 0; axis < 3; ++axis) {
    const float* o = static_cast<const float*>(a.rays_o) + 3 * begin + axis;
    const float* d = static_cast<const float*>(a.rays_d) + 3 * begin + axis;
    const double lower = double(box[axis]), upper = double(box[3 + axis]);
    FVX_SIMD
    for (int i = 0; i < n; ++i) {
      const double oi = double(o[3 * i]), di = double(d[3 * i]);
      const Interval<double> t = slab(oi, di, lower, upper);
      lo[i] = max_of(t.lo, lo[i]);
      hi[i] = min_of(t.hi, hi[i]);
      unfit[i] += (oi - oi) + (di - di);
      length[i] += di < 0.0 ? -di : di;
    }
  }
  const bool is_box = box[0] < box[3] && box[1] < box[4] && box[2] < box[5];
  double longest = 0.0;
#pragma omp simd reduction(max : longest)
  for (int i = 0; i < n; ++i) {
    const EvenLattice lattice{t0[i], step};
    const double k = first_at(lattice, lo[i]), k_end = first_at(lattice, hi[i]);
    const bool some = (lo[i] < hi[i]) & (far[i] > near[i]) & (unfit[i] == 0.0) & (length[i] > 0.0) & is_box;
    const double steps = some ? k_end - k : 0.0;
    first[i] = k;
    middle[i] = lattice.middle(k);
    lanes.end[i] = float(steps);
    longest = longest < steps ? steps : longest;
  }
  for (int axis = 0; axis < 3; ++axis) {
    const float* o = static_cast<const float*>(a.rays_o) + 3 * begin + axis;
    const float* d = static_cast<const float*>(a.rays_d) + 3 * begin + axis;
    const double lower = double(box[axis]), upper = double(box[3 + axis]), res = double(a.res[axis]);
    float *as = lanes.a[axis], *bs = lanes.b[axis], *inverses = lanes.inverse[axis], *shifteds = lanes.shifted[axis];
    FVX_SIMD
    for (int i = 0; i < n; ++i) {
      const AxisLine<float> line =
          even_axis<float>(double(o[3 * i]), double(d[3 * i]), lower, upper, res, middle[i], step);
      as[i] = line.a;
      bs[i] = line.b;
      inverses[i] = line.inverse;
      shifteds[i] = line.shifted;
    }
  }
  for (int i = 0; i < n; ++i) lanes.begin[i] = 0.0f;
  for (int i = 0; i < n; ++i) lanes.level_offset[i] = 0;
  for (int i = 0; i < n; ++i) parts[i] = {first[i], i, 0};
  lanes.size = n;
  return longest < float_steps;
}

// Parts of the tile's rays as lanes; false if one is too long for floats or there are too many.
bool fill_lanes(const MarchRays& a, int64_t begin, int64_t end, uint64_t seed, Lanes& lanes, MarchTile::Part* parts) {
  const int64_t words = brick_words(a.res);
  bool fits = true;
  for (int64_t ray = begin; fits && ray < end; ++ray) {
    const MarchRay r = load_jittered<float>(a, ray, seed);
    const EvenLattice lattice = lattice_of<MarchMode::even>(a, r);
    for_each_part<float>(a, r, lattice, [&](int level, double first, Steps steps) {
      fits = lanes.size < Lanes::capacity && steps.end - first < float_steps;
      if (!fits) return false;
      const int n = lanes.size++;
      const CellLine<float> line = even_line<float, float>(a, r, lattice, level, first);
      for (int i = 0; i < 3; ++i) set_lane(lanes, i, n, line.axis[i]);
      lanes.begin[n] = float(steps.begin - first);
      lanes.end[n] = float(steps.end - first);
      lanes.level_offset[n] = int32_t(level * words);
      parts[n] = {first, int32_t(ray - begin), 0};
      return true;
    });
  }
  return fits;
}

bool count_tile_avx512(const MarchRays& a, const SkipWords& skip, int64_t begin, int64_t end, uint64_t seed,
                       int64_t* counts, MarchTile& tile) {
  Lanes lanes;
  MarchTile::Part parts[Lanes::capacity];
  const auto fill = a.levels == 1 ? fill_lanes_of_one_level : fill_lanes;
  if (!fill(a, begin, end, seed, lanes, parts))
    return count_tile<float, MarchMode::even>(a, begin, end, seed, counts, tile);
  Growing<uint32_t> begins, parts_lengths;
  begins.reserve(4096);
  parts_lengths.reserve(4096);
  walk_lanes(a, skip, lanes, begins, parts_lengths);
  for (int64_t i = 0; i < end - begin; ++i) counts[i] = 0;
  for (int i = 0; i < lanes.size; ++i) {
    int64_t& of_ray = counts[parts[i].ray];
    parts[i].count = uint32_t(min_of<int64_t>(lanes.count[i], a.max_samples - of_ray));
    of_ray += parts[i].count;
  }
  tile.parts = static_cast<MarchTile::Part*>(std::malloc(sizeof(MarchTile::Part) * size_t(lanes.size + 1)));
  if (tile.parts) __builtin_memcpy(tile.parts, parts, sizeof(MarchTile::Part) * size_t(lanes.size));
  tile.begins = begins.data;
  tile.parts_lengths = parts_lengths.data;
  tile.n_parts = lanes.size;
  tile.n_stretches = begins.size;
  return tile.parts && !begins.failed && !parts_lengths.failed;
}

#endif

// Samples of one part, whose steps are first + js[0], first + js[1], ...
void write_part(const MarchWrite& a, const EvenLattice& lattice, double first, const float* js, int64_t n, int32_t ray,
                int64_t i) {
  float* t_starts = static_cast<float*>(a.t_starts) + i;
  float* t_ends = static_cast<float*>(a.t_ends) + i;
  int32_t* ray_indices = a.ray_indices + i;
  FVX_SIMD
  for (int64_t s = 0; s < n; ++s) {
    const double k = first + double(js[s]);
    t_starts[s] = float(lattice.t(k));
    t_ends[s] = float(lattice.t(k + 1.0));
    ray_indices[s] = ray;
  }
}

constexpr int kOverrun = 16;  // how far list_steps may write behind the end of a part

// The steps of each part in a row. Most stretches are short: each is written as 16 steps, and what is too much is
// overwritten by the next.
void list_steps(const MarchTile& tile, float* js, int64_t* cursors, const int64_t* ends) {
  for (int64_t s = 0; s < tile.n_stretches; ++s) {
    const uint32_t p = tile.parts_lengths[s] & 0xffffu;
    const int64_t cursor = cursors[p];
    const int64_t n = min_of<int64_t>(tile.parts_lengths[s] >> 16, ends[p] - cursor);
    const float begin = float(tile.begins[s]);
    cursors[p] = cursor + n;
    for (int64_t first = 0; first < n; first += kOverrun) {
      float* row = js + cursor + first;
      FVX_SIMD
      for (int i = 0; i < kOverrun; ++i) row[i] = begin + float(int(first) + i);
    }
  }
}

bool write_stretches(const MarchWrite& a, int64_t begin, uint64_t seed, const MarchTile& tile) {
  if (tile.n_parts == 0) return true;
  int64_t n = 0;
  for (int64_t p = 0; p < tile.n_parts; ++p) n += tile.parts[p].count + kOverrun;
  float* js = static_cast<float*>(std::malloc(sizeof(float) * size_t(n)));
  int64_t* cursors = static_cast<int64_t*>(std::malloc(2 * sizeof(int64_t) * size_t(tile.n_parts)));
  const bool ok = js && cursors;
  if (ok) {
    int64_t* ends = cursors + tile.n_parts;
    n = 0;
    for (int64_t p = 0; p < tile.n_parts; ++p) {
      cursors[p] = n;
      ends[p] = n + tile.parts[p].count;
      n = ends[p] + kOverrun;
    }
    list_steps(tile, js, cursors, ends);
    int64_t i = a.sums[begin];
    for (int64_t p = 0; p < tile.n_parts; ++p) {
      const MarchTile::Part& part = tile.parts[p];
      const int64_t ray = begin + part.ray;
      if (part.count == 0) continue;
      if (a.sums[ray + 1] > a.capacity) break;
      const EvenLattice lattice = lattice_of<MarchMode::even>(a, load_jittered<float>(a, ray, seed));
      write_part(a, lattice, part.first, js + ends[p] - part.count, part.count, int32_t(ray), i);
      i += part.count;
    }
  }
  std::free(js);
  std::free(cursors);
  return ok;
}

template <class P>
void fill_tail(const MarchWrite& a, int64_t from) {
  parallel_for(a.threads, a.capacity - from, 65536, [&](int64_t begin, int64_t end) {
    for (int64_t i = from + begin; i < from + end; ++i) static_cast<P*>(a.t_starts)[i] = P(0);
    for (int64_t i = from + begin; i < from + end; ++i) static_cast<P*>(a.t_ends)[i] = P(0);
    for (int64_t i = from + begin; i < from + end; ++i) a.ray_indices[i] = -1;
  });
}

[[noreturn]] void out_of_memory() { throw std::bad_alloc(); }

}  // namespace

void march_release(const MarchRelease& a) {
  MarchLog* log = static_cast<MarchLog*>(a.log);
  if (!log) return;
  for (int64_t i = 0; log->tiles && i < log->n_tiles; ++i) {
    const MarchTile& tile = log->tiles[i];
    std::free(tile.runs);
    std::free(tile.run_ends);
    std::free(tile.parts);
    std::free(tile.begins);
    std::free(tile.parts_lengths);
  }
  std::free(log->tiles);
  std::free(log);
}

void march_count(const MarchCount& a) {
  const int64_t n_tiles = tiles_of(a.n_rays);
  MarchLog* log = static_cast<MarchLog*>(std::calloc(1, sizeof(MarchLog)));
  *a.log = log;
  if (!log) out_of_memory();
  log->tiles = static_cast<MarchTile*>(std::calloc(size_t(n_tiles + 1), sizeof(MarchTile)));
  if (!log->tiles) out_of_memory();
  log->n_tiles = n_tiles;
  const uint64_t seed = mixed_seed_of(a);
  bool ok = true;
  const auto for_each_tile = [&](const auto& count) {
    parallel_for(a.threads, a.n_rays, kTileRays, [&](int64_t begin, int64_t end) {
      if (!count(begin, end, a.offsets + 1 + begin, log->tiles[begin / kTileRays])) ok = false;
    });
  };
#if defined(__AVX512F__)
  if (a.dtype == DType::f32 && mode_of(a) == MarchMode::even && a.levels * brick_words(a.res) < INT32_MAX) {
    Growing<uint64_t> buffer;
    const SkipWords skip = make_skip_words(a, buffer);
    for_each_tile([&](int64_t begin, int64_t end, int64_t* counts, MarchTile& tile) {
      return count_tile_avx512(a, skip, begin, end, seed, counts, tile);
    });
    std::free(buffer.data);
  } else
#endif
  {
    FVX_DISPATCH_MARCH(a, P, kMode, {
      for_each_tile([&](int64_t begin, int64_t end, int64_t* counts, MarchTile& tile) {
        return count_tile<P, kMode>(a, begin, end, seed, counts, tile);
      });
    });
  }
  if (!ok) out_of_memory();
  a.offsets[0] = 0;
  for (int64_t ray = 0; ray < a.n_rays; ++ray) a.offsets[ray + 1] += a.offsets[ray];
}

void march_write(const MarchWrite& a) {
  const MarchLog* log = static_cast<const MarchLog*>(a.log);
  const uint64_t seed = mixed_seed_of(a);
  bool ok = true;
  FVX_DISPATCH_MARCH(a, P, kMode, {
    parallel_for(a.threads, a.n_rays, kTileRays, [&](int64_t begin, int64_t end) {
      const MarchTile& tile = log->tiles[begin / kTileRays];
      if (tile.parts) {
        if (!write_stretches(a, begin, seed, tile)) ok = false;
      } else {
        write_runs<P, kMode>(a, begin, end, seed, tile);
      }
    });
  });
  if (!ok) out_of_memory();
  const int64_t fit = rays_that_fit(a.sums, a.n_rays, a.capacity);
  const int64_t written = a.sums[fit];
  if (a.offsets) {
    for (int64_t ray = 0; ray <= a.n_rays; ++ray) a.offsets[ray] = ray <= fit ? a.sums[ray] : written;
  }
  if (a.overflow) *a.overflow = a.n_rays - fit;
  if (a.dtype == DType::f32) {
    fill_tail<float>(a, written);
  } else {
    fill_tail<double>(a, written);
  }
}

FVX_END_ISA
