// Runs CUDA kernels on the processor: what cuda_runtime.h (the one beside this file) is built on, and what tests say.
//
// Every thread of a block is a fiber. Fibers of the resident blocks take turns on one OS thread and give way only
// where a CUDA thread would wait for another one: at warp collectives, barriers, fences and atomics. So a launch is
// deterministic for an `Execution`, and a kernel that is right gives the same for all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <tuple>
#include <type_traits>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz) {}
};

namespace cuda_emulator {

// Which of the threads that could go on goes on. `shuffled` also gives way at every few atomics.
enum class Order { first_to_last, last_to_first, shuffled };

struct Execution {
  Order order = Order::first_to_last;
  uint64_t seed = 1;
  int resident_blocks = 3;  // how many blocks run at once; they start in the order of their indices
};
void set_execution(const Execution& execution);
bool finds_races();  // this build has ThreadSanitizer watch the kernels, in place of AddressSanitizer

// A kernel did what CUDA leaves undefined or what would hang. Thrown out of the launch.
struct Error : std::logic_error {
  using std::logic_error::logic_error;
};

// The place in the kernel's source, for errors.
struct Place {
  const char* file;
  int line;
  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// Of the running thread.
uint3 thread_index();
uint3 block_index();
dim3 block_dim();
dim3 grid_dim();

enum class Collective : int {
  none,
  barrier,  // of the block
  barrier_count,
  barrier_and,
  barrier_or,
  sync,  // from here on: of lanes of a warp
  shuffle,
  shuffle_up,
  shuffle_down,
  shuffle_xor,
  ballot,
  any,
  all,
  match_any,
  reduce_add,
  reduce_min_signed,
  reduce_max_signed,
  reduce_min_unsigned,
  reduce_max_unsigned,
  reduce_and,
  reduce_or,
  reduce_xor,
};

// Waits for the other lanes of `mask`, or the block's other threads; returns what the collective gives this lane.
uint64_t meet(Collective kind, unsigned mask, uint64_t value, int distance, int width, Place place);

void give_way();   // the threads that this one may be waiting for go on
void at_atomic();  // a place where threads may overtake each other
void fence();
void* dynamic_shared();                       // the shared memory that the launch asked for
void* shared(const void* key, size_t bytes);  // the block's variable of that key: created, and poisoned, when first met

// A variable of type T that stands in a __shared__ declaration: one for each block, kernel and declaration.
template <class Declaration, class T, int kIndex>
T& shared_variable() {
  static const char key = 0;
  return *static_cast<T*>(shared(&key, sizeof(T)));
}

template <class T>
uint64_t to_word(T x) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "a collective passes at most 8 bytes");
  uint64_t word = 0;
  std::memcpy(&word, &x, sizeof(T));
  return word;
}
template <class T>
T from_word(uint64_t word) {
  T x;
  std::memcpy(&x, &word, sizeof(T));
  return x;
}

// `kernel<<<grid, block, shared, stream>>>(arguments...)` becomes `kernel % Launch(grid, ...)(arguments...)`.
template <class... A>
struct Call;

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  Launch(dim3 grid_, dim3 block_, size_t shared_bytes_ = 0, void* = nullptr)
      : grid(grid_), block(block_), shared_bytes(shared_bytes_) {}
  template <class... A>
  Call<A...> operator()(const A&... arguments) const {
    return {*this, {arguments...}};
  }
  void run(void (*kernel)(const void*), const void* arguments) const;
};

template <class... A>
struct Call {
  Launch launch;
  std::tuple<A...> arguments;
};

template <class... P>
struct Bound {
  void (*kernel)(P...);
  std::tuple<P...> arguments;
};

template <class... P, class... A>
void operator%(void (*kernel)(P...), const Call<A...>& call) {
  const Bound<P...> bound{kernel, call.arguments};
  call.launch.run(
      [](const void* erased) {
        const auto& b = *static_cast<const Bound<P...>*>(erased);
        std::apply(b.kernel, b.arguments);
      },
      &bound);
}

}  // namespace cuda_emulator
