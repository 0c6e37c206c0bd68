#include "threads.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace evenorm {
namespace {

bool forked = false;

#if defined(__unix__) || defined(__APPLE__)
// The child inherits the pool's bookkeeping but none of its threads: to wait for them is to hang.
const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

}  // namespace

int threads_for(Size elements) {
#if defined(_OPENMP)
  if (elements < kSerial || forked || omp_in_parallel()) return 1;
  return omp_get_max_threads();
#else
  (void)elements;
  return 1;
#endif
}

}  // namespace evenorm
