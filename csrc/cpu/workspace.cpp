#include "fastvfx/workspace.h"

#include <cstdlib>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastvfx {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kMostKept = size_t(256) << 20;  // bytes not in use that are held back from the system
constexpr int kBlocks = 64;                      // more than that at once are not kept

struct Block {
  void* address;
  size_t bytes;
  bool in_use;
};

struct Pool {
  std::mutex mutex;
  Block blocks[kBlocks] = {};
  size_t kept = 0;
};

Pool& pool() {
  static Pool* const p = new Pool;  // never destroyed: a tensor may die after static objects do
  return *p;
}

size_t rounded(size_t bytes) {
  const size_t unit = bytes >= kHugePage ? kHugePage : 4096;
  return (bytes + unit - 1) / unit * unit;
}

void* from_system(size_t bytes) {
  const size_t alignment = bytes >= kHugePage ? kHugePage : 4096;
#if defined(_MSC_VER)
  void* address = _aligned_malloc(bytes, alignment);
#else
  void* address = std::aligned_alloc(alignment, bytes);
#endif
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (address && bytes >= kHugePage)
    madvise(address, bytes, MADV_HUGEPAGE);  // a hint: without huge pages it still is memory
#endif
  return address;
}

void to_system(void* address) {
#if defined(_MSC_VER)
  _aligned_free(address);
#else
  std::free(address);
#endif
}

}  // namespace

void* workspace_acquire(size_t bytes) noexcept {
  bytes = rounded(bytes);
  Pool& p = pool();
  {
    const std::lock_guard<std::mutex> lock(p.mutex);
    Block* best = nullptr;
    for (Block& b : p.blocks) {
      // A block of over twice the size is better left for what needs it.
      if (b.address && !b.in_use && b.bytes >= bytes && b.bytes <= 2 * bytes && (!best || b.bytes < best->bytes)) {
        best = &b;
      }
    }
    if (best) {
      best->in_use = true;
      p.kept -= best->bytes;
      return best->address;
    }
  }
  void* address = from_system(bytes);
  if (!address) return nullptr;
  const std::lock_guard<std::mutex> lock(p.mutex);
  for (Block& b : p.blocks) {
    if (b.address) continue;
    b = {address, bytes, true};
    break;
  }
  return address;
}

void workspace_release(void* address) noexcept {
  if (!address) return;
  Pool& p = pool();
  {
    const std::lock_guard<std::mutex> lock(p.mutex);
    for (Block& b : p.blocks) {
      if (b.address != address) continue;
      if (p.kept + b.bytes <= kMostKept) {
        b.in_use = false;
        p.kept += b.bytes;
        return;
      }
      b = {};
      break;
    }
  }
  to_system(address);
}

void workspace_trim() noexcept {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  for (Block& b : p.blocks) {
    if (!b.address || b.in_use) continue;
    to_system(b.address);
    b = {};
  }
  p.kept = 0;
}

size_t workspace_kept_bytes() noexcept {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  return p.kept;
}

}  // namespace fastvfx
