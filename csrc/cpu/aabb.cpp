// Intersecting rays with boxes on the CPU.
#include "fastvfx/aabb.h"

#include "parallel.h"

FVX_BEGIN_ISA

namespace {

template <class T>
void intersect_all(const AabbFwd& a) {
  const int64_t grain = 1 + 4096 / a.n_boxes;
  parallel_for(a.threads, a.n_rays, grain, [&](int64_t begin, int64_t end) {
    for (int64_t ray = begin; ray < end; ++ray) {
      for (int64_t box = 0; box < a.n_boxes; ++box) aabb_ray<T>(a, ray, box);
    }
  });
}

}  // namespace

void aabb_fwd(const AabbFwd& a) {
  if (a.n_boxes == 0) return;
  if (a.dtype == DType::f64) {
    intersect_all<double>(a);
  } else {
    intersect_all<float>(a);
  }
}

FVX_END_ISA
