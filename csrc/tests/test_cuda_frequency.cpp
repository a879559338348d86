// Frequency encoding on the emulated GPU against the processor: every order of columns, storage type and derivative,
// with more and fewer columns than a block has threads.
#include "emulated.h"

using namespace fastvfx;

namespace {

struct Rows {
  DType dtype;
  FrequencyLayout layout;
  bool include_input;
  int64_t n;
  int dims, n_frequencies;
  int64_t columns = int64_t(dims) * (2 * n_frequencies + include_input);
  Array x, g_out, gg_x;

  Rows(DType dtype_, FrequencyLayout layout_, bool include_input_, int64_t n_, int dims_, int n_frequencies_)
      : dtype(dtype_),
        layout(layout_),
        include_input(include_input_),
        n(n_),
        dims(dims_),
        n_frequencies(n_frequencies_),
        x(dtype, n * dims),
        g_out(dtype, n * columns),
        gg_x(dtype, n * dims) {
    Random random{5};
    x.fill(random);
    g_out.fill(random);
    gg_x.fill(random);
  }

  template <class Args>
  Args arguments() const {
    Args a{};
    a.dtype = dtype;
    a.layout = layout;
    a.include_input = include_input;
    a.n = n;
    a.dims = dims;
    a.n_frequencies = n_frequencies;
    a.x = x.data();
    a.threads = 1;
    return a;
  }
};

void check(const Rows& r) {
  const double rate = 6.3 * std::pow(2.0, r.n_frequencies - 1);  // gradients are sums of terms up to this size
  const auto compare = [&](const char* what, const Array& got, const Array& want, double scale) {
    const std::string name = std::string(what) + " " + name_of(r.dtype) + " layout=" + std::to_string(int(r.layout)) +
                             " n=" + std::to_string(r.n) + " D=" + std::to_string(r.dims);
    near(name, got, want, want.dtype() == DType::f64 || want.dtype() == DType::f32 ? 100 : 3, scale);
  };

  Array out(r.dtype, r.n * r.columns), out_cpu(r.dtype, r.n * r.columns);
  auto fwd = r.arguments<FrequencyFwd>();
  fwd.out = out.data();
  cuda::frequency_fwd(fwd);
  fwd.out = out_cpu.data();
  cpu::frequency_fwd(fwd);
  compare("out", out, out_cpu, 1);

  Array g_x(r.dtype, r.n * r.dims), g_x_cpu(r.dtype, r.n * r.dims);
  auto bwd = r.arguments<FrequencyBwd>();
  bwd.g_out = r.g_out.data();
  bwd.g_x = g_x.data();
  cuda::frequency_bwd(bwd);
  bwd.g_x = g_x_cpu.data();
  cpu::frequency_bwd(bwd);
  compare("g_x", g_x, g_x_cpu, rate);

  Array gg_out(r.dtype, r.n * r.columns), gg_out_cpu(r.dtype, r.n * r.columns);
  auto bwd_bwd = r.arguments<FrequencyBwdBwd>();
  bwd_bwd.g_out = r.g_out.data();
  bwd_bwd.gg_x = r.gg_x.data();
  bwd_bwd.g_x = g_x.data();
  bwd_bwd.gg_out = gg_out.data();
  cuda::frequency_bwd_bwd(bwd_bwd);
  bwd_bwd.g_x = g_x_cpu.data();
  bwd_bwd.gg_out = gg_out_cpu.data();
  cpu::frequency_bwd_bwd(bwd_bwd);
  compare("g_x, second", g_x, g_x_cpu, rate * rate);
  compare("gg_out", gg_out, gg_out_cpu, rate);
}

}  // namespace

int main() {
  return in_every_order([] {
    for (DType dtype : every_dtype) {
      for (FrequencyLayout layout : {FrequencyLayout::tcnn, FrequencyLayout::torch_ngp, FrequencyLayout::nerfstudio}) {
        for (bool include_input : {false, true}) check(Rows(dtype, layout, include_input, 70, 3, 5));
        check(Rows(dtype, layout, true, 3, 70, 4));
      }
    }
    for (int64_t n : {0, 1, 31, 64, 300}) check(Rows(DType::f32, FrequencyLayout::tcnn, false, n, 3, 12));
    check(Rows(DType::f32, FrequencyLayout::torch_ngp, true, 5, 300, 1));
  });
}
