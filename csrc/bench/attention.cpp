// A neighbourhood of (3, 3, 5) on a grid of 4 x 8 x 8, two heads of 32 channels, and all pairs of the same tokens.
#include <memory>

#include "driver.h"

namespace fastvfx {
namespace {

constexpr int kGrid[3] = {4, 8, 8}, kKernel[3] = {3, 3, 5};
constexpr int64_t kTokens = 256, kHeads = 2, kDim = 32, kSize = kTokens * kHeads * kDim;

struct Data {
  explicit Data(bool near) {
    for (int x = 0; x < 3; ++x) {
      for (int i = 0; i < kGrid[x]; ++i) {
        const int last = kGrid[x] - kKernel[x], first = i - kKernel[x] / 2;
        const int start = first < 0 ? 0 : first > last ? last : first;
        spans[x].push_back(near ? start : 0), spans[x].push_back(near ? start + kKernel[x] : kGrid[x]);
      }
    }
  }

  std::vector<float> q = random_floats(kSize, 1, -1, 1), k = random_floats(kSize, 2, -1, 1);
  std::vector<float> v = random_floats(kSize, 3, -1, 1), g_out = random_floats(kSize, 4, -1, 1);
  std::vector<float> out = std::vector<float>(kSize), lse = std::vector<float>(kTokens * kHeads);
  std::vector<float> g_q = out, g_k = out, g_v = out;
  std::vector<int32_t> spans[3], of_head = std::vector<int32_t>(kHeads);
};

template <class Args>
Args arguments(const Data& data) {
  Args a{};
  a.dtype = DType::f32;
  a.batch = 1, a.heads = a.kv_heads = kHeads, a.dim = a.dim_v = kDim, a.n_patterns = 1;
  for (int x = 0; x < 3; ++x) {
    a.q_grid[x] = a.k_grid[x] = kGrid[x];
    a.dilation[x] = a.block[x] = 1;
    a.spans[x] = data.spans[x].data();
  }
  a.scale = 0.18;
  a.q = {data.q.data(), kSize, kHeads * kDim, kDim};
  a.k = {data.k.data(), kSize, kHeads * kDim, kDim};
  a.v = {data.v.data(), kSize, kHeads * kDim, kDim};
  a.of_head = data.of_head.data();
  a.threads = 1;
  return a;
}

template <bool near>
std::function<void()> forward() {
  auto data = std::make_shared<Data>(near);
  auto a = arguments<AttentionFwd>(*data);
  a.out = data->out.data(), a.lse = data->lse.data();
  return [data, a] { cpu::attention_fwd(a); };
}

template <bool near>
std::function<void()> backward() {
  auto data = std::make_shared<Data>(near);
  auto a = arguments<AttentionBwd>(*data);
  auto fwd = arguments<AttentionFwd>(*data);
  fwd.out = data->out.data(), fwd.lse = data->lse.data();
  cpu::attention_fwd(fwd);
  a.out = {data->out.data(), kSize, kHeads * kDim, kDim};
  a.g_out = {data->g_out.data(), kSize, kHeads * kDim, kDim};
  a.lse = data->lse.data();
  a.g_q = data->g_q.data(), a.g_k = data->g_k.data(), a.g_v = data->g_v.data();
  return [data, a] { cpu::attention_bwd(a); };
}

const Register fwd("attention_fwd", forward<false>), bwd("attention_bwd", backward<false>);
const Register near_fwd("attention_fwd_neighborhood", forward<true>);
const Register near_bwd("attention_bwd_neighborhood", backward<true>);

}  // namespace
}  // namespace fastvfx
