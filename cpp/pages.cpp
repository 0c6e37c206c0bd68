#include "pages.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace evenorm {

void prefer_huge_pages(void* memory, Size bytes) {
#if defined(MADV_HUGEPAGE)
  // Smaller outputs come from memory that the allocator keeps.
  constexpr Size kLarge = Size{4} << 20, kHuge = Size{2} << 20;
  if (bytes < kLarge) return;
  auto first = (reinterpret_cast<std::uintptr_t>(memory) + kHuge - 1) / kHuge * kHuge;
  auto last = (reinterpret_cast<std::uintptr_t>(memory) + bytes) / kHuge * kHuge;
  // It is a wish: where it is refused the pages stay small.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

}  // namespace evenorm
