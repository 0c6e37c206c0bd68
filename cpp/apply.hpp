// Apply: y = xhat * weight + bias on a dense run.
#pragma once

#include "element.hpp"

namespace evenorm::EVENORM_ISA {

// A statistic as it is applied.
struct Center {
  double mean, rstd;

  // Whether float32 can hold every step; what is outside of it is applied in float64.
  bool narrow() const {
    return (mean <= 0x1p100) & (mean >= -0x1p100) & (rstd >= 0x1p-80) & (rstd <= 0x1p80);
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

  Vec<R> operator()(Vec<R> x) const { return ((x - high) - low) * rstd; }
};

// One weight and bias for the whole run.
template <class R>
struct Uniform {
  R w, b;

  template <class Lanes>
  Vec<R> weight(Size, Lanes) const {
    return splat<R>(w);
  }
  template <class Lanes>
  Vec<R> affine(Vec<R> xhat, Size, Lanes) const {
    return xhat * w + b;
  }
  double weight(Size) const { return double(w); }
  double affine(double xhat, Size) const { return xhat * double(w) + double(b); }
};

// One weight, and bias where there is one, for each element of the run.
template <class R, bool kBias>
struct Elementwise {
  const R* w;
  const R* b;

  template <class Lanes>
  Vec<R> weight(Size i, Lanes lanes) const {
    return load<R>(w + i, lanes);
  }
  template <class Lanes>
  Vec<R> affine(Vec<R> xhat, Size i, Lanes lanes) const {
    Vec<R> scaled = xhat * load<R>(w + i, lanes);
    if constexpr (kBias) scaled += load<R>(b + i, lanes);
    return scaled;
  }
  double weight(Size i) const { return double(w[i]); }
  double affine(double xhat, Size i) const {
    return xhat * double(w[i]) + (kBias ? double(b[i]) : 0);
  }
};

// Calls f with the scale for the parameters at `index`.
template <class Parameters, class F>
inline void with_scale(const Parameters& parameters, Size index, F&& f) {
  using R = typename Parameters::Value;
  if (!parameters.by_element()) {
    f(Uniform<R>{parameters.weight(index), parameters.bias(index)});
  } else if (parameters.bias()) {
    f(Elementwise<R, true>{parameters.weight() + index, parameters.bias() + index});
  } else {
    f(Elementwise<R, false>{parameters.weight() + index, nullptr});
  }
}

// How results are stored: rounded to the element type before the scale, too; past the caches.
struct Storing {
  bool round_normalized, stream;
};

// One element in float64.
template <class T, class Scale>
inline T exact_apply(T x, const Center& center, const Scale& scale, Size i, bool round_normalized) {
  double xhat = center.xhat(double(scalar(x)));
  if (round_normalized) xhat = double(scalar(rounded<T>(xhat)));
  return rounded<T>(scale.affine(xhat, i));
}

template <class T, class Scale>
EVENORM_LOOP void apply_run(const T* x, T* y, Size n, const Center& center, Scale scale,
                            Storing how) {
  using R = Real<T>;
  if (!center.narrow()) {
    for (Size i = 0; i < n; ++i) y[i] = exact_apply(x[i], center, scale, i, how.round_normalized);
    return;
  }
  Standardize<R> standardize(center);
  if (how.round_normalized) {
    each_vector<R>(n, [&](Size i, auto lanes) {
      Vec<R> xhat = through<T, R>(standardize(load<R>(x + i, lanes)));
      store<T, R>(y + i, scale.affine(xhat, i, lanes), lanes);
    });
  } else {
    each_stored<R>(y, n, how.stream, [&](Size i, auto lanes) {
      Vec<R> xhat = standardize(load<R>(x + i, lanes));
      store<T, R>(y + i, scale.affine(xhat, i, lanes), lanes);
    });
  }
}

}  // namespace evenorm::EVENORM_ISA
