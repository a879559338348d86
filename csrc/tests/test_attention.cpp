#include <cstring>
#include <vector>

#include "check.h"

using namespace fastvfx;

// A neighbourhood on a grid of 3 x 5 x 6 with two heads to one head of keys, against the defining sums; gradients
// against finite differences of those sums; the same bits from any number of threads.
namespace {

constexpr int kGrid[3] = {3, 5, 6}, kReach[3] = {1, 1, 2};
constexpr int kTokens = 90, kHeads = 2, kDim = 20;

struct Clip {
  std::vector<float> q, k, v, g_out;
  std::vector<int32_t> spans[3];
  int32_t of_head[kHeads] = {0, 0};
};

Clip make_clip() {
  Clip c;
  Random random{11};
  const auto fill = [&](std::vector<float>& x, int n) {
    for (int i = 0; i < n; ++i) x.push_back(float(2 * random() - 1));
  };
  fill(c.q, kTokens * kHeads * kDim), fill(c.k, kTokens * kDim), fill(c.v, kTokens * kDim);
  fill(c.g_out, kTokens * kHeads * kDim);
  for (int x = 0; x < 3; ++x) {
    for (int i = 0; i < kGrid[x]; ++i) {
      c.spans[x].push_back(i < kReach[x] ? 0 : i - kReach[x]);
      c.spans[x].push_back(i + kReach[x] + 1 > kGrid[x] ? kGrid[x] : i + kReach[x] + 1);
    }
  }
  return c;
}

bool allowed(int i, int j) {
  const int a[3] = {i / 30, i / 6 % 5, i % 6}, b[3] = {j / 30, j / 6 % 5, j % 6};
  for (int x = 0; x < 3; ++x) {
    if (std::abs(a[x] - b[x]) > kReach[x]) return false;
  }
  return true;
}

// o_i of one head, in double.
void attend(const Clip& c, const std::vector<double>& q, const std::vector<double>& k, int i, int head, double* out) {
  double scores[kTokens], total = 0;
  for (int j = 0; j < kTokens; ++j) {
    scores[j] = 0;
    for (int d = 0; d < kDim; ++d)
      scores[j] += 0.4 * q[size_t((i * kHeads + head) * kDim + d)] * k[size_t(j * kDim + d)];
    scores[j] = allowed(i, j) ? std::exp(scores[j]) : 0;
    total += scores[j];
  }
  for (int d = 0; d < kDim; ++d) {
    out[d] = 0;
    for (int j = 0; j < kTokens; ++j) out[d] += scores[j] / total * c.v[size_t(j * kDim + d)];
  }
}

double loss(const Clip& c, const std::vector<double>& q, const std::vector<double>& k) {
  double sum = 0, out[kDim];
  for (int row = 0; row < kTokens * kHeads; ++row) {
    attend(c, q, k, row / kHeads, row % kHeads, out);
    for (int d = 0; d < kDim; ++d) sum += out[d] * c.g_out[size_t(row * kDim + d)];
  }
  return sum;
}

template <class Args>
Args arguments(const Clip& c, int threads) {
  Args a{};
  a.dtype = DType::f32;
  a.batch = 1, a.heads = kHeads, a.kv_heads = 1, a.dim = a.dim_v = kDim, a.n_patterns = 1;
  for (int x = 0; x < 3; ++x) {
    a.q_grid[x] = a.k_grid[x] = kGrid[x];
    a.dilation[x] = a.block[x] = 1;
    a.spans[x] = c.spans[x].data();
  }
  a.scale = 0.4;
  a.q = {c.q.data(), 0, kHeads * kDim, kDim};
  a.k = {c.k.data(), 0, kDim, 0};
  a.v = {c.v.data(), 0, kDim, 0};
  a.of_head = c.of_head;
  a.threads = threads;
  return a;
}

void same_bits(const char* what, const std::vector<float>& a, const std::vector<float>& b) {
  near(what, std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0, 0);
}

void test_attention() {
  const Clip c = make_clip();
  const std::vector<double> q(c.q.begin(), c.q.end()), k(c.k.begin(), c.k.end());
  std::vector<float> outs[2], lses[2], g_qs[2], g_ks[2], g_vs[2];
  for (int many = 0; many < 2; ++many) {
    std::vector<float>&out = outs[many], &lse = lses[many], &g_q = g_qs[many], &g_k = g_ks[many], &g_v = g_vs[many];
    out.assign(c.q.size(), NAN), lse.assign(kTokens * kHeads, NAN);
    g_q.assign(c.q.size(), NAN), g_k.assign(c.k.size(), NAN), g_v.assign(c.v.size(), NAN);
    auto fwd = arguments<AttentionFwd>(c, many ? 3 : 1);
    fwd.out = out.data(), fwd.lse = lse.data();
    cpu::attention_fwd(fwd);
    auto bwd = arguments<AttentionBwd>(c, many ? 3 : 1);
    bwd.out = {out.data(), 0, kHeads * kDim, kDim};
    bwd.g_out = {c.g_out.data(), 0, kHeads * kDim, kDim};
    bwd.lse = lse.data();
    bwd.g_q = g_q.data(), bwd.g_k = g_k.data(), bwd.g_v = g_v.data();
    cpu::attention_bwd(bwd);
  }
  same_bits("out", outs[0], outs[1]);
  same_bits("lse", lses[0], lses[1]);
  same_bits("g_q", g_qs[0], g_qs[1]);
  same_bits("g_k", g_ks[0], g_ks[1]);
  same_bits("g_v", g_vs[0], g_vs[1]);
  for (int row = 0; row < kTokens * kHeads; ++row) {
    double out[kDim];
    attend(c, q, k, row / kHeads, row % kHeads, out);
    for (int d = 0; d < kDim; ++d) near("out", outs[0][size_t(row * kDim + d)], out[d], 2e-6);
  }
  const auto slope = [&](bool of_q, size_t at) {
    std::vector<double> more[2] = {q, k}, less[2] = {q, k};
    more[of_q ? 0 : 1][at] += 1e-5, less[of_q ? 0 : 1][at] -= 1e-5;
    return (loss(c, more[0], more[1]) - loss(c, less[0], less[1])) / 2e-5;
  };
  for (size_t at = 3; at < c.q.size(); at += 997) near("g_q", g_qs[0][at], slope(true, at), 1e-5);
  for (size_t at = 5; at < c.k.size(); at += 431) near("g_k", g_ks[0][at], slope(false, at), 1e-5);
}

}  // namespace

int main() { return at_every_isa(test_attention); }
