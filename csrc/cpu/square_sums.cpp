// Rows are too short for a vector each, and what a reduction costs to set up is more than nine numbers: plain sums.
#include "fastvfx/square_sums.h"

#include "parallel.h"

FVX_BEGIN_ISA

namespace {

constexpr int64_t kNumbersPerTask = 1 << 16;

// kColumns: how long rows are, if that is known; else 0.
template <class A, int kColumns>
void sum_rows(const SquareSums& a) {
  const int64_t columns = kColumns ? kColumns : a.columns;
  const A* x = static_cast<const A*>(a.x);
  A* sums = static_cast<A*>(a.sums);
  parallel_for(a.threads, a.rows, kNumbersPerTask / columns + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      A sum = 0;
      for (int64_t c = 0; c < columns; ++c) sum += x[r * columns + c] * x[r * columns + c];
      sums[r] = sum;
    }
  });
}

template <class A>
void dispatch(const SquareSums& a) {
  switch (a.columns) {
    case 1:
      return sum_rows<A, 1>(a);
    case 9:
      return sum_rows<A, 9>(a);
    default:
      return sum_rows<A, 0>(a);
  }
}

}  // namespace

void square_sums(const SquareSums& a) { a.dtype == DType::f64 ? dispatch<double>(a) : dispatch<float>(a); }

FVX_END_ISA
