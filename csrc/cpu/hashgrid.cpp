// Multiresolution grid encoding on the CPU.
//
// Many points go level by level: then one level's table (4 MiB at 2^19 entries) has the cache to itself, which is
// worth 3-4x over finishing one point after another. Their outputs and gradients pass through columns, one per level,
// because a level's 8 bytes in each row of the output would drag a whole cache line in and out. Few points go block
// by block through all levels instead.
//
// The gradient of the table is summed without atomics: a thread owns a level, or a range of the entries of one, and
// takes the points in order, so the sum of each entry is the same for any number of threads.
#include <new>

#include "fastvfx/workspace.h"
#include "hashgrid_block.h"
#include "parallel.h"

FVX_BEGIN_ISA

namespace {

constexpr int64_t kManyPoints = 16384;
constexpr int64_t kPointGrain = 4096;
constexpr int64_t kLine = 64;
constexpr int kMaxParts = 16;

int corners_of(const HashGrid& a) { return a.interpolation == Interpolation::nearest ? 1 : 1 << a.dims; }

// Columns: for each level of a group the features of all points. The odd number of lines between two columns keeps
// their heads in different cache sets.
template <class T>
struct Columns {
  T* data;
  int64_t pitch;
  int first_level, n_levels, features;

  static int64_t pitch_for(int64_t n, int features) {
    const int64_t per_line = kLine / int64_t(sizeof(T));
    return ((n * features + per_line - 1) / per_line | 1) * per_line;
  }
  T* at(int level, int64_t point) const { return data + (level - first_level) * pitch + point * features; }
};

#if defined(FVX_GRID_AVX512)
// Eight columns of 8 bytes a point into whole cache lines of the rows, past the caches: they would first read the
// lines, and keep them from the tables.
inline void lines_from_columns(const char* columns, int64_t pitch, char* rows, int64_t row_stride, int64_t n) {
  const __m512i low_pairs = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
  const __m512i high_pairs = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  for (int64_t i = 0; i < n; i += 8) {
    __m512i column[8], x[8];
    FVX_UNROLL_ALL
    for (int l = 0; l < 8; ++l) column[l] = _mm512_loadu_si512(columns + l * pitch + 8 * i);
    FVX_UNROLL_ALL
    for (int l = 0; l < 8; l += 2) {  // pairs of levels: points 0 2 4 6, then 1 3 5 7
      x[l] = _mm512_unpacklo_epi64(column[l], column[l + 1]);
      x[l + 1] = _mm512_unpackhi_epi64(column[l], column[l + 1]);
    }
    FVX_UNROLL_ALL
    for (int odd = 0; odd < 2; ++odd) {
      // Fours of levels: points (0, 4) and (2, 6), of levels 0 to 3 and 4 to 7.
      const __m512i a = _mm512_permutex2var_epi64(x[odd], low_pairs, x[odd + 2]);
      const __m512i b = _mm512_permutex2var_epi64(x[odd], high_pairs, x[odd + 2]);
      const __m512i c = _mm512_permutex2var_epi64(x[odd + 4], low_pairs, x[odd + 6]);
      const __m512i d = _mm512_permutex2var_epi64(x[odd + 4], high_pairs, x[odd + 6]);
      char* const to = rows + (i + odd) * row_stride;
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_shuffle_i64x2(a, c, 0x44));
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 2 * row_stride), _mm512_shuffle_i64x2(b, d, 0x44));
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 4 * row_stride), _mm512_shuffle_i64x2(a, c, 0xee));
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 6 * row_stride), _mm512_shuffle_i64x2(b, d, 0xee));
    }
  }
  _mm_sfence();
}
#endif

// Between the columns and the rows (n_points, all levels * F).
template <class T, int F, bool kToRows>
void transpose(const Columns<T>& columns, T* rows, int64_t row_stride, int64_t begin, int64_t end) {
  constexpr int64_t kStep = sizeof(T) * F >= kLine ? 1 : kLine / int64_t(sizeof(T) * F);
  T* corner = rows + columns.first_level * F;
#if defined(FVX_GRID_AVX512)
  if constexpr (kToRows && sizeof(T) * F == 8) {
    const bool whole_lines = (reinterpret_cast<uintptr_t>(corner) | uintptr_t(row_stride) * sizeof(T)) % kLine == 0;
    if (columns.n_levels == 8 && whole_lines) {
      const int64_t n = (end - begin) / 8 * 8;
      lines_from_columns(reinterpret_cast<const char*>(columns.data + begin * F), columns.pitch * int64_t(sizeof(T)),
                         reinterpret_cast<char*>(corner + begin * row_stride), row_stride * int64_t(sizeof(T)), n);
      begin += n;
    }
  }
#endif
  for (int64_t i = begin; i < end; i += kStep) {
    const int64_t stop = min_of(i + kStep, end);
    for (int l = 0; l < columns.n_levels; ++l) {
      T* column = columns.data + l * columns.pitch;
      for (int64_t k = i; k < stop; ++k) {
        T* row = corner + k * row_stride + l * F;
        if (kToRows) {
          __builtin_memcpy(row, column + k * F, sizeof(T) * F);
        } else {
          __builtin_memcpy(column + k * F, row, sizeof(T) * F);
        }
      }
    }
  }
}

template <class T, bool kToRows>
void transpose(const HashGrid& a, const Columns<T>& columns, T* rows) {
  const int64_t stride = int64_t(a.n_levels) * a.features;
  parallel_for(a.threads, a.n_points, kPointGrain, [&](int64_t begin, int64_t end) {
    switch (a.features) {
      case 1:
        return transpose<T, 1, kToRows>(columns, rows, stride, begin, end);
      case 2:
        return transpose<T, 2, kToRows>(columns, rows, stride, begin, end);
      case 4:
        return transpose<T, 4, kToRows>(columns, rows, stride, begin, end);
      default:
        return transpose<T, 8, kToRows>(columns, rows, stride, begin, end);
    }
  });
}

// As many levels at once as fill a cache line of each row.
template <class T>
int levels_per_group(const HashGrid& a) {
  const int64_t n = kLine / int64_t(sizeof(T) * a.features);
  return n < 1 ? 1 : n < a.n_levels ? int(n) : a.n_levels;
}

// A level that is read many times over is copied first: a copy stays in a last-level cache that takes in only what L2
// evicts, where clean lines read at random go straight back to memory (Zen 4: 9 against 17 ns a point and level), and
// it lies in huge pages. On Intel's cores the copy costs more than it gives (Sapphire Rapids: 1.47 against 1.35 ms for
// 2^17 points in a level, the copy included).
template <class T>
bool worth_copying(const HashGrid& a, const GridLevel& level) {
  const int64_t bytes = int64_t(level.entries) * a.features * int64_t(sizeof(T));
  const int64_t lines_read = a.n_points * corners_of(a) / 2;
  return !on_intel() && bytes >= (1 << 19) && bytes <= (1 << 23) && lines_read >= 2 * bytes / kLine;
}

// The level's table or, where that pays, a copy of it. Without memory for a copy it does without.
template <class T>
class StagedLevel {
 public:
  StagedLevel(const HashGrid& a, const GridLevel& level, const void* table, int threads)
      : entries_(static_cast<const T*>(table) + level.offset * a.features), copy_(nullptr) {
    if (!worth_copying<T>(a, level)) return;
    const int64_t n = int64_t(level.entries) * a.features;
    copy_ = workspace_acquire(size_t(n) * sizeof(T));
    if (!copy_) return;
    T* to = static_cast<T*>(copy_);
    const T* from = entries_;
    parallel_for(threads, n, (n + threads - 1) / threads, [=](int64_t begin, int64_t end) {
      __builtin_memcpy(to + begin, from + begin, size_t(end - begin) * sizeof(T));
    });
    entries_ = to;
  }
  ~StagedLevel() { workspace_release(copy_); }
  StagedLevel(const StagedLevel&) = delete;
  StagedLevel& operator=(const StagedLevel&) = delete;

  const T* entries() const { return entries_; }

 private:
  const T* entries_;
  void* copy_;
};

// The coordinates of all points axis by axis, and room for sums beside them.
template <class A>
class AxisBuffers {
 public:
  // `n_sums` axes more hold zeros.
  AxisBuffers(const HashGrid& a, const ByDimension<A>& dimension, int n_sums)
      : a_(a),
        pitch_((a.n_points + 15) / 16 * 16 + 16),
        n_read_(a.direction ? 2 * a.dims : a.dims),
        block_(size_t(n_read_ + n_sums) * size_t(pitch_) * sizeof(A)) {
    if (!data()) throw std::bad_alloc();
    parallel_for(a.threads, a.n_points, kPointGrain, [&](int64_t begin, int64_t end) {
      const int64_t n = end - begin;
      dimension.split_axes(static_cast<const A*>(a.x) + begin * a.dims, n, data() + begin, pitch_);
      if (a.direction) {
        dimension.split_axes(static_cast<const A*>(a.direction) + begin * a.dims, n, data() + a.dims * pitch_ + begin,
                             pitch_);
      }
      for (int d = 0; d < n_sums; ++d) __builtin_memset(sums() + d * pitch_ + begin, 0, size_t(n) * sizeof(A));
    });
  }
  Points<A> at(int64_t first) const {
    return {data() + first, a_.direction ? data() + a_.dims * pitch_ + first : nullptr, pitch_};
  }
  A* sums() const { return data() + n_read_ * pitch_; }
  int64_t pitch() const { return pitch_; }

 private:
  A* data() const { return block_.template as<A>(); }

  const HashGrid& a_;
  int64_t pitch_;
  int n_read_;
  Workspace block_;
};

template <class A, class Body>
void for_each_block(int64_t begin, int64_t end, GridBlock<A>& b, const Body& body) {
  for (int64_t first = begin; first < end; first += kBlock) {
    body(first, int(min_of<int64_t>(kBlock, end - first)), b);
  }
}

// body(level, its entries, first point, n, block, rows at the first point, stride) for every level and block; the rows
// are those of `rows`, or a column's. If kToRows the body writes its rows and blocks are independent; otherwise it
// reads them, and the levels of one point come one after the other, coarsest first.
template <class T, bool kToRows, class Body>
void for_each_level_and_block(const HashGrid& a, const void* table, T* rows, const Body& body) {
  using A = acc_t<T>;
  const int threads = max_of(a.threads, 1);
  const int64_t stride = int64_t(a.n_levels) * a.features;
  if (a.n_points < kManyPoints) {
    const int64_t grain = max_of<int64_t>(kBlock, min_of<int64_t>(1024, a.n_points / (4 * threads)));
    parallel_for(threads, a.n_points, grain, [&](int64_t begin, int64_t end) {
      GridBlock<A> block;
      for_each_block(begin, end, block, [&](int64_t first, int n, GridBlock<A>& b) {
        for (int l = 0; l < a.n_levels; ++l) {
          const T* entries = static_cast<const T*>(table) + a.levels[l].offset * a.features;
          body(a.levels[l], entries, first, n, b, rows + first * stride + int64_t(l) * a.features, stride);
        }
      });
    });
    return;
  }
  const int group = levels_per_group<T>(a);
  const int64_t pitch = Columns<T>::pitch_for(a.n_points, a.features);
  const Workspace scratch(sizeof(T) * size_t(pitch) * size_t(group));
  if (!scratch.as<T>()) throw std::bad_alloc();
  for (int l0 = 0; l0 < a.n_levels; l0 += group) {
    const int n_levels = min_of(group, a.n_levels - l0);
    const Columns<T> columns{scratch.as<T>(), pitch, l0, n_levels, a.features};
    if (!kToRows) transpose<T, false>(a, columns, rows);
    // Few threads take a level each, and wait for each other once a group instead of twice a level.
    const bool level_each = kToRows && threads > 1 && 2 * threads <= n_levels;
    const auto whole_level = [&](int l, int team) {
      const StagedLevel<T> staged(a, a.levels[l], table, team);
      parallel_for(team, a.n_points, kPointGrain, [&](int64_t begin, int64_t end) {
        GridBlock<A> block;
        for_each_block(begin, end, block, [&](int64_t first, int n, GridBlock<A>& b) {
          body(a.levels[l], staged.entries(), first, n, b, columns.at(l, first), int64_t(a.features));
        });
      });
    };
    if (level_each) {
      parallel_for(threads, n_levels, 1, [&](int64_t k, int64_t) { whole_level(l0 + n_levels - 1 - int(k), 1); });
    } else {
      for (int l = l0; l < l0 + n_levels; ++l) whole_level(l, threads);
    }
    if (kToRows) transpose<T, true>(a, columns, rows);
  }
}

// A thread's share of the gradient: the entries from lo to hi of a level.
struct Share {
  int level;
  uint32_t lo, hi;
};

// Levels are shared out whole, finest first, unless one holds more work than a thread's part of the total.
int make_shares(const HashGrid& a, Share* shares) {
  double total = 0, cost[kMaxGridLevels];
  for (int l = 0; l < a.n_levels; ++l) {
    const double entries = double(a.levels[l].entries);
    const bool cached = entries * a.features * 4 < 3e5;
    cost[l] = double(a.n_points) * (cached ? 1 : 2) + entries / 8;
    total += cost[l];
  }
  int count = 0;
  for (int l = a.n_levels - 1; l >= 0; --l) {
    const uint32_t entries = a.levels[l].entries;
    const int wanted = int(cost[l] * max_of(a.threads, 1) / total + 0.5);
    const uint32_t parts = uint32_t(max_of(1, min_of(wanted, kMaxParts)));
    for (uint32_t p = 0; p < parts; ++p) {
      const uint32_t lo = uint32_t(uint64_t(entries) * p / parts), hi = uint32_t(uint64_t(entries) * (p + 1) / parts);
      shares[count++] = {l, lo, hi};
    }
  }
  return count;
}

// False if there is no memory for the sums of a 16-bit table.
template <class T>
bool sum_share(const HashGridBwdTable& a, const Share& share, const ByDimension<acc_t<T>>& dimension,
               const ByFeatures<T>& features, const AxisBuffers<acc_t<T>>& axes, const T* rows, int64_t stride) {
  using A = acc_t<T>;
  const GridLevel& level = a.levels[share.level];
  const int corners = corners_of(a);
  const bool whole = share.hi - share.lo == level.entries;
  const int64_t n = int64_t(share.hi - share.lo) * a.features;
  T* result = static_cast<T*>(a.g_table) + (level.offset + share.lo) * a.features;
  const Workspace wide(sizeof(T) == sizeof(A) ? 0 : size_t(n) * sizeof(A));
  A* sums = sizeof(T) == sizeof(A) ? reinterpret_cast<A*>(result) : wide.as<A>();
  if (!sums) return false;
  __builtin_memset(sums, 0, size_t(n) * sizeof(A));

  // No prefetch: the processor runs ahead over enough points by itself, and without it the loop is a quarter faster.
  GridBlock<A> block;
  for_each_block(0, a.n_points, block, [&](int64_t first, int n_points, GridBlock<A>& b) {
    dimension.locate(a, level, axes.at(first), n_points, true, b);
    features.load_rows(rows + first * stride, stride, b);
    silence_dead_points(corners, a.features, b);
    features.scatter(sums, share.lo, share.hi, whole, corners, b);
  });
  if (sizeof(T) == sizeof(A)) return true;
  FVX_SIMD
  for (int64_t i = 0; i < n; ++i) result[i] = from_acc<T>(sums[i]);
  return true;
}

}  // namespace

void hashgrid_fwd(const HashGridFwd& a) {
  FVX_DISPATCH_STORAGE(a.dtype, T, {
    using A = acc_t<T>;
    const ByDimension<A> dimension = by_dimension<A>(a.dims);
    const ByFeatures<T> features = by_features<T>(a.features);
    const AxisBuffers<A> axes(a, dimension, 0);
    const auto body = [&](const GridLevel& level, const T* entries, int64_t first, int n, GridBlock<A>& b, T* rows,
                          int64_t stride) {
      dimension.locate(a, level, axes.at(first), n, true, b);
      features.gather(entries, corners_of(a), b);
      features.store_rows(rows, stride, b);
    };
    for_each_level_and_block<T, true>(a, a.table, static_cast<T*>(a.out), body);
  });
}

void hashgrid_bwd_x(const HashGridBwdX& a) {
  FVX_DISPATCH_STORAGE(a.dtype, T, {
    using A = acc_t<T>;
    const ByDimension<A> dimension = by_dimension<A>(a.dims);
    const ByFeatures<T> features = by_features<T>(a.features);
    const AxisBuffers<A> axes(a, dimension, a.dims);
    // The gradient is only read, but rows and columns have one type for both directions.
    T* g_out = const_cast<T*>(static_cast<const T*>(a.g_out));
    const auto body = [&](const GridLevel& level, const T* entries, int64_t first, int n, GridBlock<A>& b, T* rows,
                          int64_t stride) {
      dimension.locate(a, level, axes.at(first), n, false, b);
      features.load_rows(rows, stride, b);
      features.dot(entries, corners_of(a), b);
      dimension.add_position_gradients(a, level, axes.at(first), b, axes.sums() + first);
    };
    for_each_level_and_block<T, false>(a, a.table, g_out, body);
    A* g_x = static_cast<A*>(a.g_x);
    parallel_for(a.threads, a.n_points, kPointGrain, [&](int64_t begin, int64_t end) {
      dimension.join_axes(axes.sums() + begin, axes.pitch(), end - begin, g_x + begin * a.dims);
    });
  });
}

void hashgrid_bwd_table(const HashGridBwdTable& a) {
  FVX_DISPATCH_STORAGE(a.dtype, T, {
    const ByDimension<acc_t<T>> dimension = by_dimension<acc_t<T>>(a.dims);
    const ByFeatures<T> features = by_features<T>(a.features);
    const AxisBuffers<acc_t<T>> axes(a, dimension, 0);
    T* g_out = const_cast<T*>(static_cast<const T*>(a.g_out));
    const bool many = a.n_points >= kManyPoints && a.n_levels > 1;
    const int64_t pitch = Columns<T>::pitch_for(a.n_points, a.features);
    const Workspace scratch(many ? sizeof(T) * size_t(pitch) * size_t(a.n_levels) : 0);
    if (many && !scratch.as<T>()) throw std::bad_alloc();
    const Columns<T> columns{scratch.as<T>(), pitch, 0, a.n_levels, a.features};
    if (many) transpose<T, false>(a, columns, g_out);
    Share shares[kMaxGridLevels * kMaxParts];
    const int count = make_shares(a, shares);
    bool out_of_memory = false;  // no exception may leave a parallel loop
    parallel_for(a.threads, count, 1, [&](int64_t begin, int64_t) {
      const Share& share = shares[begin];
      const int l = share.level;
      const T* rows = many ? columns.at(l, 0) : g_out + int64_t(l) * a.features;
      const int64_t stride = many ? a.features : int64_t(a.n_levels) * a.features;
      if (!sum_share<T>(a, share, dimension, features, axes, rows, stride)) out_of_memory = true;
    });
    if (out_of_memory) throw std::bad_alloc();
  });
}

FVX_END_ISA
