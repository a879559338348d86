#include "fastvfx/offsets.h"

FVX_BEGIN_ISA

void check_offsets(const CheckOffsets& a) {
  int64_t bad = -1;
  for (int64_t r = a.n_rays - 1; r >= 0; --r) bad = a.offsets[r + 1] < a.offsets[r] ? r : bad;
  *a.first_bad = bad;
}

FVX_END_ISA
