// Pages of fresh memory.
#pragma once

#include "plan.hpp"

namespace evenorm {

// Asks for huge pages where an output is so large that its memory is probably fresh: a fault for
// each page of 4 KiB would cost more than the values that are written there.
void prefer_huge_pages(void* memory, Size bytes);

}  // namespace evenorm
