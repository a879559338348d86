// Whose core this is, for the few choices that two makers' cores answer differently.
#pragma once

#include "fastvfx/config.h"

FVX_BEGIN_ISA

inline bool on_intel() {
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

FVX_END_ISA
