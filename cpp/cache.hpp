// What the kernels know of the machine's caches.
#pragma once

#include "plan.hpp"

namespace evenorm {

// Outputs of this many bytes are stored past the caches: who reads them would not find them there.
Size stream_bytes();
void set_stream_bytes(Size bytes);

}  // namespace evenorm
