// One row of many columns, each with a statistic of its own: apply and the input's gradient.
#pragma once

#include "gradient.hpp"

namespace evenorm::EVENORM_ISA {

// What a block of columns is worked with, laid out in memory that threads share, and two arrays that each
// has for itself. Odd columns are those that float32 cannot hold.
template <class R>
struct Slab {
  Size room;
  double *partial, *mean, *rstd, *c1, *c2;
  R *high, *low, *scale, *pull1, *pull2, *chain1, *chain2;
  Size *odds, *odd;

  static Size rounded(Size width) { return (width + 15) / 16 * 16; }
  static Size shared(Size width, Size pieces) { return rounded(width) * (10 + 2 * pieces) + 16; }
  static Size own(Size width) { return 2 * rounded(width); }

  Slab(double* shared, double* own, Size width, Size pieces) : room(rounded(width)) {
    auto take = [&](Size count) {
      double* taken = shared;
      shared += count;
      return taken;
    };
    auto reals = [&] { return reinterpret_cast<R*>(take(room)); };
    partial = take(2 * pieces * room);
    mean = take(room), rstd = take(room), c1 = take(room), c2 = take(room);
    high = reals(), low = reals(), scale = reals(), pull1 = reals(), pull2 = reals();
    odd = reinterpret_cast<Size*>(take(room));
    odds = reinterpret_cast<Size*>(take(16));
    chain1 = reinterpret_cast<R*>(own);
    chain2 = reinterpret_cast<R*>(own + room);
  }

  void set(Size k, const Center& center, const Pull& pull) {
    mean[k] = center.mean;
    rstd[k] = center.rstd;
    c1[k] = pull.c1;
    c2[k] = pull.c2;
    high[k] = R(center.mean);
    low[k] = R(center.mean - double(high[k]));
    scale[k] = R(center.rstd);
    pull1[k] = R(pull.c1);
    pull2[k] = R(pull.c2);
    if (!(center.narrow() && pull.narrow())) odd[(*odds)++] = k;
  }

  template <class Lanes>
  Vec<R> xhat(Vec<R> x, Size i, Lanes lanes) const {
    return ((x - load<R>(high + i, lanes)) - load<R>(low + i, lanes)) * load<R>(scale + i, lanes);
  }
  double xhat(double x, Size i) const { return (x - mean[i]) * rstd[i]; }
};

// Works a row in R and its odd columns in float64. These are computed first, since the row may be
// overwritten, and written last.
template <class T, class R, class Exact, class Fast>
inline void with_odd(const Slab<R>& slab, Size width, T* to, const Exact& exact, const Fast& fast) {
  if (*slab.odds == 0) return fast();
  T* saved = reinterpret_cast<T*>(slab.chain1);
  for (Size k = 0; k < *slab.odds; ++k) {
    if (slab.odd[k] < width) saved[k] = rounded<T>(exact(slab.odd[k]));
  }
  fast();
  for (Size k = 0; k < *slab.odds; ++k) {
    if (slab.odd[k] < width) to[slab.odd[k]] = saved[k];
  }
}

template <class T, class R, class Scale>
inline void apply_row(const T* x, T* y, Size width, const Slab<R>& slab, const Scale& scale,
                      bool round_normalized) {
  auto exact = [&](Size k) {
    double xhat = slab.xhat(double(scalar(x[k])), k);
    if (round_normalized) xhat = double(scalar(rounded<T>(xhat)));
    return scale.affine(xhat, k);
  };
  with_odd(slab, width, y, exact, [&] {
    if (round_normalized) {
      each_vector<R>(width, [&](Size i, auto lanes) {
        Vec<R> xhat = through<T, R>(slab.xhat(load<R>(x + i, lanes), i, lanes));
        store<T, R>(y + i, scale.affine(xhat, i, lanes), lanes);
      });
    } else {
      each_vector<R>(width, [&](Size i, auto lanes) {
        Vec<R> xhat = slab.xhat(load<R>(x + i, lanes), i, lanes);
        store<T, R>(y + i, scale.affine(xhat, i, lanes), lanes);
      });
    }
  });
}

template <class T, class R, class Scale>
inline void grad_input_row(const T* dy, const T* x, T* dx, Size width, const Slab<R>& slab,
                           const Scale& scale) {
  auto exact = [&](Size k) {
    double d = double(scalar(dy[k])) * scale.weight(k) - slab.c1[k];
    if (x) d -= slab.xhat(double(scalar(x[k])), k) * slab.c2[k];
    return d * slab.rstd[k];
  };
  with_odd(slab, width, dx, exact, [&] {
    each_vector<R>(width, [&](Size i, auto lanes) {
      Vec<R> d = load<R>(dy + i, lanes) * scale.weight(i, lanes) - load<R>(slab.pull1 + i, lanes);
      if (x) d -= slab.xhat(load<R>(x + i, lanes), i, lanes) * load<R>(slab.pull2 + i, lanes);
      store<T, R>(dx + i, d * load<R>(slab.scale + i, lanes), lanes);
    });
  });
}

}  // namespace evenorm::EVENORM_ISA
