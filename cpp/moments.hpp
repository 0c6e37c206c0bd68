// Moments of a chunk of runs: count, mean and sum of squared deviations, which merge.
#pragma once

#include "element.hpp"
#include "total.hpp"

namespace evenorm::EVENORM_ISA {

// Below n times this a sum of n squares in float32 may have lost squares to underflow.
constexpr double kSmallestSquare = 0x1p-100;

struct Moments {
  double count = 0, mean = 0, m2 = 0;

  // Chan, Golub & LeVeque (1979), eq. 2.1.
  void merge(const Moments& other) {
    if (other.count == 0) return;
    if (count == 0) {
      *this = other;
      return;
    }
    double n = count + other.count, share = other.count / n, delta = other.mean - mean;
    mean += delta * share;
    m2 += other.m2 + delta * delta * (count * share);
    count = n;
  }
};

// Runs of one statistic that lie `pitch` apart and together fit the first cache.
template <class T>
struct Chunk {
  const T* x;
  Size pitch, runs, length;

  double count() const { return double(runs * length); }
};

template <class T>
inline bool all_zero(const Chunk<T>& c) {
  for (Size r = 0; r < c.runs; ++r) {
    bool zero = true;
    for (Size i = 0; i < c.length; ++i) zero &= scalar(c.x[r * c.pitch + i]) == 0;
    if (!zero) return false;
  }
  return true;
}

template <class R, class T>
inline Moments uncentered_in(const Chunk<T>& c) {
  Total<R> squares;
  for (Size r = 0; r < c.runs; ++r) {
    const T* x = c.x + r * c.pitch;
    each_link<R>(
        c.length,
        [&](Size i, auto lanes, int chain) {
          Vec<R> v = load<R>(x + i, lanes);
          squares.add(chain, v * v);
        },
        [&] { squares.flush(); });
  }
  return {c.count(), 0, squares.value()};
}

// Two passes: the mean, then the deviations from it and their squares.
template <class R, class T>
inline Moments centered_in(const Chunk<T>& c) {
  Total<R> sum;
  for (Size r = 0; r < c.runs; ++r) {
    const T* x = c.x + r * c.pitch;
    each_link<R>(
        c.length,
        [&](Size i, auto lanes, int chain) { sum.add(chain, load<R>(x + i, lanes)); },
        [&] { sum.flush(); });
  }
  double n = c.count();
  R center = R(sum.value() / n);
  Vec<R> shift = splat<R>(center);
  Total<R> rest, squares;
  for (Size r = 0; r < c.runs; ++r) {
    const T* x = c.x + r * c.pitch;
    each_link<R>(
        c.length,
        [&](Size i, auto lanes, int chain) {
          Vec<R> d = keep<R>(load<R>(x + i, lanes) - shift, lanes);
          rest.add(chain, d);
          squares.add(chain, d * d);
        },
        [&] { rest.flush(), squares.flush(); });
  }
  double correction = rest.value();
  double m2 = squares.value() - correction * correction / n;
  return {n, double(center) + correction / n, m2 > 0 || m2 != m2 ? m2 : 0};
}

template <class R, class T>
inline Moments moments_in(const Chunk<T>& c, bool centered) {
  return centered ? centered_in<R>(c) : uncentered_in<R>(c);
}

// In float32, and once more in float64 where that may have failed.
template <class T>
inline Moments moments_of(const Chunk<T>& c, bool centered) {
  Moments m = moments_in<Real<T>>(c, centered);
  if constexpr (!std::is_same_v<Real<T>, double>) {
    bool sound = m.m2 >= kSmallestSquare * m.count && m.m2 <= 1e300;
    if (!sound && !(m.m2 == 0 && m.mean == 0 && all_zero(c))) m = moments_in<double>(c, centered);
  }
  return m;
}

}  // namespace evenorm::EVENORM_ISA
