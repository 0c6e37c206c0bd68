// Apply: y = xhat * weight + bias on a dense run, in float32 or float64.
#pragma once

#include "element.hpp"

namespace evenorm::EVENORM_ISA {

// A statistic as it is applied.
struct Center {
  double mean, rstd;

  // Whether float32 can hold every step; what is outside of it is applied in float64.
  bool narrow() const {
    return mean <= 0x1p100 && mean >= -0x1p100 && rstd >= 0x1p-80 && rstd <= 0x1p80;
  }
};

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
  Vec<R> w, b;

  template <class Lanes>
  Vec<R> weight(Size, Lanes) const {
    return w;
  }
  template <class Lanes>
  Vec<R> affine(Vec<R> xhat, Size, Lanes) const {
    return xhat * w + b;
  }
  double weight(Size) const { return double(w[0]); }
  double affine(double xhat, Size) const { return xhat * double(w[0]) + double(b[0]); }
};

// One weight, and bias where there is one, for each element of the run.
template <class R, class P, bool kBias>
struct Elementwise {
  const P* w;
  const P* b;

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

// Calls f with the scale for the parameters at `index`, computed in R.
template <class R, class P, class F>
inline void with_scale(const P& parameters, Size index, F&& f) {
  using Q = std::remove_const_t<std::remove_pointer_t<decltype(parameters.weight())>>;
  if (!parameters.by_element()) {
    f(Uniform<R>{splat<R>(R(parameters.weight(index))), splat<R>(R(parameters.bias(index)))});
  } else if (parameters.bias()) {
    f(Elementwise<R, Q, true>{parameters.weight() + index, parameters.bias() + index});
  } else {
    f(Elementwise<R, Q, false>{parameters.weight() + index, nullptr});
  }
}

template <class R, class T, class Scale>
inline void apply_run(const T* x, T* y, Size n, const Center& center, const Scale& scale,
                      bool round_normalized) {
  Standardize<R> standardize(center);
  if (round_normalized) {
    each_vector<R>(n, [&](Size i, auto lanes) {
      Vec<R> xhat = through<T, R>(standardize(load<R>(x + i, lanes)));
      store<T, R>(y + i, scale.affine(xhat, i, lanes), lanes);
    });
  } else {
    each_vector<R>(n, [&](Size i, auto lanes) {
      Vec<R> xhat = standardize(load<R>(x + i, lanes));
      store<T, R>(y + i, scale.affine(xhat, i, lanes), lanes);
    });
  }
}

}  // namespace evenorm::EVENORM_ISA
