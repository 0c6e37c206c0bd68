// One row of many columns, each with a statistic of its own: apply and the input's gradient.
#pragma once

#include "gradient.hpp"

namespace evenorm::EVENORM_ISA {

// What a block of columns is worked with, laid out in memory that threads share, and three arrays that each
// has for itself. Odd columns are those that float32 cannot hold.
template <class R>
struct Slab {
  Size room;
  double *partial, *mean, *rstd, *c1, *c2;
  Center* centers;  // of groups whose runs are worked one by one
  Pull* pulls;
  R *high, *low, *scale, *pull1, *pull2, *guess, *chain1, *chain2;
  Size *odds, *odd;

  static Size rounded(Size width) { return (width + 15) / 16 * 16; }
  static Size shared(Size width, Size pieces) { return rounded(width) * (10 + 2 * pieces) + rounded(width) / 4 + 16; }
  static Size own(Size width) { return 3 * rounded(width); }

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
    centers = reinterpret_cast<Center*>(take(room / 8));
    pulls = reinterpret_cast<Pull*>(take(room / 8));
    chain1 = reinterpret_cast<R*>(own);
    chain2 = reinterpret_cast<R*>(own + room);
    guess = reinterpret_cast<R*>(own + 2 * room);
  }

  // From mean, rstd, c1 and c2 what they are in R, and which columns are odd.
  void settle(Size width) {
    for (Size k = 0; k < width; ++k) high[k] = R(mean[k]);
    for (Size k = 0; k < width; ++k) low[k] = R(mean[k] - double(high[k]));
    for (Size k = 0; k < width; ++k) scale[k] = R(rstd[k]);
    for (Size k = 0; k < width; ++k) pull1[k] = -R(c1[k]);
    for (Size k = 0; k < width; ++k) pull2[k] = -R(c2[k]);
    Size wide = 0;
    for (Size k = 0; k < width; ++k) wide += !center(k).narrow() | !pull(k).narrow();
    *odds = 0;
    for (Size k = 0; wide && k < width; ++k) {
      if (!(center(k).narrow() && pull(k).narrow())) odd[(*odds)++] = k;
    }
  }

  // xhat of a vector of columns.
  template <class Lanes>
  Vec<R> operator()(Vec<R> x, Size i, Lanes lanes) const {
    return ((x - load<R>(high + i, lanes)) - load<R>(low + i, lanes)) * load<R>(scale + i, lanes);
  }
  Center center(Size i) const { return {mean[i], rstd[i]}; }
  Pull pull(Size i) const { return {c1[i], c2[i]}; }
};

// Chains are padded to whole vectors.
template <class R>
inline void add_to(R* chain, Vec<R> v) {
  write(chain, read<Vec<R>>(chain) + v);
}
template <class R>
inline void add_to(R* chain, Vec<R> a, Vec<R> b) {
  write(chain, multiply_add(a, b, read<Vec<R>>(chain)));
}

template <class R>
inline void clear_chains(const Slab<R>& slab) {
  for (Size k = 0; k < slab.room; ++k) slab.chain1[k] = slab.chain2[k] = 0;
}

// Works a row in R and its odd columns in float64. These are computed first, since the row may be
// overwritten, and written last. Neither is a chain in use then, so there is room.
template <class R, class Exact, class Put, class Fast>
inline void with_odd(const Slab<R>& slab, Size width, const Exact& exact, const Put& put,
                     const Fast& fast) {
  if (*slab.odds == 0) return fast();
  auto* saved = reinterpret_cast<decltype(exact(0))*>(slab.chain1);
  for (Size k = 0; k < *slab.odds; ++k) {
    if (slab.odd[k] < width) saved[k] = exact(slab.odd[k]);
  }
  fast();
  for (Size k = 0; k < *slab.odds; ++k) {
    if (slab.odd[k] < width) put(slab.odd[k], saved[k]);
  }
}

template <class T, class To, class R, class Scale, class Finish>
EVENORM_LOOP void standardize_row(const T* x, To* y, Size width, Slab<R> slab, Scale scale,
                                  Finish finish, Storing how) {
  auto exact = [&](Size k) {
    return exact_apply<T, To>(x[k], slab.center(k), scale, finish, k, how.round_normalized);
  };
  with_odd(slab, width, exact, [&](Size k, To value) { y[k] = value; },
           [&] { apply_vectors(x, y, width, slab, scale, finish, how); });
}

template <class T, class R, class Scale>
inline void apply_row(const T* x, T* y, Size width, const Slab<R>& slab, const Scale& scale,
                      const Epilogue<T>& epilogue, bool stream) {
  finished(epilogue, y, width, stream, slab.guess, [&](auto* to, const auto& finish, Storing how) {
    standardize_row(x, to, width, slab, scale, finish, how);
  });
}

// The way back for a row.
template <class T, class R, class Scale, class Back>
inline auto with_row_way(const T* x, Size width, const Slab<R>& slab, const Scale& scale,
                         const Epilogue<T>& epilogue, const Back& back) {
  auto loop = [&](auto* to, const auto& finish, Storing how) {
    standardize_row(x, to, width, slab, scale, finish, how);
  };
  return with_way(epilogue, scale, width, slab.guess, loop, back);
}

template <class T, class R, class Scale, class Way>
EVENORM_LOOP void pull_row(const T* dy, const T* x, T* dx, T* dz, Size width, Slab<R> slab,
                           Scale scale, Way way, bool stream) {
  each_stored<R>(dx, width, stream, [&](Size i, auto lanes) {
    Vec<R> xhat = x ? slab(load<R>(x + i, lanes), i, lanes) : Vec<R>{};
    Vec<R> d = way(load<R>(dy + i, lanes), xhat, i, lanes), dz = d;
    d = multiply_add(d, scale.weight(i, lanes), load<R>(slab.pull1 + i, lanes));
    if (x) d = multiply_add(xhat, load<R>(slab.pull2 + i, lanes), d);
    return GradVectors<R>{d * load<R>(slab.scale + i, lanes), dz};
  }, put_gradients<R>(dx, dz));
}

template <class T, class R, class Scale>
inline void grad_input_row(const T* dy, const T* x, T* dx, Size width, const Slab<R>& slab,
                           const Scale& scale, const Epilogue<T>& epilogue, bool stream) {
  T* dz = epilogue.d_residual;
  bool both = stream && (!dz || alike(dx, dz));
  auto put = [&](Size k, const InputGradient<T>& d) {
    dx[k] = d.dx;
    if (dz) dz[k] = d.dz;
  };
  with_row_way(x, width, slab, scale, epilogue, [&](const auto& way) {
    auto exact = [&](Size k) {
      return exact_grad_input(dy, x, slab.center(k), slab.pull(k), scale, epilogue, k);
    };
    with_odd(slab, width, exact, put, [&] {
      pull_row(dy, x, dx, dz, width, slab, scale.weights(), way, both);
    });
  });
}

}  // namespace evenorm::EVENORM_ISA
