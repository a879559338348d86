#include "emulator.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "include/cuda_runtime.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace cuda_emulator {

namespace {

constexpr unsigned kLanes = 32;
constexpr size_t kSharedBytes = 48 << 10;  // what a launch may use without asking for more

struct Block;

struct Thread {
  Block* of;
  unsigned rank;       // within the block
  uint3 index, block;  // threadIdx and blockIdx
  enum { ready, waiting, done } state;
  // Where it waits, and with what.
  Collective kind;
  unsigned mask;
  uint64_t value;
  int distance, width;
  Place place;
  uint64_t result;
  std::unique_ptr<Fiber> fiber;

  unsigned lane() const { return rank % kLanes; }
};

struct SharedVariable {
  const void* key;
  std::unique_ptr<char[]> memory;
};

struct Block {
  std::vector<Thread> threads;
  unsigned n_done = 0;
  size_t shared_bytes = 0;
  std::vector<SharedVariable> shared;
  std::vector<char> warp_sync;  // an address for each lane: where the groups of lanes that it leads synchronise
};

// Those that can go on, in the order in which they came to it. Never allocates: to ThreadSanitizer it would be the
// kernel's thread that does.
class Ready {
 public:
  bool empty() const { return count_ == 0; }
  void clear() { count_ = 0; }
  void reserve(size_t n) {
    if (slots_.size() < n) slots_.resize(n);
  }
  void push_back(Thread* t) { at(count_++) = t; }
  void push_front(Thread* t) {
    first_ += slots_.size() - 1;
    ++count_;
    at(0) = t;
  }
  Thread* pop_back() { return at(--count_); }
  Thread* pop_front() {
    Thread* t = at(0);
    ++first_;
    --count_;
    return t;
  }
  Thread* pop_any(unsigned random) {
    std::swap(at(0), at(random % count_));
    return pop_front();
  }

 private:
  Thread*& at(size_t i) { return slots_[(first_ + i) % slots_.size()]; }

  std::vector<Thread*> slots_;
  size_t first_ = 0, count_ = 0;
};

struct Scheduler {
  Execution execution;
  uint64_t random = 1;
  const Launch* launch = nullptr;
  void (*kernel)(const void*) = nullptr;
  const void* arguments = nullptr;
  std::vector<std::unique_ptr<Block>> resident;
  std::vector<std::unique_ptr<Fiber>> spare;
  Ready ready;
  Thread* running = nullptr;
  std::string error;
  uint64_t turns_without_progress = 0;
} scheduler;

char fence_order;  // only its address counts

cudaError_t last_error = cudaSuccess;

// What ThreadSanitizer is told: everything before a release() happens before what follows acquire() of that address.
// Only launches, barriers, __syncwarp() and fences order memory on a GPU; shuffles, votes and atomics do not.
void release([[maybe_unused]] void* address) {
#if defined(FVX_FIND_RACES)
  __tsan_release(address);
#endif
}
void acquire([[maybe_unused]] void* address) {
#if defined(FVX_FIND_RACES)
  __tsan_acquire(address);
#endif
}

unsigned next_random() {
  scheduler.random = scheduler.random * 6364136223846793005ull + 1442695040888963407ull;
  return unsigned(scheduler.random >> 33);
}

const char* name_of(Collective kind) {
  static const char* const names[] = {
      "nothing",           "__syncthreads",     "__syncthreads_count", "__syncthreads_and", "__syncthreads_or",
      "__syncwarp",        "__shfl_sync",       "__shfl_up_sync",      "__shfl_down_sync",  "__shfl_xor_sync",
      "__ballot_sync",     "__any_sync",        "__all_sync",          "__match_any_sync",  "__reduce_add_sync",
      "__reduce_min_sync", "__reduce_max_sync", "__reduce_min_sync",   "__reduce_max_sync", "__reduce_and_sync",
      "__reduce_or_sync",  "__reduce_xor_sync"};
  return names[int(kind)];
}

bool is_barrier(Collective kind) { return kind >= Collective::barrier && kind <= Collective::barrier_or; }

std::string describe(const Thread& t) {
  char text[256];
  std::snprintf(text, sizeof text, "block (%u, %u, %u) thread %u", t.block.x, t.block.y, t.block.z, t.rank);
  return text;
}

std::string describe_wait(const Thread& t) {
  char text[512];
  const char* file = std::strrchr(t.place.file, '/');
  file = file ? file + 1 : t.place.file;
  if (is_barrier(t.kind)) {
    std::snprintf(text, sizeof text, "%s at %s:%d", name_of(t.kind), file, t.place.line);
  } else {
    std::snprintf(text, sizeof text, "%s(0x%08x) at %s:%d", name_of(t.kind), t.mask, file, t.place.line);
  }
  return text;
}

void switch_to_scheduler(bool for_good = false) { scheduler.running->fiber->leave(for_good); }

[[noreturn]] void fail(const std::string& what) {
  scheduler.error = what;
  switch_to_scheduler();
  std::abort();  // a failed launch's threads are not resumed
}

void make_ready(Thread& t) {
  scheduler.turns_without_progress = 0;
  t.state = Thread::ready;
  if (&t != scheduler.running) scheduler.ready.push_back(&t);
}

// The running thread joins those that can go on, behind all of them.
void go_on_later() {
  auto& ready = scheduler.ready;
  if (scheduler.execution.order == Order::last_to_first) {
    ready.push_front(scheduler.running);
  } else {
    ready.push_back(scheduler.running);
  }
  switch_to_scheduler();
}

// The lane that a shuffle of this thread reads.
unsigned source_of(const Thread& t) {
  const int lane = int(t.lane()), first = lane & ~(t.width - 1), end = first + t.width;
  int source = lane;
  if (t.kind == Collective::shuffle) source = first + (t.distance & (t.width - 1));
  if (t.kind == Collective::shuffle_up) source = lane - t.distance;
  if (t.kind == Collective::shuffle_down) source = lane + t.distance;
  if (t.kind == Collective::shuffle_xor) source = lane ^ t.distance;
  if (t.kind == Collective::shuffle_up) return unsigned(t.distance < 0 || source < first ? lane : source);
  return unsigned(source < 0 || source >= end ? lane : source);
}

uint64_t reduce(Collective kind, uint64_t a, uint64_t b) {
  const unsigned x = unsigned(a), y = unsigned(b);
  switch (kind) {
    case Collective::reduce_add:
      return x + y;
    case Collective::reduce_min_signed:
      return unsigned(std::min(int(x), int(y)));
    case Collective::reduce_max_signed:
      return unsigned(std::max(int(x), int(y)));
    case Collective::reduce_min_unsigned:
      return std::min(x, y);
    case Collective::reduce_max_unsigned:
      return std::max(x, y);
    case Collective::reduce_and:
      return x & y;
    case Collective::reduce_or:
      return x | y;
    default:
      return x ^ y;
  }
}

// Gives every arrived lane its result.
void conclude(Thread* const* lanes, unsigned arrived, Collective kind) {
  unsigned votes = 0;
  uint64_t total = 0;
  bool first = true;
  for (unsigned i = 0; i < kLanes; ++i) {
    if (!(arrived >> i & 1)) continue;
    votes |= unsigned(lanes[i]->value & 1) << i;
    total = first ? lanes[i]->value : reduce(kind, total, lanes[i]->value);
    first = false;
  }
  for (unsigned i = 0; i < kLanes; ++i) {
    if (!(arrived >> i & 1)) continue;
    Thread& t = *lanes[i];
    switch (kind) {
      case Collective::sync:
        break;
      case Collective::shuffle:
      case Collective::shuffle_up:
      case Collective::shuffle_down:
      case Collective::shuffle_xor: {
        const unsigned source = source_of(t);
        if (!(arrived >> source & 1)) {
          fail(describe(t) + ": lane " + std::to_string(i) + " reads lane " + std::to_string(source) +
               ", which does not take part in " + describe_wait(t));
        }
        t.result = lanes[source]->value;
        break;
      }
      case Collective::ballot:
        t.result = votes;
        break;
      case Collective::any:
        t.result = votes != 0;
        break;
      case Collective::all:
        t.result = votes == arrived;
        break;
      case Collective::match_any:
        t.result = 0;
        for (unsigned j = 0; j < kLanes; ++j) {
          if (arrived >> j & 1 && lanes[j]->value == t.value) t.result |= 1ull << j;
        }
        break;
      default:
        t.result = total;
    }
  }
}

// Lets the lanes that `asks` waits for go on if all of them that have not exited are here.
void try_warp(const Thread& asks) {
  Block& block = *asks.of;
  const unsigned warp = asks.rank / kLanes, mask = asks.mask;
  Thread* lanes[kLanes] = {};
  unsigned arrived = 0;
  for (unsigned i = 0; i < kLanes; ++i) {
    if (!(mask >> i & 1) || warp * kLanes + i >= block.threads.size()) continue;
    Thread& t = block.threads[warp * kLanes + i];
    if (t.state == Thread::done) continue;
    if (t.state != Thread::waiting || t.mask != mask || is_barrier(t.kind)) return;
    if (t.kind != asks.kind) {
      fail(describe(t) + ": lane " + std::to_string(i) + " is in " + describe_wait(t) + ", lane " +
           std::to_string(asks.lane()) + " of the same mask in " + describe_wait(asks));
    }
    lanes[i] = &t;
    arrived |= 1u << i;
  }
  conclude(lanes, arrived, asks.kind);
  for (Thread* t : lanes) {
    if (t) make_ready(*t);
  }
}

void try_barrier(Block& block) {
  const Thread* first = nullptr;
  uint64_t count = 0, n = 0;
  for (const Thread& t : block.threads) {
    if (t.state == Thread::done) continue;
    if (t.state != Thread::waiting || !is_barrier(t.kind)) return;
    if (first && (t.kind != first->kind || t.place.line != first->place.line)) {
      fail(describe(t) + " waits in " + describe_wait(t) + ", thread " + std::to_string(first->rank) + " in " +
           describe_wait(*first));
    }
    if (!first) first = &t;
    count += t.value;
    ++n;
  }
  if (!first) return;
  const Collective kind = first->kind;
  const uint64_t result = kind == Collective::barrier_count ? count
                          : kind == Collective::barrier_and ? count == n
                                                            : count != 0;
  for (Thread& t : block.threads) {
    if (t.state == Thread::done) continue;
    t.result = result;
    make_ready(t);
  }
}

void finish(Thread& t) {
  Block& block = *t.of;
  t.state = Thread::done;
  ++block.n_done;
  scheduler.turns_without_progress = 0;
  // Those that waited only for this thread go on.
  const unsigned warp = t.rank / kLanes;
  const size_t end = std::min(block.threads.size(), size_t(warp + 1) * kLanes);
  for (size_t i = warp * kLanes; i < end; ++i) {
    const Thread& other = block.threads[i];
    if (other.state == Thread::waiting && !is_barrier(other.kind) && other.mask >> t.lane() & 1) {
      try_warp(other);
    }
  }
  try_barrier(block);
}

void thread_main() {
  Fiber::entered();
  acquire(&scheduler);
  scheduler.kernel(scheduler.arguments);
  release(scheduler.running->of);
  finish(*scheduler.running);
  switch_to_scheduler(true);
}

void start_block(uint64_t index) {
  const Launch& launch = *scheduler.launch;
  const dim3 g = launch.grid, b = launch.block;
  auto block = std::make_unique<Block>();
  block->threads.resize(size_t(b.x) * b.y * b.z);
  block->warp_sync.resize(block->threads.size() + kLanes);
  for (unsigned rank = 0; rank < block->threads.size(); ++rank) {
    Thread& t = block->threads[rank];
    t.index = {rank % b.x, rank / b.x % b.y, rank / b.x / b.y};
    t.block = {unsigned(index % g.x), unsigned(index / g.x % g.y), unsigned(index / g.x / g.y)};
    t.of = block.get();
    t.rank = rank;
    t.state = Thread::ready;
    if (scheduler.spare.empty()) {
      t.fiber = std::make_unique<Fiber>(thread_main);
    } else {
      t.fiber = std::move(scheduler.spare.back());
      scheduler.spare.pop_back();
      t.fiber->rewind(thread_main);
    }
    scheduler.ready.push_back(&t);
  }
  scheduler.resident.push_back(std::move(block));
}

void retire(Block& block) {
  acquire(&block);
  for (Thread& t : block.threads) scheduler.spare.push_back(std::move(t.fiber));
}

Thread* pick() {
  auto& ready = scheduler.ready;
  switch (scheduler.execution.order) {
    case Order::first_to_last:
      return ready.pop_front();
    case Order::last_to_first:
      return ready.pop_back();
    default:
      return ready.pop_any(next_random());
  }
}

std::string deadlock() {
  std::string text = "no thread can go on:";
  for (const auto& block : scheduler.resident) {
    std::map<std::string, std::vector<unsigned>> waits;
    for (const Thread& t : block->threads) {
      waits[t.state == Thread::done ? "have exited" : "wait in " + describe_wait(t)].push_back(t.rank);
    }
    const uint3 b = block->threads[0].block;
    text += "\n  block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " + std::to_string(b.z) + ")";
    for (const auto& [where, ranks] : waits) {
      text += "\n    " + std::to_string(ranks.size()) + " threads " + where + ":";
      for (size_t i = 0; i < ranks.size() && i < 8; ++i) text += " " + std::to_string(ranks[i]);
      if (ranks.size() > 8) text += " ...";
    }
  }
  return text;
}

void run_blocks(uint64_t n_blocks, size_t threads_of_block) {
  scheduler.ready.reserve(threads_of_block * size_t(scheduler.execution.resident_blocks));
  uint64_t next = 0;
  for (;;) {
    while (next < n_blocks && scheduler.resident.size() < size_t(scheduler.execution.resident_blocks)) {
      start_block(next++);
    }
    if (scheduler.resident.empty()) return;
    if (scheduler.ready.empty()) {
      scheduler.error = deadlock();
      return;
    }
    Thread* t = pick();
    scheduler.running = t;
    t->fiber->resume();
    scheduler.running = nullptr;
    if (!scheduler.error.empty()) return;
    Block* block = t->of;
    if (block->n_done < block->threads.size()) continue;
    retire(*block);
    auto& resident = scheduler.resident;
    resident.erase(std::find_if(resident.begin(), resident.end(), [=](const auto& b) { return b.get() == block; }));
  }
}

}  // namespace

void set_execution(const Execution& execution) { scheduler.execution = execution; }

uint3 thread_index() { return scheduler.running->index; }
uint3 block_index() { return scheduler.running->block; }
dim3 block_dim() { return scheduler.launch->block; }
dim3 grid_dim() { return scheduler.launch->grid; }

uint64_t meet(Collective kind, unsigned mask, uint64_t value, int distance, int width, Place place) {
  Thread& t = *scheduler.running;
  t.kind = kind;
  t.mask = mask;
  t.value = value;
  t.distance = distance;
  t.width = width;
  t.place = place;
  if (!is_barrier(kind) && !(mask >> t.lane() & 1)) {
    fail(describe(t) + ": lane " + std::to_string(t.lane()) + " is not in the mask of its own " + describe_wait(t));
  }
  void* memory_order = nullptr;
  if (is_barrier(kind)) memory_order = t.of;
  if (kind == Collective::sync)
    memory_order = &t.of->warp_sync[t.rank / kLanes * kLanes + unsigned(__builtin_ctz(mask))];
  if (memory_order) release(memory_order);
  t.state = Thread::waiting;
  if (is_barrier(kind)) {
    try_barrier(*t.of);
  } else {
    try_warp(t);
  }
  if (t.state == Thread::waiting) {
    switch_to_scheduler();
  } else if (scheduler.execution.order == Order::shuffled) {
    go_on_later();
  }
  if (memory_order) acquire(memory_order);
  return t.result;
}

void give_way() {
  if (++scheduler.turns_without_progress > 2000000) {
    fail(describe(*scheduler.running) + " and every other thread that can go on only waits for memory to change");
  }
  go_on_later();
}

void fence() {
  acquire(&fence_order);
  release(&fence_order);
  at_atomic();
}

void at_atomic() {
  if (scheduler.execution.order == Order::shuffled && next_random() % 4 == 0) go_on_later();
}

void* shared(const void* key, size_t bytes) {
  Block& block = *scheduler.running->of;
  for (const SharedVariable& v : block.shared) {
    if (v.key != key) continue;
    acquire(v.memory.get());
    return v.memory.get();
  }
  block.shared_bytes += bytes;
  if (block.shared_bytes > kSharedBytes) fail(describe(*scheduler.running) + ": more than 48 KiB of shared memory");
  // Exactly that many bytes, so that AddressSanitizer sees the end; NaN as a float, -1 as an integer.
  block.shared.push_back({key, std::unique_ptr<char[]>(new char[bytes])});
  std::memset(block.shared.back().memory.get(), 0xff, bytes);
  release(block.shared.back().memory.get());
  return block.shared.back().memory.get();
}

void* dynamic_shared() {
  static const char key = 0;
  return shared(&key, scheduler.launch->shared_bytes);
}

void Launch::run(void (*kernel)(const void*), const void* arguments) const {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  const bool valid = threads > 0 && threads <= 1024 && block.z <= 64 && grid.x > 0 && grid.y > 0 && grid.z > 0 &&
                     grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
  if (!valid) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  scheduler.launch = this;
  scheduler.kernel = kernel;
  scheduler.arguments = arguments;
  scheduler.random = scheduler.execution.seed;
  scheduler.turns_without_progress = 0;
  release(&scheduler);
  run_blocks(uint64_t(grid.x) * grid.y * grid.z, threads);
  if (scheduler.error.empty()) return;
  const Error error(scheduler.error);
  scheduler.error.clear();
  scheduler.ready.clear();
  for (const auto& b : scheduler.resident) retire(*b);
  scheduler.resident.clear();
  throw error;
}

}  // namespace cuda_emulator

#if defined(__SANITIZE_ADDRESS__)
// A launch that failed leaves its threads' stacks as they were, with what they own.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() { return "detect_leaks=0"; }
#endif

#if defined(FVX_FIND_RACES)
// Volatile accesses are those that may meet others: no races, and places to wait at.
extern "C" {
void __tsan_volatile_read1(void*) { cuda_emulator::at_atomic(); }
void __tsan_volatile_read2(void*) { cuda_emulator::at_atomic(); }
void __tsan_volatile_read4(void*) { cuda_emulator::at_atomic(); }
void __tsan_volatile_read8(void*) { cuda_emulator::at_atomic(); }
void __tsan_volatile_write1(void*) {}
void __tsan_volatile_write2(void*) {}
void __tsan_volatile_write4(void*) {}
void __tsan_volatile_write8(void*) {}
}
#endif

bool cuda_emulator::finds_races() {
#if defined(FVX_FIND_RACES)
  return true;
#else
  return false;
#endif
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cuda_emulator::last_error;
  cuda_emulator::last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "invalid configuration argument" : "error";
}
