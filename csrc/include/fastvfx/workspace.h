// Large scratch memory on the host that outlives a call. A first touch of fresh pages costs more than most kernels
// here (2 us for 4 KiB on a virtual machine: 25 ms for the gradient of one hash grid), so blocks are kept and handed
// out again, and lie in huge pages where the system has them.
#pragma once

#include <cstddef>

#include "fastvfx/config.h"

namespace fastvfx {

void* workspace_acquire(size_t bytes) noexcept;  // uninitialised, at least 64-byte aligned; null if there is none
void workspace_release(void* block) noexcept;    // null is allowed
void workspace_trim() noexcept;                  // gives every block that is not in use back to the system
size_t workspace_kept_bytes() noexcept;          // in blocks that are not in use

}  // namespace fastvfx

FVX_BEGIN_ISA

// A block for the time of a scope; null for no bytes or where there is no memory.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : block_(bytes ? workspace_acquire(bytes) : nullptr) {}
  ~Workspace() { workspace_release(block_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(block_);
  }

 private:
  void* block_;
};

FVX_END_ISA
