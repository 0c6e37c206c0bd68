#include "cache.hpp"

#include <atomic>

#if defined(__unix__)
#include <unistd.h>
#endif

namespace evenorm {
namespace {

Size last_level() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  Size bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return Size{32} << 20;
}

std::atomic<Size>& limit() {
  static std::atomic<Size> bytes{last_level() / 2};
  return bytes;
}

}  // namespace

Size stream_bytes() { return limit(); }
void set_stream_bytes(Size bytes) { limit() = bytes; }

}  // namespace evenorm
