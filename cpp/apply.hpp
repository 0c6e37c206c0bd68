// Apply: y = activation(xhat * weight + bias + residual) on a dense run.
#pragma once

#include "epilogue.hpp"

namespace evenorm::EVENORM_ISA {

// A statistic as it is applied.
struct Center {
  double mean, rstd;

  // Whether float32 can hold every step, here and on the way back, where a gradient is multiplied by deviations and not
  // by xhat; what is outside of it is worked in float64.
  bool narrow() const {
    double size = std::fabs(mean);
    return (size <= 0x1p80) & ((size >= 0x1p-80) | (size == 0)) & (rstd >= 0x1p-40) & (rstd <= 0x1p24);
  }
  double xhat(double x) const { return (x - mean) * rstd; }
};

inline void rstds(const double* m2, Size count, double values, double eps, double* rstd) {
  for (Size k = 0; k < count; ++k) rstd[k] = 1 / std::sqrt(m2[k] / values + eps);
}

// d = x - high, the deviation from the mean in R. That alone would cost 6e-8 * |mean| / sigma, so what is made of d adds
// high - mean.
template <class R>
struct Deviation {
  Vec<R> high;

  explicit Deviation(const Center& c) : high(splat<R>(R(c.mean))) {}

  static double rest(const Center& c) { return double(R(c.mean)) - c.mean; }

  template <class Lanes>
  Vec<R> deviation(Vec<R> x, Size, Lanes) const {
    return x - high;
  }
};

// xhat = d * rstd + rest.
template <class R>
struct Standardize : Deviation<R> {
  Vec<R> rstd, rest;

  explicit Standardize(const Center& c)
      : Deviation<R>(c), rstd(splat<R>(R(c.rstd))), rest(splat<R>(R(Deviation<R>::rest(c) * c.rstd))) {}

  template <class Lanes>
  Vec<R> xhat(Vec<R> d, Size, Lanes) const {
    return multiply_add(d, rstd, rest);
  }
};

// z of a run's deviations: xhat, then the scale of each element.
template <class R, class Scale>
struct Line : Standardize<R> {
  Scale scale;

  Line(const Center& c, const Scale& s) : Standardize<R>(c), scale(s) {}

  template <class Lanes>
  Vec<R> z(Vec<R> d, Size i, Lanes lanes) const {
    return scale.affine(this->xhat(d, i, lanes), i, lanes);
  }
  // rstd * w * dz + rest.
  template <class Lanes>
  Vec<R> weighed(Vec<R> dz, Vec<R> rest, Size i, Lanes lanes) const {
    return multiply_add(scale.scaled(dz, i, lanes), this->rstd, rest);
  }
};

// Where the run has one scale, both in one step.
template <class R>
struct Line<R, Uniform<R>> : Deviation<R> {
  Vec<R> slope, level;

  Line(const Center& c, const Uniform<R>& s)
      : Deviation<R>(c), slope(splat<R>(R(c.rstd * double(s.w)))),
        level(splat<R>(R(Deviation<R>::rest(c) * (c.rstd * double(s.w)) + double(s.b)))) {}

  template <class Lanes>
  Vec<R> z(Vec<R> d, Size, Lanes) const {
    return multiply_add(d, slope, level);
  }
  template <class Lanes>
  Vec<R> weighed(Vec<R> dz, Vec<R> rest, Size, Lanes) const {
    return multiply_add(dz, slope, rest);
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

// All of them in vectors, and what is read `later` asked for, so far on from each element, if known.
template <class T, class To, class Standard, class Make>
inline void apply_vectors(const T* x, To* y, Size n, Size later, const Standard& standard, const Make& make,
                          bool stream) {
  using R = Real<T>;
  constexpr Size next = kAhead / Size(sizeof(To));
  auto put = [&](Size i, Vec<R> z, auto lanes) { store<To, R>(y + i, z, lanes); };
  each_stored<R>(y, n, stream, [&](Size i, auto lanes) {
    if (later) foresee(x + i + later);
    if (!stream) foresee_store(y + i + next);
    return make(standard.deviation(load<R>(x + i, lanes), i, lanes), i, lanes);
  }, put);
}

// The same with the line, and where xhat is rounded to the element type with what makes it.
template <class T, class To, class L, class Standard, class Scale, class Finish>
inline void apply_line(const T* x, To* y, Size n, Size later, const L& line, const Standard& standard,
                       const Scale& scale, const Finish& finish, Storing how) {
  using R = Real<T>;
  if (!std::is_same_v<R, T> && how.round_normalized) {
    auto make = [&](Vec<R> d, Size i, auto lanes) {
      Vec<R> xhat = through<T, R>(standard.xhat(d, i, lanes));
      return finish(scale.affine(xhat, i, lanes), i, lanes);
    };
    apply_vectors(x, y, n, later, standard, make, false);
  } else {
    auto make = [&](Vec<R> d, Size i, auto lanes) { return finish(line.z(d, i, lanes), i, lanes); };
    apply_vectors(x, y, n, later, line, make, how.stream);
  }
}

// Runs that are worked in one call: how far apart they lie, whether the next one has a center of its own, and how far
// on from an element lies one that is read after all of them, if known.
struct Several {
  Size runs = 1, x = 0, dy = 0, dense = 0, center = 0, later = 0;
};

template <class T, class To, class Scale, class Finish>
EVENORM_LOOP void standardize_runs(const T* x, To* y, Size n, Several several, const Center* centers,
                                   Scale scale, Finish finish, Storing how) {
  for (Size r = 0; r < several.runs; ++r) {
    const Center& center = centers[r * several.center];
    Finish at = finish.at(r * several.dense);
    auto own = scale.at(r);
    if (center.narrow() && own.narrow()) {
      using R = Real<T>;
      apply_line(x, y, n, several.later, Line<R, decltype(own)>(center, own), Standardize<R>(center), own, at, how);
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
                                scale.from(r), finish, how);
             });
  }
}

}  // namespace evenorm::EVENORM_ISA
