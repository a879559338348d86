// upfirdn2d on the emulated GPU against the processor: factors, pads and crops, filters that are separable, of rank one
// and neither, larger than a tile and than shared memory, both memory formats, every storage type; gradient to the
// filter.
#include <vector>

#include "emulated.h"

using namespace fastvfx;

namespace {

enum class Filter { separable, rank_one, full };

struct Case {
  DType dtype;
  bool channels_last;
  int64_t n, channels, in_h, in_w;
  Filter filter;
  int taps_y, taps_x, up_y, up_x, down_y, down_x;
  int64_t pad_y, pad_x, out_h, out_w;
  bool flip;
};

template <class Args>
Args arguments(const Case& c) {
  Args a{};
  a.dtype = c.dtype;
  a.channels_last = c.channels_last;
  a.n = c.n;
  a.channels = c.channels;
  a.in_h = c.in_h;
  a.in_w = c.in_w;
  a.out_h = c.out_h;
  a.out_w = c.out_w;
  a.taps_y = c.taps_y;
  a.taps_x = c.taps_x;
  a.up_y = c.up_y;
  a.up_x = c.up_x;
  a.down_y = c.down_y;
  a.down_x = c.down_x;
  a.pad_y = c.pad_y;
  a.pad_x = c.pad_x;
  a.flip = c.flip;
  a.gain = 1.5;
  a.threads = 1;
  return a;
}

Array filter_of(const Case& c, Random& random) {
  const DType dtype = accumulation_of(c.dtype);
  if (c.filter == Filter::separable) return std::move(Array(dtype, c.taps_x).fill(random));
  Array f(dtype, c.taps_y * c.taps_x);
  f.fill(random);
  if (c.filter == Filter::full) return f;
  std::vector<double> y(size_t(c.taps_y)), x(size_t(c.taps_x));
  for (double& v : y) v = float(random());
  for (double& v : x) v = float(random());
  for (int v = 0; v < c.taps_y; ++v) {
    for (int u = 0; u < c.taps_x; ++u) f.set(v * c.taps_x + u, y[size_t(v)] * x[size_t(u)]);
  }
  return f;
}

void check(const Case& c) {
  Random random{7};
  const int64_t taps = int64_t(c.taps_y) * c.taps_x, outputs = c.n * c.channels * c.out_h * c.out_w;
  const std::string name = std::string(name_of(c.dtype)) + (c.channels_last ? " last" : " first") +
                           " up=" + std::to_string(c.up_x) + " down=" + std::to_string(c.down_x) +
                           " taps=" + std::to_string(c.taps_y) + "x" + std::to_string(c.taps_x) +
                           " filter=" + std::to_string(int(c.filter)) + " out=" + std::to_string(c.out_w);
  Array x(c.dtype, c.n * c.channels * c.in_h * c.in_w), f = filter_of(c, random);
  x.fill(random);
  Array out(c.dtype, outputs), out_cpu(c.dtype, outputs);
  auto fwd = arguments<Upfirdn2dFwd>(c);
  fwd.separable = c.filter == Filter::separable;
  fwd.x = x.data();
  fwd.f = f.data();
  fwd.out = out.data();
  cuda::upfirdn2d_fwd(fwd);
  fwd.out = out_cpu.data();
  cpu::upfirdn2d_fwd(fwd);
  near("out " + name, out, out_cpu, c.dtype == DType::f64 || c.dtype == DType::f32 ? 8 : 3, double(taps));

  Array g_out(c.dtype, outputs);
  g_out.fill(random);
  const DType accumulation = accumulation_of(c.dtype);
  Array g_f(accumulation, taps), g_f_cpu(accumulation, taps), work(accumulation, kUpfirdn2dBlocks * taps);
  auto bwd = arguments<Upfirdn2dBwdF>(c);
  bwd.x = x.data();
  bwd.g_out = g_out.data();
  bwd.g_f = g_f.data();
  bwd.work = work.data();
  cuda::upfirdn2d_bwd_f(bwd);
  bwd.g_f = g_f_cpu.data();
  cpu::upfirdn2d_bwd_f(bwd);
  near("g_f " + name, g_f, g_f_cpu, 8, double(outputs));
}

}  // namespace

int main() {
  return in_every_order([] {
    for (DType dtype : every_dtype) {
      for (bool last : {false, true}) {
        check({dtype, last, 1, 3, 9, 35, Filter::rank_one, 4, 4, 2, 2, 1, 1, 2, 2, 18, 70, false});
        check({dtype, last, 1, 3, 13, 21, Filter::rank_one, 4, 4, 1, 1, 2, 2, 1, 1, 6, 10, true});
      }
    }
    const DType f32 = DType::f32;
    check({f32, false, 2, 2, 7, 11, Filter::full, 3, 4, 1, 1, 1, 1, 1, 2, 7, 11, false});
    check({f32, true, 1, 37, 7, 5, Filter::full, 3, 2, 2, 3, 3, 2, -1, 2, 4, 7, true});
    check({f32, false, 1, 1, 5, 6, Filter::separable, 12, 12, 4, 2, 1, 3, 9, -2, 15, 3, false});
    check({f32, true, 1, 5, 6, 6, Filter::separable, 6, 6, 2, 2, 2, 2, 3, 3, 6, 6, true});
    check({f32, false, 1, 1, 3, 3, Filter::full, 9, 120, 1, 1, 1, 1, 7, 118, 2, 4, false});           // small tiles
    check({DType::f64, false, 1, 1, 3, 3, Filter::full, 60, 120, 1, 1, 1, 1, 58, 118, 2, 2, false});  // no tile fits
    check({f32, false, 1, 2, 4, 4, Filter::separable, 3, 3, 1, 1, 1, 1, 30, 30, 3, 3, false});  // nothing but padding
    check({f32, true, 2, 5, 40, 60, Filter::full, 2, 3, 1, 1, 1, 1, 1, 1, 40, 60, false});      // many blocks
    check({f32, false, 0, 2, 4, 4, Filter::separable, 3, 3, 1, 1, 1, 1, 1, 1, 4, 4, false});
  });
}
