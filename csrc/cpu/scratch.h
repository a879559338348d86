// Memory of one chunk of work, for what is too large for the stack.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "fastvfx/config.h"

FVX_BEGIN_ISA

// malloc'ed and 64-byte aligned.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t n) : raw_(std::malloc(size_t(n) * sizeof(A) + 64)) {
    if (!raw_) throw std::bad_alloc();
  }
  ~Scratch() { std::free(raw_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* data() const { return reinterpret_cast<A*>((reinterpret_cast<uintptr_t>(raw_) + 63) / 64 * 64); }

 private:
  void* raw_;
};

FVX_END_ISA
