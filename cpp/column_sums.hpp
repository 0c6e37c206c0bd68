// The backward sums of columns: chains of rows in R, flushed into float64.
#pragma once

#include "column_rows.hpp"

namespace evenorm::EVENORM_ISA {

// Adds dy and dy*xhat of a row to the chains.
template <class T, class R>
EVENORM_LOOP void add_row(const T* dy, const T* x, Size width, Slab<R> slab) {
  each_vector<R>(width, [&](Size i, auto lanes) {
    Vec<R> d = load<R>(dy + i, lanes);
    add_to<R>(slab.chain1 + i, d);
    add_to<R>(slab.chain2 + i, keep<R>(d * slab.xhat(load<R>(x + i, lanes), i, lanes), lanes));
  });
}

// Adds w*dy and w*dy*xhat; returns the row's sums of dy and dy*xhat.
template <class T, class R>
EVENORM_LOOP GradSums add_weighted_row(const T* dy, const T* x, Size width, Slab<R> slab, R w) {
  Total<R> plain, normalized;
  each_link<R>(
      width,
      [&](Size i, auto lanes, int chain) {
        Vec<R> d = load<R>(dy + i, lanes);
        Vec<R> product = keep<R>(d * slab.xhat(load<R>(x + i, lanes), i, lanes), lanes);
        add_to<R>(slab.chain1 + i, d * w);
        add_to<R>(slab.chain2 + i, product * w);
        plain.add(chain, d);
        normalized.add(chain, product);
      },
      [&] { plain.flush(), normalized.flush(); });
  GradSums sum{plain.value(), normalized.value()};
  if (*slab.odds || !sum.finite()) {
    sum = {};
    for (Size k = 0; k < width; ++k) {
      double d = double(scalar(dy[k]));
      sum.add({d, d * slab.center(k).xhat(double(scalar(x[k])))});
    }
  }
  return sum;
}

// Adds the chains to float64 sums; exact(column) where a chain overflowed or the column is odd.
template <class R, class Exact>
inline void flush_chains(Size width, const Slab<R>& slab, double* plain, double* normalized,
                         const Exact& exact) {
  bool sound = *slab.odds == 0;
  for (Size k = 0; k < width; ++k) {
    sound &= (slab.chain1[k] - slab.chain1[k] == 0) & (slab.chain2[k] - slab.chain2[k] == 0);
  }
  if (sound) {
    for (Size k = 0; k < width; ++k) plain[k] += double(slab.chain1[k]);
    for (Size k = 0; k < width; ++k) normalized[k] += double(slab.chain2[k]);
    return;
  }
  for (Size k = 0; k < width; ++k) {
    GradSums sum{double(slab.chain1[k]), double(slab.chain2[k])};
    if (!sum.finite() || !slab.center(k).narrow()) sum = exact(k);
    plain[k] += sum.plain;
    normalized[k] += sum.normalized;
  }
}

}  // namespace evenorm::EVENORM_ISA
