// Threads, from the pool of the OpenMP runtime that the process already has.
#pragma once

#include "plan.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace evenorm {

// Waking a team costs about as much as this many elements.
constexpr Size kSerial = 32768;

// How many threads a call of this many elements deserves: one in a forked child, whose pool is gone.
int threads_for(Size elements);

// Before another thread may read what was stored past the caches.
inline void drain_stores() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

// Calls f(task, thread) for every task; which thread takes it does not matter to the result.
template <class F>
void parallel(int threads, Size tasks, const F& f) {
#if defined(_OPENMP)
  if (threads > 1 && tasks > 1) {
    if (threads > tasks) threads = int(tasks);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (Size task = 0; task < tasks; ++task) {
      f(task, omp_get_thread_num());
      drain_stores();
    }
    return;
  }
#endif
  for (Size task = 0; task < tasks; ++task) f(task, 0);
  drain_stores();
}

}  // namespace evenorm
