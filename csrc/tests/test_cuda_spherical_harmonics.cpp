// Spherical harmonics on the emulated GPU against the processor: every degree, storage type and derivative, with rows
// for less than a block of threads, for exactly one, and for several.
#include "emulated.h"

using namespace fastvfx;

namespace {

struct Rows {
  DType dtype;
  int degree;
  int64_t n;
  Array dirs, g_out, gg_dirs;

  Rows(DType dtype_, int degree_, int64_t n_)
      : dtype(dtype_),
        degree(degree_),
        n(n_),
        dirs(dtype, 3 * n),
        g_out(dtype, n * degree * degree),
        gg_dirs(dtype, 3 * n) {
    Random random{5};
    dirs.fill(random);
    g_out.fill(random);
    gg_dirs.fill(random);
  }

  template <class Args>
  Args arguments() const {
    Args a{};
    a.dtype = dtype;
    a.n = n;
    a.degree = degree;
    a.condon_shortley = degree % 2;
    a.unit_range = degree % 3 == 0;
    a.dirs = dirs.data();
    a.threads = 1;
    return a;
  }
};

void check(const Rows& r) {
  const auto compare = [&](const char* what, const Array& got, const Array& want) {
    const std::string name = std::string(what) + " " + name_of(r.dtype) + " degree=" + std::to_string(r.degree) +
                             " n=" + std::to_string(r.n);
    near(name, got, want, want.dtype() == DType::f64 || want.dtype() == DType::f32 ? 100 : 3, 10);
  };
  const int64_t columns = r.degree * r.degree;

  Array out(r.dtype, r.n * columns), out_cpu(r.dtype, r.n * columns);
  auto fwd = r.arguments<SphericalHarmonicsFwd>();
  fwd.out = out.data();
  cuda::spherical_harmonics_fwd(fwd);
  fwd.out = out_cpu.data();
  cpu::spherical_harmonics_fwd(fwd);
  compare("out", out, out_cpu);

  Array g_dirs(r.dtype, 3 * r.n), g_dirs_cpu(r.dtype, 3 * r.n);
  auto bwd = r.arguments<SphericalHarmonicsBwd>();
  bwd.g_out = r.g_out.data();
  bwd.g_dirs = g_dirs.data();
  cuda::spherical_harmonics_bwd(bwd);
  bwd.g_dirs = g_dirs_cpu.data();
  cpu::spherical_harmonics_bwd(bwd);
  compare("g_dirs", g_dirs, g_dirs_cpu);

  Array gg_out(r.dtype, r.n * columns), gg_out_cpu(r.dtype, r.n * columns);
  auto bwd_bwd = r.arguments<SphericalHarmonicsBwdBwd>();
  bwd_bwd.g_out = r.g_out.data();
  bwd_bwd.gg_dirs = r.gg_dirs.data();
  bwd_bwd.g_dirs = g_dirs.data();
  bwd_bwd.gg_out = gg_out.data();
  cuda::spherical_harmonics_bwd_bwd(bwd_bwd);
  bwd_bwd.g_dirs = g_dirs_cpu.data();
  bwd_bwd.gg_out = gg_out_cpu.data();
  cpu::spherical_harmonics_bwd_bwd(bwd_bwd);
  compare("g_dirs, second", g_dirs, g_dirs_cpu);
  compare("gg_out", gg_out, gg_out_cpu);
}

}  // namespace

int main() {
  return in_every_order([] {
    for (DType dtype : every_dtype) {
      for (int degree = 1; degree <= 8; ++degree) check(Rows(dtype, degree, 70));
      for (int64_t n : {0, 1, 31, 64, 128, 300}) check(Rows(dtype, 4, n));
    }
  });
}
