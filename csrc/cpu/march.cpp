// Marching on the CPU. march_count walks the grid once and keeps the stretches of occupied steps (or cells);
// march_write turns them into samples when their number, and with it the place of each ray, is known.
#include "fastvfx/march.h"

#include <new>

#include "march_avx512.h"
#include "march_log.h"
#include "parallel.h"

FVX_BEGIN_ISA

namespace {

constexpr int64_t kTileRays = 256;

int64_t tiles_of(int64_t n_rays) { return (n_rays + kTileRays - 1) / kTileRays; }

// Ray by ray; fills counts (not yet summed) of the tile's rays.
template <class P, MarchMode kMode>
bool count_tile(const MarchRays& a, int64_t begin, int64_t end, uint64_t seed, int64_t* counts, MarchTile& tile) {
  Growing<MarchTile::Run> runs;
  Growing<int64_t> run_ends;
  bool ok = run_ends.reserve(end - begin);
  for (int64_t ray = begin; ok && ray < end; ++ray) {
    const MarchRay r = load_ray<P>(a, ray, seed);
    const int64_t first_run = runs.size;
    int64_t count = 0;
    const Lattice lattice = lattice_of(a, r);
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
    const Lattice lattice = lattice_of(a, load_ray<P>(a, ray, seed));
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

// Parts of the tile's rays as lanes; false if one is too long for floats or there are too many.
bool fill_lanes(const MarchRays& a, int64_t begin, int64_t end, uint64_t seed, Lanes& lanes, MarchTile::Part* parts) {
  const int64_t words = brick_words(a.res);
  bool fits = true;
  for (int64_t ray = begin; fits && ray < end; ++ray) {
    const MarchRay r = load_ray<float>(a, ray, seed);
    const Lattice lattice = lattice_of(a, r);
    for_each_part<float>(a, r, lattice, [&](int level, double first, Steps steps) {
      fits = lanes.size < Lanes::capacity && steps.end - first < float_steps;
      if (!fits) return false;
      const CellLine<float> line = even_line<float, float>(a, r, lattice, level, first);
      const int n = lanes.size++;
      for (int i = 0; i < 3; ++i) {
        lanes.a[i][n] = line.a[i];
        lanes.b[i][n] = line.b[i];
        lanes.inverse[i][n] = line.inverse[i];
        lanes.shifted[i][n] = line.shifted[i];
      }
      lanes.begin[n] = float(steps.begin - first);
      lanes.end[n] = float(steps.end - first);
      lanes.level_offset[n] = int32_t(level * words);
      parts[n] = {first, int32_t(ray - begin), 0};
      return true;
    });
  }
  return fits;
}

bool count_tile_avx512(const MarchRays& a, int64_t begin, int64_t end, uint64_t seed, int64_t* counts,
                       MarchTile& tile) {
  Lanes lanes;
  MarchTile::Part parts[Lanes::capacity];
  if (!fill_lanes(a, begin, end, seed, lanes, parts))
    return count_tile<float, MarchMode::even>(a, begin, end, seed, counts, tile);
  Growing<uint32_t> begins, parts_lengths;
  begins.reserve(4096);
  parts_lengths.reserve(4096);
  walk_lanes(a, lanes, begins, parts_lengths);
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

template <class P, MarchMode kMode>
bool count_any_tile(const MarchRays& a, int64_t begin, int64_t end, uint64_t seed, int64_t* counts, MarchTile& tile) {
#if defined(__AVX512F__)
  const bool fits = a.levels * brick_words(a.res) < (int64_t(1) << 31);
  if (sizeof(P) == 4 && kMode == MarchMode::even && fits) return count_tile_avx512(a, begin, end, seed, counts, tile);
#endif
  return count_tile<P, kMode>(a, begin, end, seed, counts, tile);
}

// Samples [k, k + n) of an even lattice, at index i.
struct EvenRay {
  double t0, step;
  int32_t ray;
};

void write_even(const MarchWrite& a, const EvenRay& r, double k, int64_t n, int64_t i) {
  float* t_starts = static_cast<float*>(a.t_starts) + i;
  float* t_ends = static_cast<float*>(a.t_ends) + i;
  int32_t* ray_indices = a.ray_indices + i;
#if defined(__AVX512F__)
  const __m512d t0 = _mm512_set1_pd(r.t0), step = _mm512_set1_pd(r.step), one = _mm512_set1_pd(1.0);
  const __m256i ray = _mm256_set1_epi32(r.ray);
  __m512d ks = _mm512_add_pd(_mm512_set1_pd(k), _mm512_setr_pd(0, 1, 2, 3, 4, 5, 6, 7));
  for (int64_t s = 0; s < n; s += 8) {
    const __mmask8 some = __mmask8((1u << min_of<int64_t>(n - s, 8)) - 1u);
    const __m512d next = _mm512_add_pd(ks, one);
    _mm256_mask_storeu_ps(t_starts + s, some, _mm512_cvtpd_ps(_mm512_add_pd(t0, _mm512_mul_pd(ks, step))));
    _mm256_mask_storeu_ps(t_ends + s, some, _mm512_cvtpd_ps(_mm512_add_pd(t0, _mm512_mul_pd(next, step))));
    _mm256_mask_storeu_epi32(ray_indices + s, some, ray);
    ks = _mm512_add_pd(ks, _mm512_set1_pd(8.0));
  }
#else
  for (int64_t s = 0; s < n; ++s) {
    t_starts[s] = float(r.t0 + (k + double(s)) * r.step);
    t_ends[s] = float(r.t0 + (k + double(s + 1)) * r.step);
    ray_indices[s] = r.ray;
  }
#endif
}

bool write_stretches(const MarchWrite& a, int64_t begin, uint64_t seed, const MarchTile& tile) {
  struct Cursor {
    int64_t i, end;
    EvenRay ray;
  };
  Cursor* cursors = static_cast<Cursor*>(std::malloc(sizeof(Cursor) * size_t(tile.n_parts + 1)));
  if (!cursors) return false;
  int64_t i = a.sums[begin];
  for (int64_t p = 0; p < tile.n_parts; ++p) {
    const MarchTile::Part& part = tile.parts[p];
    const int64_t ray = begin + part.ray;
    const double t0 = lattice_of(a, load_ray<float>(a, ray, seed)).t0;
    const bool fits = a.sums[ray + 1] <= a.capacity;
    cursors[p] = {i, fits ? i + part.count : i, {t0, a.step, int32_t(ray)}};
    i += part.count;
  }
  for (int64_t s = 0; s < tile.n_stretches; ++s) {
    const uint32_t p = tile.parts_lengths[s] & 0xffffu;
    Cursor& c = cursors[p];
    const int64_t n = min_of<int64_t>(tile.parts_lengths[s] >> 16, c.end - c.i);
    if (n <= 0) continue;
    write_even(a, c.ray, tile.parts[p].first + double(tile.begins[s]), n, c.i);
    c.i += n;
  }
  std::free(cursors);
  return true;
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
  FVX_DISPATCH_MARCH(a, P, kMode, {
    parallel_for(a.threads, a.n_rays, kTileRays, [&](int64_t begin, int64_t end) {
      if (!count_any_tile<P, kMode>(a, begin, end, seed, a.offsets + 1 + begin, log->tiles[begin / kTileRays])) {
        ok = false;
      }
    });
  });
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
