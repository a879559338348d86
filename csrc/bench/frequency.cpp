// 1024 points in three dimensions, 12 frequencies in tcnn's order.
#include <memory>

#include "driver.h"

namespace fastvfx {
namespace {

constexpr int64_t kRows = 1024;
constexpr int kDims = 3, kFrequencies = 12;

struct Data {
  std::vector<float> x = random_floats(kRows * kDims, 1, -1, 1);
  std::vector<float> columns = random_floats(kRows * kDims * kFrequencies * 2, 2, -1, 1);
  std::vector<float> gg_x = random_floats(kRows * kDims, 3, -1, 1);
  std::vector<float> x_out = std::vector<float>(x.size()), columns_out = std::vector<float>(columns.size());
};

template <class Args>
Args arguments(const Data& data) {
  Args a{};
  a.dtype = DType::f32;
  a.layout = FrequencyLayout::tcnn;
  a.n = kRows;
  a.dims = kDims;
  a.n_frequencies = kFrequencies;
  a.x = data.x.data();
  a.threads = 1;
  return a;
}

std::function<void()> forward() {
  auto data = std::make_shared<Data>();
  auto a = arguments<FrequencyFwd>(*data);
  a.out = data->columns_out.data();
  return [data, a] { cpu::frequency_fwd(a); };
}

std::function<void()> backward() {
  auto data = std::make_shared<Data>();
  auto a = arguments<FrequencyBwd>(*data);
  a.g_out = data->columns.data();
  a.g_x = data->x_out.data();
  return [data, a] { cpu::frequency_bwd(a); };
}

std::function<void()> double_backward() {
  auto data = std::make_shared<Data>();
  auto a = arguments<FrequencyBwdBwd>(*data);
  a.g_out = data->columns.data();
  a.gg_x = data->gg_x.data();
  a.g_x = data->x_out.data();
  a.gg_out = data->columns_out.data();
  return [data, a] { cpu::frequency_bwd_bwd(a); };
}

const Register fwd("frequency_fwd", forward), bwd("frequency_bwd", backward);
const Register bwd_bwd("frequency_bwd_bwd", double_backward);

}  // namespace
}  // namespace fastvfx
