// 4096 directions, degree 4.
#include <memory>

#include "driver.h"

namespace fastvfx {
namespace {

constexpr int64_t kRows = 4096;
constexpr int kDegree = 4;

struct Data {
  std::vector<float> dirs = random_floats(kRows * 3, 1, -1, 1);
  std::vector<float> columns = random_floats(kRows * kDegree * kDegree, 2, -1, 1);
  std::vector<float> gg_dirs = random_floats(kRows * 3, 3, -1, 1);
  std::vector<float> dirs_out = std::vector<float>(dirs.size()), columns_out = std::vector<float>(columns.size());
};

template <class Args>
Args arguments(const Data& data) {
  Args a{};
  a.dtype = DType::f32;
  a.n = kRows;
  a.degree = kDegree;
  a.dirs = data.dirs.data();
  a.threads = 1;
  return a;
}

std::function<void()> forward() {
  auto data = std::make_shared<Data>();
  auto a = arguments<SphericalHarmonicsFwd>(*data);
  a.out = data->columns_out.data();
  return [data, a] { cpu::spherical_harmonics_fwd(a); };
}

std::function<void()> backward() {
  auto data = std::make_shared<Data>();
  auto a = arguments<SphericalHarmonicsBwd>(*data);
  a.g_out = data->columns.data();
  a.g_dirs = data->dirs_out.data();
  return [data, a] { cpu::spherical_harmonics_bwd(a); };
}

std::function<void()> double_backward() {
  auto data = std::make_shared<Data>();
  auto a = arguments<SphericalHarmonicsBwdBwd>(*data);
  a.g_out = data->columns.data();
  a.gg_dirs = data->gg_dirs.data();
  a.g_dirs = data->dirs_out.data();
  a.gg_out = data->columns_out.data();
  return [data, a] { cpu::spherical_harmonics_bwd_bwd(a); };
}

const Register fwd("spherical_harmonics_fwd", forward), bwd("spherical_harmonics_bwd", backward);
const Register bwd_bwd("spherical_harmonics_bwd_bwd", double_backward);

}  // namespace
}  // namespace fastvfx
