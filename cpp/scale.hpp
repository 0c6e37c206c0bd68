// Weight and bias of a dense run: one of each, or one for each element.
#pragma once

#include "element.hpp"

namespace evenorm::EVENORM_ISA {

// One weight and bias for the whole run.
template <class R>
struct Uniform {
  // Whether xhat may be rounded before it is scaled.
  static constexpr bool rounds = true;
  R w, b;

  Uniform weights() const { return {w, 0}; }
  Uniform at(Size) const { return *this; }

  template <class Lanes>
  Vec<R> scaled(Vec<R> v, Size, Lanes) const {
    return v * splat<R>(w);
  }
  template <class Lanes>
  Vec<R> affine(Vec<R> xhat, Size, Lanes) const {
    return multiply_add(xhat, splat<R>(w), splat<R>(b));
  }
  double weight(Size) const { return double(w); }
  double affine(double xhat, Size) const { return xhat * double(w) + double(b); }
  // Whether float32 can hold it times an rstd that is narrow.
  bool narrow() const {
    double size = std::fabs(double(w));
    return (size <= 0x1p80) & ((size >= 0x1p-80) | (size == 0)) & (std::fabs(double(b)) <= 0x1p100);
  }
};

// One weight and bias for each run, `step` apart; where there is none, 1 and 0.
template <class R>
struct Uniforms {
  static constexpr bool rounds = true;
  const R* w;
  const R* b;
  Size step;

  Uniforms weights() const { return {w, nullptr, step}; }
  Uniforms from(Size run) const { return {w ? w + run * step : w, b ? b + run * step : b, step}; }
  Uniform<R> at(Size run) const { return {w ? w[run * step] : R(1), b ? b[run * step] : R(0)}; }
};

// One weight, and bias where there is one, for each element of the run.
template <class R, bool kBias>
struct Elementwise {
  static constexpr bool rounds = true;
  const R* w;
  const R* b;

  Elementwise<R, false> weights() const { return {w, nullptr}; }
  Elementwise at(Size) const { return *this; }
  Elementwise from(Size) const { return *this; }

  template <class Lanes>
  Vec<R> weight(Size i, Lanes lanes) const {
    return load<R>(w + i, lanes);
  }
  template <class Lanes>
  Vec<R> scaled(Vec<R> v, Size i, Lanes lanes) const {
    return v * load<R>(w + i, lanes);
  }
  template <class Lanes>
  Vec<R> affine(Vec<R> xhat, Size i, Lanes lanes) const {
    Vec<R> scale = load<R>(w + i, lanes);
    if constexpr (kBias) return multiply_add(xhat, scale, load<R>(b + i, lanes));
    return xhat * scale;
  }
  double weight(Size i) const { return double(w[i]); }
  double affine(double xhat, Size i) const {
    return xhat * double(w[i]) + (kBias ? double(b[i]) : 0);
  }
  bool narrow() const { return true; }
};

// The same where the vectors that are worked with hold it already; weights and biases may be absent.
template <class R>
struct Folded {
  static constexpr bool rounds = false;
  const R* w;
  const R* b;

  Folded weights() const { return *this; }
  Folded at(Size) const { return *this; }

  template <class Lanes>
  Vec<R> scaled(Vec<R> v, Size, Lanes) const {
    return v;
  }
  template <class Lanes>
  Vec<R> affine(Vec<R> z, Size, Lanes) const {
    return z;
  }
  double weight(Size i) const { return w ? double(w[i]) : 1; }
  double affine(double xhat, Size i) const { return xhat * weight(i) + (b ? double(b[i]) : 0); }
};

// Calls f with the scale by element for the parameters from `index` on.
template <class Parameters, class F>
inline auto with_elements(const Parameters& parameters, Size index, const F& f) {
  using R = typename Parameters::Value;
  const R* w = parameters.weight() + index;
  if (parameters.bias()) return f(Elementwise<R, true>{w, parameters.bias() + index});
  return f(Elementwise<R, false>{w, nullptr});
}

// Calls f with the scale for the parameters at `index`.
template <class Parameters, class F>
inline auto with_scale(const Parameters& parameters, Size index, const F& f) {
  using R = typename Parameters::Value;
  if (parameters.by_element()) return with_elements(parameters, index, f);
  return f(Uniform<R>{parameters.weight(index), parameters.bias(index)});
}

}  // namespace evenorm::EVENORM_ISA
