// Sums of many vectors: chains of some 32 additions in R, flushed into float64.
#pragma once

#include "vector.hpp"

namespace evenorm::EVENORM_ISA {

constexpr int kChains = 4;
constexpr int kLinks = 32;

template <class R, int kCount = kChains>
struct Total {
  Vec<R> chain[kCount]{};
  Vec<double> low{}, high{};

  void add(int which, Vec<R> v) { chain[which] += v; }
  void add(int which, Vec<R> a, Vec<R> b) { chain[which] = multiply_add(a, b, chain[which]); }
  void flush() {
    Vec<R> sum = chain[0];
    if constexpr (kCount == 4) sum = (chain[0] + chain[1]) + (chain[2] + chain[3]);
    if constexpr (sizeof(R) == sizeof(float)) {
      low += low_half(sum);
      high += high_half(sum);
    } else {
      low += sum;
    }
    for (Vec<R>& c : chain) c = Vec<R>{};
  }
  double value() const { return horizontal(low + high); }
};

// Calls f(run, i, lanes, chain) for the vectors of `runs` of n elements, and flush() before a chain has too many
// links; short runs share a flush.
template <class R, class F, class Flush>
inline void each_link(Size runs, Size n, F&& f, Flush&& flush) {
  constexpr int L = kLanes<R>;
  constexpr Size block = Size{L} * kChains * kLinks;
  Size together = n < block ? kLinks / (n / (L * kChains) + 3) : 1, unflushed = 0;
  for (Size run = 0; run < runs; ++run) {
    for (Size start = 0; start < n; start += block) {
      Size stop = start + block < n ? start + block : n, i = start;
      for (; i + kChains * L <= stop; i += kChains * L) {
        f(run, i, Full{}, 0);
        f(run, i + L, Full{}, 1);
        f(run, i + 2 * L, Full{}, 2);
        f(run, i + 3 * L, Full{}, 3);
      }
      for (; i + L <= stop; i += L) f(run, i, Full{}, 0);
      if (i < stop && stop - start < L) {
        f(run, i, Part{int(stop - i)}, 3);
      } else if (i < stop) {
        f(run, stop - L, Rest{int(stop - i)}, 3);
      }
      if (++unflushed >= together || run + 1 == runs) flush(), unflushed = 0;
    }
  }
}

template <class R, class F, class Flush>
inline void each_link(Size n, F&& f, Flush&& flush) {
  auto single = [&](Size, Size i, auto lanes, int chain) { f(i, lanes, chain); };
  each_link<R>(1, n, single, flush);
}

}  // namespace evenorm::EVENORM_ISA
