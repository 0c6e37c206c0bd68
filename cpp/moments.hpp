// Moments of a chunk of runs: count, mean and sum of squared deviations, which merge.
#pragma once

#include "element.hpp"
#include "total.hpp"

namespace evenorm::EVENORM_ISA {

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

// Whether a sum of n squared deviations from `center` is what float64 would find, but for a few roundings.
// Below n * 2^-100 squares may have been lost to underflow, unless every value equals the center.
inline bool sound(double squares, double n, double center) {
  return ((squares >= 0x1p-100 * n) & (squares <= 1e300)) |
         ((squares == 0) & ((center >= 0x1p-50) | (center <= -0x1p-50)));
}

// Runs of one statistic that lie `pitch` apart and together fit the first cache.
template <class T>
struct Chunk {
  const T* x;
  Size pitch, runs, length;

  double count() const { return double(runs * length); }

  template <class F>
  void each(const F& f) const {
    for (Size r = 0; r < runs; ++r) {
      for (Size i = 0; i < length; ++i) f(double(scalar(x[r * pitch + i])));
    }
  }
};

// In float64, one element at a time, for the few chunks, or columns, that need it.
template <class Values>
inline Moments exact_moments(const Values& c, bool centered) {
  double n = c.count(), mean = 0, rest = 0, squares = 0;
  bool zero = true;
  c.each([&](double x) { zero &= x == 0; });
  if (zero) return {n, 0, 0};
  if (centered) {
    c.each([&](double x) { mean += x; });
    mean /= n;
  }
  c.each([&](double x) {
    rest += x - mean;
    squares += (x - mean) * (x - mean);
  });
  if (!centered) return {n, 0, squares};
  double m2 = squares - rest * rest / n;
  return {n, mean + rest / n, m2 < 0 ? 0 : m2};
}

template <class T>
EVENORM_LOOP double sum_in(const Chunk<T>& c) {
  using R = Real<T>;
  Total<R> sum;
  each_link<R>(
      c.runs, c.length,
      [&](Size r, Size i, auto lanes, int chain) {
        if (chain == 0) ahead_alone(c.x + r * c.pitch + i);
        sum.add(chain, load<R>(c.x + r * c.pitch + i, lanes));
      },
      [&] { sum.flush(); });
  return sum.value();
}

// Sums of d and d^2 for d = x - center.
struct Deviations {
  double sum, squares;
};

template <class T>
EVENORM_LOOP Deviations deviations_in(const Chunk<T>& c, Real<T> center) {
  using R = Real<T>;
  Vec<R> shift = splat<R>(center);
  Total<R> sum, squares;
  each_link<R>(
      c.runs, c.length,
      [&](Size r, Size i, auto lanes, int chain) {
        if (chain == 0) ahead_alone(c.x + r * c.pitch + i);
        Vec<R> d = keep<R>(load<R>(c.x + r * c.pitch + i, lanes) - shift, lanes);
        sum.add(chain, d);
        squares.add(chain, d, d);
      },
      [&] { sum.flush(), squares.flush(); });
  return {sum.value(), squares.value()};
}

// The longest row whose sum is one chain, and how many of them are summed side by side.
template <class R>
constexpr Size kShortRow = Size{kLinks} * kLanes<R>;
constexpr int kBeside = 4;

// Calls f(i, lanes) for the vectors of a short row.
template <class R, class F>
inline void each_short(Size n, const F& f) {
  constexpr Size L = kLanes<R>;
  for (Size i = 0; i + L <= n; i += L) f(i, Full{});
  if (n < L) {
    f(0, Part{int(n)});
  } else if (n % L) {
    f(n - L, Rest{int(n % L)});
  }
}

// Sums of each of a few short rows.
template <int kRows, class T>
EVENORM_LOOP void sums_beside(const T* const* x, Size n, double* sums) {
  using R = Real<T>;
  Vec<R> sum[kRows]{};
  each_short<R>(n, [&](Size i, auto lanes) {
    ahead_alone(x[kRows - 1] + n + kRows * i);
    for (int r = 0; r < kRows; ++r) sum[r] += load<R>(x[r] + i, lanes);
  });
  for (int r = 0; r < kRows; ++r) sums[r] = horizontal(sum[r]);
}

template <int kRows, class T>
EVENORM_LOOP void deviations_beside(const T* const* x, Size n, const Real<T>* centers, Deviations* to) {
  using R = Real<T>;
  Vec<R> center[kRows], sum[kRows]{}, squares[kRows]{};
  for (int r = 0; r < kRows; ++r) center[r] = splat<R>(centers[r]);
  each_short<R>(n, [&](Size i, auto lanes) {
    for (int r = 0; r < kRows; ++r) {
      Vec<R> d = keep<R>(load<R>(x[r] + i, lanes) - center[r], lanes);
      sum[r] += d;
      squares[r] = multiply_add(d, d, squares[r]);
    }
  });
  for (int r = 0; r < kRows; ++r) to[r] = {horizontal(sum[r]), horizontal(squares[r])};
}

// Calls f(first, rows), the latter a constant, for `count` rows, several at a time.
template <class F>
inline void each_beside(Size count, const F& f) {
  Size r = 0;
  for (; r + kBeside <= count; r += kBeside) f(r, std::integral_constant<int, kBeside>{});
  for (; r < count; ++r) f(r, std::integral_constant<int, 1>{});
}

template <class T>
EVENORM_LOOP double squares_in(const Chunk<T>& c) {
  using R = Real<T>;
  Total<R> squares;
  each_link<R>(
      c.runs, c.length,
      [&](Size r, Size i, auto lanes, int chain) {
        if (chain == 0) ahead_alone(c.x + r * c.pitch + i);
        Vec<R> v = load<R>(c.x + r * c.pitch + i, lanes);
        squares.add(chain, v, v);
      },
      [&] { squares.flush(); });
  return squares.value();
}

// The mean of the first few elements.
template <class T>
inline Real<T> sample(const Chunk<T>& c) {
  using R = Real<T>;
  constexpr Size few = 2 * kLanes<R>;
  Size n = c.length < few ? c.length : few;
  return R(sum_in(Chunk<T>{c.x, 0, 1, n}) / double(n));
}

template <class T>
inline Moments uncentered_moments(const Chunk<T>& c) {
  double n = c.count(), squares = squares_in(c);
  if (std::is_same_v<T, double> || sound(squares, n, 0)) return {n, 0, squares};
  return exact_moments(c, false);
}

// In one pass around the mean so far; in two where (sum d)^2 / n above 3/4 of sum d^2 shows that it was
// too far off, and their difference has lost bits; in float64 where float32 may have failed.
template <class T>
inline Moments centered_moments(const Chunk<T>& c, const Moments& before) {
  using R = Real<T>;
  double n = c.count();
  R center = before.count > 0 ? R(before.mean) : sample(c);
  Deviations d = deviations_in(c, center);
  double m2 = d.squares - d.sum * d.sum / n;
  bool lossy = !(m2 >= 0.25 * d.squares);
  if (lossy) {
    center = R(sum_in(c) / n);
    d = deviations_in(c, center);
    m2 = d.squares - d.sum * d.sum / n;
  }
  if (std::is_same_v<T, double> || sound(d.squares, n, double(center))) {
    return {n, double(center) + d.sum / n, m2 < 0 ? 0 : m2};
  }
  return exact_moments(c, true);
}

template <class T>
inline Moments moments_of(const Chunk<T>& c, bool centered, const Moments& before) {
  return centered ? centered_moments(c, before) : uncentered_moments(c);
}

}  // namespace evenorm::EVENORM_ISA
