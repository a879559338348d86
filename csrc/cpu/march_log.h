// What march_count keeps for march_write, so that the grid is walked once: the kept stretches of each tile of rays.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "fastvfx/march.h"

namespace fastvfx {

// A tile of rays in one of two forms.
struct MarchTile {
  // Ray by ray: runs of steps [begin, end), or one [t_in, t_out) per sample. Those of ray i end at run_ends[i].
  struct Run {
    double begin, end;
  };
  Run* runs;
  int64_t* run_ends;

  // From the vector walk: parts of rays (one line each), in order, and the stretches of all parts mixed, each part's
  // own in order.
  struct Part {
    double first;    // step of the lattice that j counts from
    int32_t ray;     // in the tile
    uint32_t count;  // samples
  };
  Part* parts;
  uint32_t* begins;         // j at which the stretch begins
  uint32_t* parts_lengths;  // part in the low 16 bits, number of steps above
  int64_t n_parts, n_stretches;
};

struct MarchLog {
  int64_t n_tiles;
  MarchTile* tiles;
};

}  // namespace fastvfx

FVX_BEGIN_ISA

// A growing array of plain values. Running out of memory is remembered, not thrown: we are inside OpenMP.
template <class T>
struct Growing {
  T* data = nullptr;
  int64_t size = 0, capacity = 0;
  bool failed = false;

  bool reserve(int64_t n) {
    if (n <= capacity) return true;
    const int64_t wanted = n > 2 * capacity ? n : 2 * capacity;
    T* grown = static_cast<T*>(std::realloc(data, sizeof(T) * size_t(wanted)));
    if (!grown) {
      failed = true;
      return false;
    }
    data = grown;
    capacity = wanted;
    return true;
  }
  void push(const T& value) {
    if (reserve(size + 1)) data[size++] = value;
  }
};

FVX_END_ISA
