// Random numbers as functions of a seed and a position: the same on every processor, in any order, without a state.
#pragma once

#include "fastvfx/config.h"

FVX_BEGIN_ISA

// Between neighbouring positions: 2^64 divided by the golden ratio, as in splitmix64.
constexpr uint64_t golden_step = 0x9E3779B97F4A7C15ull;

FVX_HD uint64_t mix64(uint64_t x) {  // the finaliser of splitmix64 (Steele, Lea, Flood 2014)
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

FVX_END_ISA
