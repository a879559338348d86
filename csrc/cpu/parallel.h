// The only place that starts threads. OpenMP is torch's own libgomp: a second runtime in the process costs 15-20 ms
// a call while the two fight over the cores (docs/threads.md).
#pragma once

#include <cstdint>

#include "fastvfx/config.h"

FVX_BEGIN_ISA

// body(begin, end) over [0, n) in chunks of `grain`. Which thread takes a chunk is not fixed; what a chunk is, is:
// results that depend only on the chunk are the same for any number of threads.
template <class Body>
inline void parallel_for(int threads, int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  const int64_t chunks = (n + grain - 1) / grain;
#if defined(_OPENMP)
  const int team = chunks < threads ? int(chunks) : threads;
  if (team > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t begin = chunk * grain;
      body(begin, begin + grain < n ? begin + grain : n);
    }
    return;
  }
#endif
  for (int64_t begin = 0; begin < n; begin += grain) body(begin, begin + grain < n ? begin + grain : n);
}

FVX_END_ISA
