#include <limits>
#include <optional>

#include "bindings.h"

namespace fastvfx {
namespace {

using Filter = std::tuple<Pointer, int, int, bool, bool>;  // taps, height, width, separable, flip
using Mask = std::tuple<int, Pointer, int64_t, int64_t, int64_t, int64_t, int, int, int64_t>;

FirFilter filter_of(const Filter& f) {
  return {std::get<0>(f), std::get<1>(f), std::get<2>(f), std::get<3>(f), std::get<4>(f)};
}

}  // namespace

void bind_filtered_lrelu(py::module_& m) {
  const auto bind = [&m](const char* name, void (*kernel)(const FilteredLrelu&)) {
    m.def(name, [kernel](int dtype, std::array<int64_t, 2> planes_channels, std::array<int64_t, 2> size,
                         std::array<int64_t, 2> out_size, std::array<int, 2> up_down, std::array<int64_t, 2> left_top,
                         Filter fu, Filter fd, double scale, double slope, std::optional<double> clamp, Mask mask,
                         Pointer x, Pointer bias, Pointer out, Pointer row_sums, int threads, Pointer stream) {
      FilteredLrelu a{};
      a.dtype = DType(dtype);
      a.planes = planes_channels[0];
      a.channels = planes_channels[1];
      a.height = size[0];
      a.width = size[1];
      a.out_height = out_size[0];
      a.out_width = out_size[1];
      a.up = up_down[0];
      a.down = up_down[1];
      a.left = left_top[0];
      a.top = left_top[1];
      a.fu = filter_of(fu);
      a.fd = filter_of(fd);
      a.scale = scale;
      a.slope = slope;
      a.clamp = clamp.value_or(std::numeric_limits<double>::infinity());
      int mode = 0;
      Pointer address{};
      std::tie(mode, address, a.mask_height, a.mask_width, a.mask_top, a.mask_left, a.mask_up, a.mask_down,
               a.mask_padding) = mask;
      a.mask_mode = SlopeMask(mode);
      a.mask = address;
      a.x = x;
      a.bias = bias;
      a.out = out;
      a.row_sums = row_sums;
      a.threads = threads;
      a.stream = stream;
      run(kernel, a);
    });
  };
  bind("filtered_lrelu_pass_cpu", cpu::filtered_lrelu_pass);
#if defined(FASTVFX_WITH_CUDA)
  bind("filtered_lrelu_pass_cuda", cuda::filtered_lrelu_pass);
#endif
}

}  // namespace fastvfx
