// The emulator itself: what collectives give, and that it finds what a kernel may get wrong.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "emulator.h"

using cuda_emulator::Order;

namespace {

constexpr unsigned kAll = 0xffffffffu;
int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("%s\n", what);
  ++failures;
}

void expect_equal(const char* what, int got, int want) {
  if (got == want) return;
  std::printf("%s: got %d, want %d\n", what, got, want);
  ++failures;
}

// Launches `body` in a way that must fail with a message that holds `part`.
template <class F>
void expect_error(const char* part, const F& body) {
  try {
    body();
  } catch (const cuda_emulator::Error& error) {
    if (std::string(error.what()).find(part) != std::string::npos) return;
    std::printf("expected '%s' in: %s\n", part, error.what());
    ++failures;
    return;
  }
  std::printf("no error with '%s'\n", part);
  ++failures;
}

__global__ void collectives(int* out) {
  const int lane = threadIdx.x;
  int* o = out + lane * 16;
  o[0] = __shfl_sync(kAll, lane, 5);
  o[1] = __shfl_sync(kAll, lane, 9, 8);  // lane 1 of each group of 8
  o[2] = __shfl_up_sync(kAll, lane, 3, 8);
  o[3] = __shfl_down_sync(kAll, lane, 3, 8);
  o[4] = __shfl_xor_sync(kAll, lane, 5);
  o[5] = int(__ballot_sync(kAll, lane % 3 == 0));
  o[6] = __any_sync(kAll, lane == 31);
  o[7] = __all_sync(kAll, lane < 31);
  o[8] = int(__match_any_sync(kAll, lane / 4));
  o[9] = __reduce_add_sync(kAll, lane);
  o[10] = __reduce_min_sync(kAll, lane - 7);
  o[11] = int(__reduce_max_sync(kAll, unsigned(lane - 7)));
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  o[12] = __reduce_add_sync(half, 1 + lane / 16);
  o[13] = __syncthreads_count(lane < 11);
  o[14] = int(__shfl_down_sync(kAll, 0.5 * lane, 1) * 2);
  o[15] = int(__shfl_xor_sync(kAll, 1ll << 40 | lane, 1) >> 8);
}

void test_collectives() {
  std::vector<int> out(32 * 16);
  collectives<<<1, 32>>>(out.data());
  const auto at = [&](int lane, int i) { return out[size_t(lane) * 16 + size_t(i)]; };
  expect_equal("shfl", at(20, 0), 5);
  expect_equal("shfl of 8", at(20, 1), 17);
  expect_equal("shfl_up of 8", at(12, 2), 9);
  expect_equal("shfl_up of 8 at its beginning", at(10, 2), 10);
  expect_equal("shfl_down of 8", at(12, 3), 15);
  expect_equal("shfl_down of 8 at its end", at(13, 3), 13);
  expect_equal("shfl_xor", at(6, 4), 3);
  expect_equal("ballot", at(0, 5), 0x49249249);
  expect_equal("any", at(0, 6), 1);
  expect_equal("all", at(0, 7), 0);
  expect_equal("match_any", at(9, 8), 0xf00);
  expect_equal("reduce_add", at(3, 9), 496);
  expect_equal("reduce_min of signed", at(3, 10), -7);
  expect_equal("reduce_max of unsigned", at(3, 11), -1);
  expect_equal("reduce_add of half a warp", at(15, 12), 16);
  expect_equal("reduce_add of the other half", at(16, 12), 32);
  expect_equal("syncthreads_count", at(0, 13), 11);
  expect_equal("shfl of double", at(4, 14), 5);
  expect(at(4, 15) == 0 && at(5, 15) == 0, "shfl of 64 bits");
}

__global__ void foreign_mask() { __shfl_sync(0xffu, 1, 0); }
__global__ void absent_source() {
  if (threadIdx.x >= 8) return;
  __shfl_sync(kAll, 1, 20);
}
__global__ void two_kinds() {
  if (threadIdx.x % 2) {
    __ballot_sync(kAll, 1);
  } else {
    __syncwarp();
  }
}
__global__ void lane_that_never_comes() {
  if (threadIdx.x < 8) {
    __syncwarp(0xffu);
    __shfl_xor_sync(0xffffu, 1, 1);
  } else {
    __syncthreads();
  }
}
__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void too_much_shared() {
  __shared__ double a[4096], b[4096];
  a[threadIdx.x] = b[threadIdx.x] = 0;
}
__global__ void waits_forever(unsigned* flag) {
  while (atomicAdd(flag, 0u) == 0) __nanosleep(20);
}

void test_errors() {
  unsigned flag = 0;
  expect_error("is not in the mask of its own __shfl_sync(0x000000ff) at test_emulator.cu:",
               [] { foreign_mask<<<1, 32>>>(); });
  expect_error("reads lane 20, which does not take part", [] { absent_source<<<1, 32>>>(); });
  expect_error("of the same mask in", [] { two_kinds<<<1, 32>>>(); });
  expect_error("8 threads wait in __shfl_xor_sync(0x0000ffff)", [] { lane_that_never_comes<<<1, 32>>>(); });
  expect_error("__syncthreads", [] { two_barriers<<<1, 64>>>(); });
  expect_error("more than 48 KiB", [] { too_much_shared<<<1, 32>>>(); });
  expect_error("only waits for memory", [&] { waits_forever<<<2, 2>>>(&flag); });
  collectives<<<1, 2000>>>(nullptr);
  expect(cudaGetLastError() == cudaErrorInvalidConfiguration, "a block of 2000 threads is refused");
  expect(cudaGetLastError() == cudaSuccess, "the error was taken");
}

// The sum of a block's values, with the barrier that it needs or without.
__global__ void rotate(const int* x, int* y, bool barrier) {
  __shared__ int tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
  if (barrier) __syncthreads();
  y[threadIdx.x] = tile[(threadIdx.x + 1) % 64];
}

void test_orders_show_a_missing_barrier() {
  std::vector<int> x(64), y(64);
  for (int i = 0; i < 64; ++i) x[size_t(i)] = i;
  for (bool barrier : {true, false}) {
    rotate<<<1, 64>>>(x.data(), y.data(), barrier);
    int wrong = 0;
    for (int i = 0; i < 64; ++i) wrong += y[size_t(i)] != (i + 1) % 64;
    expect((wrong == 0) == barrier, "the result is wrong if and only if the barrier is missing");
  }
}

__global__ void reads_fresh_shared(float* out) {
  __shared__ float tile[4];
  extern __shared__ float more[];
  out[2 * blockIdx.x] = tile[threadIdx.x];
  out[2 * blockIdx.x + 1] = more[threadIdx.x + 7];
  tile[threadIdx.x] = more[threadIdx.x + 7] = 1;
}

void test_shared_memory_is_poisoned_for_each_block() {
  std::vector<float> out(10);
  reads_fresh_shared<<<5, 1, 8 * sizeof(float)>>>(out.data());
  for (float x : out) expect(std::isnan(x), "fresh shared memory is NaN");
}

// Every block waits for the one before it, as a scan over blocks does.
__global__ void chain(unsigned long long* sums, unsigned* ticket) {
  __shared__ unsigned block;
  if (threadIdx.x == 0) block = atomicAdd(ticket, 1);
  __syncthreads();
  if (threadIdx.x != 0) return;
  volatile unsigned long long* before = sums;
  unsigned long long sum;
  while ((sum = before[block]) == 0) __nanosleep(20);
  before[block + 1] = sum + block;
}

void test_blocks_may_wait_for_earlier_ones() {
  std::vector<unsigned long long> sums(41);
  sums[0] = 1;
  unsigned ticket = 0;
  chain<<<40, 48>>>(sums.data(), &ticket);
  expect_equal("sum over blocks", int(sums[40]), 1 + 39 * 20);
}

__global__ void indices(int* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  atomicAdd(out + block * blockDim.x * blockDim.y * blockDim.z + thread, 1);
}

void test_every_index_runs_once() {
  std::vector<int> out(2 * 3 * 4 * 5 * 6 * 7);
  indices<<<dim3(2, 3, 4), dim3(5, 6, 7)>>>(out.data());
  for (int n : out) expect_equal("runs of a thread", n, 1);
}

__global__ void one_too_far(int* out) { out[threadIdx.x] = 0; }
__global__ void one_too_far_in_shared(int* out) {
  __shared__ int tile[31];
  int* p = tile;
  p[threadIdx.x] = int(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = p[0];
}

// Lane 0 tells its warp something, with the synchronisation that it needs or without; a shuffle is none.
__global__ void tell(int* note, int* out, bool synchronise) {
  if (threadIdx.x == 0) *note = 7;
  __shfl_sync(kAll, 0, 0);
  if (synchronise) __syncwarp();
  out[threadIdx.x] = *note;
}
__global__ void blocks_write_one_place(int* out, bool with_atomics) {
  if (with_atomics) {
    atomicMax(out, int(blockIdx.x));
  } else {
    *out = int(blockIdx.x);
  }
}

// One mistake that a sanitizer must find, or its correct sibling.
void run_mistake(const std::string& name) {
  std::vector<int> out(name == "global_overrun" ? 31 : 32), note(1);
  if (name == "global_overrun") one_too_far<<<1, 32>>>(out.data());
  if (name == "shared_overrun") one_too_far_in_shared<<<1, 32>>>(out.data());
  if (name == "no_race") {
    tell<<<1, 32>>>(note.data(), out.data(), true);
    blocks_write_one_place<<<4, 1>>>(out.data(), true);
    rotate<<<1, 64>>>(std::vector<int>(64).data(), std::vector<int>(64).data(), true);
    test_blocks_may_wait_for_earlier_ones();
  }
  if (name == "race_in_a_warp") tell<<<1, 32>>>(note.data(), out.data(), false);
  if (name == "race_of_blocks") blocks_write_one_place<<<4, 1>>>(out.data(), false);
  if (name == "race_in_shared") {
    rotate<<<1, 64>>>(std::vector<int>(64).data(), std::vector<int>(64).data(), false);
  }
}

}  // namespace

int main(int n_arguments, char** arguments) {
  if (n_arguments > 1) {
    run_mistake(arguments[1]);
    return failures ? 1 : 0;
  }
  for (Order order : {Order::first_to_last, Order::last_to_first, Order::shuffled}) {
    cuda_emulator::set_execution({order, 3, 3});
    test_collectives();
    test_errors();
    test_orders_show_a_missing_barrier();
    test_shared_memory_is_poisoned_for_each_block();
    test_blocks_may_wait_for_earlier_ones();
    test_every_index_runs_once();
  }
  std::printf("%d failed\n", failures);
  return failures ? 1 : 0;
}
