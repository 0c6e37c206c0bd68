// The backward verbs on a dense run: sums of the gradient, and the gradient of the input.
#pragma once

#include "apply.hpp"
#include "total.hpp"

namespace evenorm::EVENORM_ISA {

// Sums of w*dy and w*dy*xhat.
struct GradSums {
  double plain = 0, normalized = 0;

  void add(const GradSums& other, double scale = 1) {
    plain += scale * other.plain;
    normalized += scale * other.normalized;
  }
  bool finite() const { return std::fabs(plain) <= 1e300 && std::fabs(normalized) <= 1e300; }
};

// Sums along the run, of dy alone.
template <class T>
EVENORM_LOOP GradSums grad_sums_in(const T* dy, const T* x, Size n, const Center& center) {
  using R = Real<T>;
  Standardize<R> standardize(center);
  Total<R> plain, normalized;
  each_link<R>(
      n,
      [&](Size i, auto lanes, int chain) {
        Vec<R> d = load<R>(dy + i, lanes);
        Vec<R> xhat = keep<R>(standardize(load<R>(x + i, lanes)), lanes);
        plain.add(chain, d);
        normalized.add(chain, d * xhat);
      },
      [&] { plain.flush(), normalized.flush(); });
  return {plain.value(), normalized.value()};
}

template <class T>
inline GradSums exact_grad_sums(const T* dy, const T* x, Size n, const Center& center) {
  GradSums sum;
  for (Size i = 0; i < n; ++i) {
    double d = double(scalar(dy[i]));
    sum.add({d, d * center.xhat(double(scalar(x[i])))});
  }
  return sum;
}

// Sums along the run, of w*dy, and on the way dy*xhat and dy added element by element to `dw` and `db`.
template <bool kAdd, class T>
EVENORM_LOOP GradSums grad_sums_in(const T* dy, const T* x, Size n, const Center& center,
                                   const Real<T>* w, Real<T>* dw, Real<T>* db) {
  using R = Real<T>;
  Standardize<R> standardize(center);
  Total<R> plain, normalized;
  each_link<R>(
      n,
      [&](Size i, auto lanes, int chain) {
        Vec<R> d = load<R>(dy + i, lanes);
        Vec<R> xhat = keep<R>(standardize(load<R>(x + i, lanes)), lanes);
        if constexpr (kAdd) {
          store<R, R>(dw + i, load<R>(dw + i, lanes) + d * xhat, lanes);
          store<R, R>(db + i, load<R>(db + i, lanes) + d, lanes);
        }
        d *= load<R>(w + i, lanes);
        plain.add(chain, d);
        normalized.add(chain, d * xhat);
      },
      [&] { plain.flush(), normalized.flush(); });
  return {plain.value(), normalized.value()};
}

template <class T>
inline GradSums exact_grad_sums(const T* dy, const T* x, Size n, const Center& center,
                                const Real<T>* w, double* dw, double* db) {
  GradSums sum;
  for (Size i = 0; i < n; ++i) {
    double d = double(scalar(dy[i])), product = d * center.xhat(double(scalar(x[i])));
    sum.add({d, product}, double(w[i]));
    if (dw) dw[i] += product;
    if (db) db[i] += d;
  }
  return sum;
}

// What is subtracted from w*dy: c1 + xhat*c2.
struct Pull {
  double c1 = 0, c2 = 0;

  bool narrow() const { return (std::fabs(c1) <= 0x1p100) & (std::fabs(c2) <= 0x1p100); }
};

// One element in float64; `x` may be null.
template <class T>
inline T exact_grad_input(const T* dy, const T* x, const Center& center, const Pull& pull, double w) {
  double d = double(scalar(*dy)) * w - pull.c1;
  if (x) d -= center.xhat(double(scalar(*x))) * pull.c2;
  return rounded<T>(d * center.rstd);
}

// dx = rstd * (w*dy - c1 - xhat*c2), in this order: w*dy - c1 may cancel what alone would overflow.
template <class T, class Scale>
EVENORM_LOOP void grad_input_run(const T* dy, const T* x, T* dx, Size n, const Center& center,
                                 const Pull& pull, Scale scale, bool stream) {
  using R = Real<T>;
  if (!(center.narrow() && pull.narrow())) {
    for (Size i = 0; i < n; ++i) {
      dx[i] = exact_grad_input(dy + i, x ? x + i : nullptr, center, pull, scale.weight(i));
    }
    return;
  }
  Standardize<R> standardize(center);
  Vec<R> c1 = splat<R>(R(pull.c1)), c2 = splat<R>(R(pull.c2));
  if (x) {
    each_stored<R>(dx, n, stream, [&](Size i, auto lanes) {
      Vec<R> xhat = standardize(load<R>(x + i, lanes));
      Vec<R> d = load<R>(dy + i, lanes) * scale.weight(i, lanes) - c1 - xhat * c2;
      store<T, R>(dx + i, d * standardize.rstd, lanes);
    });
  } else {
    each_vector<R>(n, [&](Size i, auto lanes) {
      Vec<R> d = load<R>(dy + i, lanes) * scale.weight(i, lanes) - c1;
      store<T, R>(dx + i, d * standardize.rstd, lanes);
    });
  }
}

}  // namespace evenorm::EVENORM_ISA
