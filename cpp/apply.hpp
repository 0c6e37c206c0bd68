// Apply: y = activation(xhat * weight + bias + residual) on a dense run.
#pragma once

#include "epilogue.hpp"

namespace evenorm::EVENORM_ISA {

// A statistic as it is applied.
struct Center {
  double mean, rstd;

  // Whether float32 can hold every step; what is outside of it is applied in float64. The rest of a tiny mean
  // would be a denormal.
  bool narrow() const {
    double size = std::fabs(mean);
    return (size <= 0x1p100) & ((size >= 0x1p-100) | (size == 0)) & (rstd >= 0x1p-80) &
           (rstd <= 0x1p80);
  }
  double xhat(double x) const { return (x - mean) * rstd; }
};

inline void rstds(const double* m2, Size count, double values, double eps, double* rstd) {
  for (Size k = 0; k < count; ++k) rstd[k] = 1 / std::sqrt(m2[k] / values + eps);
}

// xhat. A mean rounded to float32 alone would cost 6e-8 * |mean| / sigma, so its rest is subtracted too.
template <class R>
struct Standardize {
  Vec<R> high, low, rstd;

  explicit Standardize(const Center& c)
      : high(splat<R>(R(c.mean))), low(splat<R>(R(c.mean - double(R(c.mean))))),
        rstd(splat<R>(R(c.rstd))) {}

  template <class Lanes>
  Vec<R> operator()(Vec<R> x, Size, Lanes) const {
    return ((x - high) - low) * rstd;
  }
};

// One element in float64.
template <class T, class To, class Scale, class Finish>
inline To exact_apply(T x, const Center& center, const Scale& scale, const Finish& finish, Size i,
                      bool round_normalized) {
  double xhat = center.xhat(double(scalar(x)));
  if (round_normalized) xhat = double(scalar(rounded<T>(xhat)));
  return rounded<To>(finish(scale.affine(xhat, i), i));
}

// All of them in vectors.
template <class T, class To, class Standard, class Scale, class Finish>
inline void apply_vectors(const T* x, To* y, Size n, const Standard& standard, const Scale& scale,
                          const Finish& finish, Storing how) {
  using R = Real<T>;
  auto put = [&](Size i, Vec<R> z, auto lanes) { store<To, R>(y + i, z, lanes); };
  auto xhat = [&](Size i, auto lanes) { return standard(load<R>(x + i, lanes), i, lanes); };
  auto make = [&](Size i, auto lanes, Vec<R> xhat) {
    return finish(scale.affine(xhat, i, lanes), i, lanes);
  };
  if (!std::is_same_v<R, T> && how.round_normalized) {
    each_stored<R>(y, n, false, [&](Size i, auto lanes) {
      return make(i, lanes, through<T, R>(xhat(i, lanes)));
    }, put);
  } else {
    each_stored<R>(y, n, how.stream, [&](Size i, auto lanes) { return make(i, lanes, xhat(i, lanes)); }, put);
  }
}

// Runs that are worked in one call: how far apart they lie, and whether the next one has a center of its own.
struct Several {
  Size runs = 1, x = 0, dy = 0, dense = 0, center = 0;
};

template <class T, class To, class Scale, class Finish>
EVENORM_LOOP void standardize_runs(const T* x, To* y, Size n, Several several, const Center* centers,
                                   Scale scale, Finish finish, Storing how) {
  for (Size r = 0; r < several.runs; ++r) {
    const Center& center = centers[r * several.center];
    Finish at = finish.at(r * several.dense);
    auto own = scale.at(r);
    if (center.narrow()) {
      apply_vectors(x, y, n, Standardize<Real<T>>(center), own, at, how);
    } else {
      for (Size i = 0; i < n; ++i) {
        y[i] = exact_apply<T, To>(x[i], center, own, at, i, how.round_normalized);
      }
    }
    x += several.x;
    y += several.dense;
  }
}

// Runs of at most a chunk each.
template <class T, class Scale>
inline void apply_runs(const T* x, T* y, Size n, const Several& several, const Center* centers,
                       const Scale& scale, const Epilogue<T>& epilogue, bool stream) {
  alignas(64) Real<T> scratch[kChunk];
  Size together = epilogue.curved() ? 1 : several.runs;
  for (Size r = 0; r < several.runs; r += together) {
    Several part = several;
    part.runs = together;
    T* to = y + r * several.dense;
    finished(epilogue.at(r * several.dense), to, n, stream, scratch,
             [&](auto* place, const auto& finish, Storing how) {
               standardize_runs(x + r * several.x, place, n, part, centers + r * several.center,
                                by_run(scale).from(r), finish, how);
             });
  }
}

}  // namespace evenorm::EVENORM_ISA
