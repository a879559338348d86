// A stack of its own and the switch to it. On x86-64 the switch is a dozen instructions; elsewhere it is ucontext's,
// which asks the kernel twice. Sanitizers are told of every switch; with FVX_FIND_RACES a fiber is a thread of its own
// to ThreadSanitizer.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(FVX_FIND_RACES)
#include <sanitizer/tsan_interface.h>
#endif

namespace cuda_emulator {

class Fiber {
 public:
  // Runs `start` from its beginning at the first resume(). `start` must not return: it ends with leave(true).
  explicit Fiber(void (*start)()) {
    void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stack_ = static_cast<char*>(memory);
    mprotect(stack_, kGuard, PROT_NONE);
    rewind(start);
  }
  ~Fiber() {
#if defined(FVX_FIND_RACES)
    if (tsan_) __tsan_destroy_fiber(tsan_);
#endif
    munmap(stack_, kBytes);
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Back to the beginning, wherever it stopped.
  void rewind(void (*start)()) {
#if defined(__SANITIZE_ADDRESS__)
    if (abandoned_) __asan_unpoison_memory_region(stack_ + kGuard, kBytes - kGuard);
#endif
#if defined(FVX_FIND_RACES)
    if (tsan_ && abandoned_) {
      __tsan_destroy_fiber(tsan_);
      tsan_ = nullptr;
    }
    if (!tsan_) tsan_ = __tsan_create_fiber(0);
#endif
    abandoned_ = true;  // until it leaves for good
#if defined(__x86_64__)
    // What switch_to() pops: six registers, then the address that it returns to; at a function's first instruction
    // the stack pointer is 8 past a multiple of 16.
    void** top = reinterpret_cast<void**>(stack_ + kBytes) - 1;
    *--top = reinterpret_cast<void*>(start);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_ + kGuard;
    context_.uc_stack.ss_size = kBytes - kGuard;
    makecontext(&context_, start, 0);
#endif
  }

  // From the scheduler into the fiber; returns when it leaves.
  void resume() {
#if defined(__SANITIZE_ADDRESS__)
    void* fake;
    __sanitizer_start_switch_fiber(&fake, stack_ + kGuard, kBytes - kGuard);
#endif
#if defined(FVX_FIND_RACES)
    scheduler_tsan_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(tsan_, __tsan_switch_to_fiber_no_sync);
#endif
    switch_to(&scheduler_, &context_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  // From the fiber to the scheduler; returns at the next resume().
  void leave(bool for_good) {
    if (for_good) abandoned_ = false;
#if defined(__SANITIZE_ADDRESS__)
    void* fake;
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, scheduler_stack_, scheduler_bytes_);
#endif
#if defined(FVX_FIND_RACES)
    __tsan_switch_to_fiber(scheduler_tsan_, __tsan_switch_to_fiber_no_sync);
#endif
    switch_to(&context_, &scheduler_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &scheduler_stack_, &scheduler_bytes_);
#endif
  }

  // The first thing that `start` calls.
  static void entered() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack_, &scheduler_bytes_);
#endif
  }

 private:
  static constexpr size_t kBytes = 256 << 10, kGuard = 4 << 10;
#if defined(__x86_64__)
  using Context = void*;
  static void switch_to(Context* from, Context* to);
#else
  using Context = ucontext_t;
  static void switch_to(Context* from, Context* to) { swapcontext(from, to); }
#endif

  char* stack_;
  Context context_;
  bool abandoned_ = false;
  static inline Context scheduler_;
#if defined(__SANITIZE_ADDRESS__)
  static inline const void* scheduler_stack_ = nullptr;
  static inline size_t scheduler_bytes_ = 0;
#endif
#if defined(FVX_FIND_RACES)
  void* tsan_ = nullptr;
  static inline void* scheduler_tsan_ = nullptr;
#endif
};

#if defined(__x86_64__)
// Saves what a called function must preserve, exchanges the stacks, restores.
asm(R"(
.text
.globl fvx_emulator_switch
.type fvx_emulator_switch, @function
fvx_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fvx_emulator_switch, .-fvx_emulator_switch
)");
extern "C" void fvx_emulator_switch(void** from, void** to);
inline void Fiber::switch_to(Context* from, Context* to) { fvx_emulator_switch(from, to); }
#endif

}  // namespace cuda_emulator
