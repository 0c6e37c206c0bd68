// Moments of columns: rows stream by, and each column sums its deviations from a guess of its mean.
#pragma once

#include "column_rows.hpp"
#include "moments.hpp"

namespace evenorm::EVENORM_ISA {

// Moments of columns, each of as many values as the others.
struct ColumnMoments {
  double count;
  double* mean;
  double* m2;
};

template <class T>
EVENORM_LOOP void add_values(const T* x, Size width, Real<T>* sum) {
  using R = Real<T>;
  each_vector<R>(width, [&](Size i, auto lanes) { add_to<R>(sum + i, load<R>(x + i, lanes)); });
}

template <class T>
EVENORM_LOOP void add_deviations(const T* x, Size width, const Real<T>* center, Real<T>* sum,
                                 Real<T>* squares) {
  using R = Real<T>;
  each_vector<R>(width, [&](Size i, auto lanes) {
    Vec<R> d = load<R>(x + i, lanes) - load<R>(center + i, lanes);
    add_to<R>(sum + i, d);
    add_to<R>(squares + i, d, d);
  });
}

// The mean of few rows, spread evenly; of all of them where they are few.
template <class T>
inline void guess_means(const T* x, Size pitch, Size rows, Size width, Real<T>* center) {
  using R = Real<T>;
  Size few = rows <= 48 ? rows : 8;
  for (Size k = 0; k < width; ++k) center[k] = 0;
  for (Size r = 0; r < few; ++r) add_values(x + r * rows / few * pitch, width, center);
  for (Size k = 0; k < width; ++k) center[k] *= R(1.0 / double(few));
}

// `to` of the columns of some rows; a column is done again in float64 where float32 may have failed, or
// where (sum d)^2 / n above 3/4 of sum d^2 shows that the guess was too far off.
template <class T>
inline void column_moments(const T* x, Size pitch, Size rows, Size width, bool centered,
                           const Slab<Real<T>>& slab, const ColumnMoments& to) {
  using R = Real<T>;
  R* center = slab.guess;
  for (Size k = 0; k < slab.room; ++k) center[k] = 0, to.mean[k] = to.m2[k] = 0;
  if (centered) guess_means(x, pitch, rows, width, center);
  for (Size r = 0; r < rows;) {
    Size stop = r + kLinks < rows ? r + kLinks : rows;
    clear_chains(slab);
    for (; r < stop; ++r) add_deviations(x + r * pitch, width, center, slab.chain1, slab.chain2);
    for (Size k = 0; k < width; ++k) to.mean[k] += double(slab.chain1[k]);
    for (Size k = 0; k < width; ++k) to.m2[k] += double(slab.chain2[k]);
  }
  double n = double(rows), least = centered && rows > 48 ? 0.25 : -1;
  Size failed = 0;
  for (Size k = 0; k < width; ++k) {
    double m2 = to.m2[k] - to.mean[k] * to.mean[k] / n;
    failed += !(m2 >= least * to.m2[k]) | !sound(to.m2[k], n, double(center[k]));
  }
  for (Size k = 0; failed && k < width; ++k) {
    double m2 = to.m2[k] - to.mean[k] * to.mean[k] / n;
    if (m2 >= least * to.m2[k] && (std::is_same_v<T, double> || sound(to.m2[k], n, double(center[k])))) {
      continue;
    }
    Moments m = exact_moments(Chunk<T>{x + k, pitch, rows, 1}, centered);
    // As sums of deviations from the center.
    center[k] = R(m.mean);
    to.mean[k] = n * (m.mean - double(center[k]));
    to.m2[k] = m.m2 + to.mean[k] * to.mean[k] / n;
  }
  for (Size k = 0; k < width; ++k) {
    double sum = centered ? to.mean[k] : 0, m2 = to.m2[k] - sum * sum / n;
    to.mean[k] = double(center[k]) + sum / n;
    to.m2[k] = m2 < 0 ? 0 : m2;
  }
}

// Merges columns with columns.
inline void merge_columns(const ColumnMoments& from, Size width, ColumnMoments& to) {
  double n = to.count + from.count, share = from.count / n, weight = to.count * share;
  for (Size k = 0; k < width; ++k) {
    double delta = from.mean[k] - to.mean[k];
    to.mean[k] += delta * share;
    to.m2[k] += from.m2[k] + delta * delta * weight;
  }
  to.count = n;
}

}  // namespace evenorm::EVENORM_ISA
