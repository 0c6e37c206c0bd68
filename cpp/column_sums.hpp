// The backward sums of columns: chains of rows in R, flushed into float64.
#pragma once

#include "column_rows.hpp"

namespace evenorm::EVENORM_ISA {

// Adds dz and dz*xhat of a row to the chains.
template <class T, class R, class Way>
EVENORM_LOOP void add_row(const T* dy, const T* x, Size width, Slab<R> slab, Way way) {
  each_vector<R>(width, [&](Size i, auto lanes) {
    Vec<R> xhat = keep<R>(slab(load<R>(x + i, lanes), i, lanes), lanes);
    Vec<R> d = way(load<R>(dy + i, lanes), xhat, i, lanes);
    add_to<R>(slab.chain1 + i, d);
    add_to<R>(slab.chain2 + i, d, xhat);
  });
}

// Adds w*dz and w*dz*xhat; returns the row's sums of dz and dz*xhat, which may be infinite.
template <class T, class R, class Way>
EVENORM_LOOP GradSums add_weighted_row(const T* dy, const T* x, Size width, Slab<R> slab, R w,
                                       Way way) {
  Total<R> plain, normalized;
  each_link<R>(
      width,
      [&](Size i, auto lanes, int chain) {
        Vec<R> xhat = keep<R>(slab(load<R>(x + i, lanes), i, lanes), lanes);
        Vec<R> d = way(load<R>(dy + i, lanes), xhat, i, lanes), product = d * xhat;
        add_to<R>(slab.chain1 + i, d, splat<R>(w));
        add_to<R>(slab.chain2 + i, product, splat<R>(w));
        plain.add(chain, d);
        normalized.add(chain, product);
      },
      [&] { plain.flush(), normalized.flush(); });
  return {plain.value(), normalized.value()};
}

// dz and dz*xhat of a column in float64.
template <class T, class R, class Scale>
inline GradSums exact_terms(const T* dy, const T* x, Size k, const Slab<R>& slab, const Scale& scale,
                            const Epilogue<T>& epilogue) {
  double xhat = slab.center(k).xhat(double(scalar(x[k])));
  double d = epilogue.dz(double(scalar(dy[k])), xhat, scale, k);
  return {d, d * xhat};
}

// The same for a row of one weight, in float64 where float32 may have failed.
template <class T, class R>
inline GradSums add_uniform_row(const T* dy, const T* x, Size width, const Slab<R>& slab,
                                const Uniform<R>& scale, const Epilogue<T>& epilogue) {
  GradSums sum = with_row_way(x, width, slab, scale, epilogue, [&](const auto& way) {
    return add_weighted_row(dy, x, width, slab, scale.w, way);
  });
  if (*slab.odds == 0 && sum.finite()) return sum;
  sum = {};
  for (Size k = 0; k < width; ++k) sum.add(exact_terms(dy, x, k, slab, scale, epilogue));
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
