// Moments of columns: rows stream by, and each column sums its deviations from a guess of its mean.
#pragma once

#include "column_rows.hpp"
#include "moments.hpp"

namespace evenorm::EVENORM_ISA {

// Rows that lie evenly, or those that are listed.
template <class T>
struct Rows {
  const T* x;
  Size pitch, count;
  const Size* listed = nullptr;

  const T* operator[](Size r) const { return x + (listed ? listed[r] : r) * pitch; }
};

// A column of them.
template <class T>
struct Column {
  const Rows<T>& rows;
  Size k;

  double count() const { return double(rows.count); }

  template <class F>
  void each(const F& f) const {
    for (Size r = 0; r < rows.count; ++r) f(double(scalar(rows[r][k])));
  }
};

// Moments of columns, each of as many values as the others.
struct ColumnMoments {
  double count;
  double* mean;
  double* m2;
};

template <int kRows, class T>
EVENORM_LOOP void add_values(const Rows<T>& rows, Size first, Size step, Size width, Real<T>* sum) {
  using R = Real<T>;
  const T* x[kRows];
  for (int r = 0; r < kRows; ++r) x[r] = rows[first + r * step];
  each_vector<R>(width, [&](Size i, auto lanes) {
    Vec<R> total = read<Vec<R>>(sum + i);
    for (int r = 0; r < kRows; ++r) total += load<R>(x[r] + i, lanes);
    write(sum + i, total);
  });
}

template <int kRows, class T>
EVENORM_LOOP void add_deviations(const Rows<T>& rows, Size first, Size width, const Real<T>* center,
                                 Real<T>* sum, Real<T>* squares) {
  using R = Real<T>;
  const T *x[kRows], *next[kRows];
  for (int r = 0; r < kRows; ++r) {
    x[r] = rows[first + r];
    next[r] = rows[first + kRows + r < rows.count ? first + kRows + r : rows.count - 1];
  }
  each_vector<R>(width, [&](Size i, auto lanes) {
    Vec<R> shift = load<R>(center + i, lanes);
    Vec<R> total = read<Vec<R>>(sum + i), square = read<Vec<R>>(squares + i);
    for (int r = 0; r < kRows; ++r) {
      if (kRows > 1) foresee(next[r] + i);
      Vec<R> d = load<R>(x[r] + i, lanes) - shift;
      total += d;
      square = multiply_add(d, d, square);
    }
    write(sum + i, total);
    write(squares + i, square);
  });
}

// The mean of few rows, spread evenly; of all of them where they are few. Returns whether it is of all.
template <class T>
inline bool guess_means(const Rows<T>& rows, Size width, Real<T>* center) {
  using R = Real<T>;
  constexpr Size few = 2 * kTogether;
  for (Size k = 0; k < width; ++k) center[k] = 0;
  bool all = rows.count < few;
  if (all) {
    for (Size r = 0; r < rows.count; ++r) add_values<1>(rows, r, 0, width, center);
  } else {
    Size step = rows.count / few;
    for (Size r = 0; r < few; r += kTogether) add_values<kTogether>(rows, r * step, step, width, center);
  }
  for (Size k = 0; k < width; ++k) center[k] *= R(1.0 / double(all ? rows.count : few));
  return all;
}

// `to` of the columns of some rows; a column is done again in float64 where float32 may have failed, or
// where (sum d)^2 / n above 3/4 of sum d^2 shows that the guess was too far off.
template <class T>
inline void column_moments(const Rows<T>& rows, Size width, bool centered, const Lines<Real<T>>& lines,
                           const ColumnMoments& to) {
  using R = Real<T>;
  R* center = lines.guess;
  for (Size k = 0; k < lines.room; ++k) center[k] = 0, to.mean[k] = to.m2[k] = 0;
  if (rows.count == 0) return;
  bool exact = !centered || guess_means(rows, width, center);
  for (Size r = 0; r < rows.count;) {
    Size stop = r + kLinks < rows.count ? r + kLinks : rows.count;
    lines.clear_chains();
    for (; r + kTogether <= stop; r += kTogether) {
      add_deviations<kTogether>(rows, r, width, center, lines.chain1, lines.chain2);
    }
    for (; r < stop; ++r) add_deviations<1>(rows, r, width, center, lines.chain1, lines.chain2);
    for (Size k = 0; k < width; ++k) to.mean[k] += double(lines.chain1[k]);
    for (Size k = 0; k < width; ++k) to.m2[k] += double(lines.chain2[k]);
  }
  double n = double(rows.count), each = 1 / n, least = exact ? -1 : 0.25;
  Size failed = 0;
  for (Size k = 0; k < width; ++k) {
    double m2 = to.m2[k] - to.mean[k] * to.mean[k] * each;
    failed += !(m2 >= least * to.m2[k]) | !sound(to.m2[k], n, double(center[k]));
  }
  for (Size k = 0; failed && k < width; ++k) {
    double m2 = to.m2[k] - to.mean[k] * to.mean[k] * each;
    if (m2 >= least * to.m2[k] && (std::is_same_v<T, double> || sound(to.m2[k], n, double(center[k])))) {
      continue;
    }
    Moments m = exact_moments(Column<T>{rows, k}, centered);
    // As sums of deviations from the center.
    center[k] = R(m.mean);
    to.mean[k] = n * (m.mean - double(center[k]));
    to.m2[k] = m.m2 + to.mean[k] * to.mean[k] / n;
  }
  for (Size k = 0; k < width; ++k) {
    double sum = centered ? to.mean[k] : 0, m2 = to.m2[k] - sum * sum * each;
    to.mean[k] = double(center[k]) + sum * each;
    to.m2[k] = m2 < 0 ? 0 : m2;
  }
}

// Merges columns with columns.
inline void merge_columns(const ColumnMoments& from, Size width, ColumnMoments& to) {
  if (from.count == 0) return;
  double n = to.count + from.count, share = from.count / n, weight = to.count * share;
  for (Size k = 0; k < width; ++k) {
    double delta = from.mean[k] - to.mean[k];
    to.mean[k] += delta * share;
    to.m2[k] += from.m2[k] + delta * delta * weight;
  }
  to.count = n;
}

}  // namespace evenorm::EVENORM_ISA
